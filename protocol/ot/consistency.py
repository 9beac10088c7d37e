"""Correlated OT from columns, and the check that the Receiver's corrections were those of one choice vector.

Roy, "SoftSpokenOT" (CRYPTO 2022, eprint 2022/192), section 4: the consistency check of a subspace VOLE, for the
repetition code. IKNP is the case of fields with two elements. (Not the check of Keller, Orsini and Scholl, CRYPTO 2015,
whose proof Roy refutes in appendix D.)

Without it a malicious Receiver corrects every column i with bits u_i of its own. The Sender ends with the columns
v_i ^ delta_i u_i, and where two of them differ the Receiver learns bits of delta from what the Sender later does.

The Receiver holds u and the columns v_i, the Sender columns q_i, i = 0, ..., 127; honestly q_i = v_i ^ delta_i u. A
period is what lies between two checks; it goes in groups of at least ``GROUP`` rows.

1. Before a period's first rows both extend by 128 more that nobody uses. Call the bits of a column there its mask.
2. Sender, once it has a group's corrections: sends the group's key r, uniform in GF(2^128).
3. At the period's end Receiver sends u' = H(u) and v'_i = H(v_i), where H(y) is y's mask plus, of every group, the
   hash of y's bits as a polynomial in r without constant term (kernels/gf128.py).
4. Sender checks v'_i = H(q_i) ^ delta_i u' for every i. H is linear over F_2, so honestly it holds. Else ``Deviation``.

What the rows are used for is void until then: nothing made from them may be used, nor sent if it depends on them.

Cost of a period (``bytes_sent``): the corrections of 128 rows and 2064 bytes from Receiver; a group's key is 16 bytes
in a header. The keys make no one wait but the last: Receiver keeps the columns of two groups, 8 MiB, until their keys
come, so it may lead by that much (32 MiB of triples: bit_triples.py). At the end two flows, the last key and answer.

Adversary: malicious Receiver. For corrections that differ in two columns, H of the difference is zero with probability
at most 2^14 / 2^128 over the last key for a group that has the difference: groups have less than 2^14 blocks, and all
that H sums besides is fixed by then, the masks included (which is why they come first). So but for 2^13 pairs of
columns, 2^-100 a check, those columns whose u_i Receiver answers for are all equal, and of every other one it must have
guessed delta_i: with c of them the check holds with probability 2^-c, and Receiver then knows c bits of delta. Guessing
all of delta stays at 2^-128. Malicious Sender: the answer is uniform but for what its own columns and delta make of it,
whatever keys it sends, as the masks are added without a factor.

A check that failed has told the peer that a guess of bits of delta was wrong, one that held that it was right. So
delta, trees and streams of a run whose check failed are never used again; a retry has new base OTs, and each further
try gives a cheat a new guess, with the same chance. That the peer deviated is for a person to know: no honest program
fails a check.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from mpcd.kernels import gf128
from mpcd.kernels.bits import clear_tail
from mpcd.protocol.channel import Channel
from mpcd.protocol.ot.extension import CHUNK, checked_blocks, grown
from mpcd.protocol.ot.inbox import Expected, Inbox
from mpcd.protocol.wire import Deviation, array, blob, message

Words = npt.NDArray[np.uint64]

WIDTH = 128
# Rows after which a group is closed where both ends are at a checkpoint: when the key comes, a cache still has columns.
GROUP = 4 * CHUNK

# The key under which a block is its own hash.
_ONE = np.array([[1, 0]], np.uint64)


def deviated(what: str) -> NoReturn:
    raise Deviation(f"the peer deviated from the protocol: {what} are not consistent")


@message("ot-challenge")
class Challenge:
    """Step 2: r, low half first, little endian."""

    key: bytes = blob(16)


@message("ot-answer")
class Answer:
    """Step 3: uint64 (2,) and (128, 2)."""

    u: Words = array("uint64", 1)
    v: Words = array("uint64", 2)


ANSWER_BYTES = 16 * (1 + WIDTH)


@dataclasses.dataclass(slots=True)
class _Chunk:
    """What Receiver keeps of a chunk until its key comes: tiles of v's columns, and u's words."""

    tiles: Words
    u: Words


class Sender(abc.ABC):
    """Holds delta, uint64 (2,). Rows are valid until the next call: one buffer is reused."""

    def __init__(self, delta: Words, inbox: Inbox) -> None:
        self.delta = delta
        self._inbox = inbox
        self._next = 0  # block of the streams
        self._rows = np.empty((0, 2), np.uint64)
        self._in_period = False
        self._total = np.zeros((WIDTH, 2), np.uint64)
        self._group_rows = 0
        self._key = b""
        self._powers: Words
        self._hashes: Words

    @abc.abstractmethod
    async def _receive(self, channel: Channel, blocks: int) -> Words:
        """Receiver's corrections of so many blocks of rows."""

    @abc.abstractmethod
    async def _expand(self, channel: Channel, corrections: Words, powers: Words, hashes: Words, rows: Words) -> None:
        """Rows of the next blocks, and their columns into the hashes."""

    async def extend(self, channel: Channel, n: int) -> Words:
        """q, uint64 (n, 2), for 1 <= n <= CHUNK."""
        blocks = checked_blocks(n)
        if not self._in_period:
            self._in_period = True
            await self._columns(channel, 1, _ONE, self._total)
        if self._group_rows == 0:
            self._key = channel.prg.seed()
            self._powers = np.empty((CHUNK // WIDTH, 2), np.uint64)
            self._hashes = np.zeros((WIDTH, 2), np.uint64)
            await channel.compute(gf128.descending_powers, np.frombuffer(self._key, "<u8"), self._powers)
        self._group_rows += WIDTH * blocks
        return (await self._columns(channel, blocks, self._powers[-blocks:], self._hashes))[:n]

    async def checkpoint(self, channel: Channel) -> None:
        """Step 2, if the group is large enough."""
        if self._group_rows >= GROUP:
            await self._challenge(channel)

    async def check(self, channel: Channel) -> None:
        """Steps 2 to 4. Raises Deviation."""
        if not self._in_period:
            return
        if self._group_rows:
            await self._challenge(channel)
        answer = await self._inbox.open(channel, self._inbox.expect(Answer, u=(2,), v=(WIDTH, 2)))
        bits = np.unpackbits(self.delta.view(np.uint8), bitorder="little").astype(np.uint64)
        wrong = answer.v ^ self._total ^ (np.negative(bits)[:, None] & answer.u)
        if wrong.any():
            deviated("its corrections of an OT extension")
        self._total[:] = 0
        self._in_period = False

    async def _columns(self, channel: Channel, blocks: int, powers: Words, hashes: Words) -> Words:
        corrections = await self._receive(channel, blocks)
        self._rows = grown(self._rows, WIDTH * blocks)
        rows = self._rows[: WIDTH * blocks]
        await self._expand(channel, corrections, powers, hashes, rows)
        self._next += blocks
        return rows

    async def _challenge(self, channel: Channel) -> None:
        await channel.send(Challenge(self._key))
        self._total ^= self._hashes
        self._group_rows = 0


class Receiver(abc.ABC):
    """Rows are valid until the next call: one buffer is reused."""

    runs_ahead = True

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._next = 0
        self._rows = np.empty((0, 2), np.uint64)
        self._in_period = False
        self._total_u = np.zeros(2, np.uint64)
        self._total_v = np.zeros((WIDTH, 2), np.uint64)
        self._group: list[_Chunk] = []
        self._group_rows = 0
        self._closed: list[tuple[Expected[Challenge], list[_Chunk]]] = []
        self._spare: list[Words] = []

    @abc.abstractmethod
    async def _expand(self, channel: Channel, n: int, u: Words, tiles: Words, rows: Words) -> None:
        """u and rows of the next blocks, of which n rows will be used, and v's columns; sends the corrections."""

    async def extend(self, channel: Channel, n: int) -> tuple[Words, Words]:
        """(x, t), x as words with tail zero, t uint64 (n, 2), for 1 <= n <= CHUNK."""
        blocks = checked_blocks(n)
        if not self._in_period:
            self._in_period = True
            mask, _ = await self._columns(channel, WIDTH)
            _hash([mask], _ONE, self._total_u, self._total_v)
        chunk, rows = await self._columns(channel, n)
        self._group.append(chunk)
        self._group_rows += WIDTH * blocks
        return clear_tail(chunk.u[: (n + 63) // 64].copy(), n), rows[:n]

    async def checkpoint(self, channel: Channel) -> None:
        """The group's key is on its way, if the group is large enough; that of the one before is waited for."""
        if self._group_rows >= GROUP:
            self._close()
            if len(self._closed) > 1:
                await self._hash_first(channel)

    async def check(self, channel: Channel) -> None:
        """Step 3."""
        if not self._in_period:
            return
        if self._group_rows:
            self._close()
        while self._closed:
            await self._hash_first(channel)
        await channel.send(Answer(self._total_u.copy(), self._total_v.copy()))
        self._total_u[:] = 0
        self._total_v[:] = 0
        self._in_period = False

    async def _columns(self, channel: Channel, n: int) -> tuple[_Chunk, Words]:
        blocks = checked_blocks(n)
        self._rows = grown(self._rows, WIDTH * blocks)
        rows = self._rows[: WIDTH * blocks]
        tiles = self._spare.pop() if self._spare else np.empty(WIDTH * CHUNK // 64, np.uint64)
        chunk = _Chunk(tiles, np.empty(2 * blocks, np.uint64))
        await self._expand(channel, n, chunk.u, tiles, rows)
        self._next += blocks
        return chunk, rows

    def _close(self) -> None:
        self._closed.append((self._inbox.expect(Challenge), self._group))
        self._group, self._group_rows = [], 0

    async def _hash_first(self, channel: Channel) -> None:
        expected, chunks = self._closed.pop(0)
        challenge = await self._inbox.open(channel, expected)
        powers = np.empty((CHUNK // WIDTH, 2), np.uint64)
        await channel.compute(gf128.descending_powers, np.frombuffer(challenge.key, "<u8"), powers)
        u, v = np.zeros(2, np.uint64), np.zeros((WIDTH, 2), np.uint64)
        await channel.compute(_hash, chunks, powers, u, v)
        self._total_u ^= u
        self._total_v ^= v
        self._spare += [chunk.tiles for chunk in chunks]


def bytes_sent(block_bytes: int) -> int:
    """Payload bytes of a period, all from Receiver, where the corrections of 128 rows take ``block_bytes``."""
    return block_bytes + ANSWER_BYTES


def _hash(chunks: list[_Chunk], powers: Words, u: Words, v: Words) -> None:
    for chunk in chunks:
        words = len(chunk.u)
        gf128.hash_blocks(chunk.u, powers[-(words // 2) :], u)
        gf128.hash_tiles(chunk.tiles, words, powers[-(words // 2) :], v)
