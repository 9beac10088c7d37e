"""Who has less: shares of [a < b] (CrypTFlow2, eprint 2020/1002, algorithm 1; Garay, Schoenmakers, Villegas 2007).

P0 has a, P1 has b, both of ``bits`` bits, n of each. They leave with XOR shares of [a < b].

The numbers are cut into blocks of at most 3 bits, the lowest of at most 4, low to high; a block's leaf says
lt = [a < b] and eq = [a = b].
Two neighbours make a node of a tree: lt = lt_hi xor (eq_hi & lt_lo), eq = eq_hi & eq_lo.

1. P1 sends, for every leaf, its random choice xor its digit.
2. P0 sends the leaf's table of (lt, eq) for the digits 1, 2, ... of P1, each under its pad of the random 1-of-2^m OT.
   For digit 0 the pad itself is the share that P1 gets; P0's own share follows from it. Both know shares of all leaves.
3. For every level of the tree, all nodes in one exchange: the two products with the factor eq_hi (``conjunction``).

The node that holds the lowest block needs no eq: nobody uses it. Its leaf's table has entries of 1 bit, and its
merge in every level opens no eq_lo.

``Layout(bits, edge)`` asks for a block boundary at bit ``edge`` and a node of all blocks below it, so that
[a mod 2^edge < b mod 2^edge] comes out as well, for nothing.

Cost, for 64 comparisons (W = ceil(n / 64) times that), q blocks of m_i bits, L levels (q - 1 merges), in words:
    P1 sends  bits + 3 (q - 1) - L
    P0 sends  (2^m_0 - 1) + sum over i > 0 of 2 (2^m_i - 1) + 3 (q - 1) - L
and L + 2 flows: a party closes one level and opens the next in one run. Without an edge L = ceil(log2 q).
``bits`` COTs for leaves and 2 (q - 1) for triples. Adversary: semi-honest; what is sent is masked by correlations
that are used once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcd.kernels import bits as bit_kernels
from mpcd.kernels import comparison as kernels
from mpcd.protocol.channel import MODEL_OWNER, Channel
from mpcd.protocol.conjunction import conjunction, conjunction_needs
from mpcd.protocol.correlations import LeafNeed, Need, Source, take
from mpcd.protocol.wire import array, message

Words = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.uint64]

BLOCK = 3  # bits of a block; the lowest, whose table has the smaller entries, may have one more

# Steps 1 and 2 of a comparison.
Leaves = Callable[[Channel, Source, Words, "Layout"], Awaitable[tuple[Rows, Rows]]]


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """``width`` bits of the compared numbers from bit ``shift`` on."""

    shift: int
    width: int


@dataclasses.dataclass(frozen=True, slots=True)
class Merge:
    """The nodes ``low`` and ``high``, neighbours, make node ``node``. Nodes 0 to q - 1 are the leaves."""

    low: int
    high: int
    node: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """Blocks and tree for numbers of ``bits`` bits, 1 <= bits <= 64, with a node of the bits below ``edge``, if given.

    As few blocks as possible, as equal as possible, the wider ones low. Tables grow with 2^m: with blocks of 4 a
    comparison of 16 bits moves 135 bits and takes 22 COTs, with these 105 and 24, with blocks of 2 97 and 30. In each
    level neighbours pair up from the low end, an odd one is carried up; the blocks below the edge pair among
    themselves until they are one node.
    """

    bits: int
    edge: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 64 or (self.edge is not None and not 1 <= self.edge < self.bits):
            raise ValueError(f"cannot compare {self.bits} bits with an edge at {self.edge}")

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        if self.edge is None:
            return _cut(0, self.bits)
        return _cut(0, self.edge) + _cut(self.edge, self.bits)

    @functools.cached_property
    def levels(self) -> tuple[tuple[Merge, ...], ...]:
        """The first merge of every level is the one that holds the lowest block."""
        below = 0 if self.edge is None else len(_cut(0, self.edge))
        low, high = list(range(below)), list(range(below, len(self.blocks)))
        levels = []
        node = len(self.blocks)
        while len(low) + len(high) > 1:
            if len(low) == 1:
                low, high = [], low + high
            level: list[Merge] = []
            for part in (low, high):
                pairs = list(zip(part[::2], part[1::2], strict=False))
                carried = part[2 * len(pairs) :]
                merges = [Merge(lo, hi, node + i) for i, (lo, hi) in enumerate(pairs)]
                node += len(merges)
                part[:] = [merge.node for merge in merges] + carried
                level += merges
            levels.append(tuple(level))
        return tuple(levels)

    @functools.cached_property
    def edge_node(self) -> int | None:
        """The node of the bits below the edge."""
        if self.edge is None:
            return None
        lowest = 0
        reach = {i: block.shift + block.width for i, block in enumerate(self.blocks)}
        for level in self.levels:
            if reach[lowest] == self.edge:
                return lowest
            for merge in level:
                reach[merge.node] = reach[merge.high]
            lowest = level[0].node
        raise AssertionError("the tree has a node at its edge")

    @property
    def entry_words(self) -> int:
        """Words of step 2 for 64 comparisons."""
        return sum(kernels.entry_bits(block.width, i == 0) for i, block in enumerate(self.blocks))


def _cut(start: int, stop: int) -> tuple[Block, ...]:
    count = max(1, -(-(stop - start - (start == 0)) // BLOCK))
    small, wider = divmod(stop - start, count)
    blocks = []
    for i in range(count):
        width = small + (i < wider)
        blocks.append(Block(start, width))
        start += width
    return tuple(blocks)


def own_leaf_needs(layout: Layout, n: int) -> tuple[Need, ...]:
    """A leaf OT per block."""
    return tuple(LeafNeed(block.width, n) for block in layout.blocks)


def millionaires_needs(layout: Layout, n: int, leaves: tuple[Need, ...] | None = None) -> tuple[Need, ...]:
    """The leaves, if not those of ``own_leaf_needs``, then the triples of each level."""
    words = (n + 63) // 64
    leaves = own_leaf_needs(layout, n) if leaves is None else leaves
    return leaves + tuple(need for level in layout.levels for need in conjunction_needs(len(level), words))


@message("millionaires.corrections")
class Corrections:
    """Step 1, P1 to P0: bit planes of choice xor digit, ``bits`` rows of W words."""

    planes: Rows = array("uint64", 2)


@message("millionaires.entries")
class Entries:
    """Step 2, P0 to P1: the blocks' tables, block by block."""

    words: Words = array("uint64", 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Less:
    """This party's shares, words: ``whole`` of [a < b], ``low`` of the same for the bits below the edge."""

    whole: Words
    low: Words | None


class Sender:
    """P0: has a, makes the tables. ``pads``: of every block, uint32 (n,)."""

    def __init__(self, layout: Layout, a: Words, pads: list[npt.NDArray[Any]]) -> None:
        self.layout, self.a, self.pads = layout, a, pads

    def moved_entries(self) -> tuple[Entries, Rows, Rows]:
        """``entries`` with pads that are where P1's digits find them."""
        return self.entries(Corrections(np.zeros((self.layout.bits, (len(self.a) + 63) // 64), np.uint64)))

    def entries(self, corrections: Corrections) -> tuple[Entries, Rows, Rows]:
        """Step 2: the message, and shares of lt and eq of every leaf, uint64 (blocks, W)."""
        words = (len(self.a) + 63) // 64
        tables = np.empty(words * self.layout.entry_words, np.uint64)
        less, equal = np.empty((2, len(self.layout.blocks), words), np.uint64)
        at = 0
        for i, block in enumerate(self.layout.blocks):
            size = words * kernels.entry_bits(block.width, i == 0)
            planes = corrections.planes[block.shift : block.shift + block.width]
            kernels.leaf_messages(
                self.a,
                block.shift,
                block.width,
                i == 0,
                planes,
                self.pads[i],
                tables[at : at + size],
                less[i],
                equal[i],
            )
            at += size
        return Entries(tables), less, equal


class Receiver:
    """P1: has b, chooses from the tables. ``pads``: of every block, uint8 (n,)."""

    def __init__(self, layout: Layout, b: Words, pads: list[npt.NDArray[Any]]) -> None:
        self.layout, self.b, self.pads = layout, b, pads

    def corrections(self, choices: list[npt.NDArray[np.uint8]]) -> Corrections:
        """Step 1."""
        return Corrections(
            np.concatenate(
                [
                    kernels.leaf_corrections(self.b, block.shift, block.width, chosen)
                    for block, chosen in zip(self.layout.blocks, choices, strict=True)
                ]
            )
        )

    def shares(self, entries: Entries) -> tuple[Rows, Rows]:
        """After step 2: shares of lt and eq of every leaf, uint64 (blocks, W)."""
        words = (len(self.b) + 63) // 64
        less, equal = np.empty((2, len(self.layout.blocks), words), np.uint64)
        at = 0
        for i, block in enumerate(self.layout.blocks):
            size = words * kernels.entry_bits(block.width, i == 0)
            kernels.leaf_results(
                self.b,
                block.shift,
                block.width,
                i == 0,
                self.pads[i],
                entries.words[at : at + size],
                less[i],
                equal[i],
            )
            at += size
        return less, equal


async def own_leaves(channel: Channel, source: Source, x: Words, layout: Layout) -> tuple[Rows, Rows]:
    """Steps 1 and 2 with leaves for this comparison alone: shares of lt and eq of every leaf, uint64 (blocks, W)."""
    leaves = [await take(channel, source, LeafNeed(block.width, len(x))) for block in layout.blocks]
    pads = [leaf.pads.reshape(-1) for leaf in leaves]
    words = (len(x) + 63) // 64
    if channel.party == MODEL_OWNER:
        corrections = await channel.recv(Corrections, planes=(layout.bits, words))
        entries, less, equal = await channel.compute(Sender(layout, x, pads).entries, corrections)
        await channel.send(entries)
        return less, equal
    receiver = Receiver(layout, x, pads)
    await channel.send(await channel.compute(receiver.corrections, [leaf.choices for leaf in leaves]))
    entries = await channel.recv(Entries, words=(words * layout.entry_words,))
    return await channel.compute(receiver.shares, entries)


async def millionaires(channel: Channel, source: Source, x: Words, layout: Layout, leaves: Leaves = own_leaves) -> Less:
    """Either party; x is a at P0, b at P1: uint64 (n,), of which the low ``layout.bits`` bits are compared.

    ``leaves``: how steps 1 and 2 go (shared_leaves.py has another way).
    """
    less, equal = await leaves(channel, source, x, layout)
    return await _tree(channel, source, layout, less, equal, len(x))


async def _tree(channel: Channel, source: Source, layout: Layout, less: Rows, equal: Rows, n: int) -> Less:
    """Step 3."""
    lt = dict(enumerate(less))
    eq = dict(enumerate(equal))
    for level in layout.levels:
        x = np.stack([eq[merge.high] for merge in level])
        y = np.stack([lt[merge.low] for merge in level])
        y2 = np.array([eq[merge.low] for merge in level[1:]], np.uint64).reshape(-1, less.shape[1])
        carried, both = await conjunction(channel, source, x, y, y2)
        for merge, row in zip(level, carried, strict=True):
            lt[merge.node] = lt[merge.high] ^ row
        for merge, row in zip(level[1:], both, strict=True):
            eq[merge.node] = row
    whole = bit_kernels.clear_tail(lt[max(lt)].copy(), n)
    if layout.edge_node is None:
        return Less(whole, None)
    return Less(whole, bit_kernels.clear_tail(lt[layout.edge_node].copy(), n))
