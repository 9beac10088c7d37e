"""Shares of the chosen one of two ring elements, from a random 1-of-2 OT (Beaver 1995's derandomisation).

The sender has v0, v1 mod 2^l, the receiver a bit s, n of each. They leave with shares of v_s mod 2^l.

1. The receiver sends d = c xor s, c its random choice. Let p_j be the pad m_(j xor d): the receiver has p_s.
2. The sender keeps v0 - p_0 and sends u = v1 - v0 + p_0 - p_1.
   The receiver keeps p_s + s u: for s = 0 that is p_0, for s = 1 it is v1 - v0 + p_0.

Cost: ceil(n / 64) words from the receiver, ceil(n l / 64) from the sender, 2 flows; n COTs. Adversary: semi-honest;
d is masked by c, u by p_(1-s), which the receiver does not have; a correlation is used once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels import bits as bit_kernels
from mpcd.kernels import transfer as kernels
from mpcd.protocol.channel import Channel
from mpcd.protocol.correlations import Source, StringNeed, StringReceiver, StringSender, take
from mpcd.protocol.wire import array, message

Share = npt.NDArray[np.uint64]
Words = npt.NDArray[np.uint64]


def transfer_needs(n: int, bits: int, sender: int) -> tuple[StringNeed]:
    """For n elements of ``bits`` bits."""
    return (StringNeed(bits, n, sender),)


@message("transfer.corrections")
class Corrections:
    """Step 1, receiver to sender: d."""

    words: Words = array("uint64", 1)


@message("transfer.elements")
class Elements:
    """Step 2, sender to receiver: u, packed to the ring's width."""

    words: Words = array("uint64", 1)


def element_words(n: int, bits: int) -> int:
    """Words of step 2."""
    return (n * bits + 63) // 64


class Sender:
    """Has v0 and v1."""

    def __init__(self, bits: int, pads: StringSender) -> None:
        self.bits, self.pads = bits, pads

    def elements(self, v0: Share, v1: Share, corrections: Corrections) -> tuple[Elements, Share]:
        """Step 2: the message and the sender's share."""
        share, element = np.empty((2, len(v0)), np.uint64)
        kernels.transfer_send(v0, v1, self.pads.m0, self.pads.m1, corrections.words, self.bits, share, element)
        return Elements(bit_kernels.pack_ring(element, self.bits)), share

    def multiplexed(self, b: Words, z: Share, corrections: Corrections) -> tuple[Elements, Share]:
        """Step 2 of v_j = (b xor j) z."""
        share, element = np.empty((2, len(z)), np.uint64)
        kernels.multiplex_send(b, z, self.pads.m0, self.pads.m1, corrections.words, self.bits, share, element)
        return Elements(bit_kernels.pack_ring(element, self.bits)), share


class Receiver:
    """Has s, as words."""

    def __init__(self, bits: int, s: Words, pads: StringReceiver) -> None:
        self.bits, self.s, self.pads = bits, s, pads

    def corrections(self) -> Corrections:
        """Step 1."""
        return Corrections(self.s ^ self.pads.choices)

    def add_share(self, elements: Elements, share: Share) -> Share:
        """After step 2: the receiver's share, added to ``share`` in place."""
        element = bit_kernels.unpack_ring(elements.words, self.bits, len(share))
        kernels.transfer_receive(self.s, self.pads.m, element, self.bits, share)
        return share


async def transfer_send(channel: Channel, source: Source, v0: Share, v1: Share, bits: int) -> Share:
    """The sender's share. v0, v1: uint64 (n,)."""
    (need,) = transfer_needs(len(v0), bits, channel.party)
    sender = Sender(bits, await take(channel, source, need))
    corrections = await channel.recv(Corrections, words=((len(v0) + 63) // 64,))
    elements, share = await channel.compute(sender.elements, v0, v1, corrections)
    await channel.send(elements)
    return share


async def transfer_receive(channel: Channel, source: Source, s: Words, n: int, bits: int) -> Share:
    """The receiver's share. s: words of n bits."""
    (need,) = transfer_needs(n, bits, 1 - channel.party)
    receiver = Receiver(bits, s, await take(channel, source, need))
    await channel.send(receiver.corrections())
    elements = await channel.recv(Elements, words=(element_words(n, bits),))
    return await channel.compute(receiver.add_share, elements, np.zeros(n, np.uint64))
