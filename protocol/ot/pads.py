"""From correlated rows to pads: a hash that breaks the correlation, its keys and its tweaks.

``kernels/ot_hash.py`` turns row j into H(j, q_j), H(j, q_j ^ delta) at the Sender and H(j, t_j) at the Receiver, with

    H(j, x) = pi(pi(x) ^ j) ^ pi(x),   pi = AES-128 under a fixed key known to both,

TMMO of Guo, Katz, Wang and Yu, "Efficient and Secure Multiparty Computation from Fixed-Key Block Ciphers" (S&P 2020,
eprint 2019/074), section 7.4.

Assumption: H is a tweakable circular correlation robust hash: for a uniform secret delta,
H(j, x ^ delta) looks random for all (j, x) together, which they prove for pi an ideal permutation. What the Receiver
did not choose, H(j, t_j ^ delta), is of that form. (Plain correlation robustness would do for random OTs; circular is
what the construction gives.) It holds only while no tweak serves twice under one delta: ``HashKeys`` hands out each
number once.

Loss: with C hash values under one permutation, an attacker who evaluates it p times finds delta with probability about
p C / 2^128, and shares that work over all sessions that use the same key (Guo, Katz, Wang, Weng and Yu, "Better
Concrete Security for Half-Gates Garbling", CRYPTO 2020, eprint 2019/1168). Their remedy, taken here: many
keys. Every chunk of at most 2^16 rows has its own, SHA-256 of a label, the session key (fresh from the base OTs of
every set-up), the direction and the chunk's first tweak. So C is at most 2^17 however many OTs are made, and no work
serves two sessions. What is proven then: probability at most about p 2^17 / 2^128. That at most 64 bits of a value
are used may make the attack dearer; no bound is claimed from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from mpcd.kernels.aes import expand_key
from mpcd.protocol.channel import Channel
from mpcd.protocol.ot import extension, iknp

Words = npt.NDArray[np.uint64]


class HashKeys:
    """The hash keys and tweaks of one direction, each given out once. ``direction`` is the OT sender's number.

    ``next``: the first tweak to be given out.
    """

    def __init__(self, session_key: bytes, direction: int, next: int = 0) -> None:
        self._seed = b"mpcd/ot/hash-key/1" + session_key + bytes([direction])
        self.next = next

    def take(self, rows: int) -> tuple[Words, int]:
        """Round keys, and the first of ``rows`` tweaks, for one chunk."""
        tweak = self.next
        self.next += rows
        key = hashlib.sha256(self._seed + tweak.to_bytes(8, "little")).digest()[:16]
        return expand_key(np.frombuffer(key, np.uint8)), tweak


@dataclasses.dataclass(frozen=True, slots=True)
class SendingEnd:
    """The OT sender's end of one direction."""

    cot: extension.Sender
    keys: HashKeys

    async def rows(self, channel: Channel, n: int) -> tuple[Words, Words, Words, int]:
        """(round keys, q, delta, tweak) of one chunk, in the kernels' order; q is valid until the next call."""
        q = await self.cot.extend(channel, n)
        round_keys, tweak = self.keys.take(n)
        return round_keys, q, self.cot.delta, tweak


@dataclasses.dataclass(frozen=True, slots=True)
class ReceivingEnd:
    """The OT receiver's end of one direction."""

    cot: extension.Receiver
    keys: HashKeys

    async def rows(self, channel: Channel, n: int) -> tuple[Words, Words, Words, int]:
        """(round keys, t, choice words, tweak) of one chunk, in the kernels' order; t is valid until the next call."""
        x, t = await self.cot.extend(channel, n)
        round_keys, tweak = self.keys.take(n)
        return round_keys, t, x, tweak


def chunks(count: int, rows_each: int = 1) -> Iterator[tuple[int, int]]:
    """(first, n) of the chunks that ``count`` correlations of ``rows_each`` rows go in; first is a multiple of 64."""
    size = extension.CHUNK // rows_each // 64 * 64
    for first in range(0, count, size):
        yield first, min(size, count - first)


def bytes_sent(count: int, rows_each: int = 1, cot_bytes: Callable[[int], int] = iknp.bytes_sent) -> int:
    """Payload bytes, all from the OT receiver, for ``count`` correlations of ``rows_each`` rows.

    ``cot_bytes(n)``: the bytes of one extension by n.
    """
    return sum(cot_bytes(n * rows_each) for _, n in chunks(count, rows_each))
