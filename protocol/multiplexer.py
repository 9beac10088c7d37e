"""b z for a shared bit b and a shared number z (CrypTFlow2, eprint 2020/1002, algorithm 6, with one message an OT).

b = b_0 xor b_1, z = z_0 + z_1 mod 2^l, and b z = b z_0 + b z_1. For each party's z_i the two run one ``transfer``,
that party the sender of v_j = (b_i xor j) z_i, the other's bit the choice. Both run at the same time.

1. Both send the corrections of the transfer in which they receive.
2. Both send the elements of the transfer in which they send; each adds its two shares.

Cost: ceil(n / 64) + ceil(n l / 64) words from each party; 3 flows, as a party's two messages meet in the middle;
2 n COTs. Adversary: as ``transfer``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.protocol.channel import DATA_OWNER, MODEL_OWNER, Channel
from mpcd.protocol.correlations import Source, StringNeed, take
from mpcd.protocol.transfer import Receiver, Sender, element_words, transfer_needs

Share = npt.NDArray[np.uint64]
Words = npt.NDArray[np.uint64]


def multiplexer_needs(n: int, bits: int) -> tuple[StringNeed, StringNeed]:
    """P0's transfer, then P1's."""
    return transfer_needs(n, bits, MODEL_OWNER) + transfer_needs(n, bits, DATA_OWNER)


async def multiplexer(channel: Channel, source: Source, b: Words, z: Share, bits: int) -> Share:
    """Either party. b: words of n bits; z: uint64 (n,), of which the low ``bits`` bits count. Returns uint64 (n,)."""
    n = len(z)
    pads = [await take(channel, source, need) for need in multiplexer_needs(n, bits)]
    sender = Sender(bits, pads[channel.party])
    receiver = Receiver(bits, b, pads[1 - channel.party])
    theirs = await channel.exchange(receiver.corrections(), words=b.shape)
    elements, share = await channel.compute(sender.multiplexed, b, z, theirs)
    answer = await channel.exchange(elements, words=(element_words(n, bits),))
    return await channel.compute(receiver.add_share, answer, share)
