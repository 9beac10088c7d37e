"""The leaves' weighted sums over any AES: a whole stream at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels.aes import ctr_keystream
from mpcd.kernels.cpu import linked

Words = npt.NDArray[np.uint64]


@linked
def leaf_sums(keys: Words, counter: int, columns: Words, total: Words) -> None:
    """columns_j = XOR of G(keys_x) over the x with bit j;  total = XOR of G(keys_x) over all x.

    G(key) is AES-CTR from block ``counter`` on. keys: uint64 (2^k, 11, 2), round keys, k >= 2. Writes columns: uint64
    (k, n) and total: uint64 (n,), n even, C order. Stream 0 is in total only. No branch or index depends on keys.
    """
    depth, n = columns.shape
    if depth < 2 or keys.shape[0] != 1 << depth or keys.shape[1] != 11 or keys.shape[2] != 2:
        raise ValueError("round keys are uint64 (2^k, 11, 2) for k >= 2 columns")
    sums = np.zeros((depth + 1, n), np.uint64)
    prefix = np.zeros(n, np.uint64)
    blocks = np.empty((n // 2, 2), np.uint64)
    stream = blocks.reshape(n)
    for leaf in range(1 << depth):
        ctr_keystream(keys[leaf], counter, blocks)
        ruler = 0
        while (leaf + 1) >> ruler & 1 == 0:
            ruler += 1
        for v in range(n):
            prefix[v] ^= stream[v]
            sums[ruler, v] ^= prefix[v]
    for v in range(n):
        total[v] = sums[depth, v]
    for j in range(depth - 1, -1, -1):
        for v in range(n):
            sums[j, v] ^= sums[j + 1, v]
            columns[j, v] = sums[j, v]
