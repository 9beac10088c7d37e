"""A model compiled in memory and measured against its float self."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")  # the model owner's extra
pytest.importorskip("safetensors")

import torch
from torch import nn

from mpcd.daemon.model import artifact, calibrate, floats, graph
from mpcd.daemon.model.compile import Compiled, compile_graph
from mpcd.daemon.model.nodes import Graph
from mpcd.daemon.model.rewrite import rewrite


@dataclasses.dataclass
class Measured:
    """``difference``: largest between integer and float logits on images that calibration did not see."""

    graph: Graph
    compiled: Compiled
    logits: npt.NDArray[np.float64]
    difference: float

    def kinds(self) -> list[str]:
        return [type(op).__name__ for op in self.compiled.network.ops]


Measure = Callable[..., Measured]


def _measure(
    module: nn.Module, shape: tuple[int, int, int], *, bits: int = 21, fraction: int = 16, seed: int = 0
) -> Measured:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(10, *shape)).astype(np.float32)
    read = graph.from_module(module, shape)
    with torch.inference_mode():
        reference = module.eval()(torch.from_numpy(images[6:])).double().numpy()
    small = rewrite(read)
    np.testing.assert_allclose(floats.run(read, images[6:]), reference, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(floats.run(small, images[6:]), reference, rtol=1e-3, atol=1e-4)
    seen, _ = floats.ranges(small, images[:6])
    findings = tuple(f"f{i}" for i in range(reference.shape[1]))
    compiled = compile_graph(small, seen, name="t", findings=findings, bits=bits, fraction=fraction)
    artifact.verify(compiled.network, compiled.numbers)
    found = np.stack([calibrate.integer_logits(compiled.network, compiled.numbers, i) for i in images[6:]])
    return Measured(small, compiled, reference, float(np.abs(found - reference).max()))


@pytest.fixture(scope="session")
def measure() -> Measure:
    return _measure


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)
