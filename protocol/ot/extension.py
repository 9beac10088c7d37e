"""What every correlated OT extension offers: two ends, which go on from chunk to chunk."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from mpcd.protocol.channel import Channel

Words = npt.NDArray[np.uint64]

# Rows that one message may bring: 1 MiB of columns at most. Longer vectors go in chunks.
CHUNK = 1 << 16


class Sender(Protocol):
    """The end that holds delta, uint64 (2,).

    ``checkpoint`` is for a moment when both ends have taken the same chunks; ``check`` also: it finds what all chunks
    since the last one are worth. Nothing made of them may be used before. It raises Deviation (consistency.py) where
    the peer did not follow the protocol; then both ends must be dropped.
    """

    delta: Words

    async def extend(self, channel: Channel, n: int) -> Words:
        """q, uint64 (n, 2), for 1 <= n <= CHUNK; valid until the next call."""
        ...

    async def checkpoint(self, channel: Channel) -> None: ...

    async def check(self, channel: Channel) -> None: ...


class Receiver(Protocol):
    """The end that learns t = q ^ x delta for random bits x. Checks as the Sender does.

    ``runs_ahead``: it only sends between checkpoints, so it may be any number of chunks ahead of the Sender. Otherwise
    both parties must take their chunks in one order over both directions, direction A's (P0 the Sender) before
    direction B's.
    """

    runs_ahead: bool

    async def extend(self, channel: Channel, n: int) -> tuple[Words, Words]:
        """(x, t), x as words with tail zero, t uint64 (n, 2), for 1 <= n <= CHUNK; t is valid until the next call."""
        ...

    async def checkpoint(self, channel: Channel) -> None: ...

    async def check(self, channel: Channel) -> None: ...


def blocks(n: int) -> int:
    """AES blocks that cover n bits of a column."""
    return (n + 127) // 128


def checked_blocks(n: int) -> int:
    if not 1 <= n <= CHUNK:
        raise ValueError(f"{n} rows at a time, not between 1 and {CHUNK}")
    return blocks(n)


def grown(buffer: Words, rows: int) -> Words:
    """``buffer``, or a new one, with space for this many rows of 128 bits."""
    return buffer if len(buffer) >= rows else np.empty((rows, 2), np.uint64)
