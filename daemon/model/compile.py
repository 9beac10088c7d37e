"""A rewritten float graph to the integer network. Pure NumPy.

Every integer value remembers, per channel, what it means: real = step * integer + offset. A batch-norm only changes
step and offset. A convolution takes steps into its weights and offsets into its bias: a bias *map* where it pads,
since padding is zero and not ``offset``. A ReLU turns step and offset into a threshold and a direction:

    relu(a x + b) = a max(x + b/a, 0)   a > 0
                  = a min(x + b/a, 0)   a < 0       (the network's ``negative``)

with b/a rounded, and clamped to half the ring, where the sign never changes: an always-on channel's remainder
b - a T becomes the new offset, an always-off one stays zero. a = 0 is a constant: step 0, offset max(b, 0).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcd.daemon.model.nodes import Floats, Graph, ModelError, Node, Range
from mpcd.daemon.model.plan import Plan, plan
from mpcd.protocol import network as net
from mpcd.protocol.network import (
    GrowNumbers,
    LinearNumbers,
    Network,
    Numbers,
    PrivateNumbers,
    ReluNumbers,
    Value,
    wrap,
)

Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The integer network, its private numbers, and what the vendor is shown per layer."""

    network: Network
    numbers: PrivateNumbers
    layers: list[dict[str, Any]]


@dataclasses.dataclass
class _Held:
    """A node's value: in the narrow ring, the wide ring, or both. ``sign`` of the integers: 1, -1, or 0 unknown.

    ``secret``: which channels are negative is P0's secret. ``known``: some sign is known to hold for every channel.
    """

    step: Floats
    offset: Floats
    sign: npt.NDArray[np.int8]
    narrow: int | None = None
    wide: int | None = None
    known: bool = False
    secret: bool = False


def compile_graph(
    graph: Graph, seen: list[Range], *, name: str, findings: tuple[str, ...], bits: int, fraction: int
) -> Compiled:
    """``graph`` as rewritten, ``seen`` its ranges on the calibration images. Raises ModelError."""
    if graph.nodes[-1].shape[0] != len(findings):
        raise ModelError(f"the model has {graph.nodes[-1].shape[0]} outputs, {len(findings)} findings were named")
    largest = float(seen[0].largest.max())
    input_scale = 2.0 ** math.floor(math.log2(2.0 ** (bits - 3) / max(largest, 1e-6)))
    chosen = plan(graph, seen, input_scale, bits, fraction)
    return _Compiler(graph, seen, chosen, input_scale, bits, fraction).compile(name, findings)


class _Compiler:
    def __init__(
        self, graph: Graph, seen: list[Range], chosen: Plan, input_scale: float, bits: int, fraction: int
    ) -> None:
        self._graph = graph
        self._seen = seen
        self._plan = chosen
        self._input_scale = input_scale
        self._bits = bits
        self._fraction = fraction
        self._wide = bits + fraction
        self._users = graph.users()
        self._values: list[Value] = []
        self._ops: list[net.Op] = []
        self._numbers: dict[int, Numbers] = {}
        self._l1: dict[int, int] = {}
        self._layers: list[dict[str, Any]] = []
        self._held: list[_Held] = []
        self._grown: dict[int, int] = {}  # narrow value -> the same in the wide ring

    def compile(self, name: str, findings: tuple[str, ...]) -> Compiled:
        makers = {
            "input": self._input,
            "conv": self._conv,
            "norm": self._norm,
            "relu": self._relu,
            "max_pool": self._max_pool,
            "avg_pool": self._avg_pool,
            "add": self._add,
            "concat": self._concat,
            "flatten": self._flatten,
        }
        for index, node in enumerate(self._graph.nodes):
            self._held.append(makers[node.kind](index, node))
        last = self._held[-1]
        if last.narrow is None:
            raise ModelError("the last operation does not make logits")
        # One bound, a power of two, for all layers: each layer's own would say how large its weights are.
        bound = max(self._l1.values(), default=1)
        network = Network(
            name, tuple(self._values), tuple(self._ops), last.narrow, self._input_scale,
            float(1 / last.step[0]), findings, dict.fromkeys(self._l1, bound),
        )  # fmt: skip
        network.check()
        return Compiled(network, self._numbers, self._layers)

    # One method a kind of node.

    def _input(self, index: int, node: Node) -> _Held:
        channels = node.shape[0]
        out = self._value(node.shape, self._wide)
        self._emit(net.Input(out))
        step = np.full(channels, 1 / self._input_scale)
        return _Held(step, np.zeros(channels), np.zeros(channels, np.int8), wide=out)

    def _conv(self, index: int, node: Node) -> _Held:
        source = self._held[node.inputs[0]]
        x = self._as_wide(node.inputs[0])
        scale = self._plan.scales[index]
        weight, bias = self._integers(index, node, source, scale)
        y = self._value(node.shape, self._wide)
        self._emit(
            net.Linear((x,), y, node.kernel, node.stride, node.padding, node.groups), LinearNumbers(weight, bias)
        )
        l1 = int(np.abs(weight).sum((1, 2, 3)).max())
        at = len(self._ops) - 1
        self._l1[at] = 1 << max(l1 - 1, 0).bit_length()
        out = self._value(node.shape, self._bits)
        users = self._users[index]
        merged = len(users) == 1 and self._graph.nodes[users[0]].kind == "relu"
        truncate = net.TruncateRelu if merged else net.Truncate
        self._emit(truncate((y,), out, self._fraction))
        self._report(index, node, at, weight, scale)
        channels = node.shape[0]
        sign = np.full(channels, merged, np.int8)
        return _Held(1 / scale, np.zeros(channels), sign, narrow=out, known=merged)

    def _norm(self, index: int, node: Node) -> _Held:
        source = self._held[node.inputs[0]]
        scale, shift = node.numbers
        return dataclasses.replace(source, step=source.step * scale, offset=source.offset * scale + shift)

    def _relu(self, index: int, node: Node) -> _Held:
        source = self._held[node.inputs[0]]
        if source.narrow is None:
            raise ModelError(f"{node.place}: a ReLU of a value that was not scaled")
        pure = self._plan.pure[node.inputs[0]]
        if pure and source.known and not source.secret:
            return source  # TruncateRelu did it, or it is nonnegative anyway
        out = self._value(node.shape, self._bits)
        if pure:
            self._emit(net.Relu((source.narrow,), out, False))
            sign = np.ones(node.shape[0], np.int8)
            return _Held(source.step, source.offset, sign, narrow=out, known=True)
        threshold, negative, step, offset = thresholds(source.step, source.offset, self._bits)
        self._emit(net.Relu((source.narrow,), out, True), ReluNumbers(threshold, negative))
        sign = np.where(negative, -1, 1).astype(np.int8)
        return _Held(step, offset, sign, narrow=out, known=True, secret=True)

    def _max_pool(self, index: int, node: Node) -> _Held:
        source = self._held[node.inputs[0]]
        if source.narrow is None:
            raise ModelError(f"{node.place}: a maximum of a value that was not scaled")
        out = self._value(node.shape, self._bits)
        self._emit(net.MaxPool((source.narrow,), out, node.kernel, node.stride, node.padding))
        return dataclasses.replace(source, narrow=out, wide=None)

    def _avg_pool(self, index: int, node: Node) -> _Held:
        source = self._held[node.inputs[0]]
        x = self._as_wide(node.inputs[0])
        area = node.kernel[0] * node.kernel[1]
        if area == 1 and node.stride == (1, 1):
            return dataclasses.replace(source, narrow=None, wide=x, known=False)
        if area > 1 << self._fraction:
            raise ModelError(f"{node.place}: a mean over {area} pixels does not fit {self._wide} bits")
        out = self._value(node.shape, self._wide)
        self._emit(net.SumPool((x,), out, node.kernel, node.stride))
        return _Held(source.step / area, source.offset, source.sign, wide=out)

    def _add(self, index: int, node: Node) -> _Held:
        a, b = (self._held[i] for i in node.inputs)
        if a.narrow is None or b.narrow is None:
            raise ModelError(f"{node.place}: an add of a value that was not scaled")
        out = self._value(node.shape, self._bits)
        self._emit(net.Add((a.narrow, b.narrow), out))
        return _Held(a.step, a.offset + b.offset, np.zeros(node.shape[0], np.int8), narrow=out)

    def _concat(self, index: int, node: Node) -> _Held:
        parts = [self._held[i] for i in node.inputs]
        narrow = tuple(p.narrow for p in parts if p.narrow is not None)
        if len(narrow) != len(parts):
            raise ModelError(f"{node.place}: a concatenation of a value that was not scaled")
        out = self._value(node.shape, self._bits)
        self._emit(net.Concat(narrow, out))
        return _Held(
            np.concatenate([p.step for p in parts]),
            np.concatenate([p.offset for p in parts]),
            np.concatenate([p.sign for p in parts]),
            narrow=out,
            known=all(p.known for p in parts),
            secret=any(p.secret for p in parts),
        )

    def _flatten(self, index: int, node: Node) -> _Held:
        source = self._held[node.inputs[0]]
        held = source.narrow if source.narrow is not None else self._as_wide(node.inputs[0])
        out = self._value(node.shape, self._values[held].bits)
        self._emit(net.Reshape((held,), out))
        pixels = node.shape[0] // len(source.step)
        return dataclasses.replace(
            source,
            step=np.repeat(source.step, pixels),
            offset=np.repeat(source.offset, pixels),
            sign=np.repeat(source.sign, pixels),
            narrow=out if source.narrow is not None else None,
            wide=out if source.narrow is None else None,
        )

    # Helpers.

    def _integers(self, index: int, node: Node, source: _Held, scale: Floats) -> tuple[Ints, Ints]:
        """Integer weight and bias: ``scale`` * 2^fraction * (W x + b) in terms of the source's integers."""
        weight, bias = node.numbers
        out, per_group = weight.shape[:2]
        row_scale = (scale * 2.0**self._fraction)[:, None, None, None]
        step = _per_row(source.step, out, node.groups, per_group)
        exact = weight * step * row_scale
        rounded = np.rint(exact)
        # What rounding the weights does to the average image is known: it joins the bias.
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = (self._seen[node.inputs[0]].mean - source.offset) / source.step
        mean = np.where(np.isfinite(mean), mean, 0.0)
        if node.padding != (0, 0) and source.offset.any():
            shape = self._graph.nodes[node.inputs[0]].shape
            constant = _constant_map(weight, source.offset, node, shape)
            lost = _constant_map(exact - rounded, mean, node, shape)
        else:
            constant = (weight * _per_row(source.offset, out, node.groups, per_group)).sum((1, 2, 3))[:, None, None]
            lost = ((exact - rounded) * _per_row(mean, out, node.groups, per_group)).sum((1, 2, 3))[:, None, None]
        total = bias[:, None, None] + constant
        real = total * row_scale[:, 0] + lost + 2.0 ** (self._fraction - 1)  # the last: floor rounds to nearest
        if not np.isfinite(real).all() or np.abs(real).max() >= 2.0**62:
            raise ModelError(f"{node.place}: its bias is out of all proportion to its range")
        return rounded.astype(np.int64), wrap(np.rint(real).astype(np.int64), self._wide)

    def _as_wide(self, index: int) -> int:
        held = self._held[index]
        if held.wide is None:
            if held.narrow is None:
                raise ModelError("a value was made in no ring")
            if held.narrow in self._grown:
                return self._grown[held.narrow]
            held.wide = self._grown[held.narrow] = self._value(self._values[held.narrow].shape, self._wide)
            if not held.known:
                self._emit(net.Extend((held.narrow,), held.wide))
            elif held.secret:
                offset = np.where(held.sign < 0, (1 << (self._bits - 1)) - 1, 0)
                self._emit(net.Grow((held.narrow,), held.wide, True), GrowNumbers(offset.astype(np.int64)))
            else:
                self._emit(net.Grow((held.narrow,), held.wide, False))
        return held.wide

    def _value(self, shape: tuple[int, int, int], bits: int) -> int:
        self._values.append(Value(shape, bits))
        return len(self._values) - 1

    def _emit(self, op: net.Op, numbers: Numbers | None = None) -> None:
        if numbers is not None:
            self._numbers[len(self._ops)] = numbers
        self._ops.append(op)

    def _report(self, index: int, node: Node, at: int, weight: Ints, scale: Floats) -> None:
        seen = self._seen[index]
        largest = float((seen.largest * scale).max())
        self._layers.append(
            {
                "place": node.place,
                "op": at,
                "shape": list(node.shape),
                "low": float(seen.low.min()),
                "high": float(seen.high.max()),
                "bits": self._bits,
                "wide_bits": self._wide,
                "headroom_bits": round(self._bits - 1 - math.log2(max(largest, 1.0)), 2),
                "weight_bits": int(np.abs(weight).max()).bit_length() + 1,
                "weight_l1": self._l1[at],
            }
        )


def thresholds(step: Floats, offset: Floats, bits: int) -> tuple[Ints, npt.NDArray[np.bool_], Floats, Floats]:
    """(threshold, negative, step, offset) of relu(step * x + offset) for k-bit x, as the module's docstring says."""
    limit = float(1 << (bits - 2))
    constant = step == 0
    safe = np.where(constant, 1.0, step)
    with np.errstate(over="ignore"):
        exact = np.where(constant, 0.0, offset / safe)
    threshold = np.rint(np.clip(exact, -limit, limit))
    negative = step < 0
    always_on = np.where(negative, exact < -limit, exact > limit)
    remainder = np.where(always_on, offset - step * threshold, 0.0)
    return (
        threshold.astype(np.int64),
        negative,
        step,
        np.where(constant, np.maximum(offset, 0.0), remainder),
    )


def _per_row(channel: Floats, out: int, groups: int, per_group: int) -> Floats:
    """Per input channel to (out, in / groups, 1, 1): what each row of a grouped weight meets."""
    return np.repeat(channel.reshape(groups, per_group), out // groups, 0)[:, :, None, None]


def _constant_map(weight: Floats, offset: Floats, node: Node, shape: tuple[int, int, int]) -> Floats:
    """The zero-padded convolution of an image whose channels are constantly ``offset``: (out, out_h, out_w)."""
    out, per_group = weight.shape[:2]
    per_tap = (weight * _per_row(offset, out, node.groups, per_group)).sum(1)  # (out, kh, kw)
    inside = []
    for axis in (0, 1):
        positions = (
            np.arange(node.shape[1 + axis])[:, None] * node.stride[axis]
            - node.padding[axis]
            + np.arange(node.kernel[axis])
        )
        inside.append(((positions >= 0) & (positions < shape[1 + axis])).astype(np.float64))
    result: Floats = np.einsum("oab,ia,jb->oij", per_tap, inside[0], inside[1])
    return result
