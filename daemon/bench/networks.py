"""DenseNet as the model compiler makes it, with random weights: its shapes and rings, without PyTorch.

Huang et al. 2017. Batch-norms are thresholds with random directions; transitions pool before they convolve.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mpcd.daemon.bench.linear import weights
from mpcd.protocol import network as net
from mpcd.protocol.network import GrowNumbers, LinearNumbers, Network, PrivateNumbers, ReluNumbers, Value, windows

K, F = 17, 16
WIDE = K + F
L1 = 1 << 22
SEED = 121


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    size: int
    blocks: tuple[int, ...]
    stem: int = 64
    growth: int = 32
    findings: int = 14


BUILT_IN = {
    "densenet121": Plan(224, (6, 12, 24, 16)),
    "densenet-small": Plan(64, (2, 2), 16, 8, 3),
    "densenet-tiny": Plan(16, (1, 1), 4, 4, 2),
}


def build(name: str) -> tuple[Network, PrivateNumbers]:
    """The same numbers every time. KeyError for a name that is none of BUILT_IN."""
    plan = BUILT_IN[name]
    b = _Builder(name)
    x = b.truncate(b.linear(b.input(plan.size), plan.stem, 7, 2))
    features = [b.relu(b.max_pool(x), False)]
    for index, layers in enumerate(plan.blocks):
        for _ in range(layers):
            y = b.linear(b.grow(b.relu(b.concat(features), True), True), 4 * plan.growth)
            y = b.grow(b.truncate_relu(y), False)
            features.append(b.truncate(b.linear(y, plan.growth, 3)))
        wide = b.grow(b.relu(b.concat(features), True), True)
        if index + 1 < len(plan.blocks):
            pooled = b.sum_pool(wide, 2)
            features = [b.truncate(b.linear(pooled, b.values[pooled].shape[0] // 2))]
    head = b.sum_pool(wide, b.values[wide].shape[1])
    return b.finish(b.truncate(b.linear(head, plan.findings)))


class _Builder:
    """Appends operations; keeps values, private numbers and the bounds on weights."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: list[Value] = []
        self._rng = np.random.default_rng(SEED)
        self._ops: list[net.Op] = []
        self._numbers: PrivateNumbers = {}
        self._l1: dict[int, int] = {}

    def input(self, size: int) -> int:
        return self._append(net.Input, (), (3, size, size), WIDE)

    def linear(self, x: int, outputs: int, kernel: int = 1, stride: int = 1) -> int:
        channels, size, _ = self.values[x].shape
        padding = kernel // 2
        out = windows(size, kernel, stride, padding)
        index = len(self._ops)
        half = 1 << (WIDE - 3)
        self._l1[index] = L1
        self._numbers[index] = LinearNumbers(
            weights(self._rng, (outputs, channels, kernel, kernel), L1),
            self._rng.integers(-half, half, (outputs, 1, 1)),
        )
        pair = (kernel, kernel), (stride, stride), (padding, padding)
        return self._append(net.Linear, (x,), (outputs, out, out), WIDE, *pair, 1)

    def truncate(self, x: int) -> int:
        return self._append(net.Truncate, (x,), self.values[x].shape, K, F)

    def truncate_relu(self, x: int) -> int:
        return self._append(net.TruncateRelu, (x,), self.values[x].shape, K, F)

    def relu(self, x: int, secret: bool) -> int:
        if secret:
            channels = self.values[x].shape[0]
            threshold = self._rng.integers(-(1 << (K - 3)), 1 << (K - 3), channels)
            self._numbers[len(self._ops)] = ReluNumbers(threshold, self._rng.random(channels) < 0.05)
        return self._append(net.Relu, (x,), self.values[x].shape, K, secret)

    def grow(self, x: int, secret: bool) -> int:
        if secret:
            own = self._numbers[len(self._ops) - 1]  # of the Relu before
            assert isinstance(own, ReluNumbers)
            self._numbers[len(self._ops)] = GrowNumbers(np.where(own.negative, (1 << (K - 1)) - 1, 0).astype(np.int64))
        return self._append(net.Grow, (x,), self.values[x].shape, WIDE, secret)

    def max_pool(self, x: int) -> int:
        channels, size, _ = self.values[x].shape
        out = windows(size, 3, 2, 1)
        return self._append(net.MaxPool, (x,), (channels, out, out), K, (3, 3), (2, 2), (1, 1))

    def sum_pool(self, x: int, kernel: int) -> int:
        channels, size, _ = self.values[x].shape
        out = windows(size, kernel, kernel, 0)
        return self._append(net.SumPool, (x,), (channels, out, out), WIDE, (kernel, kernel), (kernel, kernel))

    def concat(self, parts: list[int]) -> int:
        if len(parts) == 1:
            return parts[0]
        channels = sum(self.values[x].shape[0] for x in parts)
        return self._append(net.Concat, tuple(parts), (channels, *self.values[parts[0]].shape[1:]), K)

    def finish(self, output: int) -> tuple[Network, PrivateNumbers]:
        findings = tuple(f"finding-{i + 1}" for i in range(self.values[output].size))
        network = Network(
            self.name, tuple(self.values), tuple(self._ops), output, 4096.0, 1024.0, findings, self._l1
        )  # fmt: skip
        network.check()
        return network, self._numbers

    def _append(
        self, kind: type, inputs: tuple[int, ...], shape: tuple[int, int, int], bits: int, *attributes: object
    ) -> int:
        self.values.append(Value(shape, bits))
        output = len(self.values) - 1
        self._ops.append(kind(output) if kind is net.Input else kind(inputs, output, *attributes))
        return output
