"""Random 1-of-2 OT of short strings, from correlated OTs.

Ishai, Kilian, Nissim and Petrank (CRYPTO 2003), figure 1, last step, as the random OT of Asharov, Lindell, Schneider
and Zohner (CCS 2013, eprint 2013/552): the hash values themselves are the strings, so nothing more is sent.

Sender ends with (m0_j, m1_j), Receiver with a random bit x_j and m_j = m0_j or m1_j, for ``count`` OTs of ``bits``
bits, 1 <= bits <= 64.

1. Both extend the correlated OTs: t_j = q_j ^ x_j delta.
2. Sender: m0_j = H(j, q_j), m1_j = H(j, q_j ^ delta), each cut to its low bits.
3. Receiver: m_j = H(j, t_j), cut.

Cost: one COT each, so ``pads.bytes_sent(count)`` bytes (16 an OT with IKNP, in whole blocks of 128) from Receiver to
Sender, 1 flow.

Adversary: malicious, once the COTs are checked, under pads.py's assumption.
"""

from __future__ import annotations

import numpy as np

from mpcd.kernels import ot_hash
from mpcd.protocol.channel import Channel
from mpcd.protocol.correlations import StringReceiver, StringSender
from mpcd.protocol.ot.pads import ReceivingEnd, SendingEnd, chunks


async def send(channel: Channel, end: SendingEnd, bits: int, count: int) -> StringSender:
    m0, m1 = np.empty(count, np.uint64), np.empty(count, np.uint64)
    for first, n in chunks(count):
        round_keys, q, delta, tweak = await end.rows(channel, n)
        out = slice(first, first + n)
        await channel.compute(ot_hash.string_sender, round_keys, q, delta, tweak, bits, m0[out], m1[out])
        await end.cot.checkpoint(channel)
    return StringSender(m0, m1)


async def receive(channel: Channel, end: ReceivingEnd, bits: int, count: int) -> StringReceiver:
    choices, m = np.empty((count + 63) // 64, np.uint64), np.empty(count, np.uint64)
    for first, n in chunks(count):
        round_keys, t, x, tweak = await end.rows(channel, n)
        await channel.compute(ot_hash.string_receiver, round_keys, t, tweak, bits, m[first : first + n])
        choices[first // 64 : first // 64 + len(x)] = x
        await end.cot.checkpoint(channel)
    return StringReceiver(choices, m)
