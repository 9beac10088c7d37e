"""Linear layers of DenseNet-121: matrix triples for a batch, and the product online, image by image."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mpcd.daemon.bench.options import Options
from mpcd.daemon.bench.party import Party
from mpcd.daemon.control.server import UsageError
from mpcd.protocol import linear, preprocessing
from mpcd.protocol.channel import MODEL_OWNER, Channel
from mpcd.protocol.correlations import Need
from mpcd.protocol.network import Input, Linear, LinearNumbers, Network, PrivateNumbers, Value, windows
from mpcd.protocol.randomness import Prg

BITS = 33
L1 = 1 << 22  # of a row of weights

DERIVED: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    inputs: int
    size: int
    outputs: int
    kernel: int = 1
    stride: int = 1

    @property
    def name(self) -> str:
        """As on the command line."""
        step = f"/{self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}x{self.kernel}{step} {self.inputs}-{self.outputs} {self.size}"

    def network(self) -> Network:
        padding = self.kernel // 2
        out = windows(self.size, self.kernel, self.stride, padding)
        values = (
            Value((self.inputs, self.size, self.size), BITS),
            Value((self.outputs, out, out), BITS),
        )
        pair = (self.kernel, self.kernel), (self.stride, self.stride), (padding, padding)
        return Network("layer", values, (Input(0), Linear((0,), 1, *pair, 1)), 1, 1.0, 1.0, (), {1: L1})


SHAPES = (
    Shape(3, 224, 64, 7, 2),
    Shape(256, 56, 128),
    Shape(128, 56, 32, 3),
    Shape(512, 28, 128),
    Shape(128, 28, 32, 3),
    Shape(1024, 14, 128),
    Shape(128, 14, 32, 3),
    Shape(1024, 7, 128),
    Shape(128, 7, 32, 3),
)


def weights(rng: np.random.Generator, shape: tuple[int, ...], l1: int) -> Any:
    """Random integer weights whose rows sum to about half of ``l1``, at most to ``l1``."""
    per_row = int(np.prod(shape[1:]))
    drawn = rng.normal(0, l1 / 2 / per_row * np.sqrt(np.pi / 2), shape)
    rows = np.abs(drawn).sum(tuple(range(1, len(shape))), keepdims=True) + per_row
    return np.rint(drawn * np.minimum(1, l1 / rows)).astype(np.int64)


async def once(party: Party, options: Options, small: bool) -> None:
    batch = 1 if small else options.batch
    for shape in _chosen(options):
        network = Shape(2, 4, 2, shape.kernel, shape.stride).network() if small else shape.network()
        party.say(f"linear: {shape.name}")
        numbers: PrivateNumbers | None = None
        if party.number == MODEL_OWNER:
            out, channels = network.values[1].shape[0], network.values[0].shape[0]
            weight = weights(np.random.default_rng(), (out, channels, shape.kernel, shape.kernel), L1)
            numbers = {1: LinearNumbers(weight, np.zeros((out, 1, 1), np.int64))}
        seeds = [Prg.fresh().seed() for _ in range(batch)]
        kept = [_Kept() for _ in range(batch)]
        channel = party.channel()
        async with party.measure(f"{shape.name}, triples", batch, "image"):
            await party.drive(preprocessing.make_matrix_triples(channel, network, numbers, seeds, kept, _nobody))
        shares = [Prg.fresh().uniform(network.values[0].shape, BITS) for _ in range(batch)]
        async with party.measure(f"{shape.name}, online", batch, "image"):
            for x, one in zip(shares, kept, strict=True):
                await party.drive(_apply(channel, network, numbers, x, one))


def _chosen(options: Options) -> tuple[Shape, ...]:
    unknown = set(options.layers) - {shape.name for shape in SHAPES}
    if unknown:
        there = ", ".join(repr(shape.name) for shape in SHAPES)
        raise UsageError(f"no such layer: {', '.join(sorted(unknown))}; there are {there}")
    return tuple(shape for shape in SHAPES if not options.layers or shape.name in options.layers)


class _Kept:
    """Sink and source of one image's triple."""

    def __init__(self) -> None:
        self._correlation: Any = None

    def put(self, need: Need, correlation: Any) -> None:
        self._correlation = correlation

    def take(self, need: Need) -> Any:
        return self._correlation


async def _apply(channel: Channel, network: Network, numbers: PrivateNumbers | None, x: Any, kept: _Kept) -> None:
    if numbers is not None:
        own = numbers[1]
        assert isinstance(own, LinearNumbers)
        await linear.linear_server(channel, kept, network, 1, own, x)
    else:
        await linear.linear_client(channel, kept, network, 1, x)


def _nobody(work: int) -> None:
    """Progress nobody looks at."""
