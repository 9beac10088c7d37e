"""Wire baseline of the online protocols: what each direction carries in a seeded run. A refactor must not move it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpcd.protocol import (
    argmax,
    bit_to_arithmetic,
    drelu,
    growth,
    lockstep,
    max_pool,
    millionaires,
    multiplexer,
    relu,
    truncation,
)
from mpcd.protocol.channel import Channel
from mpcd.protocol.millionaires import Layout
from tests.protocol.ideal import SESSION, dealer, pack

N = 100


def numbers(party: int, n: int, bits: int) -> np.ndarray:
    """Fixed and random-looking."""
    stream = np.frombuffer(hashlib.shake_128(bytes([party, bits])).digest(8 * n), "<u8").astype(np.uint64)
    return stream & np.uint64((1 << bits) - 1)


def flags(party: int) -> np.ndarray:
    return numbers(party, N, 1).astype(np.uint8)


Arguments = Callable[[int], tuple[Any, ...]]
BASELINE: dict[str, tuple[Any, Arguments, str, str]] = {
    "millionaires": (
        millionaires.millionaires,
        lambda party: (numbers(party, N, 31), Layout(31, 11)),
        "728fafb6705da67f",
        "556406fe1f67dd31",
    ),
    "drelu": (drelu.drelu, lambda party: (numbers(party, N, 20), 20), "7e1c48e9c3ce1d0b", "3ae8841b08a3095f"),
    "multiplexer": (
        multiplexer.multiplexer,
        lambda party: (pack(flags(party)), numbers(party, N, 20), 20),
        "2acb8eb630959dbe",
        "eccc6ab910a1ba00",
    ),
    "bit_to_arithmetic": (
        bit_to_arithmetic.bit_to_arithmetic,
        lambda party: (pack(flags(party)), N, 20),
        "544fdde81c62e8f6",
        "e972eb1aee446f40",
    ),
    "truncate": (
        truncation.truncate,
        lambda party: (numbers(party, N, 32), 12, 20),
        "11379c8ac023a2f6",
        "4a276c3d02edae94",
    ),
    "grow": (growth.grow, lambda party: (numbers(party, N, 20), 20, 32), "8edc1027ca6d5024", "460816d6bedeff28"),
    "extend": (growth.extend, lambda party: (numbers(party, N, 20), 20, 32), "0553ce9b86d41a21", "edb61d23f7d1f2aa"),
    "relu": (
        relu.relu,
        lambda party: (numbers(party, N, 20), 20, None if party else flags(party).astype(np.bool_)),
        "a56d99c04a13b87a",
        "a33c666a79a2d83a",
    ),
    "truncate_relu": (
        relu.truncate_relu,
        lambda party: (numbers(party, N, 32), 12, 20),
        "fd863924221e444a",
        "cabb69a8d209fb85",
    ),
    "max_pool": (
        max_pool.max_pool,
        lambda party: (numbers(party, N, 20).reshape(1, 10, 10), 20, (3, 3), (2, 2), (1, 1)),
        "e8d17bb0d2042498",
        "b4c3ad599c52d90b",
    ),
    "argmax": (
        argmax.argmax,
        lambda party: (numbers(party, N, 20).reshape(4, 25), 20),
        "a83b4eae60351997",
        "f88f3c49cc3e1bc4",
    ),
}


@pytest.mark.parametrize("name", BASELINE)
def test_baseline(name: str) -> None:
    protocol, arguments, *want = BASELINE[name]
    parties = [protocol(Channel(party, SESSION), source, *arguments(party)) for party, source in enumerate(dealer(7))]
    run = lockstep.run(parties[0], parties[1])
    assert [traffic.digest.hexdigest()[:16] for traffic in run.traffic] == want
