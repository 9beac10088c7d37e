"""Punctured trees from base OTs: one party has all leaves of every tree, the other all but one, of its own choice.

Trees of Goldreich, Goldwasser and Micali, "How to Construct Random Functions" (JACM 1986), punctured by OT as in Boyle
et al., "Efficient Two-Round OT Extension and Silent Non-Interactive Secure Computation" (CCS 2019, eprint 2019/1159)
and Roy, "SoftSpokenOT" (CRYPTO 2022, eprint 2022/192); here from random base OTs and without the check against a
malicious Owner.

128 random OTs make 128 / k trees of 2^k leaves, k OTs a tree. Owner holds k_{l,0} and k_{l,1}, Puncturer d_l and
k_{l, d_l} for the levels l = 1, ..., k. Owner ends with the leaves s_x of each tree, Puncturer with all but s_d, where
bit l - 1 of d is d_l. A node s of a level has the children AES_s(0) and AES_s(1) (kernels/ggm.py).

1. Owner: node b of level 1 is k_{1, 1-b}, so that Puncturer knows the one that is not above leaf d.
2. Owner grows the tree. For l >= 2 sends S_{l,b} ^ k_{l, 1-b}, where S_{l,b} is the XOR of those nodes of level l whose
   own bit (bit l - 1 of the number) is b.
3. Puncturer, level by level: knows all nodes but the one above leaf d, so all their children, and S_{l, 1-d_l}; what
   is missing in that sum is the other child of the unknown node.

Puncturer numbers leaf x as x ^ d: the unknown node is number 0 at each level, and d decides which of two values goes
where by a mask, never an address.

Cost: 32 (k - 1) 128 / k bytes from Owner to Puncturer (``bytes_sent``), 1 flow.

Adversary: semi-honest; AES-128 as a PRF, keyed by nodes that Puncturer lacks: 128 a direction and set-up, as in IKNP.
The other mask of every level is a key that Puncturer did not choose, used once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels import ggm
from mpcd.protocol.channel import Channel
from mpcd.protocol.ot import base
from mpcd.protocol.wire import array, message

Words = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]


@message("punctured-trees")
class Sums:
    """Step 2, Owner to Puncturer: uint64 (trees, k - 1, 2, 2), a masked sum at [tree, l - 2, b]."""

    masked: Words = array("uint64", 4)


def bytes_sent(depth: int) -> int:
    """Payload bytes, all from Owner."""
    return 32 * (depth - 1) * trees(depth)


def trees(depth: int) -> int:
    """How many trees of this depth the base OTs make: 128 / k, for a k that divides it."""
    if depth < 2 or base.COUNT % depth:
        raise ValueError(f"{base.COUNT} base OTs do not make trees of depth {depth}")
    return base.COUNT // depth


async def own(channel: Channel, keys: Bytes, depth: int) -> Words:
    """Owner, with ``keys`` uint8 (128, 2, 16): all leaves, uint64 (trees, 2^depth, 2)."""
    count = trees(depth)
    # Both keys of a level in the order of the nodes that they stand for: the one that opens node 1 - b at b.
    crossed = np.ascontiguousarray(keys).view(np.uint64).reshape(count, depth, 2, 2)[:, :, ::-1]
    leaves = np.empty((count, 1 << depth, 2), np.uint64)
    sums = np.empty((count, depth - 1, 2, 2), np.uint64)
    await channel.compute(ggm.grow_trees, np.ascontiguousarray(crossed[:, 0]), leaves, sums)
    await channel.send(Sums(sums ^ crossed[:, 1:]))
    return leaves


async def puncture(channel: Channel, choices: Bytes, keys: Bytes, depth: int) -> Words:
    """Puncturer, with ``choices`` uint8 (128,), 0 or 1, and ``keys`` uint8 (128, 16).

    Returns uint64 (trees, 2^depth, 2): leaf x at place x ^ d of its tree, zero at place 0.
    """
    count = trees(depth)
    msg = await channel.recv(Sums, masked=(count, depth - 1, 2, 2))
    known = np.ascontiguousarray(keys).view(np.uint64).reshape(count, depth, 2)
    delta = choices.astype(np.uint64).reshape(count, depth)
    # Half 1 - d_l, by mask.
    half0, half1 = msg.masked[:, :, 0], msg.masked[:, :, 1]
    sums = half1 ^ ((half0 ^ half1) & np.negative(delta[:, 1:, None])) ^ known[:, 1:]
    leaves = np.empty((count, 1 << depth, 2), np.uint64)
    await channel.compute(ggm.grow_punctured_trees, np.ascontiguousarray(known[:, 0]), delta, sums, leaves)
    return leaves
