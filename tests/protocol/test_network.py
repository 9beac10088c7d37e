"""A network's description, which may come from a hostile peer: usable, or NetworkError."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcd.protocol import network as ir
from mpcd.protocol import preprocessing
from mpcd.protocol.network import MOST_L1, Linear, Network, NetworkError, weights_within
from tests.protocol.small_networks import dense, residual

VALID = {name: make(1)[0].to_bytes() for name, make in (("dense", dense), ("residual", residual))}
NAME, VALUES, OPS, OUTPUT, IN_SCALE, OUT_SCALE, FINDINGS, L1 = range(1, 9)
HOSTILE = st.one_of(
    st.sampled_from(
        [
            0,
            -1,
            1,
            2,
            3,
            5,
            48,
            49,
            63,
            64,
            1 << 31,
            1 << 40,
            1 << 60,
            (1 << 64) - 1,
            -(1 << 63),
            True,
            False,
            None,
            float("nan"),
            float("inf"),
            0.0,
            -1.0,
            0.5,
            1e300,
            "",
            "x",
            "\x1b[31m",
            "x" * 300,
            b"x",
            [],
            {},
            [0, 0],
            [-1, -1],
            [1, 1],
            [1, True],
            [1, 1, 1],
            [[1], [1]],
            "Add",
            "Linear",
            "Input",
        ]
    ),
    st.integers(-5, 20),
    st.lists(st.integers(-2, 20), max_size=4),
    st.lists(st.just(0), min_size=1000, max_size=1000),
)


def places(tree: Any, path: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    found = [path] if path else []
    if isinstance(tree, list):
        for i, part in enumerate(tree):
            found += places(part, (*path, i))
    return found


def test_valid_descriptions_survive() -> None:
    for data in VALID.values():
        assert Network.from_bytes(data).to_bytes() == data


@settings(deadline=None, max_examples=600)
@given(st.sampled_from(sorted(VALID)), st.data())
def test_a_mutated_description_is_usable_or_a_network_error(which: str, data: st.DataObject) -> None:
    tree = msgpack.unpackb(VALID[which])
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(tree)))
        parent = tree
        for step in path[:-1]:
            parent = parent[step]
        match data.draw(st.sampled_from(["set", "set", "set", "drop", "twice", "swap"])):
            case "set":
                parent[path[-1]] = data.draw(HOSTILE)
            case "drop":
                del parent[path[-1]]
            case "twice":
                parent.insert(path[-1], copy.deepcopy(parent[path[-1]]))
            case "swap":
                parent[0], parent[path[-1]] = parent[path[-1]], parent[0]
        if not isinstance(tree, list) or not places(tree):
            break
    try:
        network = Network.from_bytes(msgpack.packb(tree))
    except NetworkError:
        return
    assert Network.from_bytes(network.to_bytes()) == network
    assert preprocessing.plan(network)
    for op in network.ops:
        if isinstance(op, Linear):
            assert min(*op.kernel, *op.stride, op.groups) >= 1


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x90", msgpack.packb(7), msgpack.packb([1]), msgpack.packb({}), bytes(99)]
)
def test_not_a_description(data: bytes) -> None:
    with pytest.raises(NetworkError):
        Network.from_bytes(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((OPS, 1, 4), [0, 0]),  # stride
        ((OPS, 1, 4), [-2, -2]),
        ((OPS, 1, 3), []),  # kernel
        ((OPS, 1, 3), [True, 3]),
        ((OPS, 1, 5), [-1, -1]),  # padding
        ((OPS, 1, 6), 0),  # groups
        ((OPS, 1, 6), -1),
        ((OPS, 1, 1), []),  # inputs
        ((OPS, 1, 1), [-1]),
        ((OPS, 2, 3), 0),  # fraction
        ((OPS, 4, 3), 5),  # secret
        ((OPS,), []),
        ((IN_SCALE,), float("nan")),
        ((OUT_SCALE,), 0.0),
        ((OUT_SCALE,), float("inf")),
        ((OUT_SCALE,), True),
        ((NAME,), "a\x1b[2Jb"),
        ((NAME,), "\u202egnp.exe"),
        ((NAME,), ""),
        ((FINDINGS, 0), "a\nb"),
        ((FINDINGS, 0), 7),
        ((L1, 0, 1), 1 << 60),
        ((L1, 0, 1), 0),
        ((L1, 0, 1), True),
        ((L1, 0, 0), 2),
        ((VALUES, 0, 1), 49),
        ((VALUES, 0, 0), [1, 1]),
        ((VALUES, 0, 0), [1 << 20, 1 << 20, 1 << 20]),
        ((VALUES, 0, 0, 0), 1.0),
        ((OUTPUT,), -1),
    ],
)
def test_refused(path: tuple[int, ...], value: Any) -> None:
    tree = msgpack.unpackb(VALID["dense"])
    parent = tree
    for step in path[:-1]:
        parent = parent[step]
    assert parent[path[-1]] != value or isinstance(value, bool)
    parent[path[-1]] = value
    with pytest.raises(NetworkError):
        Network.from_bytes(msgpack.packb(tree))


def test_check_itself_raises_nothing_else() -> None:
    network = Network.from_bytes(VALID["dense"])
    with pytest.raises(NetworkError, match="cannot be used: TypeError"):
        dataclasses.replace(network, values=None).check()  # type: ignore[arg-type]


def test_every_value_is_made() -> None:
    network = Network.from_bytes(VALID["dense"])
    with pytest.raises(NetworkError, match="made by no operation"):
        dataclasses.replace(network, values=(*network.values, ir.Value((1, 1, 1), 8))).check()


def test_weights_within_is_exact() -> None:
    rng = np.random.default_rng()
    weight = rng.integers(-(1 << 20), 1 << 20, (3, 5, 3, 3))
    bound = int(np.abs(weight).sum((1, 2, 3)).max())
    assert weights_within(weight, bound)
    assert not weights_within(weight, bound - 1)
    # Where float64 sums round, and where int64 sums overflow.
    long = np.full((1, 1 << 14, 1, 1), (1 << 50) >> 14)
    assert weights_within(long, 1 << 50)
    long[0, -1] += 1
    assert not weights_within(long, 1 << 50)
    for extreme in (MOST_L1, -MOST_L1):
        assert not weights_within(np.full((2, 1 << 14, 1, 1), extreme), MOST_L1)
        assert weights_within(np.full((2, 1, 1, 1), extreme), MOST_L1)
    for extreme in (np.iinfo(np.int64).min, np.iinfo(np.int64).max):
        assert not weights_within(np.array([[[[extreme]]], [[[0]]]]), MOST_L1)
