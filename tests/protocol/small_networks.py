"""Small integer networks that between them use every operation, with random numbers at the extremes too."""

from __future__ import annotations

import numpy as np

from mpcd.protocol import network as ir

K, F = 11, 6
WIDE = K + F


class Builder:
    """Appends operations; keeps values, private numbers and the weights' bounds."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.values: list[ir.Value] = []
        self.ops: list[ir.Op] = []
        self.numbers: ir.PrivateNumbers = {}
        self.l1: dict[int, int] = {}

    def value(self, shape: tuple[int, int, int], bits: int) -> int:
        self.values.append(ir.Value(shape, bits))
        return len(self.values) - 1

    def shape(self, x: int) -> tuple[int, int, int]:
        return self.values[x].shape

    def input(self, shape: tuple[int, int, int]) -> int:
        out = self.value(shape, WIDE)
        self.ops.append(ir.Input(out))
        return out

    def linear(self, x: int, channels: int, kernel: int = 1, stride: int = 1, padding: int = 0, groups: int = 1) -> int:
        c, h, w = self.shape(x)
        size = [ir.windows(s, kernel, stride, padding) for s in (h, w)]
        out = self.value((channels, size[0], size[1]), WIDE)
        weight = self.rng.integers(-60, 61, (channels, c // groups, kernel, kernel))
        bias_shape = (channels, *size) if self.rng.integers(2) else (channels, 1, 1)
        bias = self.rng.integers(-(1 << (WIDE - 1)), 1 << (WIDE - 1), bias_shape)
        self.numbers[len(self.ops)] = ir.LinearNumbers(weight, bias)
        self.l1[len(self.ops)] = int(60 * weight[0].size)
        self.ops.append(ir.Linear((x,), out, (kernel, kernel), (stride, stride), (padding, padding), groups))
        return out

    def simple(self, cls: type, x: int, bits: int, *attributes: int) -> int:
        out = self.value(self.shape(x), bits)
        self.ops.append(cls((x,), out, *attributes))
        return out

    def truncate(self, x: int) -> int:
        return self.simple(ir.Truncate, x, K, F)

    def truncate_relu(self, x: int) -> int:
        return self.simple(ir.TruncateRelu, x, K, F)

    def relu(self, x: int, secret: bool) -> int:
        if secret:
            channels = self.shape(x)[0]
            self.numbers[len(self.ops)] = ir.ReluNumbers(
                self.rng.integers(-(1 << (K - 2)), 1 << (K - 2), channels),
                self.rng.integers(0, 2, channels).astype(bool),
            )
        return self.simple(ir.Relu, x, K, secret)

    def grow(self, x: int) -> int:
        """After a Relu: its negative channels get the offset."""
        relu = next(i for i, op in enumerate(self.ops) if op.output == x)
        own = self.numbers.get(relu)
        if isinstance(own, ir.ReluNumbers):
            self.numbers[len(self.ops)] = ir.GrowNumbers(np.where(own.negative, (1 << (K - 1)) - 1, 0).astype(np.int64))
        return self.simple(ir.Grow, x, WIDE, isinstance(own, ir.ReluNumbers))

    def extend(self, x: int) -> int:
        return self.simple(ir.Extend, x, WIDE)

    def max_pool(self, x: int, kernel: int, stride: int, padding: int) -> int:
        c, h, w = self.shape(x)
        size = [ir.windows(s, kernel, stride, padding) for s in (h, w)]
        out = self.value((c, size[0], size[1]), K)
        self.ops.append(ir.MaxPool((x,), out, (kernel, kernel), (stride, stride), (padding, padding)))
        return out

    def sum_pool(self, x: int, kernel: int, stride: int) -> int:
        c, h, w = self.shape(x)
        size = [ir.windows(s, kernel, stride, 0) for s in (h, w)]
        out = self.value((c, size[0], size[1]), WIDE)
        self.ops.append(ir.SumPool((x,), out, (kernel, kernel), (stride, stride)))
        return out

    def add(self, x: int, y: int) -> int:
        out = self.value(self.shape(x), K)
        self.ops.append(ir.Add((x, y), out))
        return out

    def concat(self, *xs: int) -> int:
        c = sum(self.shape(x)[0] for x in xs)
        out = self.value((c, *self.shape(xs[0])[1:]), self.values[xs[0]].bits)
        self.ops.append(ir.Concat(xs, out))
        return out

    def flatten(self, x: int) -> int:
        out = self.value((self.values[x].size, 1, 1), self.values[x].bits)
        self.ops.append(ir.Reshape((x,), out))
        return out

    def finish(self, name: str, output: int) -> tuple[ir.Network, ir.PrivateNumbers]:
        findings = tuple(f"finding {i}" for i in range(self.values[output].size))
        network = ir.Network(name, tuple(self.values), tuple(self.ops), output, 64.0, 32.0, findings, self.l1)
        network.check()
        return network, self.numbers


def dense(seed: int) -> tuple[ir.Network, ir.PrivateNumbers]:
    """DenseNet's manner: stem with a max pool, thresholds on concatenated features, a pooled transition, a head."""
    b = Builder(seed)
    x = b.truncate(b.linear(b.input((2, 13, 13)), 5, kernel=3, stride=2, padding=1))
    features = b.relu(b.max_pool(x, 3, 2, 1), False)
    for _ in range(2):
        y = b.truncate_relu(b.linear(b.grow(b.relu(features, True)), 6))
        features = b.concat(features, b.truncate(b.linear(b.grow(y), 3, kernel=3, padding=1)))
    pooled = b.sum_pool(b.grow(b.relu(features, True)), 2, 2)
    y = b.relu(b.truncate(b.linear(pooled, 7)), True)
    head = b.flatten(b.sum_pool(b.grow(y), 2, 2))
    return b.finish("dense", b.truncate(b.linear(head, 3)))


def many_thresholds(seed: int) -> tuple[ir.Network, ir.PrivateNumbers]:
    """Features that up to eleven thresholds share, of sizes that fill no word, put together in steps and twice."""
    b = Builder(seed)
    features = [b.truncate(b.linear(b.input((1, 5, 5)), 3))]
    together = features[0]
    for step in range(9):
        y = b.truncate(b.linear(b.grow(b.relu(together, step != 4)), 1 + step % 2, kernel=3, padding=1))
        together = b.concat(together, y) if step % 3 else b.concat(*features, y)
        features.append(y)
    twice = b.relu(b.concat(together, features[0], features[0]), True)
    return b.finish("thresholds", b.truncate(b.linear(b.flatten(b.grow(twice)), 2)))


def residual(seed: int) -> tuple[ir.Network, ir.PrivateNumbers]:
    """ResNet's manner: shortcuts, a strided 1x1 projection, groups; and a linear layer on signed values."""
    b = Builder(seed)
    x = b.truncate_relu(b.linear(b.input((3, 8, 8)), 4, kernel=3, padding=1))
    wide = b.grow(x)
    y = b.truncate(b.linear(wide, 4, kernel=3, padding=1, groups=2))
    x = b.relu(b.add(y, x), False)
    wide = b.grow(x)
    y = b.truncate(b.linear(wide, 6, kernel=3, stride=2, padding=1))
    shortcut = b.truncate(b.linear(wide, 6, stride=2))
    signed = b.extend(b.add(y, shortcut))
    return b.finish("residual", b.truncate(b.linear(b.flatten(signed), 2)))
