"""Random correlated OT, extended from 128 base OTs: IKNP.

Ishai, Kilian, Nissim and Petrank, "Extending Oblivious Transfers Efficiently" (CRYPTO 2003), figure 1, in the
correlated form of Asharov, Lindell, Schneider and Zohner (CCS 2013, eprint 2013/552: base OTs of seeds, so that one
vector of columns is sent instead of two).

Base OTs run the other way: the Sender chose delta (128 bits) in them and holds k_{i, delta_i}; the Receiver holds
k_{i,0} and k_{i,1}. G(k) is AES-128 in counter mode. For n correlated OTs the Receiver ends with random bits x_j and
rows t_j, the Sender with rows q_j of 128 bits, and

    t_j = q_j ^ x_j delta.

1. Receiver draws x; column i of T is the next n bits of G(k_{i,0});
   sends u_i = G(k_{i,0}) ^ G(k_{i,1}) ^ x for every i.
2. Sender: column i of Q is G(k_{i, delta_i}) ^ delta_i u_i, which is T's column ^ delta_i x.

Both then read rows. The streams go on from call to call and never repeat: a state that has been copied or written
down must not be used.

Cost of n: 16 * 128 * ceil(n / 128) bytes from Receiver to Sender, 1 flow; nothing waits for the Sender but for the
check's keys, so a Receiver may run ahead. The check comes on top (consistency.py).

Adversary: malicious, once checked. u is pseudorandom to the Sender as it lacks k_{i, 1 - delta_i}; AES-128 as a PRF.
That the Receiver's u_i all hold the same x is what consistency.py checks; what is called v there is T's columns.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels import iknp
from mpcd.kernels.aes import expand_key
from mpcd.protocol.channel import Channel
from mpcd.protocol.ot import consistency
from mpcd.protocol.ot.extension import blocks
from mpcd.protocol.ot.inbox import Inbox
from mpcd.protocol.wire import array, message

Words = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]

WIDTH = 128


@message("iknp")
class Columns:
    """Step 1: uint64 (128, w), row j's bit of u_i is bit j % 64 of word j // 64."""

    u: Words = array("uint64", 2)


def bytes_sent(n: int) -> int:
    """Payload bytes of one ``extend`` by n."""
    return 16 * WIDTH * blocks(n)


class Sender(consistency.Sender):
    """Holds a key per column."""

    def __init__(self, choices: Bytes, keys: Bytes, inbox: Inbox | None = None) -> None:
        """``choices``: uint8 (128,), delta's bits; ``keys``: uint8 (128, 16), from the base OTs."""
        super().__init__(np.packbits(choices, bitorder="little").view(np.uint64), inbox or Inbox())
        self._keys = _round_keys(keys)

    async def _receive(self, channel: Channel, blocks: int) -> Words:
        return (await self._inbox.open(channel, self._inbox.expect(Columns, u=(WIDTH, 2 * blocks)))).u

    async def _expand(self, channel: Channel, corrections: Words, powers: Words, hashes: Words, rows: Words) -> None:
        """Step 2."""
        streams = self._keys, self.delta, self._next
        await channel.compute(iknp.sender_rows, *streams, corrections, powers, hashes, rows)


class Receiver(consistency.Receiver):
    """Holds two keys per column."""

    def __init__(self, keys: Bytes, inbox: Inbox | None = None) -> None:
        """``keys``: uint8 (128, 2, 16), from the base OTs."""
        super().__init__(inbox or Inbox())
        self._keys0 = _round_keys(keys[:, 0])
        self._keys1 = _round_keys(keys[:, 1])

    async def _expand(self, channel: Channel, n: int, u: Words, tiles: Words, rows: Words) -> None:
        """Step 1."""
        u[:] = 0
        u[: (n + 63) // 64] = channel.prg.bits(n)
        columns = np.empty((WIDTH, len(u)), np.uint64)
        streams = self._keys0, self._keys1, self._next
        await channel.compute(iknp.receiver_rows, *streams, u, columns, tiles, rows)
        await channel.send(Columns(columns))


def _round_keys(keys: Bytes) -> Words:
    return np.stack([expand_key(np.ascontiguousarray(key)) for key in keys])
