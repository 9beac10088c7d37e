"""Whole architectures with random weights and lively batch-norms, integer against float."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from mpcd.daemon.model import architectures
from mpcd.daemon.model.architectures import VGG


def settle(model: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """Batch-norm statistics from random images, then scales of mixed size and sign."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5).mul_(torch.where(torch.rand(norm.weight.shape) < 0.1, -1.0, 1.0))
            norm.bias.normal_(0, 0.3)
            norm.momentum = 1.0
        if norms:
            model.train()(torch.from_numpy(np.random.default_rng(5).normal(size=(8, *shape)).astype(np.float32)))
    return model.eval()


@pytest.mark.parametrize(("arch", "adds"), [("resnet18", 8), ("resnet50", 16)])
def test_resnet(measure, arch: str, adds: int) -> None:
    shape = (3, 64, 64)
    model = settle(architectures.build(arch, 4), shape)
    found = measure(model, shape)
    kinds = Counter(found.kinds())
    assert kinds["Add"] == adds
    assert kinds["Extend"] == 0
    assert found.difference < 0.01 * max(1.0, np.abs(found.logits).max())


def test_squeezenet(measure) -> None:
    found = measure(architectures.build("squeezenet1_1", 4, in_channels=1), (1, 63, 63))
    kinds = Counter(found.kinds())
    assert kinds["Extend"] == 0
    assert kinds["Concat"] == 8
    assert found.difference < 0.01


@pytest.mark.parametrize("batch_norm", [False, True])
def test_small_vgg(measure, batch_norm: bool) -> None:
    """Its 7x7 average of a 7x7 image costs nothing."""
    model = VGG(3, 1, (8, 0, 16, 16, 0), batch_norm, hidden=32)
    found = measure(settle(model, (1, 28, 28)), (1, 28, 28))
    kinds = Counter(found.kinds())
    assert (kinds["MaxPool"], kinds["Reshape"], kinds["SumPool"], kinds["Grow"]) == (2, 1, 0, 5)
    assert found.difference < 0.01
