"""Bit triples with a shared operand, a b and a b2, from one random OT of two-bit strings each way.

Gilboa's product by OT (CRYPTO 1999) for bits and with random OTs in place of chosen ones (Asharov, Lindell, Schneider
and Zohner, CCS 2013, eprint 2013/552). Triples that share an operand are CrypTFlow2's (eprint 2020/1002, section 3.1),
there from 1-of-8 OT; here the second product rides on the second bit of the strings.

Party i ends with bits a_i, b_i, b2_i, c_i, c2_i, ``count`` of each, such that with a = a_0 ^ a_1 and so on
c = a & b and c2 = a & b2; a, b and b2 are uniform.

1. Both run a random OT of two-bit strings in each direction. Party i is the Sender of one, with strings m0_i, m1_i,
   and the Receiver of the other, with choice a_i and r_i, the peer's m0 or m1 as a_i says.
2. Party i: (b_i, b2_i) = m0_i ^ m1_i. So r_i = m0_(1-i) ^ a_i (b_(1-i), b2_(1-i)).
3. Party i: (c_i, c2_i) = a_i (b_i, b2_i) ^ r_i ^ m0_i.

For then c_0 ^ c_1 = a_0 b_0 ^ a_1 b_1 ^ (r_0 ^ m0_1) ^ (r_1 ^ m0_0) = a_0 b_0 ^ a_1 b_1 ^ a_0 b_1 ^ a_1 b_0.

Cost: one COT each way, so ``pads.bytes_sent(count)`` bytes (16 a triple with IKNP, in whole blocks of 128) from each
party. Neither waits for the other except to stay within ``RUN_AHEAD`` messages: a driver must let that much lie unread
in each direction (``BYTES_AHEAD``). After every ``ALONE`` triples both come together, where the checks' groups can be
closed (ot/consistency.py).

Adversary: malicious, once the COTs are checked, under ot/pads.py's assumption.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels import ot_hash
from mpcd.protocol.channel import Channel
from mpcd.protocol.correlations import AndTriples
from mpcd.protocol.ot import iknp
from mpcd.protocol.ot.extension import CHUNK
from mpcd.protocol.ot.pads import ReceivingEnd, SendingEnd, chunks

# Messages that a party sends before it must have read one: hides the link's latency behind 4 MiB with IKNP's messages,
# which are the longest (the last 2 KiB are the check's mask).
RUN_AHEAD = 4
BYTES_AHEAD = RUN_AHEAD * iknp.bytes_sent(CHUNK) + iknp.bytes_sent(1)
ALONE = 16 * CHUNK  # triples; coming together takes a round trip

Words = npt.NDArray[np.uint64]


async def make(channel: Channel, sending: SendingEnd, receiving: ReceivingEnd, count: int) -> AndTriples:
    """The same at both parties."""
    words = (count + 63) // 64
    a = np.empty(words, np.uint64)
    received = np.empty((2, words), np.uint64)  # r_i: bits 0, bits 1
    strings0 = np.empty((2, words), np.uint64)  # m0_i
    strings1 = np.empty((2, words), np.uint64)  # m1_i
    # By how many chunks this party's Receiver leads its Sender; else direction A's chunk comes first, at P0 and at P1.
    lead = RUN_AHEAD if receiving.cot.runs_ahead else channel.party
    for start in range(0, count, ALONE):
        parts = [(start + first, n) for first, n in chunks(min(ALONE, count - start))]
        ahead = 0
        for done in range(len(parts) + 1):
            for first_ahead, n_ahead in parts[ahead : done + lead]:
                round_keys, t, x, tweak = await receiving.rows(channel, n_ahead)
                at = _words(first_ahead, n_ahead)
                await channel.compute(ot_hash.and_receiver, round_keys, t, tweak, received[0, at], received[1, at])
                a[at] = x
                ahead += 1
            if done == len(parts):
                break
            first, n = parts[done]
            rows = await sending.rows(channel, n)
            at = _words(first, n)
            outputs = (strings0[0, at], strings0[1, at], strings1[0, at], strings1[1, at])
            await channel.compute(ot_hash.and_sender, *rows, *outputs)
        await sending.cot.checkpoint(channel)
        await receiving.cot.checkpoint(channel)
    b = strings0 ^ strings1
    c = (a & b) ^ received ^ strings0
    return AndTriples(a, b[0], b[1], c[0], c[1])


def _words(first: int, n: int) -> slice:
    """The words of bits first to first + n, first a multiple of 64."""
    return slice(first // 64, (first + n + 63) // 64)
