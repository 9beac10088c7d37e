"""Correlated randomness: what the offline phase makes and the online phase eats, once.

A protocol states what it will eat as a tuple of needs, in the order in which it will take them. The offline phase
makes exactly that; the online phase takes it from a ``Source`` that hands out every unit once. Tests use an ideal
dealer as the source.

Bits of a vector travel packed: bit i of a vector is bit i % 64 of uint64 word i // 64, the tail zero ("words").
P0 is the model owner, P1 the data owner.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np

from mpcd.protocol.channel import Channel


@dataclasses.dataclass(frozen=True, slots=True)
class LeafNeed:
    """``count`` random 1-of-2^block OTs of ``uses`` 2-bit strings, P0 the sender. 1 <= block <= 4, 1 <= uses <= 4.

    Costs block COTs each, whatever the number of uses.
    """

    block: int
    count: int
    uses: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class AndNeed:
    """``count`` random bit triples with a shared operand: a*b and a*b2. One COT each way."""

    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class StringNeed:
    """``count`` random 1-of-2 OTs of ``bits``-bit strings; ``sender`` is 0 or 1. One COT each, 1 <= bits <= 64."""

    bits: int
    count: int
    sender: int


@dataclasses.dataclass(frozen=True, slots=True)
class MatrixNeed:
    """The matrix triple of the network's Linear op number ``op``, one image: c = W r - s mod 2^bits."""

    op: int
    bits: int
    input_shape: tuple[int, int, int]
    output_shape: tuple[int, int, int]


Need = LeafNeed | AndNeed | StringNeed | MatrixNeed


@dataclasses.dataclass(frozen=True, slots=True)
class LeafSender:
    """uint32 (count, uses): entry j's two pad bits are bits 2j and 2j + 1."""

    pads: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class LeafReceiver:
    """uint8: random choices in [0, 2^block), (count,), and those entries' two pad bits, (count, uses)."""

    choices: np.ndarray
    pads: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class AndTriples:
    """Words. XOR of both parties' shares: c = a & b, c2 = a & b2, with a, b, b2 uniform."""

    a: np.ndarray
    b: np.ndarray
    b2: np.ndarray
    c: np.ndarray
    c2: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class StringSender:
    """uint64 (count,) each, below 2^bits."""

    m0: np.ndarray
    m1: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class StringReceiver:
    """``choices``: words. ``m``: uint64 (count,), m0 or m1 as chosen."""

    choices: np.ndarray
    m: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class MatrixServer:
    """P0's: ``s`` uint64 of the output shape."""

    s: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class MatrixClient:
    """P1's: ``r`` uint64 of the input shape, ``c`` = W r - s of the output shape."""

    r: np.ndarray
    c: np.ndarray


class CorrelationError(RuntimeError):
    """A source was asked for something other than what comes next, or for more than it has."""


class Source(Protocol):
    """Hands out one unit's correlations in the order in which they were made, each once.

    ``take`` raises CorrelationError when ``need`` is not what comes next.
    """

    def take(self, need: Need) -> Any: ...


async def take(channel: Channel, source: Source, need: Need) -> Any:
    """The next correlation: reading it may touch the disk, so it is an effect."""
    return await channel.compute(source.take, need)
