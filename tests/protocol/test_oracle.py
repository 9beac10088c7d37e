"""The oracle against slow loops in Python's unbounded integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcd.protocol import network as net
from mpcd.protocol import oracle
from mpcd.protocol.network import GrowNumbers, LinearNumbers, Network, NetworkError, ReluNumbers, Value


def wrap(x: int, bits: int) -> int:
    x %= 1 << bits
    return x - (1 << bits) if x >> (bits - 1) else x


def one_op(op: Any, inputs: Value, output: Value, l1: int = 1) -> Network:
    """Input (in its own ring) followed by ``op``."""
    bounds = {1: l1} if isinstance(op, net.Linear) else {}
    network = Network("t", (inputs, output), (net.Input(0), op), 1, 1.0, 1.0, ("a",) * output.size, bounds)
    network.check()
    return network


def ints(rng: np.random.Generator, shape: tuple[int, ...], bits: int) -> np.ndarray:
    """Random, with both extremes present."""
    x = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape)
    flat = x.reshape(-1)
    flat[0], flat[-1] = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return x


def slow_conv(x: np.ndarray, w: np.ndarray, b: np.ndarray, op: net.Linear, bits: int, shape: Any) -> np.ndarray:
    out = np.zeros(shape, np.int64)
    per_in, per_out = x.shape[0] // op.groups, w.shape[0] // op.groups
    bias = np.broadcast_to(b, shape)
    for o, i, j in np.ndindex(*shape):
        total = int(bias[o, i, j])
        for c, a, d in np.ndindex(*w.shape[1:]):
            row, col = i * op.stride[0] + a - op.padding[0], j * op.stride[1] + d - op.padding[1]
            if 0 <= row < x.shape[1] and 0 <= col < x.shape[2]:
                total += int(w[o, c, a, d]) * int(x[(o // per_out) * per_in + c, row, col])
        out[o, i, j] = wrap(total, bits)
    return out


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_linear_is_exact_for_every_size_of_number(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    groups = data.draw(st.sampled_from([1, 1, 2]))
    kernel = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    padding = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 1)))
    bits = data.draw(st.sampled_from([29, 33, 48]))
    weight_bits = data.draw(st.sampled_from([2, 13, 30, 51, 62]))
    x = ints(rng, (2 * groups, data.draw(st.integers(3, 5)), 4), bits)
    w = ints(rng, (groups * 2, 2, *kernel), weight_bits)
    op = net.Linear((0,), 1, kernel, stride, padding, groups)
    shape = (
        w.shape[0],
        net.windows(x.shape[1], kernel[0], stride[0], padding[0]),
        net.windows(x.shape[2], kernel[1], stride[1], padding[1]),
    )
    b = ints(rng, data.draw(st.sampled_from([shape, (shape[0], 1, 1)])), bits)
    network = one_op(op, Value(x.shape, bits), Value(shape, bits))
    got = oracle.run_all(network, {1: LinearNumbers(w, b)}, x)[1]
    assert got.dtype == np.int64
    assert np.array_equal(got, slow_conv(x, w, b, op, bits, shape))


def test_linear_at_the_edge_of_float64() -> None:
    """Row sums just below and above 2^53 where a single float64 product would round."""
    for magnitude in (1 << 20, (1 << 20) + 1, (1 << 21) - 1):
        w = np.full((1, 8, 1, 1), magnitude - 1)
        x = np.full((8, 1, 1), (1 << 30) - 1)
        x[0] -= 2
        op = net.Linear((0,), 1, (1, 1), (1, 1), (0, 0), 1)
        network = one_op(op, Value((8, 1, 1), 48), Value((1, 1, 1), 48))
        got = oracle.run(network, {1: LinearNumbers(w, np.zeros((1, 1, 1), np.int64))}, x)
        assert got.tolist() == [wrap(sum(int(a) * int(b) for a, b in zip(w.flat, x.flat, strict=True)), 48)]


@pytest.mark.parametrize("wide", [13, 15])
@pytest.mark.parametrize("kind", [net.Truncate, net.TruncateRelu])
def test_truncate(kind: Any, wide: int) -> None:
    x = np.arange(-(1 << (wide - 1)), 1 << (wide - 1)).reshape(1, 1, -1)
    network = one_op(kind((0,), 1, 4), Value(x.shape, wide), Value(x.shape, 9))
    want = [wrap(v // 16, 9) for v in x.reshape(-1).tolist()]
    if kind is net.TruncateRelu:
        want = [max(v, 0) for v in want]
    assert oracle.run(network, {}, x).tolist() == want


def test_relu_and_the_growth_after_it_for_every_input_and_threshold() -> None:
    bits = 5
    x = np.broadcast_to(np.arange(-16, 16), (64, 1, 32)).copy()
    threshold = np.tile(np.arange(-16, 16), 2)
    negative = np.arange(64) >= 32
    got = oracle.run_all(
        one_op(net.Relu((0,), 1, True), Value(x.shape, bits), Value(x.shape, bits)),
        {1: ReluNumbers(threshold, negative)},
        x,
    )[1]
    for c, _, i in np.ndindex(*x.shape):
        v, t = int(x[c, 0, i]), int(threshold[c])
        want = min(wrap(v + t - 1, bits) + 1, 0) if negative[c] else max(wrap(v + t, bits), 0)
        assert got[c, 0, i] == want
    grow = one_op(net.Grow((0,), 1, True), Value(x.shape, bits), Value(x.shape, 9))
    numbers = {1: GrowNumbers(np.where(negative, 15, 0))}
    assert np.array_equal(oracle.run_all(grow, numbers, got)[1], got)  # no threshold leaves the growth's range


def test_relu_without_secrets() -> None:
    x = np.arange(-8, 8).reshape(1, 4, 4)
    network = one_op(net.Relu((0,), 1, False), Value(x.shape, 4), Value(x.shape, 4))
    assert oracle.run(network, {}, x).tolist() == [max(v, 0) for v in range(-8, 8)]


def test_grow_refuses_what_the_secure_protocol_could_not_do() -> None:
    x = np.array([[[-1]]])
    with pytest.raises(NetworkError, match="Grow"):
        oracle.run(one_op(net.Grow((0,), 1, False), Value((1, 1, 1), 4), Value((1, 1, 1), 8)), {}, x)
    network = one_op(net.Grow((0,), 1, True), Value((1, 1, 1), 4), Value((1, 1, 1), 8))
    with pytest.raises(NetworkError, match="Grow"):
        oracle.run(network, {1: GrowNumbers(np.array([7]))}, np.array([[[-8]]]))
    extend = one_op(net.Extend((0,), 1), Value((1, 1, 1), 4), Value((1, 1, 1), 8))
    assert oracle.run(extend, {}, x).tolist() == [-1]


def slow_tree(items: list[int], bits: int) -> int:
    while len(items) > 1:
        joined = [wrap(y + max(wrap(x - y, bits), 0), bits) for x, y in zip(items[::2], items[1::2], strict=False)]
        items = joined + (items[-1:] if len(items) % 2 else [])
    return items[0]


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_max_pool_tree_with_wrap_and_edges(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    bits = 6
    kernel = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 4)))
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = (data.draw(st.integers(0, kernel[0] // 2)), data.draw(st.integers(0, kernel[1] // 2)))
    x = ints(rng, (2, 7, 6), bits)
    shape = (2, *(net.windows(s, k, t, p) for s, k, t, p in zip((7, 6), kernel, stride, padding, strict=True)))
    op = net.MaxPool((0,), 1, kernel, stride, padding)
    got = oracle.run_all(one_op(op, Value(x.shape, bits), Value(shape, bits)), {}, x)[1]
    for c, i, j in np.ndindex(*shape):
        rows = [min(max(i * stride[0] - padding[0] + a, 0), 6) for a in range(kernel[0])]
        cols = [min(max(j * stride[1] - padding[1] + b, 0), 5) for b in range(kernel[1])]
        assert got[c, i, j] == slow_tree([slow_tree([int(x[c, r, q]) for q in cols], bits) for r in rows], bits)


def test_max_pool_is_the_maximum_when_differences_fit() -> None:
    x = np.random.default_rng(0).integers(-100, 100, (3, 9, 9))
    op = net.MaxPool((0,), 1, (3, 3), (2, 2), (1, 1))
    got = oracle.run_all(one_op(op, Value(x.shape, 9), Value((3, 5, 5), 9)), {}, x)[1]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=-1000)
    for c, i, j in np.ndindex(3, 5, 5):
        assert got[c, i, j] == padded[c, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max()


def test_sum_pool_wraps() -> None:
    x = ints(np.random.default_rng(1), (2, 5, 5), 6)
    op = net.SumPool((0,), 1, (2, 3), (2, 1))
    got = oracle.run_all(one_op(op, Value(x.shape, 6), Value((2, 2, 3), 6)), {}, x)[1]
    for c, i, j in np.ndindex(2, 2, 3):
        assert got[c, i, j] == wrap(int(x[c, 2 * i : 2 * i + 2, j : j + 3].sum()), 6)


def test_add_concat_reshape_and_every_value_kept() -> None:
    x = ints(np.random.default_rng(2), (2, 2, 2), 6)
    narrow = Value((2, 2, 2), 6)
    values = (narrow, narrow, Value((4, 2, 2), 6), Value((16, 1, 1), 6))
    ops = (net.Input(0), net.Add((0, 0), 1), net.Concat((1, 0), 2), net.Reshape((2,), 3))
    network = Network("t", values, ops, 3, 1.0, 1.0, ("a",) * 16, {})
    network.check()
    everything = oracle.run_all(network, {}, x)
    twice = [wrap(2 * v, 6) for v in x.reshape(-1).tolist()]
    assert sorted(everything) == [0, 1, 2, 3]
    assert oracle.run(network, {}, x).tolist() == twice + x.reshape(-1).tolist()
    assert np.array_equal(everything[3].reshape(-1), oracle.run(network, {}, x))


def test_an_image_of_another_shape_or_type_is_refused() -> None:
    network = one_op(net.Relu((0,), 1, False), Value((1, 2, 2), 4), Value((1, 2, 2), 4))
    with pytest.raises(NetworkError, match="takes int64"):
        oracle.run(network, {}, np.zeros((1, 2, 3), np.int64))
    with pytest.raises(NetworkError, match="takes int64"):
        oracle.run(network, {}, np.zeros((1, 2, 2)))  # type: ignore[arg-type]
