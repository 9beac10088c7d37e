"""floor(x / 2^f), exact, from any ring of at least k + f bits to the ring of k bits.

t_i = x_i >> f are shares of the answer but for the carry out of the low f bits: floor(x / 2^f) = t_0 + t_1 + c
mod 2^k, c = [2^f - 1 - (x_0 mod 2^f) < x_1 mod 2^f]. A wrap of x_0 + x_1 at the top of the wider ring is a multiple
of 2^k in the answer and vanishes (SIRNN, eprint 2021/459, section 3, without its wrap term).

1. ``millionaires`` over f bits gives shares of c.
2. ``bit_to_arithmetic`` of c to k bits; both add t_i.

Cost: ``millionaires`` of f bits and ``bit_to_arithmetic`` of k bits; for L levels L + 3 flows, made even: P1 starts
and P0 ends. Exact for every x and every sharing. Adversary: as its parts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.protocol import local
from mpcd.protocol.bit_to_arithmetic import bit_to_arithmetic, bit_to_arithmetic_needs
from mpcd.protocol.channel import Channel
from mpcd.protocol.correlations import Need, Source
from mpcd.protocol.drelu import carries
from mpcd.protocol.millionaires import Layout, Words, millionaires_needs

Share = npt.NDArray[np.uint64]


def needs(n: int, fraction: int, bits: int) -> tuple[Need, ...]:
    """For n elements truncated by ``fraction`` bits to ``bits`` bits."""
    return millionaires_needs(Layout(fraction), n) + bit_to_arithmetic_needs(n, bits)


async def truncate(channel: Channel, source: Source, x: Share, fraction: int, bits: int) -> Share:
    """Either party. x: uint64 (n,) mod 2^(bits + fraction) or more. Returns uint64 (n,) mod 2^bits."""
    carry = await carries(channel, source, x, Layout(fraction))
    return await add_carry(channel, source, x, carry.whole, fraction, bits)


async def add_carry(channel: Channel, source: Source, x: Share, carry: Words, fraction: int, bits: int) -> Share:
    """Step 2. ``carry``: shares (words) of the carry out of the low ``fraction`` bits of x."""
    c = await bit_to_arithmetic(channel, source, carry, len(x), bits)
    return await channel.compute(_shifted_sum, x, c, fraction, bits)


def _shifted_sum(x: Share, c: Share, fraction: int, bits: int) -> Share:
    return local.add(x >> np.uint64(fraction), c, bits)
