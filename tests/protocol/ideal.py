"""The ideal dealer: makes any correlation the moment the first of the two parties asks for it.

``dealer(seed)`` returns both parties' sources. The second party must ask for the same in the same order, or its
source raises CorrelationError. ``taken`` lists what a source handed out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from mpcd.protocol import lockstep
from mpcd.protocol.channel import Channel
from mpcd.protocol.correlations import (
    AndNeed,
    AndTriples,
    CorrelationError,
    LeafNeed,
    LeafReceiver,
    LeafSender,
    MatrixClient,
    MatrixNeed,
    MatrixServer,
    Need,
    StringNeed,
    StringReceiver,
    StringSender,
)

Multiply = Callable[[int, np.ndarray], np.ndarray]


def pack(bits: np.ndarray) -> np.ndarray:
    """Bits as words, plainly."""
    padded = np.zeros((len(bits) + 63) // 64 * 64, np.uint8)
    padded[: len(bits)] = bits
    return np.packbits(padded, bitorder="little").view("<u8")


def unpack(words: np.ndarray, n: int) -> np.ndarray:
    """Words as bits, plainly; the tail must be zero."""
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), bitorder="little")
    assert not bits[n:].any()
    return bits[:n]


class IdealSource:
    """One party's end of the dealer."""

    def __init__(self, dealer: _Dealer, party: int) -> None:
        self._dealer, self._party = dealer, party
        self.taken: tuple[Need, ...] = ()

    def take(self, need: Need) -> Any:
        correlation = self._dealer.deal(len(self.taken), need, self._party)
        self.taken += (need,)
        return correlation


class _Dealer:
    def __init__(self, seed: int, multiply: Multiply | None) -> None:
        self._rng = np.random.default_rng(seed)
        self._multiply = multiply
        self._dealt: list[tuple[Need, list[Any]]] = []

    def deal(self, index: int, need: Need, party: int) -> Any:
        if index == len(self._dealt):
            self._dealt.append((need, list(self._make(need))))
        asked, halves = self._dealt[index]
        if asked != need:
            raise CorrelationError(f"correlation {index} is {asked}, not {need}")
        half, halves[party] = halves[party], None
        return half

    def _make(self, need: Need) -> tuple[Any, Any]:
        rng = self._rng
        if isinstance(need, LeafNeed):
            assert 1 <= need.block <= 4
            assert 1 <= need.uses <= 4
            pads = rng.integers(0, 1 << (2 << need.block), (need.count, need.uses), np.uint64).astype(np.uint32)
            choices = rng.integers(0, 1 << need.block, need.count, np.uint8)
            return LeafSender(pads), LeafReceiver(choices, (pads >> (2 * choices[:, None]) & 3).astype(np.uint8))
        if isinstance(need, AndNeed):
            # Bits: both parties' a, b, b2, and P0's c and c2.
            v = rng.integers(0, 2, (8, need.count), np.uint8)
            a, b, b2 = v[0] ^ v[1], v[2] ^ v[3], v[4] ^ v[5]
            first = (v[0], v[2], v[4], v[6], v[7])
            second = (v[1], v[3], v[5], v[6] ^ (a & b), v[7] ^ (a & b2))
            return AndTriples(*map(pack, first)), AndTriples(*map(pack, second))
        if isinstance(need, StringNeed):
            m0, m1 = rng.integers(0, (1 << need.bits) - 1, (2, need.count), np.uint64, endpoint=True)
            choices = rng.integers(0, 2, need.count, np.uint8)
            sender = StringSender(m0, m1)
            receiver = StringReceiver(pack(choices), np.where(choices, m1, m0))
            return (sender, receiver) if need.sender == 0 else (receiver, sender)
        assert isinstance(need, MatrixNeed)
        assert self._multiply is not None, "the dealer was not told the weights"
        mask = np.uint64((1 << need.bits) - 1)
        r = rng.integers(0, mask, need.input_shape, np.uint64, endpoint=True)
        s = rng.integers(0, mask, need.output_shape, np.uint64, endpoint=True)
        product = self._multiply(need.op, r).astype(np.uint64)
        return MatrixServer(s), MatrixClient(r, (product - s) & mask)


def dealer(seed: int, multiply: Multiply | None = None) -> tuple[IdealSource, IdealSource]:
    """Both parties' sources. ``multiply(op, r)``: W r of that operation mod 2^64, where matrix triples are wanted."""
    shared = _Dealer(seed, multiply)
    return IdealSource(shared, 0), IdealSource(shared, 1)


SESSION = bytes(16)


def play(protocol: Callable[..., Any], inputs: tuple[tuple[Any, ...], tuple[Any, ...]], seed: int = 0) -> Played:
    """Run ``protocol(channel, source, *inputs[party])`` at both parties over a fresh ideal dealer."""
    sources = dealer(seed)
    parties = [
        protocol(Channel(party, SESSION), source, *args)
        for party, (source, args) in enumerate(zip(sources, inputs, strict=True))
    ]
    run = lockstep.run(parties[0], parties[1])
    assert sources[0].taken == sources[1].taken
    sizes = (run.traffic[0].payload_bytes, run.traffic[1].payload_bytes)
    return Played(run.results, sources[0].taken, sizes, run.flows)


@dataclasses.dataclass
class Played:
    """Both results, the needs consumed, payload bytes sent by P0 and by P1, flows."""

    results: tuple[Any, Any]
    taken: tuple[Need, ...]
    sent: tuple[int, int]
    flows: int


def share(x: np.ndarray, bits: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Fresh uniform shares of x mod 2^bits."""
    mask = np.uint64((1 << bits) - 1)
    x0 = rng.integers(0, mask, x.shape, np.uint64, endpoint=True)
    return x0, (x.astype(np.uint64) - x0) & mask


def opened(shares: tuple[np.ndarray, np.ndarray], bits: int) -> np.ndarray:
    """The shared value in [0, 2^bits); both shares must be reduced."""
    assert all(s.dtype == np.uint64 and not (s >> np.uint64(bits)).any() for s in shares)
    return (shares[0] + shares[1]) & np.uint64((1 << bits) - 1)


def opened_bits(shares: tuple[np.ndarray, np.ndarray], n: int) -> np.ndarray:
    """The shared bits, uint8 (n,)."""
    return unpack(shares[0], n) ^ unpack(shares[1], n)


def splits(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of shares of a small ring."""
    x0, x1 = np.meshgrid(*(np.arange(1 << bits, dtype=np.uint64),) * 2)
    return x0.reshape(-1), x1.reshape(-1)


def edge_shares(bits: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``count`` share pairs of random values, the first ones of extreme values and extreme splits of them."""
    top, half = (1 << bits) - 1, 1 << (bits - 1)
    extremes = sorted({0, 1, half - 1, half, (half + 1) & top, top})
    pairs = [(x0, (x - x0) & top) for x in extremes for x0 in extremes][:count]
    x0, x1 = rng.integers(0, top, (2, count), np.uint64, endpoint=True)
    x0[: len(pairs)] = [p[0] for p in pairs]
    x1[: len(pairs)] = [p[1] for p in pairs]
    return x0, x1


def signed(x: np.ndarray, bits: int) -> np.ndarray:
    """int64 in [-2^(bits-1), 2^(bits-1)) of x mod 2^bits."""
    return (x << np.uint64(64 - bits)).astype(np.int64) >> np.int64(64 - bits)


def words(*bit_counts: int) -> int:
    """Bytes of vectors of so many bits, each filled up to whole words."""
    return sum(8 * -(-count // 64) for count in bit_counts)
