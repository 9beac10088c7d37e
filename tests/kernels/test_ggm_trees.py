"""Trees of keys against plain twins over another AES."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mpcd.kernels import ggm
from mpcd.kernels.aes import expand_key

DEPTHS = (2, 3, 4, 8)


def children_of(nodes: list[bytes]) -> list[bytes]:
    ciphers = [Cipher(algorithms.AES(node), modes.ECB()) for node in nodes]
    return [cipher.encryptor().update(bytes([b]) + bytes(15)) for b in (0, 1) for cipher in ciphers]


def levels_of(level1: np.ndarray, depth: int) -> list[list[bytes]]:
    levels = [[node.tobytes() for node in level1]]
    while len(levels) < depth:
        levels.append(children_of(levels[-1]))
    return levels


def array(nodes: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(nodes), np.uint64).reshape(-1, 2)


def random_words(*shape: int) -> np.ndarray:
    return np.random.default_rng().integers(0, 1 << 64, shape, dtype=np.uint64)


def grown(depth: int, trees: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    level1 = random_words(trees, 2, 2)
    leaves, sums = np.empty((trees, 1 << depth, 2), np.uint64), np.empty((trees, depth - 1, 2, 2), np.uint64)
    ggm.grow_trees(level1, leaves, sums)
    return level1, leaves, sums


@pytest.mark.parametrize("depth", DEPTHS)
def test_grow_trees(depth: int) -> None:
    level1, leaves, sums = grown(depth)
    for i in range(len(level1)):
        levels = levels_of(level1[i], depth)
        assert (leaves[i] == array(levels[-1])).all()
        for level in range(1, depth):
            halves = array(levels[level]).reshape(2, -1, 2)
            assert (sums[i, level - 1] == np.bitwise_xor.reduce(halves, axis=1)).all()


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("fill", ["zeros", "ones", "random"])
def test_grow_punctured_trees(depth: int, fill: str) -> None:
    level1, leaves, sums = grown(depth)
    trees = np.arange(len(level1))
    delta = {"zeros": np.zeros, "ones": np.ones}.get(fill, lambda s, t: random_words(*s) & np.uint64(1))(
        (len(trees), depth), np.uint64
    )
    away = (1 - delta).astype(np.int64)
    siblings = level1[trees, away[:, 0]]
    opened = np.stack([sums[trees, level, away[:, level + 1]] for level in range(depth - 1)], axis=1)
    punctured = np.empty_like(leaves)
    ggm.grow_punctured_trees(siblings, delta, opened, punctured)
    points = (delta << np.arange(depth, dtype=np.uint64)).sum(axis=1).astype(np.int64)
    labels = np.arange(1 << depth)
    for i in trees:
        relabelled = leaves[i, labels ^ points[i]]
        assert (punctured[i, 1:] == relabelled[1:]).all()
        assert not punctured[i, 0].any()


def test_leaf_keys() -> None:
    leaves = random_words(3, 4, 2)
    keys = ggm.leaf_keys(leaves)
    for i in range(3):
        for x in range(4):
            assert (keys[i, x] == expand_key(leaves[i, x].view(np.uint8))).all()
