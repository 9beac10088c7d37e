"""Trees of keys: a root's 2^k leaves, and all but one of them from one sum a level.

The generator of Goldreich, Goldwasser and Micali (JACM 1986) with AES: a node s has the children AES_s(0) and AES_s(1).
At level l a node is numbered by the low l bits of its leaves, so child b of node x is node x + b 2^(l-1) of level l.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels.aes import ctr_keystream, expand_key
from mpcd.kernels.cpu import linked

Words = npt.NDArray[np.uint64]


@linked
def leaf_keys(leaves: Words) -> Words:
    """AES round keys of every leaf: uint64 (trees, 2^k, 2) to (trees, 2^k, 11, 2).

    No branch or index depends on the leaves.
    """
    trees, count = leaves.shape[0], leaves.shape[1]
    keys = np.empty((trees, count, 11, 2), np.uint64)
    for i in range(trees):
        for x in range(count):
            keys[i, x] = expand_key(leaves[i, x].view(np.uint8))
    return keys


@linked
def grow_trees(level1: Words, leaves: Words, sums: Words) -> None:
    """All leaves from the two nodes of level 1, and of every later level the sums of its two halves.

    level1: uint64 (trees, 2, 2). Writes leaves: uint64 (trees, 2^k, 2), and sums: uint64 (trees, k - 1, 2, 2), where
    [i, l - 2, b] is the XOR of tree i's nodes of level l whose highest bit is b. No branch or index depends on keys.
    """
    depth = sums.shape[1] + 1
    children = np.empty((2, 2), np.uint64)
    sums[:] = 0
    for i in range(level1.shape[0]):
        nodes = leaves[i]
        nodes[:2] = level1[i]
        for level in range(2, depth + 1):
            half = 1 << (level - 1)
            for x in range(half):
                ctr_keystream(expand_key(nodes[x].view(np.uint8)), 0, children)
                for b in range(2):
                    for v in range(2):
                        nodes[x + b * half, v] = children[b, v]
                        sums[i, level - 2, b, v] ^= children[b, v]


@linked
def grow_punctured_trees(siblings: Words, delta: Words, sums: Words, leaves: Words) -> None:
    """All leaves but leaf delta_i of tree i, with leaf x at place x ^ delta_i; place 0 is zero.

    siblings: uint64 (trees, 2), the node of level 1 that is not above leaf delta_i. delta: uint64 (trees, k), the bits
    of delta_i, 0 or 1, low first. sums: uint64 (trees, k - 1, 2), for level l at [i, l - 2] the XOR of the half away
    from leaf delta_i. Writes leaves: uint64 (trees, 2^k, 2). No branch or index depends on keys or delta: relabelling
    by XOR makes the unknown node number 0 at every level.
    """
    depth = delta.shape[1]
    children = np.empty((2, 2), np.uint64)
    for i in range(siblings.shape[0]):
        nodes = leaves[i]
        nodes[0] = 0
        nodes[1] = siblings[i]
        for level in range(2, depth + 1):
            half = 1 << (level - 1)
            mask = np.uint64(0) - delta[i, level - 1]
            nodes[half] = sums[i, level - 2]
            for x in range(1, half):
                ctr_keystream(expand_key(nodes[x].view(np.uint8)), 0, children)
                for v in range(2):
                    swap = (children[0, v] ^ children[1, v]) & mask
                    nodes[x, v] = children[0, v] ^ swap
                    nodes[x + half, v] = children[1, v] ^ swap
                    nodes[half, v] ^= nodes[x + half, v]
