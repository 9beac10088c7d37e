"""From correlated to random OTs: hashing the rows of an OT extension, straight into the bits that are used.

Row i of the sender is q[i], of the receiver t[i] = q[i] ^ c[i] delta with its choice bit c[i] (Ishai, Kilian, Nissim,
Petrank 2003). H(i, x) = ``tccr_hash``(x, tweak + i): the sender's two strings of row i are H(i, q[i]) and
H(i, q[i] ^ delta), the receiver's is H(i, t[i]). A tweak is never used twice under one delta.

Everywhere: round_keys uint64 (11, 2); q, t uint64 (n, 2), C order; delta uint64 (2,); 0 <= tweak, tweak + n <= 2^63.
No branch or index depends on rows, delta or choices.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels.aes import tccr_hash
from mpcd.kernels.cpu import linked

# Rows hashed at a time, a multiple of 64 and of every block: three buffers of 4 KiB stay in the first-level cache.
_CHUNK = 256
_LEAVES = 64


@linked
def _hash_both(
    round_keys: npt.NDArray[np.uint64],
    q: npt.NDArray[np.uint64],
    delta: npt.NDArray[np.uint64],
    tweak: np.uint64,
    h0: npt.NDArray[np.uint64],
    h1: npt.NDArray[np.uint64],
) -> None:
    """h0[i] = H(i, q[i]), h1[i] = H(i, q[i] ^ delta)."""
    if delta.shape[0] != 2:
        raise ValueError("delta is uint64 (2,)")
    tccr_hash(round_keys, q, tweak, h0)
    for i in range(q.shape[0]):
        h1[i, 0] = q[i, 0] ^ delta[0]
        h1[i, 1] = q[i, 1] ^ delta[1]
    tccr_hash(round_keys, h1, tweak, h1)


@linked
def _entry_masks(block: int) -> npt.NDArray[np.uint32]:
    """masks[j, b] has bits 2v and 2v + 1 for every entry v < 2^block whose bit j is b."""
    masks = np.zeros((block, 2), np.uint32)
    for v in range(1 << block):
        for j in range(block):
            masks[j, (v >> j) & 1] |= np.uint32(3) << np.uint32(2 * v)
    return masks


@linked
def leaf_pads_sender(
    round_keys: npt.NDArray[np.uint64],
    q: npt.NDArray[np.uint64],
    delta: npt.NDArray[np.uint64],
    tweak: int,
    block: int,
    out: npt.NDArray[np.uint32],
) -> None:
    """Random 1-of-2^block OTs of two-bit strings from block random OTs each (Naor, Pinkas 1999, with a wide PRF).

    Bits 2v, 2v + 1 of out[i, u] = bits 32 u + 2v, 32 u + 2v + 1 of the XOR over j of H(i block + j, q ^ v_j delta), v_j
    bit j of entry v: every entry and use reads bits of its own, so no pads are linearly dependent.
    1 <= block <= 4; q (count * block, 2); out: uint32 (count, uses), uses <= 4, below 2^(2 * 2^block).
    """
    _check_leaves(q.shape[0], block, out.shape)
    start = np.uint64(tweak)
    masks = _entry_masks(block)
    h0 = np.empty((_CHUNK, 2), np.uint64)
    h1 = np.empty((_CHUNK, 2), np.uint64)
    for first in range(0, out.shape[0], _LEAVES):
        leaves = min(_LEAVES, out.shape[0] - first)
        row = first * block
        rows = leaves * block
        _hash_both(round_keys, q[row : row + rows], delta, start + np.uint64(row), h0[:rows], h1[:rows])
        for i in range(leaves):
            for use in range(out.shape[1]):
                shift = np.uint64(32 * (use & 1))
                pads = np.uint32(0)
                for j in range(block):
                    pads ^= np.uint32(h0[i * block + j, use >> 1] >> shift) & masks[j, 0]
                    pads ^= np.uint32(h1[i * block + j, use >> 1] >> shift) & masks[j, 1]
                out[first + i, use] = pads


@linked
def leaf_pads_receiver(
    round_keys: npt.NDArray[np.uint64],
    t: npt.NDArray[np.uint64],
    choice_words: npt.NDArray[np.uint64],
    tweak: int,
    block: int,
    out_choices: npt.NDArray[np.uint8],
    out_pads: npt.NDArray[np.uint8],
) -> None:
    """The receiver's side of ``leaf_pads_sender``: entry out_choices[i] and its two bits out_pads[i, u] of each use.

    1 <= block <= 4; t (count * block, 2); choice_words: packed choice bits of the rows, row i block + j's being bit j
    of the entry; out_choices uint8 (count,), below 2^block; out_pads: uint8 (count, uses), uses <= 4, below 4.
    """
    _check_leaves(t.shape[0], block, out_pads.shape)
    if out_choices.shape[0] != out_pads.shape[0] or choice_words.shape[0] * 64 < t.shape[0]:
        raise ValueError("choices and pads differ in length")
    start = np.uint64(tweak)
    h = np.empty((_CHUNK, 2), np.uint64)
    for first in range(0, out_pads.shape[0], _LEAVES):
        leaves = min(_LEAVES, out_pads.shape[0] - first)
        row = first * block
        rows = leaves * block
        tccr_hash(round_keys, t[row : row + rows], start + np.uint64(row), h[:rows])
        for i in range(leaves):
            choice = np.uint32(0)
            for j in range(block):
                bit = row + i * block + j
                chosen = (choice_words[bit // 64] >> np.uint64(bit % 64)) & np.uint64(1)
                choice |= np.uint32(chosen) << np.uint32(j)
            out_choices[first + i] = choice
            for use in range(out_pads.shape[1]):
                shift = np.uint64(32 * (use & 1))
                pads = np.uint32(0)
                for j in range(block):
                    pads ^= np.uint32(h[i * block + j, use >> 1] >> shift)
                out_pads[first + i, use] = (pads >> (np.uint32(2) * choice)) & np.uint32(3)


@linked
def _check_leaves(rows: int, block: int, shape: tuple[int, int]) -> None:
    if block < 1 or block > 4:
        raise ValueError("a block has 1 to 4 bits")
    if shape[1] < 1 or shape[1] > 4:
        raise ValueError("a leaf has 1 to 4 uses")
    if rows != shape[0] * block:
        raise ValueError("a leaf needs block rows")


@linked
def string_sender(
    round_keys: npt.NDArray[np.uint64],
    q: npt.NDArray[np.uint64],
    delta: npt.NDArray[np.uint64],
    tweak: int,
    bits: int,
    out0: npt.NDArray[np.uint64],
    out1: npt.NDArray[np.uint64],
) -> None:
    """out0[i], out1[i] = the low ``bits`` bits of H(i, q[i]), H(i, q[i] ^ delta).

    1 <= bits <= 64; out0, out1: uint64 (n,), below 2^bits.
    """
    _check_strings(q.shape[0], bits, out0.shape[0], out1.shape[0])
    start = np.uint64(tweak)
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - bits)
    h0 = np.empty((_CHUNK, 2), np.uint64)
    h1 = np.empty((_CHUNK, 2), np.uint64)
    for first in range(0, q.shape[0], _CHUNK):
        rows = min(_CHUNK, q.shape[0] - first)
        _hash_both(round_keys, q[first : first + rows], delta, start + np.uint64(first), h0[:rows], h1[:rows])
        for i in range(rows):
            out0[first + i] = h0[i, 0] & mask
            out1[first + i] = h1[i, 0] & mask


@linked
def string_receiver(
    round_keys: npt.NDArray[np.uint64],
    t: npt.NDArray[np.uint64],
    tweak: int,
    bits: int,
    out: npt.NDArray[np.uint64],
) -> None:
    """out[i] = the low ``bits`` bits of H(i, t[i]). 1 <= bits <= 64; out: uint64 (n,), below 2^bits."""
    _check_strings(t.shape[0], bits, out.shape[0], out.shape[0])
    start = np.uint64(tweak)
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - bits)
    h = np.empty((_CHUNK, 2), np.uint64)
    for first in range(0, t.shape[0], _CHUNK):
        rows = min(_CHUNK, t.shape[0] - first)
        tccr_hash(round_keys, t[first : first + rows], start + np.uint64(first), h[:rows])
        for i in range(rows):
            out[first + i] = h[i, 0] & mask


@linked
def _check_strings(rows: int, bits: int, count0: int, count1: int) -> None:
    if bits < 1 or bits > 64:
        raise ValueError("a string has 1 to 64 bits")
    if rows != count0 or rows != count1:
        raise ValueError("a string needs one row")


@linked
def _pack_pairs(
    h: npt.NDArray[np.uint64],
    rows: int,
    first: int,
    lo: npt.NDArray[np.uint64],
    hi: npt.NDArray[np.uint64],
) -> None:
    """Bit first + i of lo and hi = bits 0 and 1 of h[i], i < rows; 64 divides first; tail zero."""
    for start in range(0, rows, 64):
        low = np.uint64(0)
        high = np.uint64(0)
        for i in range(start, min(start + 64, rows)):
            low |= (h[i, 0] & np.uint64(1)) << np.uint64(i % 64)
            high |= ((h[i, 0] >> np.uint64(1)) & np.uint64(1)) << np.uint64(i % 64)
        lo[(first + start) // 64] = low
        hi[(first + start) // 64] = high


@linked
def and_sender(
    round_keys: npt.NDArray[np.uint64],
    q: npt.NDArray[np.uint64],
    delta: npt.NDArray[np.uint64],
    tweak: int,
    m0_lo: npt.NDArray[np.uint64],
    m0_hi: npt.NDArray[np.uint64],
    m1_lo: npt.NDArray[np.uint64],
    m1_hi: npt.NDArray[np.uint64],
) -> None:
    """Two-bit strings, packed: bit i of m0_lo, m0_hi = bits 0, 1 of H(i, q[i]); of m1_* those of H(i, q[i] ^ delta).

    m0_lo, ...: uint64 (ceil(n / 64),), tail zero.
    """
    _check_words(q.shape[0], m0_lo.shape[0], m0_hi.shape[0])
    _check_words(q.shape[0], m1_lo.shape[0], m1_hi.shape[0])
    start = np.uint64(tweak)
    h0 = np.empty((_CHUNK, 2), np.uint64)
    h1 = np.empty((_CHUNK, 2), np.uint64)
    for first in range(0, q.shape[0], _CHUNK):
        rows = min(_CHUNK, q.shape[0] - first)
        _hash_both(round_keys, q[first : first + rows], delta, start + np.uint64(first), h0[:rows], h1[:rows])
        _pack_pairs(h0, rows, first, m0_lo, m0_hi)
        _pack_pairs(h1, rows, first, m1_lo, m1_hi)


@linked
def and_receiver(
    round_keys: npt.NDArray[np.uint64],
    t: npt.NDArray[np.uint64],
    tweak: int,
    m_lo: npt.NDArray[np.uint64],
    m_hi: npt.NDArray[np.uint64],
) -> None:
    """Bit i of m_lo, m_hi = bits 0, 1 of H(i, t[i]). m_lo, m_hi: uint64 (ceil(n / 64),), tail zero."""
    _check_words(t.shape[0], m_lo.shape[0], m_hi.shape[0])
    start = np.uint64(tweak)
    h = np.empty((_CHUNK, 2), np.uint64)
    for first in range(0, t.shape[0], _CHUNK):
        rows = min(_CHUNK, t.shape[0] - first)
        tccr_hash(round_keys, t[first : first + rows], start + np.uint64(first), h[:rows])
        _pack_pairs(h, rows, first, m_lo, m_hi)


@linked
def _check_words(rows: int, count0: int, count1: int) -> None:
    words = (rows + 63) // 64
    if count0 != words or count1 != words:
        raise ValueError("wrong number of words")
