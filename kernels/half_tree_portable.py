"""A level of a half tree without instructions for AES (half_tree.py says what the functions are)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels.aes import encrypt_blocks
from mpcd.kernels.cpu import linked

Words = npt.NDArray[np.uint64]


@linked
def _hash(round_keys: Words, x: Words) -> Words:
    """H(x) for every row of x."""
    s = np.empty_like(x)
    for i in range(x.shape[0]):
        s[i, 0] = x[i, 1]
        s[i, 1] = x[i, 0] ^ x[i, 1]
    out = np.empty_like(x)
    encrypt_blocks(round_keys, s, out)
    for i in range(x.shape[0]):
        out[i, 0] ^= s[i, 0]
        out[i, 1] ^= s[i, 1]
    return out


@linked
def split_level(round_keys: Words, nodes: Words, half: int, keep: np.uint64, totals: Words) -> None:
    """nodes[:half] become their left children, nodes[half : 2 * half] the right ones; low words are masked by keep.

    half: 2, 4, 8, ... totals: uint64 (8, 2). XORs all left children into the XOR of its rows 0 to 3, all parents into
    that of 4 to 7.
    """
    left = _hash(round_keys, nodes[:half])
    for i in range(half):
        for v in range(2):
            mask = keep if v == 0 else ~np.uint64(0)
            parent = nodes[i, v]
            totals[0, v] ^= left[i, v]
            totals[4, v] ^= parent
            nodes[i, v] = left[i, v] & mask
            nodes[half + i, v] = (parent ^ left[i, v]) & mask


@linked
def sum_level(round_keys: Words, nodes: Words, half: int, totals: Words) -> None:
    """XORs all left children of nodes[:half] into the XOR of totals' rows 0 to 3. half: 2, 4, 8, ..."""
    left = _hash(round_keys, nodes[:half])
    for i in range(half):
        totals[0, 0] ^= left[i, 0]
        totals[0, 1] ^= left[i, 1]
