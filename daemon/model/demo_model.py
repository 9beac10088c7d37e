"""A DenseNet-121 for synthetic radiographs, without download or training: random features, fitted classifier.

Random convolutions, batch-norms whose statistics come from running the training images through (a few with negative
or tiny scales, as longer-trained networks have), and a ridge regression from pooled features to labels. Good for
demonstrations: an AUROC well above one half on phantoms, at no medical value. The same seed and images give the
same model on one kind of machine::

    python -m mpcd.daemon.model.demo_model MODEL.safetensors --images 96 --seed 7
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor, nn

from mpcd.daemon.files import write_private
from mpcd.daemon.image import phantom, preprocess, recipe
from mpcd.daemon.image.dicom import Radiograph
from mpcd.daemon.model.architectures import DenseNet

RECIPE = "imagenet-224"
RIDGE = 1.0  # of the mean diagonal of the images' Gram matrix
SPREAD = 2.0  # logits' deviation from their mean where the fit is perfect

Image = npt.NDArray[np.float32]
Progress = Callable[[str, int, int], None]


def build(
    images: Sequence[Image],
    labels: npt.NDArray[np.bool_],
    *,
    blocks: tuple[int, ...] = (6, 12, 24, 16),
    seed: int = 1,
    progress: Progress = lambda stage, done, total: None,
) -> DenseNet:
    """A DenseNet (121 layers by default) fitted to ``images`` (channels, size, size) and ``labels`` (n, findings)."""
    generator = torch.Generator().manual_seed(seed)
    model = DenseNet(labels.shape[1], images[0].shape[0], blocks)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                _scales(module, generator)
        _normalise(model, images, progress)
        rows = []
        for i, image in enumerate(images):
            rows.append(model.pooled(torch.from_numpy(image)[None])[0])
            progress("features", i + 1, len(images))
        weight, bias = ridge(torch.stack(rows).double().numpy(), labels)
        model.classifier.weight.copy_(torch.from_numpy(weight))
        model.classifier.bias.copy_(torch.from_numpy(bias))
    return model.eval()


def ridge(
    features: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Weights (findings, features) and biases of a ridge regression to labels of +-1, balanced, times SPREAD / 2."""
    centre = features.mean(0)
    scale = features.std(0) + 1e-3 * features.std()
    x = (features - centre) / scale
    y = np.where(labels, 1.0, -1.0)
    y = y - y.mean(0)
    gram = x @ x.T
    dual = np.linalg.solve(gram + RIDGE * gram.diagonal().mean() * np.eye(len(x)), y)
    weight = (x.T @ dual).T / scale * SPREAD / 2
    return weight, -weight @ centre


def _scales(norm: nn.BatchNorm2d, generator: torch.Generator) -> None:
    """Mostly near 1; one in twenty negative, one in fifty almost nothing."""
    size = norm.weight.shape
    scale = torch.empty(size).uniform_(0.7, 1.3, generator=generator)
    kind = torch.rand(size, generator=generator)
    scale[kind < 0.05] *= -1
    scale[kind > 0.98] *= 1e-3
    norm.weight.copy_(scale)
    norm.bias.copy_(torch.empty(size).normal_(0, 0.3, generator=generator))


def _normalise(model: DenseNet, images: Sequence[Image], progress: Progress) -> None:
    """Batch-norm statistics: those of the images, passed through in one batch a time."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain average over the batches
            module.reset_running_stats()
    model.train()
    batches = [images[i : i + 8] for i in range(0, len(images), 8)]
    for i, batch in enumerate(batches):
        stacked: Tensor = torch.from_numpy(np.stack(batch))
        model.pooled(stacked)
        progress("batch-norm statistics", i + 1, len(batches))
    model.eval()


def training_set(images: int, seed: int) -> tuple[list[Image], npt.NDArray[np.bool_]]:
    """Phantoms preprocessed for the model, and their labels in the order of phantom.FINDINGS."""
    known = phantom.labels(images, seed)
    chosen = recipe.load(RECIPE)
    pixels = [
        preprocess.prepare(Radiograph("", phantom.draw(seed, i, row), 16, "", "", "", False), chosen)
        for i, row in enumerate(known)
    ]
    return pixels, np.array([[row[finding] for finding in phantom.FINDINGS] for row in known])


def main(arguments: list[str] | None = None) -> int:
    """Command line: OUT --images N --seed S. Progress on stderr."""
    parser = argparse.ArgumentParser(prog="python -m mpcd.daemon.model.demo_model", description="Build a demo model.")
    parser.add_argument("model", type=Path, help="the .safetensors file to write")
    parser.add_argument("--images", type=int, default=96, help="training phantoms (default 96)")
    parser.add_argument("--seed", type=int, default=1001, help="of the training phantoms and the weights")
    options = parser.parse_args(arguments)
    if options.images < 8:
        parser.error("--images must be at least 8")

    def report(stage: str, done: int, total: int) -> None:
        if done == total or done % 8 == 0:
            print(f"{stage}: {done} of {total}", file=sys.stderr, flush=True)

    pixels, labels = training_set(options.images, options.seed)
    model = build(pixels, labels, seed=options.seed, progress=report)
    write_private(options.model, safetensors.torch.save(model.state_dict()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
