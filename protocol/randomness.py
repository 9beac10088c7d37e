"""A party's randomness: the operating system's, stretched by AES-128 in counter mode.

Assumption: AES-128 is a pseudorandom function; a stream is never longer than 2^40 blocks, so its advantage against a
random function stays below 2^-48 (PRP/PRF switching, 2^80 / 2^129).
"""

from __future__ import annotations

import math
import os

import numpy as np
import numpy.typing as npt

from mpcd.kernels import aes, bits

Words = npt.NDArray[np.uint64]


class Prg:
    """AES-128-CTR keystream. Not thread-safe; every value is handed out once."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != 16:
            raise ValueError("a seed has 16 bytes")
        self._key = aes.expand_key(np.frombuffer(seed, np.uint8))
        self._next = 0

    @classmethod
    def fresh(cls) -> Prg:
        return cls(os.urandom(16))

    def words(self, n: int) -> Words:
        """n uniform uint64."""
        blocks = np.empty(((n + 1) // 2, 2), np.uint64)
        aes.ctr_keystream(self._key, self._next, blocks)
        self._next += len(blocks)
        return blocks.reshape(-1)[:n]

    def octets(self, n: int) -> bytes:
        return self.words((n + 7) // 8).tobytes()[:n]

    def bits(self, n: int) -> Words:
        """n uniform bits, packed into uint64 words; bits past n are zero."""
        return bits.clear_tail(self.words((n + 63) // 64), n)

    def uniform(self, shape: tuple[int, ...], width: int) -> Words:
        """uint64 array of uniform ``width``-bit values, 1 <= width <= 64."""
        n = math.prod(shape)
        return bits.unpack_ring(self.words((n * width + 63) // 64), width, n).reshape(shape)

    def seed(self) -> bytes:
        return self.octets(16)
