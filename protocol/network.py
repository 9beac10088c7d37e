"""The integer network: what "correct" means. Public structure here, private numbers beside it.

Every value is a tensor of signed integers of one image, C-order shape (channels, height, width). It lives in a ring
of ``bits`` bits *by definition*: an operation's result is wrapped to [-2^(bits-1), 2^(bits-1)), in the clear and in
shares alike, so secure and clear agree bit for bit even where calibration did not foresee the image.

Because a linear result y is only ever used through floor(y / 2^f) mod 2^k, its ring needs no more than k + f bits:
the low k + f bits of y decide the answer. ``wide`` below is that ring.

Operations (x: input value(s), P0's private numbers in capitals):

====================  ==========================================================================================
Input                 the data owner's image, k bits, sign-extended to the wide ring
Linear                W * x + B           convolution or fully connected, wide to wide; B per channel or a map
Truncate              floor(x / 2^f)      wide (k + f bits) to k bits
TruncateRelu          max(floor(x / 2^f), 0)      wide to k bits; carry and sign come from one comparison tree
Relu                  z = x + T; max(z, 0)        k bits; where N (channel's slope was negative): z = x + T - 1,
                      min(z + 1, 0), which fits the growth below for every z
Grow                  x as a wide value; every x must satisfy 0 <= x + C < 2^(k-1), C in {0, 2^(k-1) - 1}
Extend                x as a wide value, any x: the general and dearer form of Grow
MaxPool               tree of y + relu(x - y) mod 2^k: along rows, then columns; a window that hangs over the edge
                      repeats its nearest element inside
SumPool               window sums, wide to wide (the division is in the next weights)
Add                   x + y mod 2^k
Concat                along channels
Reshape               same elements in C order
====================  ==========================================================================================

``Relu`` and ``Grow`` state with ``secret`` whether P0 has thresholds/signs; where not, T = 0, N false, C = 0.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Any

import msgpack
import numpy as np

FORMAT = 1
MOST_L1 = 1 << 50  # well inside what float64 products are exact for
MOST_BITS = 48
MOST_ELEMENTS = 1 << 26  # of a value
MOST_WEIGHTS = 1 << 30  # of an operation
MOST_STEP = 1024  # of a kernel, stride or padding
MOST_TEXT = 200


class NetworkError(ValueError):
    """A network description that cannot be: wrong shapes, rings or order."""


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """A tensor of one image: ``shape`` (channels, height, width) and its ring's width ``bits``."""

    shape: tuple[int, int, int]
    bits: int

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    output: int
    inputs: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Linear:
    """Cross-correlation as in torch.nn.Conv2d, zero padding; a Linear layer is a 1x1 convolution on a 1x1 image."""

    inputs: tuple[int]
    output: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int


@dataclasses.dataclass(frozen=True, slots=True)
class Truncate:
    inputs: tuple[int]
    output: int
    fraction: int


@dataclasses.dataclass(frozen=True, slots=True)
class TruncateRelu:
    inputs: tuple[int]
    output: int
    fraction: int


@dataclasses.dataclass(frozen=True, slots=True)
class Relu:
    inputs: tuple[int]
    output: int
    secret: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Grow:
    inputs: tuple[int]
    output: int
    secret: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Extend:
    inputs: tuple[int]
    output: int


@dataclasses.dataclass(frozen=True, slots=True)
class MaxPool:
    inputs: tuple[int]
    output: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class SumPool:
    inputs: tuple[int]
    output: int
    kernel: tuple[int, int]
    stride: tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Add:
    inputs: tuple[int, int]
    output: int


@dataclasses.dataclass(frozen=True, slots=True)
class Concat:
    inputs: tuple[int, ...]
    output: int


@dataclasses.dataclass(frozen=True, slots=True)
class Reshape:
    inputs: tuple[int]
    output: int


Op = Input | Linear | Truncate | TruncateRelu | Relu | Grow | Extend | MaxPool | SumPool | Add | Concat | Reshape
_OPS: dict[str, type] = {cls.__name__: cls for cls in Op.__args__}


@dataclasses.dataclass(frozen=True)
class Network:
    """The public part. ``ops`` in execution order; ``values[i]`` describes value i; ``output`` is what is revealed.

    ``input_scale``: an input integer is round(preprocessed pixel * input_scale). ``output_scale``: a logit is its
    integer / output_scale. ``findings``: names of the outputs, in order. ``weight_l1``: per Linear op, a public
    bound on sum |W| of any output row, from which GEMM exactness and the noise budget are proven.
    """

    name: str
    values: tuple[Value, ...]
    ops: tuple[Op, ...]
    output: int
    input_scale: float
    output_scale: float
    findings: tuple[str, ...]
    weight_l1: dict[int, int]

    def check(self) -> None:
        """Raise NetworkError unless every op's shapes and rings fit and every value is made once, before its use.

        Nothing is taken for granted: a description may come from the peer.
        """
        try:
            self._check()
        except NetworkError:
            raise
        except Exception as error:
            raise NetworkError(f"the network description cannot be used: {type(error).__name__}") from error

    def _check(self) -> None:
        for text in (self.name, *self.findings):
            if not isinstance(text, str) or not 0 < len(text) <= MOST_TEXT or not text.isprintable():
                raise NetworkError(f"a name has 1 to {MOST_TEXT} printable characters")
        for scale in (self.input_scale, self.output_scale):
            if type(scale) not in (int, float) or not math.isfinite(scale) or not 2.0**-64 <= scale <= 2.0**64:
                raise NetworkError("a scale is a positive number")
        if not self.ops or not isinstance(self.ops[0], Input) or sum(isinstance(op, Input) for op in self.ops) != 1:
            raise NetworkError("a network has exactly one Input, as its first operation")
        linear = {index for index, op in enumerate(self.ops) if isinstance(op, Linear)}
        if set(self.weight_l1) != linear or not all(_within(l1, 1, MOST_L1) for l1 in self.weight_l1.values()):
            raise NetworkError(f"each Linear operation has a bound on its weights, from 1 to {MOST_L1}")
        for index, value in enumerate(self.values):
            if type(value.shape) is not tuple or len(value.shape) != 3 or not _within(value.bits, 2, MOST_BITS):
                raise NetworkError(f"value {index} is not three numbers and a ring")
            if not all(_within(n, 1, MOST_ELEMENTS) for n in value.shape) or value.size > MOST_ELEMENTS:
                raise NetworkError(f"value {index} has shape {value.shape}, out of range")
        made: set[int] = set()
        for index, op in enumerate(self.ops):
            _check_attributes(index, op)
            missing = [i for i in op.inputs if i not in made]
            if missing or op.output in made or op.output >= len(self.values):
                raise NetworkError(f"op {index} ({type(op).__name__}) uses or makes values out of order")
            try:
                _check_op(self, index, op)
            except NetworkError as error:
                raise NetworkError(f"op {index} ({type(op).__name__}): {error}") from None
            made.add(op.output)
        if len(made) != len(self.values):
            raise NetworkError("a value is made by no operation")
        if not _within(self.output, 0, len(self.values) - 1) or self.values[self.output].size != len(self.findings):
            raise NetworkError("the output value does not match the list of findings")

    def to_bytes(self) -> bytes:
        """Canonical encoding; its hash is the network's public digest."""
        ops = [[type(op).__name__, *(_plain(v) for v in dataclasses.astuple(op))] for op in self.ops]
        values = [[list(v.shape), v.bits] for v in self.values]
        l1 = sorted([int(k), int(v)] for k, v in self.weight_l1.items())
        return bytes(
            msgpack.packb(
                [FORMAT, self.name, values, ops, self.output, float(self.input_scale), float(self.output_scale),
                 list(self.findings), l1]
            )
        )  # fmt: skip

    @staticmethod
    def from_bytes(data: bytes) -> Network:
        """Inverse of to_bytes, for bytes from the peer: checked. Raises NetworkError."""
        try:
            version, name, values, ops, output, in_scale, out_scale, findings, l1 = msgpack.unpackb(data)
            if version != FORMAT:
                raise NetworkError(f"network format {version}; this version reads {FORMAT}")
            network = Network(
                name,
                tuple(Value(tuple(shape), bits) for shape, bits in values),
                tuple(_OPS[row[0]](*(_frozen(v) for v in row[1:])) for row in ops),
                output,
                in_scale,
                out_scale,
                tuple(findings),
                dict(l1),
            )
            if len(network.weight_l1) != len(l1):
                raise NetworkError("an operation has two bounds on its weights")
        except NetworkError:
            raise
        except Exception as error:
            raise NetworkError(f"the network description does not decode: {type(error).__name__}") from error
        network.check()
        return network

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()


@dataclasses.dataclass(frozen=True)
class LinearNumbers:
    """P0's: ``weight`` int64 (out, in / groups, kh, kw); ``bias`` int64 (out, 1, 1) or (out, out_h, out_w)."""

    weight: np.ndarray
    bias: np.ndarray


@dataclasses.dataclass(frozen=True)
class ReluNumbers:
    """P0's: ``threshold`` int64 (channels,) in the value's ring; ``negative`` bool (channels,)."""

    threshold: np.ndarray
    negative: np.ndarray


@dataclasses.dataclass(frozen=True)
class GrowNumbers:
    """P0's: ``offset`` int64 (channels,), 0 or 2^(k-1) - 1."""

    offset: np.ndarray


Numbers = LinearNumbers | ReluNumbers | GrowNumbers
PrivateNumbers = dict[int, Numbers]  # by op index; Relu and Grow only where ``secret``


def weights_within(weight: np.ndarray, bound: int) -> bool:
    """Whether sum |w| of each output's weights is at most ``bound``, itself at most MOST_L1. Exact.

    The weights are the model owner's secret: of an accepted model every comparison here goes the same way.
    """
    rows = weight.reshape(len(weight), -1)
    if max(int(rows.max()), -int(rows.min())) > bound:
        return False
    total = np.zeros(len(rows), np.int64)
    for start in range(0, rows.shape[1], 4096):  # 2^12 times 2^50 fits; beyond the bound it saturates
        total = np.minimum(total + np.abs(rows[:, start : start + 4096]).sum(1), bound + 1)
    return bool((total <= bound).all())


def wrap(x: np.ndarray, bits: int) -> np.ndarray:
    """int64 x reduced to [-2^(bits-1), 2^(bits-1))."""
    half = np.int64(1) << np.int64(bits - 1)
    mask = (np.int64(1) << np.int64(bits)) - np.int64(1)
    return ((x + half) & mask) - half


def windows(size: int, kernel: int, stride: int, padding: int) -> int:
    """Output length of a sliding window."""
    return (size + 2 * padding - kernel) // stride + 1


def _within(value: object, least: int, most: int) -> bool:
    """A whole number, no bool, in this range."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _check_attributes(index: int, op: Op) -> None:
    """Raise NetworkError unless each of an operation's fields is of its type, length and sign."""
    arity = {Input: 0, Add: 2}.get(type(op), 1)
    wrong = not isinstance(op.inputs, tuple) or not all(_within(i, 0, 1 << 20) for i in op.inputs)
    wrong |= len(op.inputs) < 1 if isinstance(op, Concat) else len(op.inputs) != arity
    wrong |= not _within(op.output, 0, 1 << 20)
    for name, least in (("kernel", 1), ("stride", 1), ("padding", 0)):
        pair = getattr(op, name, (1, 1))
        wrong |= not isinstance(pair, tuple) or len(pair) != 2 or not all(_within(n, least, MOST_STEP) for n in pair)
    wrong |= not _within(getattr(op, "groups", 1), 1, MOST_ELEMENTS)
    wrong |= not _within(getattr(op, "fraction", 1), 1, MOST_BITS)
    wrong |= type(getattr(op, "secret", True)) is not bool
    if wrong:
        raise NetworkError(f"op {index} ({type(op).__name__}) has an attribute out of range")


def _check_op(network: Network, index: int, op: Op) -> None:
    values = [network.values[i] for i in op.inputs]
    out = network.values[op.output]
    same = bool(values) and all(v == out for v in values)
    if isinstance(op, Linear):
        c, h, w = values[0].shape
        shape = tuple(windows(s, k, t, p) for s, k, t, p in zip((h, w), op.kernel, op.stride, op.padding, strict=True))
        if c % op.groups or out.shape[0] % op.groups or out.shape[1:] != shape or values[0].bits != out.bits:
            raise NetworkError(f"convolution from {values[0]} to {out} does not fit")
        if out.shape[0] * (c // op.groups) * op.kernel[0] * op.kernel[1] > MOST_WEIGHTS:
            raise NetworkError("has too many weights")
    elif isinstance(op, (Truncate, TruncateRelu)):
        if values[0].shape != out.shape or values[0].bits < out.bits + op.fraction:
            raise NetworkError(f"truncation by {op.fraction} from {values[0]} to {out} does not fit")
    elif isinstance(op, (Relu, Add)):
        if not same:
            raise NetworkError(f"from {values} to {out} does not fit")
    elif isinstance(op, (Grow, Extend)):
        if values[0].shape != out.shape or values[0].bits >= out.bits:
            raise NetworkError(f"from {values[0]} to {out} does not fit")
    elif isinstance(op, (MaxPool, SumPool)):
        padding = op.padding if isinstance(op, MaxPool) else (0, 0)
        want = tuple(
            windows(s, k, t, p) for s, k, t, p in zip(values[0].shape[1:], op.kernel, op.stride, padding, strict=True)
        )
        if out.shape != (values[0].shape[0], *want) or values[0].bits != out.bits:
            raise NetworkError(f"pool from {values[0]} to {out} does not fit")
        if any(2 * p > k for p, k in zip(padding, op.kernel, strict=True)):
            raise NetworkError("padding may not exceed half the window")
    elif isinstance(op, Concat):
        channels = sum(v.shape[0] for v in values)
        if out.shape != (channels, *values[0].shape[1:]) or any(
            v.bits != out.bits or v.shape[1:] != out.shape[1:] for v in values
        ):
            raise NetworkError(f"from {values} to {out} does not fit")
    elif isinstance(op, Reshape) and (values[0].size != out.size or values[0].bits != out.bits):
        raise NetworkError(f"from {values[0]} to {out} does not fit")


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, (bool, int)):
        return value
    raise NetworkError("an operation's attributes are integers")
