"""Random 1-of-2^m OT of two-bit strings, the comparison's leaves, from m correlated OTs.

Naor and Pinkas, "Oblivious Transfer and Polynomial Evaluation" (STOC 1999), section 3.1: an entry's pad is the XOR of
F_K(v) over the m keys K that spell the entry v, with the entry inside F. A plain XOR of keys would be linearly
dependent: the pads of four entries would XOR to zero.

Sender ends with the pads of all 2^m entries, Receiver with a random entry v and its pad, for ``count`` leaves,
1 <= m <= 4. With several ``uses``, up to 4, a leaf has that many pads an entry, for as many comparisons in which
Receiver's number is the same.

1. Both extend m correlated OTs a leaf: t_j = q_j ^ x_j delta. The entry is v = x_0 + 2 x_1 + ...
2. Sender: pad_v of use u = XOR over j of bits 32 u + 2v, 32 u + 2v + 1 of H(j, q_j ^ v_j delta). F_K(v) is thus two
   bits of the 128 that the hash gives, others for every v and u.
3. Receiver: those bits of the XOR of H(j, t_j): of any other entry it lacks at least one H.

Cost: m COTs a leaf, so ``pads.bytes_sent(count, m)`` bytes (16 m a leaf with IKNP, in whole blocks of 128 rows) from
Receiver to Sender, 1 flow.

Adversary: malicious, once the COTs are checked, under pads.py's assumption.
"""

from __future__ import annotations

import numpy as np

from mpcd.kernels import ot_hash
from mpcd.protocol.channel import Channel
from mpcd.protocol.correlations import LeafReceiver, LeafSender
from mpcd.protocol.ot.pads import ReceivingEnd, SendingEnd, chunks


async def send(channel: Channel, end: SendingEnd, block: int, count: int, uses: int = 1) -> LeafSender:
    pads = np.empty((count, uses), np.uint32)
    for first, n in chunks(count, block):
        rows = await end.rows(channel, n * block)
        await channel.compute(ot_hash.leaf_pads_sender, *rows, block, pads[first : first + n])
        await end.cot.checkpoint(channel)
    return LeafSender(pads)


async def receive(channel: Channel, end: ReceivingEnd, block: int, count: int, uses: int = 1) -> LeafReceiver:
    choices, pads = np.empty(count, np.uint8), np.empty((count, uses), np.uint8)
    for first, n in chunks(count, block):
        rows = await end.rows(channel, n * block)
        out = slice(first, first + n)
        await channel.compute(ot_hash.leaf_pads_receiver, *rows, block, choices[out], pads[out])
        await end.cot.checkpoint(channel)
    return LeafReceiver(choices, pads)
