"""Punctured trees from base OTs: one party has all leaves of every tree, the other all but one, of its own choice.

Trees of Goldreich, Goldwasser and Micali, "How to Construct Random Functions" (JACM 1986), punctured by OT as in Boyle
et al., "Efficient Two-Round OT Extension and Silent Non-Interactive Secure Computation" (CCS 2019, eprint 2019/1159)
and Roy, "SoftSpokenOT" (CRYPTO 2022, eprint 2022/192), with his check against a malicious Owner (section 5.1, of the
punctured PRF); here from random base OTs.

128 random OTs make 128 / k trees of 2^k leaves, k OTs a tree. Owner holds k_{l,0} and k_{l,1}, Puncturer d_l and
k_{l, d_l} for the levels l = 1, ..., k. Owner ends with the leaves s_x of each tree, Puncturer with all but s_d, where
bit l - 1 of d is d_l. A node s of a level has the children AES_s(0) and AES_s(1) (kernels/ggm.py).

1. Owner: node b of level 1 is k_{1, 1-b}, so that Puncturer knows the one that is not above leaf d.
2. Owner grows the tree. For l >= 2 sends S_{l,b} ^ k_{l, 1-b}, where S_{l,b} is the XOR of those nodes of level l whose
   own bit (bit l - 1 of the number) is b.
3. Puncturer, level by level: knows all nodes but the one above leaf d, so all their children, and S_{l, 1-d_l}; what
   is missing in that sum is the other child of the unknown node.

4. Owner: z_x is SHA-256 of a label, the tree's number and s_x. Sends the XOR of each tree's z_x, and SHA-256 of all z_x
   in order.
5. Puncturer has all z_x but z_d, so it too from the XOR, and compares. Else ``Deviation``.

Puncturer numbers leaf x as x ^ d: the unknown node is number 0 at each level, and d decides which of two values goes
where by a mask, never an address.

Cost: 32 (k - 1) 128 / k + 32 * 128 / k = 4096 bytes from Owner to Puncturer (``bytes_sent``), and a digest of 32 in the
header; 1 flow.

Adversary: malicious. Puncturer sends nothing; AES-128 as a PRF, keyed by nodes that Puncturer lacks: 128 a direction
and set-up, as in IKNP; SHA-256 as a random oracle, so that z_d tells nothing of s_d. The other mask of every level is a
key that Puncturer did not choose, used once. An Owner that sends wrong sums, so that what Puncturer ends with depends
on d in another way than by s_d, has bound itself to one list of leaves by the digest: it must have guessed some bits of
d, and is caught otherwise. What a failed check has told it is as in consistency.py.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from mpcd.kernels import ggm
from mpcd.protocol.channel import Channel
from mpcd.protocol.ot import base
from mpcd.protocol.ot.consistency import deviated
from mpcd.protocol.wire import array, blob, message

Words = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]


@message("punctured-trees")
class Sums:
    """Steps 2 and 4, Owner to Puncturer: uint64 (trees, k - 1, 2, 2), a masked sum at [tree, l - 2, b]; uint64
    (trees, 4), the XORs of z; the digest of all z."""

    masked: Words = array("uint64", 4)
    totals: Words = array("uint64", 2)
    digest: bytes = blob(32)


def bytes_sent(depth: int) -> int:
    """Payload bytes, all from Owner."""
    return 32 * depth * trees(depth)


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
    images = await channel.compute(_images, leaves)
    totals = np.bitwise_xor.reduce(images, axis=1)
    await channel.send(Sums(sums ^ crossed[:, 1:], totals, hashlib.sha256(images.tobytes()).digest()))
    return leaves


async def puncture(channel: Channel, choices: Bytes, keys: Bytes, depth: int) -> Words:
    """Puncturer, with ``choices`` uint8 (128,), 0 or 1, and ``keys`` uint8 (128, 16).

    Returns uint64 (trees, 2^depth, 2): leaf x at place x ^ d of its tree, zero at place 0.
    """
    count = trees(depth)
    msg = await channel.recv(Sums, masked=(count, depth - 1, 2, 2), totals=(count, 4))
    known = np.ascontiguousarray(keys).view(np.uint64).reshape(count, depth, 2)
    delta = choices.astype(np.uint64).reshape(count, depth)
    # Half 1 - d_l, by mask.
    half0, half1 = msg.masked[:, :, 0], msg.masked[:, :, 1]
    sums = half1 ^ ((half0 ^ half1) & np.negative(delta[:, 1:, None])) ^ known[:, 1:]
    leaves = np.empty((count, 1 << depth, 2), np.uint64)
    await channel.compute(ggm.grow_punctured_trees, np.ascontiguousarray(known[:, 0]), delta, sums, leaves)
    if await channel.compute(_digest, leaves, delta, msg.totals) != msg.digest:
        deviated("the sums of its trees")
    return leaves


def _images(leaves: Words) -> Words:
    """z: uint64 (trees, 2^k, 4)."""
    images = np.empty((*leaves.shape[:2], 4), np.uint64)
    for i, tree in enumerate(leaves):
        seed = b"mpcd/ot/ggm/1" + i.to_bytes(1, "little")
        digests = b"".join(hashlib.sha256(seed + leaf.tobytes()).digest() for leaf in tree)
        images[i] = np.frombuffer(digests, "<u8").reshape(-1, 4)
    return images


def _digest(leaves: Words, delta: Words, totals: Words) -> bytes:
    """Step 5, from leaves with leaf x at place x ^ d, of which that at place 0 is unknown."""
    images = _images(leaves)
    images[:, 0] = totals ^ np.bitwise_xor.reduce(images[:, 1:], axis=1)
    # From place x ^ d to place x, a bit of d at a time, by masks.
    count, depth = delta.shape
    for level in range(depth):
        halves = images.reshape(count, -1, 2, 1 << level, 4)
        change = (halves[:, :, 0] ^ halves[:, :, 1]) & np.negative(delta[:, level])[:, None, None, None]
        halves ^= change[:, :, None]
    return hashlib.sha256(images.tobytes()).digest()
