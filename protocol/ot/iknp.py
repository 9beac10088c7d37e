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

Cost of n: 16 * 128 * ceil(n / 128) bytes from Receiver to Sender, 1 flow; nothing ever waits for the Sender, so a
Receiver may run ahead.

Adversary: semi-honest. u is pseudorandom to the Sender as it lacks k_{i, 1 - delta_i}; AES-128 as a PRF.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels import iknp
from mpcd.kernels.aes import expand_key
from mpcd.protocol.channel import Channel
from mpcd.protocol.ot.extension import blocks, checked_blocks, grown
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


class Sender:
    """Holds delta, uint64 (2,), and a key per column. Rows are valid until the next call: one buffer is reused."""

    def __init__(self, choices: Bytes, keys: Bytes) -> None:
        """``choices``: uint8 (128,), delta's bits; ``keys``: uint8 (128, 16), from the base OTs."""
        self.delta: Words = np.packbits(choices, bitorder="little").view(np.uint64)
        self._keys = _expand(keys)
        self._next = 0
        self._rows = np.empty((0, 2), np.uint64)

    async def extend(self, channel: Channel, n: int) -> Words:
        """Step 2: q, uint64 (n, 2), for 1 <= n <= CHUNK."""
        count = checked_blocks(n)
        msg = await channel.recv(Columns, u=(WIDTH, 2 * count))
        self._rows = grown(self._rows, 128 * count)
        rows = self._rows[: 128 * count]
        await channel.compute(iknp.sender_rows, self._keys, self.delta, self._next, msg.u, rows)
        self._next += count
        return rows[:n]


class Receiver:
    """Holds two keys per column. Rows are valid until the next call: one buffer is reused."""

    runs_ahead = True

    def __init__(self, keys: Bytes) -> None:
        """``keys``: uint8 (128, 2, 16), from the base OTs."""
        self._keys0 = _expand(keys[:, 0])
        self._keys1 = _expand(keys[:, 1])
        self._next = 0
        self._rows = np.empty((0, 2), np.uint64)

    async def extend(self, channel: Channel, n: int) -> tuple[Words, Words]:
        """Step 1: (x, t), x as words with tail zero, t uint64 (n, 2), for 1 <= n <= CHUNK."""
        count = checked_blocks(n)
        x = np.zeros(2 * count, np.uint64)
        x[: (n + 63) // 64] = channel.prg.bits(n)
        u = np.empty((WIDTH, 2 * count), np.uint64)
        self._rows = grown(self._rows, 128 * count)
        rows = self._rows[: 128 * count]
        await channel.compute(iknp.receiver_rows, self._keys0, self._keys1, self._next, x, u, rows)
        self._next += count
        await channel.send(Columns(u))
        return x[: (n + 63) // 64], rows[:n]


def _expand(keys: Bytes) -> Words:
    return np.stack([expand_key(np.ascontiguousarray(key)) for key in keys])
