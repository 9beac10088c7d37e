"""max(x, 0): the sign by ``drelu``, the product by ``multiplexer`` (CrypTFlow2, eprint 2020/1002, section 4).

``relu`` of z mod 2^k: max(z, 0); for elements that P0 calls ``negative``, in secret, min(z + 1, 0). There P0 flips its
share of [z >= 0] and adds 1 to its share of what is multiplied: [z < 0] (z + 1).

``truncate_relu`` of x in a ring of at least k + f bits: max(floor(x / 2^f), 0) mod 2^k. The sign of x mod 2^(k+f) is
the sign of the answer, and the carry that truncation wants is a node of the same comparison tree.

1. ``drelu`` over k bits; over k + f bits with edge f when truncating.
2. When truncating, ``truncation``'s step 2.
3. ``multiplexer`` of k bits.

Cost: the sum of these. Flows for L levels: L + 4; truncating, L + 5, made even: P1 starts and P0 ends. Exact for
every z and x. Adversary: as its parts; P1 does not learn which elements are negative.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels import bits as bit_kernels
from mpcd.protocol import local
from mpcd.protocol.bit_to_arithmetic import bit_to_arithmetic_needs
from mpcd.protocol.channel import MODEL_OWNER, Channel
from mpcd.protocol.correlations import Need, Source
from mpcd.protocol.drelu import drelu, drelu_and_carry, drelu_needs
from mpcd.protocol.millionaires import Layout, Leaves, millionaires_needs, own_leaves
from mpcd.protocol.multiplexer import multiplexer, multiplexer_needs
from mpcd.protocol.shared_leaves import Piece, leaf_needs
from mpcd.protocol.truncation import add_carry

Share = npt.NDArray[np.uint64]


def relu_needs(n: int, bits: int, pieces: tuple[Piece, ...] | None = None) -> tuple[Need, ...]:
    """For n elements of ``bits`` bits. ``pieces``: with shared leaves."""
    layout = Layout(bits - 1)
    leaves = None if pieces is None else leaf_needs(layout, pieces)
    return millionaires_needs(layout, n, leaves) + multiplexer_needs(n, bits)


async def relu(
    channel: Channel,
    source: Source,
    x: Share,
    bits: int,
    negative: npt.NDArray[np.bool_] | None = None,
    leaves: Leaves = own_leaves,
) -> Share:
    """Either party. x: uint64 (n,) mod 2^bits. negative: P0's, bool (n,), or None; None at P1. Returns uint64 (n,)."""
    if negative is not None and channel.party != MODEL_OWNER:
        raise ValueError("which slopes are negative is the model owner's to know")
    b = await drelu(channel, source, x, bits, leaves)
    if negative is not None:
        b, x = await channel.compute(_negated, b, x, negative, bits)
    return await multiplexer(channel, source, b, x, bits)


def _negated(
    b: npt.NDArray[np.uint64], x: Share, negative: npt.NDArray[np.bool_], bits: int
) -> tuple[npt.NDArray[np.uint64], Share]:
    return b ^ bit_kernels.pack_bits(negative.view(np.uint8)), local.add(x, negative.astype(np.uint64), bits)


def truncate_relu_needs(n: int, fraction: int, bits: int) -> tuple[Need, ...]:
    """For n elements truncated by ``fraction`` bits to ``bits`` bits."""
    return drelu_needs(n, bits + fraction, fraction) + bit_to_arithmetic_needs(n, bits) + multiplexer_needs(n, bits)


async def truncate_relu(channel: Channel, source: Source, x: Share, fraction: int, bits: int) -> Share:
    """Either party. x: uint64 (n,) mod 2^(bits + fraction) or more. Returns uint64 (n,) mod 2^bits."""
    b, carry = await drelu_and_carry(channel, source, x, bits + fraction, fraction)
    assert carry is not None
    t = await add_carry(channel, source, x, carry, fraction, bits)
    return await multiplexer(channel, source, b, t, bits)
