"""The integer network in the clear: plain NumPy, one image, exact. What every secure run must equal bit for bit.

Exactness of ``Linear``: a float64 matrix product of integers is exact, in any order of summation and with or without
fused multiply-add, as long as every partial sum stays below 2^53. All of them are bounded by
(largest row sum of |W|) * max|x|. Where that is too much, x is cut into limbs that are not; where |W| alone is too
much, NumPy's int64 product (exact mod 2^64, slow) is used. Sums of limbs wrap mod 2^64, which the ring of at most
48 bits divides.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.protocol import network as net
from mpcd.protocol.network import (
    GrowNumbers,
    LinearNumbers,
    Network,
    NetworkError,
    PrivateNumbers,
    ReluNumbers,
    wrap,
)

Ints = npt.NDArray[np.int64]
EXACT = 1 << 53


def run(network: Network, numbers: PrivateNumbers, image: Ints) -> Ints:
    """The output value of ``image`` (int64, the input's shape), flat, in the order of ``network.findings``."""
    return _walk(network, numbers, image, keep=False)[network.output].reshape(-1)


def run_all(network: Network, numbers: PrivateNumbers, image: Ints) -> dict[int, Ints]:
    """Every value of the network for ``image``, by index."""
    return _walk(network, numbers, image, keep=True)


def _walk(network: Network, numbers: PrivateNumbers, image: Ints, keep: bool) -> dict[int, Ints]:
    last_use = {i: index for index, op in enumerate(network.ops) for i in op.inputs}
    last_use[network.output] = len(network.ops)
    values: dict[int, Ints] = {}
    for index, op in enumerate(network.ops):
        out = network.values[op.output]
        if isinstance(op, net.Input):
            if image.dtype != np.int64 or image.shape != out.shape:
                raise NetworkError(f"the image is {image.dtype} {image.shape}, the network takes int64 {out.shape}")
            result = wrap(image, out.bits)
        else:
            result = _apply(network, op, numbers.get(index), [values[i] for i in op.inputs])
        values[op.output] = result
        if not keep:
            for i in op.inputs:
                if last_use[i] == index:
                    values.pop(i, None)
    return values


def _apply(network: Network, op: net.Op, numbers: net.Numbers | None, inputs: list[Ints]) -> Ints:
    out = network.values[op.output]
    x = inputs[0]
    if isinstance(op, net.Linear):
        assert isinstance(numbers, LinearNumbers)
        return wrap(convolve(x, numbers.weight, op) + numbers.bias, out.bits)
    if isinstance(op, net.Truncate):
        return wrap(x >> op.fraction, out.bits)
    if isinstance(op, net.TruncateRelu):
        return wrap(x >> op.fraction, out.bits).clip(min=0)
    if isinstance(op, net.Relu):
        return _relu(x, numbers if op.secret else None, out.bits)
    if isinstance(op, net.Grow):
        return _grow(x, numbers if op.secret else None, network.values[op.inputs[0]].bits)
    if isinstance(op, (net.Extend, net.Reshape)):
        return x.reshape(out.shape)
    if isinstance(op, net.MaxPool):
        columns = _tree([_slide(x, 2, j, op, out.shape[2]) for j in range(op.kernel[1])], out.bits)
        return _tree([_slide(columns, 1, i, op, out.shape[1]) for i in range(op.kernel[0])], out.bits)
    if isinstance(op, net.SumPool):
        view = np.lib.stride_tricks.sliding_window_view(x, op.kernel, (1, 2))
        sums: Ints = view[:, :: op.stride[0], :: op.stride[1]].sum((3, 4))
        return wrap(sums, out.bits)
    if isinstance(op, net.Add):
        return wrap(x + inputs[1], out.bits)
    if isinstance(op, net.Concat):
        return np.concatenate(inputs)
    raise NetworkError(f"the oracle does not know {type(op).__name__}")


def _relu(x: Ints, numbers: net.Numbers | None, bits: int) -> Ints:
    if numbers is None:
        return x.clip(min=0)
    assert isinstance(numbers, ReluNumbers)
    negative = numbers.negative[:, None, None]
    z = wrap(x + numbers.threshold[:, None, None] - negative, bits)
    return np.asarray(np.where(negative, np.minimum(z + 1, 0), np.maximum(z, 0)))


def _grow(x: Ints, numbers: net.Numbers | None, bits: int) -> Ints:
    shifted = x
    if numbers is not None:
        assert isinstance(numbers, GrowNumbers)
        shifted = x + numbers.offset[:, None, None]
    if shifted.min() < 0 or shifted.max() >= 1 << (bits - 1):
        raise NetworkError("Grow of a value outside its range: the compiler promised otherwise")
    return x


def _slide(x: Ints, axis: int, at: int, op: net.MaxPool, size: int) -> Ints:
    """Element ``at`` of every window along ``axis``, clamped to the image."""
    index = np.arange(size) * op.stride[axis - 1] - op.padding[axis - 1] + at
    return np.take(x, np.clip(index, 0, x.shape[axis] - 1), axis)


def _tree(parts: list[Ints], bits: int) -> Ints:
    """Maximum by pairs (0, 1), (2, 3), ...; an odd last one is carried up."""
    while len(parts) > 1:
        pairs = [y + np.maximum(wrap(x - y, bits), 0) for x, y in zip(parts[::2], parts[1::2], strict=False)]
        parts = [wrap(p, bits) for p in pairs] + (parts[-1:] if len(parts) % 2 else [])
    return parts[0]


def convolve(x: Ints, weight: Ints, op: net.Linear) -> Ints:
    """W * x mod 2^64 (as int64), zero padding."""
    group_in, group_out = x.shape[0] // op.groups, weight.shape[0] // op.groups
    outputs = []
    for g in range(op.groups):
        columns, shape = _columns(x[g * group_in : (g + 1) * group_in], op)
        rows = weight[g * group_out : (g + 1) * group_out].reshape(group_out, -1)
        outputs.append(_product(rows, columns).reshape(group_out, *shape))
    return np.concatenate(outputs)


def _columns(x: Ints, op: net.Linear) -> tuple[Ints, tuple[int, int]]:
    (ph, pw), (kh, kw), (sh, sw) = op.padding, op.kernel, op.stride
    padded = np.pad(x, ((0, 0), (ph, ph), (pw, pw))) if ph or pw else x
    view = np.lib.stride_tricks.sliding_window_view(padded, (kh, kw), (1, 2))[:, ::sh, ::sw]
    shape = (view.shape[1], view.shape[2])
    return view.transpose(0, 3, 4, 1, 2).reshape(-1, shape[0] * shape[1]), shape


def _product(w: Ints, x: Ints) -> Ints:
    """w @ x mod 2^64 as int64; |x| < 2^62."""
    w_float = w.astype(np.float64)
    if np.abs(w_float).sum(1).max() >= EXACT / 4:  # in float64: the int64 sum could wrap
        return np.asarray(w @ x, np.int64)
    l1 = int(np.abs(w).sum(1).max())
    largest = max(int(x.max()), -int(x.min()), 1)
    limb = ((EXACT - 1) // max(l1, 1)).bit_length() - 1  # l1 * 2^limb < 2^53
    if l1 * largest < EXACT:
        return (w_float @ x.astype(np.float64)).astype(np.int64)
    low = x & ((1 << limb) - 1)
    return (w_float @ low.astype(np.float64)).astype(np.int64) + (_product(w, x >> limb) << limb)
