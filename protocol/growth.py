"""From the ring of k bits to a wider one of l bits.

``grow`` (after SIRNN, eprint 2021/459, section 4.1, for known signs): P0 has an offset
c for every element, and 0 <= x + c < 2^(k-1). Then y = x + c mod 2^k has its top bit clear, and so its shares wrapped
if and only if one of theirs is set: w = m_0 or m_1, m_i the top bit of y_i. x = y_0 + y_1 - 2^k w - c.

1. P0 adds c to its share.
2. ``transfer`` of l - k bits with P0 the sender of v_0 = m_0, v_1 = 1 and P1's bit m_1: shares of w mod 2^(l-k).
3. Both subtract 2^k w_i from y_i; P0 subtracts c.

Cost: ceil(n / 64) words from P1, ceil(n (l - k) / 64) from P0, 2 flows; n COTs. Exact if and only if the bound on
x + c holds. ``extend`` has no bound: with P0's offset 2^(k-1) y lies in [0, 2^k), and w is the carry of y_0 + y_1
out of all k bits: ``millionaires`` of k bits, then ``bit_to_arithmetic`` of l - k bits, in L + 3 flows, made even.
Adversary: as their parts; c stays P0's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels import comparison as kernels
from mpcd.protocol import local
from mpcd.protocol.bit_to_arithmetic import bit_to_arithmetic, bit_to_arithmetic_needs
from mpcd.protocol.channel import MODEL_OWNER, Channel
from mpcd.protocol.correlations import Need, Source
from mpcd.protocol.drelu import carries
from mpcd.protocol.millionaires import Layout, millionaires_needs
from mpcd.protocol.transfer import transfer_needs, transfer_receive, transfer_send

Share = npt.NDArray[np.uint64]


def grow_needs(n: int, bits: int, wide: int) -> tuple[Need, ...]:
    """For n elements from ``bits`` to ``wide`` bits, in a known half of the ring."""
    return transfer_needs(n, wide - bits, MODEL_OWNER)


async def grow(channel: Channel, source: Source, x: Share, bits: int, wide: int, offset: Share | None = None) -> Share:
    """Either party. x: uint64 (n,) mod 2^bits; offset: P0's c, uint64 (n,), or None for zero; None at P1.

    Returns uint64 (n,) mod 2^wide. Every x + c must lie in [0, 2^(bits-1)), or the answer is wrong.
    """
    if offset is not None and channel.party != MODEL_OWNER:
        raise ValueError("the offset is the model owner's")
    y = x if offset is None else local.add(x, offset, bits)
    if channel.party == MODEL_OWNER:
        v0 = local.reduce(y >> np.uint64(bits - 1), 1)
        wrapped = await transfer_send(channel, source, v0, np.ones_like(v0), wide - bits)
    else:
        top = await channel.compute(kernels.bit_plane, y, bits - 1)
        wrapped = await transfer_receive(channel, source, top, len(x), wide - bits)
    return await channel.compute(_unwrapped, y, wrapped, offset, bits, wide)


def extend_needs(n: int, bits: int, wide: int) -> tuple[Need, ...]:
    """For n elements from ``bits`` to ``wide`` bits, of either sign."""
    return millionaires_needs(Layout(bits), n) + bit_to_arithmetic_needs(n, wide - bits)


async def extend(channel: Channel, source: Source, x: Share, bits: int, wide: int) -> Share:
    """Either party. x: uint64 (n,) mod 2^bits, any signed value. Returns uint64 (n,) mod 2^wide."""
    offset = np.full(len(x), channel.public(1 << (bits - 1)), np.uint64)
    y = local.add(x, offset, bits)
    carry = await carries(channel, source, y, Layout(bits))
    wrapped = await bit_to_arithmetic(channel, source, carry.whole, len(x), wide - bits)
    return await channel.compute(_unwrapped, y, wrapped, offset, bits, wide)


def _unwrapped(y: Share, wrapped: Share, offset: Share | None, bits: int, wide: int) -> Share:
    x = y - (wrapped << np.uint64(bits))
    return local.reduce(x if offset is None else x - offset, wide)
