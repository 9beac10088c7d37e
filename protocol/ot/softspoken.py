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
1 flow; nothing waits for the Sender but for the check's keys, so a Receiver may run ahead. The check comes on top
(consistency.py).

Adversary: malicious, once checked. c is pseudorandom to the Sender as every u_i has a stream that it lacks; AES-128 as
a PRF. That the Receiver corrected all u_i to the same choices is what consistency.py checks, that its trees are whole
what ggm.py does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels import softspoken
from mpcd.kernels.ggm import leaf_keys
from mpcd.protocol.channel import Channel
from mpcd.protocol.ot import consistency
from mpcd.protocol.ot.extension import blocks
from mpcd.protocol.ot.ggm import trees
from mpcd.protocol.ot.inbox import Inbox
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


class Sender(consistency.Sender):
    """Holds all leaves but one of every tree."""

    def __init__(self, choices: Bytes, leaves: Words, inbox: Inbox | None = None) -> None:
        """``choices``: uint8 (128,), delta's bits; ``leaves``: from ``ggm.puncture`` with them."""
        super().__init__(np.packbits(choices, bitorder="little").view(np.uint64), inbox or Inbox())
        self._keys = leaf_keys(leaves)

    async def _receive(self, channel: Channel, blocks: int) -> Words:
        shape = len(self._keys) - 1, 2 * blocks
        return (await self._inbox.open(channel, self._inbox.expect(Corrections, c=shape))).c

    async def _expand(self, channel: Channel, corrections: Words, powers: Words, hashes: Words, rows: Words) -> None:
        """Step 2."""
        streams = self._keys, self.delta, self._next
        await channel.compute(softspoken.sender_rows, *streams, corrections, powers, hashes, rows)


class Receiver(consistency.Receiver):
    """Holds all leaves."""

    def __init__(self, leaves: Words, inbox: Inbox | None = None) -> None:
        """``leaves``: from ``ggm.own``."""
        super().__init__(inbox or Inbox())
        self._keys = leaf_keys(leaves)

    async def _expand(self, channel: Channel, n: int, u: Words, tiles: Words, rows: Words) -> None:
        """Step 1."""
        c = np.empty((len(self._keys) - 1, len(u)), np.uint64)
        await channel.compute(softspoken.receiver_rows, self._keys, self._next, u, c, tiles, rows)
        await channel.send(Corrections(c))
