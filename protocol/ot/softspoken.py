"""Random correlated OT, extended from punctured trees: SoftSpokenOT. IKNP is the case k = 1.

Roy, "SoftSpokenOT: Quieter OT Extension from Small-Field Silent VOLE in the Minicrypt Model" (CRYPTO 2022, eprint
2022/192): the VOLE over F_(2^k) of section 3.1, figure 7, and its subspace form of section 3.2 for the repetition
code. k times less is sent than by IKNP, for 2^k / k AES blocks an OT at either end.

The base OTs, made into 128 / k trees of 2^k leaves (ggm.py), run the other way: the Sender chose delta in them (128
bits, of which k i to k i + k - 1 are delta_i, an element of F_(2^k)) and holds the leaves s_{i,x} for x != delta_i; the
Receiver holds all. G(s) is AES-128 in counter mode. For n correlated OTs the Receiver ends with random bits x_j and
rows t_j, the Sender with rows q_j of 128 bits, and

    t_j = q_j ^ x_j delta.

1. Receiver, for every tree: u_i = XOR over x of the next n bits of G(s_{i,x}), and v_i = sum of x G(s_{i,x}), k bits
   for every bit of the streams. Its choices are u_0. Sends c_i = u_i ^ u_0 for i >= 1.
2. Sender, for every tree: w_i = sum of (x ^ delta_i) G(s_{i,x}), for which the leaf that it lacks has weight zero.
   That is v_i ^ delta_i u_i. q's columns are w_i ^ delta_i c_i (c_0 = 0), which is v_i ^ delta_i u_0.

A bit times an element is the element or zero, so no field multiplication is ever made; kernels/leaf_sums.py has the
sums in 2 XORs a stream. The Sender's leaves are numbered x ^ delta_i, so that its sums have the same weights as the
Receiver's and delta selects no address.

Both then read rows. The streams go on from call to call and never repeat: a state that has been copied or written
down must not be used.

Cost of n: 16 (128 / k - 1) ceil(n / 128) bytes from Receiver to Sender (``bytes_sent``), so 128 / k - 1 bits an OT,
1 flow; nothing ever waits for the Sender, so a Receiver may run ahead.

Adversary: semi-honest only. c is pseudorandom to the Sender as every u_i has a stream that it lacks; AES-128 as a PRF.
Against a malicious Receiver, who could send a c of its own for every tree and so learn bits of delta, Roy's
consistency check (section 4, a universal hash of u and v over the rows) must come on top, and the trees' check; not the
check of Keller, Orsini and Scholl (CRYPTO 2015), whose proof he refutes (appendix D).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels import softspoken
from mpcd.kernels.bits import clear_tail
from mpcd.kernels.ggm import leaf_keys
from mpcd.protocol.channel import Channel
from mpcd.protocol.ot.extension import blocks, checked_blocks, grown
from mpcd.protocol.ot.ggm import trees
from mpcd.protocol.wire import array, message

Words = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]


@message("softspoken")
class Corrections:
    """Step 1: uint64 (128 / k - 1, w), row j's bit of c_i at row i - 1, bit j % 64 of word j // 64."""

    c: Words = array("uint64", 2)


def bytes_sent(n: int, depth: int) -> int:
    """Payload bytes of one ``extend`` by n, for k = depth."""
    return 16 * (trees(depth) - 1) * blocks(n)


class Sender:
    """Holds delta, uint64 (2,), and all leaves but one. Rows are valid until the next call: one buffer is reused."""

    def __init__(self, choices: Bytes, leaves: Words) -> None:
        """``choices``: uint8 (128,), delta's bits; ``leaves``: from ``ggm.puncture`` with them."""
        self.delta: Words = np.packbits(choices, bitorder="little").view(np.uint64)
        self._keys = leaf_keys(leaves)
        self._next = 0
        self._rows = np.empty((0, 2), np.uint64)

    async def extend(self, channel: Channel, n: int) -> Words:
        """Step 2: q, uint64 (n, 2), for 1 <= n <= CHUNK."""
        count = checked_blocks(n)
        msg = await channel.recv(Corrections, c=(len(self._keys) - 1, 2 * count))
        self._rows = grown(self._rows, 128 * count)
        rows = self._rows[: 128 * count]
        await channel.compute(softspoken.sender_rows, self._keys, self.delta, self._next, msg.c, rows)
        self._next += count
        return rows[:n]


class Receiver:
    """Holds all leaves. Rows are valid until the next call: one buffer is reused."""

    runs_ahead = True

    def __init__(self, leaves: Words) -> None:
        """``leaves``: from ``ggm.own``."""
        self._keys = leaf_keys(leaves)
        self._next = 0
        self._rows = np.empty((0, 2), np.uint64)

    async def extend(self, channel: Channel, n: int) -> tuple[Words, Words]:
        """Step 1: (x, t), x as words with tail zero, t uint64 (n, 2), for 1 <= n <= CHUNK."""
        count = checked_blocks(n)
        x = np.empty(2 * count, np.uint64)
        c = np.empty((len(self._keys) - 1, 2 * count), np.uint64)
        self._rows = grown(self._rows, 128 * count)
        rows = self._rows[: 128 * count]
        await channel.compute(softspoken.receiver_rows, self._keys, self._next, x, c, rows)
        self._next += count
        await channel.send(Corrections(c))
        return clear_tail(x[: (n + 63) // 64], n), rows[:n]
