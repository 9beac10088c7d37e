"""Where a row's largest value is, by a tree; of equal ones the first.

Rows of n shared values mod 2^k with differences in [-2^(k-1), 2^(k-1)) (``growth.extend`` makes room). In each level
neighbours (0, 1), (2, 3), ... are compared, an odd last one is carried up. For a pair (u, v) at positions (i, j),
i < j:

1. g = [v > u] = 1 xor ``drelu``(u - v).
2. The position i + g (j - i) by ``multiplexer`` mod 2^p, p = bits of n - 1.
3. The value u + g (v - u) by ``multiplexer`` mod 2^k, but for the last pair, whose value nobody asks for.

Cost: n - 1 ``drelu`` of k bits, n - 1 ``multiplexer`` of p and n - 2 of k bits a row, all rows of a level in one
batch, in B = ceil(log2 n) levels; B (L + 6) - 2 flows for L levels of a drelu, less B - 1 where L is odd.
Adversary: as its parts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.protocol import local
from mpcd.protocol.channel import Channel
from mpcd.protocol.correlations import Need, Source
from mpcd.protocol.drelu import drelu, drelu_needs, flip_at_model_owner
from mpcd.protocol.multiplexer import multiplexer, multiplexer_needs

Share = npt.NDArray[np.uint64]


def position_bits(n: int) -> int:
    """p: the ring that holds a position among n."""
    return max(1, (n - 1).bit_length())


def argmax_needs(rows: int, n: int, bits: int) -> tuple[Need, ...]:
    """For ``rows`` rows of n values of ``bits`` bits."""
    needs: tuple[Need, ...] = ()
    left = n
    while left > 1:
        pairs = left // 2
        left -= pairs
        needs += drelu_needs(rows * pairs, bits) + multiplexer_needs(rows * pairs, position_bits(n))
        if left > 1:
            needs += multiplexer_needs(rows * pairs, bits)
    return needs


async def argmax(channel: Channel, source: Source, x: Share, bits: int) -> Share:
    """Either party. x: uint64 (rows, n) mod 2^bits. Returns uint64 (rows,), shares of positions mod 2^p."""
    rows, n = x.shape
    p = position_bits(n)
    positions = np.tile(np.arange(n, dtype=np.uint64) * np.uint64(channel.public(1)), (rows, 1))
    while x.shape[1] > 1:
        pairs = x.shape[1] // 2
        u, v, carried = x[:, 0 : 2 * pairs : 2], x[:, 1 : 2 * pairs : 2], x[:, 2 * pairs :]
        not_less = await drelu(channel, source, _flat(u - v, bits), bits)
        greater = flip_at_model_owner(channel, not_less, rows * pairs)
        i, j = positions[:, 0 : 2 * pairs : 2], positions[:, 1 : 2 * pairs : 2]
        step = await multiplexer(channel, source, greater, _flat(j - i, p), p)
        chosen = local.add(i, step.reshape(i.shape), p)
        positions = np.concatenate([chosen, positions[:, 2 * pairs :]], axis=1)
        if positions.shape[1] == 1:
            break
        rise = await multiplexer(channel, source, greater, _flat(v - u, bits), bits)
        x = np.concatenate([local.add(u, rise.reshape(u.shape), bits), carried], axis=1)
    return positions[:, 0]


def _flat(x: Share, bits: int) -> Share:
    return local.reduce(x, bits).reshape(-1)
