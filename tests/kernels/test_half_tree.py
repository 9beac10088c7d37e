"""Correlated GGM trees against a plain twin that numbers nodes and knows the whole tree."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mpcd.kernels import half_tree
from mpcd.kernels.aes import expand_key

KEY = bytes(range(16))
ROUND_KEYS = expand_key(np.frombuffer(KEY, np.uint8))
DEPTHS = (2, 3, 4, 5, 6, 9, 10)
FULL = (1 << 64) - 1


def h(nodes: np.ndarray) -> np.ndarray:
    """H(x) = pi(s(x)) ^ s(x), s(high, low) = (high ^ low, high)."""
    low, high = nodes[:, 0], nodes[:, 1]
    s = np.stack([high, high ^ low], axis=1)
    encryptor = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()
    return np.frombuffer(encryptor.update(s.tobytes()), np.uint64).reshape(-1, 2) ^ s


def levels(root: np.ndarray, delta: np.ndarray, depth: int) -> list[np.ndarray]:
    """Levels 1 to depth, before bit 0 is cleared."""
    nodes = [np.stack([root, root ^ delta])]
    while len(nodes) < depth:
        left = h(nodes[-1])
        nodes.append(np.concatenate([left, nodes[-1] ^ left]))
    return nodes


def cleared(leaves: np.ndarray) -> np.ndarray:
    return leaves & np.array([FULL - 1, FULL], np.uint64)


def random_rows(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, FULL, (*shape, 2), np.uint64, endpoint=True)


def offset(rng: np.random.Generator) -> np.ndarray:
    return random_rows(rng) | np.array([1, 0], np.uint64)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("trees", [0, 1, 3])
@pytest.mark.parametrize("fill", ["random", "zeros", "ones"])
def test_grow_and_left_sums(depth: int, trees: int, fill: str) -> None:
    rng = np.random.default_rng()
    roots, delta = random_rows(rng, trees), offset(rng)
    if fill != "random":
        roots[:] = 0 if fill == "zeros" else FULL
    leaves, sums = np.empty((trees, 1 << depth, 2), np.uint64), np.empty((trees, depth, 2), np.uint64)
    half_tree.grow(ROUND_KEYS, roots, delta, leaves)
    half_tree.left_sums(ROUND_KEYS, roots, delta, sums)
    for i in range(trees):
        tree = levels(roots[i], delta, depth)
        assert (leaves[i] == cleared(tree[-1])).all()
        for nodes, left in zip(tree, sums[i], strict=True):
            assert (np.bitwise_xor.reduce(nodes) == delta).all()
            assert (np.bitwise_xor.reduce(nodes[: len(nodes) // 2]) == left).all()


def siblings(root: np.ndarray, delta: np.ndarray, depth: int, point: int) -> np.ndarray:
    rows = []
    for level, nodes in enumerate(levels(root, delta, depth), start=1):
        own = np.arange(1 << level) >> (level - 1)
        rows.append(np.bitwise_xor.reduce(nodes[own != (point >> (level - 1)) & 1]))
    return np.stack(rows)


@pytest.mark.parametrize("depth", DEPTHS)
def test_grow_punctured(depth: int) -> None:
    """All points of small trees; the ends and random ones of larger."""
    rng = np.random.default_rng()
    count = 1 << depth
    points = np.arange(count) if depth < 6 else np.array([0, 1, count // 2, count - 1, *rng.integers(0, count, 4)])
    points = points.astype(np.uint64)
    roots, delta = random_rows(rng, len(points)), offset(rng)
    known = np.stack([siblings(root, delta, depth, int(point)) for root, point in zip(roots, points, strict=True)])
    leaves = np.empty((len(points), count, 2), np.uint64)
    half_tree.grow_punctured(ROUND_KEYS, points, known, leaves)
    for i, point in enumerate(points):
        want = cleared(levels(roots[i], delta, depth)[-1])
        want[int(point)] ^= delta
        assert (leaves[i] == want).all()


def test_known_leaves() -> None:
    """A digest of one tree: the numbering and the hash stay as they are."""
    leaves = np.empty((1, 4, 2), np.uint64)
    roots, delta = np.array([[1, 2]], np.uint64), np.array([5, 6], np.uint64)
    half_tree.grow(ROUND_KEYS, roots, delta, leaves)
    assert (leaves[0] == cleared(levels(roots[0], delta, 2)[-1])).all()
    assert (leaves[0, 0] ^ leaves[0, 2] == cleared(roots)[0]).all()


@pytest.mark.parametrize("count", [0, 2, 3, 12])
def test_wrong_sizes_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="2\\^depth leaves"):
        half_tree.grow(
            ROUND_KEYS, np.zeros((1, 2), np.uint64), np.zeros(2, np.uint64), np.zeros((1, count, 2), np.uint64)
        )


def test_leaves_and_siblings_must_agree() -> None:
    with pytest.raises(ValueError, match="depth"):
        half_tree.grow_punctured(
            ROUND_KEYS, np.zeros(1, np.uint64), np.zeros((1, 4, 2), np.uint64), np.zeros((1, 8, 2), np.uint64)
        )
