"""Small networks of the kinds that vendors have, with batch-norms as training leaves them, and recipes for them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from mpcd.daemon.model import architectures

RECIPE = """\
format = 1
name = "small-{size}"
[pixels]
range = "stored_bits"
low = 0.0
high = 1.0
[geometry]
crop = "centre"
size = {size}
interpolation = "bilinear-antialias"
[channels]
count = {channels}
mean = {mean}
std = {std}
[files]
multi_frame = "skip"
"""


def write_recipe(path: Path, size: int, channels: int = 1, mean: float = 0.4) -> Path:
    path.write_text(RECIPE.format(size=size, channels=channels, mean=[mean] * channels, std=[0.25] * channels))
    return path


def small_densenet(outputs: int, seed: int = 0) -> nn.Module:
    """DenseNet-121's operators in few layers: max pool, cat, transitions, average pool."""
    torch.manual_seed(seed)
    return _trained(architectures.DenseNet(outputs, 1, (2, 2), growth=4, stem=8), 1, 32)


def small_vgg(outputs: int, channels: int, size: int, seed: int = 1) -> nn.Module:
    """Convolutions with bias, max pools, flatten, two fully connected layers, dropout."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in ((channels, 8), (8, 16)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2)]
    flat = 16 * (size // 4) ** 2
    layers += [nn.Flatten(1), nn.Linear(flat, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, outputs)]
    return nn.Sequential(*layers).eval()


def resnet18(outputs: int, size: int, seed: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return _trained(architectures.build("resnet18", outputs), 3, size)


def _trained(model: nn.Module, channels: int, size: int) -> nn.Module:
    """Batch-norms with statistics of their inputs, and scales that are positive, negative and zero."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.3, 0.3)
        with torch.no_grad():
            norm.weight[0] *= -1
            norm.weight[1] = 0
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, channels, size, size))
    return model.eval()


def export(model: nn.Module, path: Path, channels: int, size: int) -> Path:
    program = torch.export.export(model, (torch.zeros(1, channels, size, size),))
    torch.export.save(program, path)
    return path


def save_weights(model: nn.Module, path: Path) -> Path:
    save_file(model.state_dict(), path)
    return path
