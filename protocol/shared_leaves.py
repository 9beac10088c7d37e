"""One number against many thresholds: the comparisons' leaves are chosen once.

DenseNet feeds a feature to all later layers of its block, each of which compares it with a threshold of its own. The
thresholds are P0's and go into P0's side of ``millionaires``; P1's side is its share of the feature, the same every
time. So P1's choices in the leaves' OTs are the same too, and one random OT of several two-bit strings serves as many
comparisons (correlations.LeafNeed, ``uses``): a string a comparison, each used once.

``comparisons`` finds out who shares: the input of every Relu in pieces, made by different operations and put together
by Concat, each with the number of uses that its leaves have where a pack of up to 4 begins.

1. P1 sends choice xor digit for the pieces whose pack begins here, as in ``millionaires``' step 1.
2. P0 moves these pads, of all the pack's uses, to where P1's digits find them, and keeps those of later uses.
3. ``millionaires``' step 2 with every piece's next pads; P1 likewise.

Cost: as ``millionaires``, but ``bits`` COTs and ``bits`` bits from P1 once a pack and element. If no pack begins, P1
sends nothing in step 1: a flow less. Memory: 16 uses blocks bytes an element at P0 until the pack is used up.

Adversary: semi-honest. P1's digit is masked by its random choice, once; a pad masks one string. P1 learns of every
threshold its share of one comparison, as ever.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcd.kernels import comparison as kernels
from mpcd.protocol.channel import MODEL_OWNER, Channel
from mpcd.protocol.correlations import LeafNeed, LeafReceiver, LeafSender, Need, Source, take
from mpcd.protocol.millionaires import Corrections, Entries, Layout, Receiver, Rows, Sender, Words
from mpcd.protocol.network import Concat, Network, Relu

USES = 4  # of a pack: 32 bits each of the hash's 128


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """``count`` neighbouring elements of a comparison: value number ``value`` of the network.

    ``uses``: in how many comparisons the pack of leaves that begins here serves; 0: the piece's pack goes on.
    """

    value: int
    count: int
    uses: int


def comparisons(network: Network) -> dict[int, tuple[Piece, ...]]:
    """The pieces of every Relu's input, in order, by the operation's number; only of those that share leaves."""
    parts = {op.output: op.inputs for op in network.ops if isinstance(op, Concat)}

    def made_of(value: int) -> list[int]:
        return [piece for part in parts[value] for piece in made_of(part)] if value in parts else [value]

    relus = {index: made_of(op.inputs[0]) for index, op in enumerate(network.ops) if isinstance(op, Relu)}
    total = Counter(value for values in relus.values() for value in values)
    seen: Counter[int] = Counter()
    found = {}
    for index, values in relus.items():
        pieces = []
        for value in values:
            begins = seen[value] % USES == 0
            pieces.append(
                Piece(value, network.values[value].size, min(USES, total[value] - seen[value]) if begins else 0)
            )
            seen[value] += 1
        if any(piece.uses != 1 for piece in pieces):
            found[index] = tuple(pieces)
    return found


def leaf_needs(layout: Layout, pieces: tuple[Piece, ...]) -> tuple[Need, ...]:
    """Of one comparison: block by block, the pieces whose pack begins."""
    return tuple(
        LeafNeed(block.width, piece.count, piece.uses) for block in layout.blocks for piece in pieces if piece.uses
    )


class SharedLeaves:
    """One party's packs of one image."""

    def __init__(self) -> None:
        self._packs: dict[int, _Pack] = {}

    async def shares(
        self, channel: Channel, source: Source, x: Words, layout: Layout, pieces: tuple[Piece, ...]
    ) -> tuple[Rows, Rows]:
        """``millionaires``' steps 1 and 2: shares of lt and eq of every leaf, uint64 (blocks, W)."""
        begun = [piece for piece in pieces if piece.uses]
        leaves = [
            [await take(channel, source, LeafNeed(b.width, p.count, p.uses)) for p in begun] for b in layout.blocks
        ]
        words = sum(map(_words, begun))
        if channel.party == MODEL_OWNER:
            if begun:
                corrections = await channel.recv(Corrections, planes=(layout.bits, words))
                await channel.compute(self._keep_moved, layout, begun, leaves, corrections)
            sender = Sender(layout, x, self._next(layout, pieces))
            entries, less, equal = await channel.compute(sender.moved_entries)
            await channel.send(entries)
            return less, equal
        if begun:
            await channel.send(await channel.compute(self._keep_chosen, layout, x, pieces, leaves))
        receiver = Receiver(layout, x, self._next(layout, pieces))
        entries = await channel.recv(Entries, words=((len(x) + 63) // 64 * layout.entry_words,))
        return await channel.compute(receiver.shares, entries)

    def _keep_moved(
        self, layout: Layout, begun: list[Piece], leaves: list[list[LeafSender]], corrections: Corrections
    ) -> None:
        """Step 2 at P0."""
        at = 0
        for p, piece in enumerate(begun):
            columns = slice(at, at + _words(piece))
            at += _words(piece)
            pads = []
            for block, of_block in zip(layout.blocks, leaves, strict=True):
                planes = np.ascontiguousarray(corrections.planes[block.shift : block.shift + block.width, columns])
                pads.append(np.empty((piece.uses, piece.count), np.uint32))
                kernels.leaf_pads_in_place(planes, of_block[p].pads, pads[-1])
            self._packs[piece.value] = _Pack(pads)

    def _keep_chosen(
        self, layout: Layout, x: Words, pieces: tuple[Piece, ...], leaves: list[list[LeafReceiver]]
    ) -> Corrections:
        """Step 1 at P1."""
        planes = []
        at = begun = 0
        for piece in pieces:
            ours = x[at : at + piece.count]
            at += piece.count
            if not piece.uses:
                continue
            mine = [of_block[begun] for of_block in leaves]
            begun += 1
            planes.append(
                np.concatenate(
                    [
                        kernels.leaf_corrections(ours, block.shift, block.width, leaf.choices)
                        for block, leaf in zip(layout.blocks, mine, strict=True)
                    ]
                )
            )
            self._packs[piece.value] = _Pack([np.ascontiguousarray(leaf.pads.T) for leaf in mine])
        return Corrections(np.concatenate(planes, axis=1))

    def _next(self, layout: Layout, pieces: tuple[Piece, ...]) -> list[npt.NDArray[Any]]:
        """The comparison's pads, block by block."""
        rows = [self._packs[piece.value].take() for piece in pieces]
        for piece in pieces:
            if piece.value in self._packs and self._packs[piece.value].empty:
                del self._packs[piece.value]
        return [np.concatenate([row[i] for row in rows]) for i in range(len(layout.blocks))]


class _Pack:
    """The pads of one piece, (uses, count) of every block."""

    def __init__(self, pads: list[npt.NDArray[Any]]) -> None:
        self._pads = pads
        self._used = 0

    def take(self) -> list[npt.NDArray[Any]]:
        self._used += 1
        return [of_block[self._used - 1] for of_block in self._pads]

    @property
    def empty(self) -> bool:
        return self._used == len(self._pads[0])


def _words(piece: Piece) -> int:
    return (piece.count + 63) // 64
