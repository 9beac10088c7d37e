"""A shared bit as a number: from b_0 xor b_1 to shares of b mod 2^l (CrypTFlow2, eprint 2020/1002, section 4.2).

1. ``transfer`` with P0 the sender of v_j = b_0 xor j and P1's bit s = b_1.

Cost: ceil(n / 64) words from P1, ceil(n l / 64) from P0, 2 flows; n COTs. Adversary: as ``transfer``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels import bits as bit_kernels
from mpcd.protocol.channel import MODEL_OWNER, Channel
from mpcd.protocol.correlations import Source, StringNeed
from mpcd.protocol.transfer import transfer_needs, transfer_receive, transfer_send

Share = npt.NDArray[np.uint64]
Words = npt.NDArray[np.uint64]


def bit_to_arithmetic_needs(n: int, bits: int) -> tuple[StringNeed]:
    """For n bits into the ring of ``bits`` bits."""
    return transfer_needs(n, bits, MODEL_OWNER)


async def bit_to_arithmetic(channel: Channel, source: Source, b: Words, n: int, bits: int) -> Share:
    """Either party. b: words of n bits. Returns uint64 (n,) below 2^bits."""
    if channel.party == MODEL_OWNER:
        v0, v1 = await channel.compute(_both, b, n)
        return await transfer_send(channel, source, v0, v1, bits)
    return await transfer_receive(channel, source, b, n, bits)


def _both(b: Words, n: int) -> tuple[Share, Share]:
    v0 = bit_kernels.unpack_bits(b, n).astype(np.uint64)
    return v0, v0 ^ np.uint64(1)
