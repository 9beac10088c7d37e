"""Single-point correlated OT, many at a time: two vectors of rows that differ in one place, of Receiver's choice.

Guo, Yang, Wang, Zhang, Xie, Liu and Zhao, "Half-Tree" (EUROCRYPT 2023, eprint 2022/1431): its protocol for single-point
COT, on the trees of figure 3 (kernels/half_tree.py). It takes the place of Ferret's own (Yang, Weng, Lan, Zhang and
Wang, CCS 2020, eprint 2020/924), which costs twice the hashing and twice the bytes.

Sender holds delta (bit 0 set) and Receiver a point p < 2^h, for each of ``count`` trees. Sender ends with a vector v of
2^h rows of 128 bits, Receiver with w, where

    w_i = v_i for i != p,  w_p = v_p ^ delta,  bit 0 of every v_i is 0.

Uses h correlated OTs a tree, t = q ^ r delta with random r.

1. Receiver draws p with the bits p_1, ..., p_h, low first. For each level l sends b_l = 1 ^ p_l ^ r_l.
2. Sender draws the tree's root; level 1 is (root, root ^ delta). For each level l sends c_l = K_l ^ q_l ^ b_l delta,
   where K_l is the XOR of the level's left nodes. As a level adds up to delta, the right nodes' is K_l ^ delta.
3. Receiver: c_l ^ t_l = K_l ^ (1 ^ p_l) delta is the XOR of those nodes of level l whose own bit is not p_l. With the
   nodes known already that gives the missing one beside p's path; at the end w_p is the XOR of all other leaves.

Both clear bit 0 of the leaves, and Receiver sets it at p: bit 0 of w is the choice bit.

Cost a tree: h bits from Receiver to Sender (whole words of 64 for all trees together) and 16 h bytes back; 2 flows.

Adversary: a malicious Receiver may choose its points, which it may anyway; sums of a malicious Sender are wrong until
ferret.py's check. b is masked by r, which Sender does not know. The node that Receiver lacks on a level is
x ^ delta for an x that it knows, and it sees H(x ^ delta) ^ delta and the like: H must be circular correlation robust
with 127 unknown bits of delta, as they prove for pi an ideal permutation. An attacker who evaluates pi p times finds
delta with probability about p C / 2^128 for C such values under one key (eprint 2019/1168): ``round_keys`` serve one
batch of trees, so that C = count h < 2^15.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from mpcd.kernels import bits, half_tree
from mpcd.protocol.randomness import Prg
from mpcd.protocol.wire import array, message

Words = npt.NDArray[np.uint64]

_ONE = np.uint64(1)


@message("spcot-choices")
class Choices:
    """Step 1, Receiver to Sender: bit i h + l - 1 is b_l of tree i."""

    b: Words = array("uint64", 1)


@message("spcot-sums")
class Sums:
    """Step 2, Sender to Receiver: row i h + l - 1 is c_l of tree i."""

    c: Words = array("uint64", 2)


def choices_shape(count: int, depth: int) -> tuple[int]:
    return ((count * depth + 63) // 64,)


def sums_shape(count: int, depth: int) -> tuple[int, int]:
    return count * depth, 2


@dataclasses.dataclass(frozen=True, slots=True)
class SenderSeeds:
    """What Sender's leaves are grown from: uint64 (count, 2)."""

    roots: Words


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverSeeds:
    """What Receiver's are: uint64 (count,), below 2^h, and uint64 (count, h, 2)."""

    points: Words
    siblings: Words


class Sender:
    """Holds the roots. ``round_keys``: of H, for these trees alone. The leaves are kernels/half_tree.py's ``grow``."""

    def __init__(self, round_keys: Words, delta: Words, count: int, prg: Prg) -> None:
        self.round_keys = round_keys
        self.roots = prg.words(2 * count).reshape(count, 2)
        self._delta = delta

    def seeds(self) -> SenderSeeds:
        return SenderSeeds(self.roots)

    def sums(self, q: Words, msg: Choices) -> Sums:
        """Step 2. q: uint64 (count * h, 2)."""
        count = len(self.roots)
        depth = len(q) // count
        left = np.empty((count, depth, 2), np.uint64)
        half_tree.left_sums(self.round_keys, self.roots, self._delta, left)
        b = np.negative(bits.unpack_bits(msg.b, len(q)).astype(np.uint64))
        return Sums(left.reshape(-1, 2) ^ q ^ (b[:, None] & self._delta))


class Receiver:
    """Holds the points and, from step 3 on, uint64 (count, h, 2) ``siblings``. The leaves are ``grow_punctured``'s."""

    def __init__(self, round_keys: Words, count: int, depth: int, prg: Prg) -> None:
        self.round_keys = round_keys
        self.points = prg.uniform((count,), depth)
        self.siblings = np.empty((count, depth, 2), np.uint64)

    def seeds(self) -> ReceiverSeeds:
        return ReceiverSeeds(self.points, self.siblings)

    def choices(self, r: Words) -> Choices:
        """Step 1. r: uint64 (count * h,), of which bit 0 counts."""
        levels = np.arange(self.siblings.shape[1], dtype=np.uint64)
        away = ~self.points[:, None] >> levels
        return Choices(bits.pack_bits(((away.reshape(-1) ^ r) & _ONE).astype(np.uint8)))

    def open(self, t: Words, msg: Sums) -> None:
        """Step 3's first half. t: uint64 (count * h, 2)."""
        self.siblings = (msg.c ^ t).reshape(self.siblings.shape)
