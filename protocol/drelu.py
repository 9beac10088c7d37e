"""The sign of a shared number, and the carry out of its low bits (CrypTFlow2, eprint 2020/1002, algorithm 2).

Both parties hold shares of x mod 2^k. The top bit of x_0 + x_1 is top(x_0) xor top(x_1) xor carry, where carry comes
out of the low k - 1 bits: [2^(k-1) - 1 - (x_0 mod 2^(k-1)) < x_1 mod 2^(k-1)]. P0's side of that comparison is the
complement of its share's low bits. DReLU(x) = [x >= 0] = 1 xor the top bit of x. The carry out of the low ``edge``
bits is an inner node of the same tree.

1. ``millionaires`` over k - 1 bits.
2. Both xor the top bit of their share; P0 xors 1.

Exact for every x in [-2^(k-1), 2^(k-1)) and every sharing of it. Cost and adversary: ``millionaires`` of k - 1 bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels import bits as bit_kernels
from mpcd.kernels import comparison as kernels
from mpcd.protocol.channel import MODEL_OWNER, Channel
from mpcd.protocol.correlations import Need, Source
from mpcd.protocol.millionaires import Layout, Leaves, Less, Words, millionaires, millionaires_needs, own_leaves

Share = npt.NDArray[np.uint64]


def drelu_needs(n: int, bits: int, edge: int | None = None) -> tuple[Need, ...]:
    """For n elements of ``bits`` bits, with the carry at ``edge`` if given."""
    return millionaires_needs(Layout(bits - 1, edge), n)


async def carries(channel: Channel, source: Source, x: Share, layout: Layout, leaves: Leaves = own_leaves) -> Less:
    """Either party. Shares of the carries of x_0 + x_1 into bit ``layout.bits`` and into bit ``layout.edge``."""
    ours = await channel.compute(np.invert, x) if channel.party == MODEL_OWNER else x
    return await millionaires(channel, source, ours, layout, leaves)


def flip_at_model_owner(channel: Channel, words: Words, n: int) -> Words:
    """Shares of 1 xor the shared bits."""
    return bit_kernels.clear_tail(~words, n) if channel.party == MODEL_OWNER else words


async def drelu_and_carry(
    channel: Channel, source: Source, x: Share, bits: int, edge: int | None, leaves: Leaves = own_leaves
) -> tuple[Words, Words | None]:
    """Either party. Shares (words) of [x >= 0] and of the carry into bit ``edge``. x: uint64 (n,), low bits used."""
    carry = await carries(channel, source, x, Layout(bits - 1, edge), leaves)
    top = await channel.compute(kernels.bit_plane, x, bits - 1)
    return flip_at_model_owner(channel, carry.whole ^ top, len(x)), carry.low


async def drelu(channel: Channel, source: Source, x: Share, bits: int, leaves: Leaves = own_leaves) -> Words:
    """Either party. Shares (words) of [x >= 0] for x mod 2^bits, 2 <= bits <= 64. x: uint64 (n,)."""
    sign, _ = await drelu_and_carry(channel, source, x, bits, None, leaves)
    return sign
