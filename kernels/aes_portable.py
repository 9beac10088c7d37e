"""AES-128 without instructions for it: 64 blocks at a time, one word per bit of the state (FIPS 197).

Constant time: logic on words only. No branch or index depends on keys or data.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpcd.kernels.aes_arguments import check_blocks
from mpcd.kernels.cpu import linked
from mpcd.kernels.transpose import LANES, transpose_64

_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
# ShiftRows: the byte (column-major, as in FIPS 197 section 3.4) that moves to place p.
_SHIFTED = np.array([(p + 4 * (p % 4)) % 16 for p in range(16)])


@linked
def _sub_bytes(s: npt.NDArray[np.uint64]) -> None:
    """In place, the S-box on all bytes: Boyar and Peralta's circuit (2011/332) of 113 gates.

    s: uint64 (8, 16), word s[b, p] holds bit b of byte p.
    """
    for p in range(16):
        x0, x1, x2, x3 = s[7, p], s[6, p], s[5, p], s[4, p]
        x4, x5, x6, x7 = s[3, p], s[2, p], s[1, p], s[0, p]
        y14 = x3 ^ x5
        y13 = x0 ^ x6
        y9 = x0 ^ x3
        y8 = x0 ^ x5
        t0 = x1 ^ x2
        y1 = t0 ^ x7
        y4 = y1 ^ x3
        y12 = y13 ^ y14
        y2 = y1 ^ x0
        y5 = y1 ^ x6
        y3 = y5 ^ y8
        t1 = x4 ^ y12
        y15 = t1 ^ x5
        y20 = t1 ^ x1
        y6 = y15 ^ x7
        y10 = y15 ^ t0
        y11 = y20 ^ y9
        y7 = x7 ^ y11
        y17 = y10 ^ y11
        y19 = y10 ^ y8
        y16 = t0 ^ y11
        y21 = y13 ^ y16
        y18 = x0 ^ y16
        t2 = y12 & y15
        t4 = (y3 & y6) ^ t2
        t6 = (y4 & x7) ^ t2
        t7 = y13 & y16
        t9 = (y5 & y1) ^ t7
        t11 = (y2 & y7) ^ t7
        t12 = y9 & y11
        t14 = (y14 & y17) ^ t12
        t16 = (y8 & y10) ^ t12
        t21 = t4 ^ t14 ^ y20
        t22 = t6 ^ t16 ^ y19
        t23 = t9 ^ t14 ^ y21
        t24 = t11 ^ t16 ^ y18
        t25 = t21 ^ t22
        t26 = t21 & t23
        t27 = t24 ^ t26
        t29 = (t25 & t27) ^ t22
        t30 = t23 ^ t24
        t31 = t22 ^ t26
        t33 = (t31 & t30) ^ t24
        t34 = t23 ^ t33
        t35 = t27 ^ t33
        t36 = t24 & t35
        t37 = t36 ^ t34
        t38 = t27 ^ t36
        t40 = t25 ^ (t29 & t38)
        t41 = t40 ^ t37
        t42 = t29 ^ t33
        t43 = t29 ^ t40
        t44 = t33 ^ t37
        t45 = t42 ^ t41
        z0 = t44 & y15
        z1 = t37 & y6
        z2 = t33 & x7
        z3 = t43 & y16
        z4 = t40 & y1
        z5 = t29 & y7
        z6 = t42 & y11
        z7 = t45 & y17
        z8 = t41 & y10
        z9 = t44 & y12
        z10 = t37 & y3
        z11 = t33 & y4
        z12 = t43 & y13
        z13 = t40 & y5
        z14 = t29 & y2
        z15 = t42 & y9
        z16 = t45 & y14
        z17 = t41 & y8
        t46 = z15 ^ z16
        t47 = z10 ^ z11
        t48 = z5 ^ z13
        t49 = z9 ^ z10
        t50 = z2 ^ z12
        t51 = z2 ^ z5
        t52 = z7 ^ z8
        t53 = z0 ^ z3
        t54 = z6 ^ z7
        t55 = z16 ^ z17
        t56 = z12 ^ t48
        t57 = t50 ^ t53
        t58 = z4 ^ t46
        t59 = z3 ^ t54
        t60 = t46 ^ t57
        t61 = z14 ^ t57
        t62 = t52 ^ t58
        t63 = t49 ^ t58
        t64 = z4 ^ t59
        t65 = t61 ^ t62
        t66 = z1 ^ t63
        t67 = t64 ^ t65
        s3 = t53 ^ t66
        s[7, p] = t59 ^ t63
        s[6, p] = ~(t64 ^ s3)
        s[5, p] = ~(t55 ^ t67)
        s[4, p] = s3
        s[3, p] = t51 ^ t66
        s[2, p] = t47 ^ t65
        s[1, p] = ~(t56 ^ t62)
        s[0, p] = ~(t48 ^ t60)


@linked
def _encrypt_planes(keys: npt.NDArray[np.uint64], s: npt.NDArray[np.uint64], t: npt.NDArray[np.uint64]) -> None:
    """In place, the cipher on the state s (8, 16); keys (11, 8, 16) hold 0 or ~0 for a bit; t (8, 16) is scratch."""
    for b in range(8):
        for p in range(16):
            s[b, p] ^= keys[0, b, p]
    for r in range(1, 11):
        _sub_bytes(s)
        for b in range(8):
            for p in range(16):
                t[b, p] = s[b, _SHIFTED[p]]
        if r == 10:
            for b in range(8):
                for p in range(16):
                    s[b, p] = t[b, p] ^ keys[10, b, p]
            return
        for b in range(8):
            for column in range(4):
                for row in range(4):
                    # MixColumns: 2 a + 3 a' + a'' + a''' = 2 (a + a') + a' + a'' + a'''
                    p = 4 * column + row
                    p1 = 4 * column + (row + 1) % 4
                    p2 = 4 * column + (row + 2) % 4
                    p3 = 4 * column + (row + 3) % 4
                    mixed = t[b, p1] ^ t[b, p2] ^ t[b, p3] ^ keys[r, b, p]
                    if b:
                        mixed ^= t[b - 1, p] ^ t[b - 1, p1]
                    if b == 0 or b == 1 or b == 3 or b == 4:
                        mixed ^= t[7, p] ^ t[7, p1]
                    s[b, p] = mixed


@linked
def _planes(round_keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Round keys (11, 2) as words of 64 equal bits (11, 8, 16)."""
    keys = np.empty((11, 8, 16), np.uint64)
    for r in range(11):
        for b in range(8):
            for p in range(16):
                bit = (round_keys[r, p // 8] >> np.uint64(8 * (p % 8) + b)) & np.uint64(1)
                keys[r, b, p] = np.uint64(0) - bit
    return keys


@linked
def expand_key(key: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Round keys of AES-128, FIPS 197 section 5.2.

    key: uint8 (16,). Returns uint64 (11, 2), each round key's bytes in order, little endian.
    """
    if key.shape[0] != 16:
        raise ValueError("a key has 16 bytes")
    round_keys = np.zeros((11, 2), np.uint64)
    word = np.zeros(4, np.uint64)
    for p in range(16):
        word[p // 4] |= np.uint64(key[p]) << np.uint64(8 * (p % 4))
    s = np.zeros((8, 16), np.uint64)
    constant = np.uint64(1)
    for r in range(11):
        round_keys[r, 0] = word[0] | (word[1] << np.uint64(32))
        round_keys[r, 1] = word[2] | (word[3] << np.uint64(32))
        for p in range(4):
            # RotWord: byte 1 comes first.
            for b in range(8):
                s[b, p] = (word[3] >> np.uint64(8 * ((p + 1) % 4) + b)) & np.uint64(1)
        _sub_bytes(s)
        word[0] ^= constant
        for p in range(4):
            for b in range(8):
                word[0] ^= (s[b, p] & np.uint64(1)) << np.uint64(8 * p + b)
        for i in range(1, 4):
            word[i] ^= word[i - 1]
        constant = ((constant << np.uint64(1)) ^ ((constant >> np.uint64(7)) * np.uint64(0x11B))) & np.uint64(0xFF)
    return round_keys


@linked
def _encrypt(
    keys: npt.NDArray[np.uint64],
    x: npt.NDArray[np.uint64],
    first: int,
    out: npt.NDArray[np.uint64],
    block: npt.NDArray[np.uint64],
    s: npt.NDArray[np.uint64],
    t: npt.NDArray[np.uint64],
) -> None:
    """out[i] = AES(x[i]) for first <= i < first + 256 where there is such an i; the rest is scratch."""
    lanes = LANES // 2
    rows = min(64 * lanes, x.shape[0] - first)
    for i in range(rows):
        block[i % 64, i // 64] = x[first + i, 0]
        block[i % 64, lanes + i // 64] = x[first + i, 1]
    transpose_64(block)
    for v in range((rows + 63) // 64):
        for p in range(16):
            for b in range(8):
                s[b, p] = block[8 * (p % 8) + b, v + lanes * (p // 8)]
        _encrypt_planes(keys, s, t)
        for p in range(16):
            for b in range(8):
                block[8 * (p % 8) + b, v + lanes * (p // 8)] = s[b, p]
    transpose_64(block)
    for i in range(rows):
        out[first + i, 0] = block[i % 64, i // 64]
        out[first + i, 1] = block[i % 64, lanes + i // 64]


@linked
def encrypt_blocks(round_keys: npt.NDArray[np.uint64], x: npt.NDArray[np.uint64], out: npt.NDArray[np.uint64]) -> None:
    """out[i] = AES(x[i]). round_keys: uint64 (11, 2); x, out: uint64 (n, 2), C order, may be one array."""
    check_blocks(round_keys, x, out)
    keys = _planes(round_keys)
    block = np.zeros((64, LANES), np.uint64)
    s = np.empty((8, 16), np.uint64)
    t = np.empty((8, 16), np.uint64)
    for first in range(0, x.shape[0], 32 * LANES):
        _encrypt(keys, x, first, out, block, s, t)


@linked
def ctr_keystream(round_keys: npt.NDArray[np.uint64], counter: int, out: npt.NDArray[np.uint64]) -> None:
    """out[i] = AES(counter + i), the counter a little-endian 128-bit number.

    round_keys: uint64 (11, 2); 0 <= counter, counter + n <= 2^63; out: uint64 (n, 2), C order.
    """
    check_blocks(round_keys, out, out)
    for i in range(out.shape[0]):
        out[i, 0] = np.uint64(counter) + np.uint64(i)
        out[i, 1] = 0
    encrypt_blocks(round_keys, out, out)


@linked
def tccr_hash(
    round_keys: npt.NDArray[np.uint64], x: npt.NDArray[np.uint64], tweak: int, out: npt.NDArray[np.uint64]
) -> None:
    """out[i] = pi(pi(x[i]) ^ (tweak + i)) ^ pi(x[i]), pi = AES under a fixed public key.

    TMMO (Guo, Katz, Wang, Yu 2019/074, section 7.4): tweakable circular correlation robust where pi is ideal.
    round_keys: uint64 (11, 2); 0 <= tweak, tweak + n <= 2^63; x, out: uint64 (n, 2), C order, may be one array.
    """
    check_blocks(round_keys, x, out)
    n = x.shape[0]
    once = np.empty((n, 2), np.uint64)
    encrypt_blocks(round_keys, x, once)
    for i in range(n):
        out[i, 0] = once[i, 0] ^ (np.uint64(tweak) + np.uint64(i))
        out[i, 1] = once[i, 1]
    encrypt_blocks(round_keys, out, out)
    for i in range(n):
        out[i, 0] ^= once[i, 0]
        out[i, 1] ^= once[i, 1]
