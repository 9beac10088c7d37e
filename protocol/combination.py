"""Integer combinations of polynomials, as a layout prescribes them, by exact float64 matrix products.

Multiplying by X^-t is a rotation of the coefficients (the part that wraps around changes its sign). A tap's rotation is
applied to what is multiplied with the weights or, since it commutes with them, to the product: for the output slots
always after, for the input slots always before, and for the kernel's taps on whichever side has fewer rows to rotate.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mpcd.protocol.packing import Packing

Weights = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_DEPTH = 256  # rows of one matrix product that short rotated blocks are joined to
_ROWS = 512  # of the products held at once
_KEPT = 1 << 23  # weights held as float64

Entry = tuple[int, int, int]  # input slot and tap


class Combination:
    """The weights of one group, int64 (outputs, channels, reach), in the form in which they are multiplied."""

    def __init__(self, layout: Packing, weights: Weights) -> None:
        self._layout = layout
        self._weights = weights
        taps = list(itertools.product(range(layout.reach[0]), range(layout.reach[1])))
        before = layout.slots * layout.inputs
        late = before + layout.outputs * len(taps) < before * len(taps) + layout.outputs
        self._late = taps if late else [(0, 0)]
        self._early = [(0, 0)] if late else taps
        self._is_late = late
        self._kept: dict[tuple[int, int, int, int], Floats] = {}
        self._keep = weights.size <= _KEPT
        self._buffers = [np.empty((0, layout.n), np.float64) for _ in range(2)]

    def apply(self, planes: Sequence[Floats], first: int, last: int) -> Iterator[tuple[int, int, Floats]]:
        """What polynomials first <= i < last contribute to the combinations: (plane, first answer, product (rows, n)).

        A product is to be used before the next is asked for: fresh pages for each would cost more than it does.
        ``planes``: float64 (last - first, 2n) each, a polynomial's coefficients followed by their negatives.
        """
        layout = self._layout
        entries = [
            (slot, u, v)
            for slot in range(layout.slots)
            for u, v in self._early
            if slot * layout.inputs + first < layout.channels
        ]
        rows = max(1, _ROWS // (layout.out_slots * len(self._late)))
        joined = max(1, _DEPTH // (last - first))
        for top in range(0, layout.answers, rows):
            end = min(top + rows, layout.answers)
            groups = [entries[at : at + joined] for at in range(0, len(entries), joined)]
            for i, x in enumerate(planes):
                total: Floats | None = None
                for index, group in enumerate(groups):
                    w = self._block(top, end, index, group, first, last)
                    out = self._buffer(total is not None, len(w))
                    np.matmul(w, self._rotated(x, group, first, last), out=out)
                    if total is None:
                        total = out
                    else:
                        total += out
                if total is not None:
                    yield i, top, self._gathered(total, top, end)

    def _buffer(self, second: bool, rows: int) -> Floats:
        if self._buffers[second].shape[0] < rows:
            self._buffers[second] = np.empty((rows, self._layout.n), np.float64)
        return self._buffers[second][:rows]

    def _columns(self, slot: int, first: int, last: int) -> tuple[int, int]:
        begin = slot * self._layout.inputs
        return begin + first, min(begin + last, self._layout.channels)

    def _outputs(self, top: int, end: int) -> Iterator[tuple[int, int]]:
        """Per output slot: its outputs among answers top <= r < end."""
        layout = self._layout
        for o in range(layout.out_slots):
            begin = o * layout.answers
            yield begin + top, max(begin + top, min(begin + end, layout.outputs))

    def _block(self, top: int, end: int, index: int, group: list[Entry], first: int, last: int) -> Floats:
        """Rows: late taps, output slots, answers. Columns: entries, channels."""
        key = (top, index, first, last)
        if key in self._kept:
            return self._kept[key]
        parts = []
        for late in self._late:
            for begin, stop in self._outputs(top, end):
                row = []
                for slot, u, v in group:
                    c = slice(*self._columns(slot, first, last))
                    tap = late if self._is_late else (u, v)
                    row.append(self._weights[begin:stop, c, tap[0], tap[1]])
                parts.append(np.concatenate(row, axis=1))
        block = np.concatenate(parts).astype(np.float64)
        if self._keep:
            self._kept[key] = block
        return block

    def _rotated(self, x: Floats, group: list[Entry], first: int, last: int) -> Floats:
        layout = self._layout
        parts = []
        for slot, u, v in group:
            begin, stop = self._columns(slot, first, last)
            shift = slot * layout.size + u * layout.pitch + v
            parts.append(x[: stop - begin, shift : shift + layout.n])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _gathered(self, product: Floats, top: int, end: int) -> Floats:
        """The sum of the product's blocks, rotated."""
        layout = self._layout
        if len(self._late) == 1 and layout.out_slots == 1:
            return product
        n = layout.n
        out = np.zeros((end - top, n), np.float64)
        at = 0
        for u, v in self._late:
            for o, (begin, stop) in enumerate(self._outputs(top, end)):
                part = product[at : at + stop - begin]
                at += stop - begin
                rows = out[: len(part)]
                shift = o * layout.slots * layout.size + u * layout.pitch + v
                if o:  # wraps around: negated
                    rows[:, : n - shift] -= part[:, shift:]
                    rows[:, n - shift :] += part[:, :shift]
                else:
                    rows[:, : n - shift] += part[:, shift:]
                    if shift:
                        rows[:, n - shift :] -= part[:, :shift]
        return out
