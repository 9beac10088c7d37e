"""Where the pixels of a batch lie in ciphertexts: public, the same at both parties.

A convolution with stride s is a sum of stride-1 correlations over its s*s phases (pixels congruent modulo s in both
directions); phases that no tap touches are dropped, the others count as further channels. One channel's padded images
are stacked in a *strip* of rows, ``pitch`` positions each; neighbouring rows and images share their zero padding. A
*tile* is as much of the strip as a polynomial's 4096 positions hold, in whole rows; tiles overlap by the rows that the
kernel reaches over (a halo). So small images share a polynomial and large ones are cut into bands, by one rule.

Position p of a tile after multiplication by X^-t holds position p + t: a tap (u, v) is t = u pitch + v. Where a row's
shared padding would lie past the end, the wrap around meets the first row's padding, which is zero as well.

Where a strip fills at most half a polynomial, ``slots`` channels lie in one behind the other, ``size`` positions each;
and one answer collects ``out_slots`` outputs (as in Cheetah's matrix-vector product, eprint 2022/207): a tap of
output slot o and input slot i is t = (o slots + i) size + u pitch + v, negated for o > 0 because it wraps around, and
output o starts at position -o slots size mod 4096. The products that belong to another output slot fall on positions
without a channel.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from mpcd.protocol.network import Linear, Network, NetworkError

Words = npt.NDArray[np.uint64]
Weights = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Tap:
    """A block of the weight matrix and its shift: answers 0 <= r < ``rows`` get
    sign * weight[first_output + r, first_channel + c, u, v] * X^-shift * ciphertext c, for c < ``columns``."""

    first_output: int
    rows: int
    first_channel: int
    columns: int
    u: int
    v: int
    shift: int
    sign: int


@dataclasses.dataclass(frozen=True, slots=True)
class Packing:
    """One Linear operation's layout for a batch. Channels (a phase's each) and outputs are those of one group."""

    n: int
    batch: int
    groups: int
    in_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    phases: tuple[tuple[int, int], ...]
    reach: tuple[int, int]  # taps of a phase, down and across
    channels: int
    outputs: int
    pitch: int
    image_rows: int
    strip_rows: int
    tile_rows: int
    tiles: int
    slots: int
    out_slots: int

    @property
    def inputs(self) -> int:
        """Request ciphertexts of a group and tile."""
        return -(-self.channels // self.slots)

    @property
    def answers(self) -> int:
        """Answer ciphertexts of a group and tile."""
        return -(-self.outputs // self.out_slots)

    @property
    def size(self) -> int:
        """Positions of a channel in a tile."""
        return min(self.strip_rows, self.tile_rows) * self.pitch

    @property
    def pixels(self) -> int:
        """Of an output channel of one image."""
        return self.out_shape[1] * self.out_shape[2]

    @property
    def step(self) -> int:
        """Output rows of a tile."""
        return self.tile_rows - self.reach[0] + 1

    def units(self) -> Iterator[tuple[int, int]]:
        """(group, tile) in the order in which they travel."""
        return ((group, tile) for group in range(self.groups) for tile in range(self.tiles))

    def strip(self, images: Iterable[Words]) -> Words:
        """uint64 (groups, channels, strip_rows, pitch), zero where there is padding. ``images``: (c, h, w) each."""
        per_group = self.in_shape[0] // self.groups
        strip = np.zeros((self.groups, len(self.phases), per_group, self.strip_rows, self.pitch), np.uint64)
        for b, image in enumerate(images):
            grouped = image.reshape(self.groups, per_group, *self.in_shape[1:])
            for index, target, source in self._places(b):
                strip[(slice(None), index, slice(None), *target)] = grouped[(slice(None), slice(None), *source)]
        return strip.reshape(self.groups, self.channels, self.strip_rows, self.pitch)

    def polynomials(self, strip: Words, group: int, tile: int, first: int, last: int) -> Words:
        """Request plaintexts first <= i < last of a group's tile: uint64 (last - first, n)."""
        out = np.zeros((last - first, self.n), np.uint64)
        rows = strip[group, :, tile * self.step : tile * self.step + self.tile_rows]
        for slot in range(self.slots):
            channels = rows[slot * self.inputs + first : slot * self.inputs + last]
            flat = channels.reshape(len(channels), rows.shape[1] * rows.shape[2])
            out[: len(flat), slot * self.size : slot * self.size + flat.shape[1]] = flat
        return out

    def bound(self, tile: int) -> npt.NDArray[np.int64]:
        """Positions of a tile's request plaintexts that are not free to hold anything, because they hold zero, nothing
        at all, or what an earlier tile holds too, in at least one of the ciphertexts.

        Without padding, a kernel's reach or several outputs an answer, whatever lies outside a channel harms no output.
        """
        if self.reach == (1, 1) and self.out_slots == 1 and self.padding == (0, 0):
            return np.empty(0, np.int64)
        real = _real(self)
        rows = real[tile * self.step : tile * self.step + self.tile_rows].copy()
        if tile:
            rows[: self.reach[0] - 1] = False
        free = np.zeros(self.n, np.bool_)
        full = self.channels // self.inputs  # slots that every ciphertext fills
        for slot in range(full):
            free[slot * self.size : slot * self.size + rows.size] = rows.reshape(-1)
        return np.flatnonzero(~free)

    def keep(
        self, strip: Words, group: int, tile: int, first: int, last: int, plain: Words, bound: npt.NDArray[np.int64]
    ) -> None:
        """Write request plaintexts first <= i < last back to the strip, but for ``bound`` positions."""
        rows = strip[group, :, tile * self.step : tile * self.step + self.tile_rows]
        area = rows.shape[1] * rows.shape[2]
        free = np.ones(self.n, np.bool_)
        free[bound] = False
        for slot in range(self.slots):
            channels = rows[slot * self.inputs + first : slot * self.inputs + last]
            part = slice(slot * self.size, slot * self.size + area)
            mine = plain[: len(channels), part].reshape(channels.shape)
            np.copyto(channels, mine, where=free[part].reshape(channels.shape[1:]))

    def images(self, strip: Words, images: Words) -> None:
        """Write the pixels in the strip to ``images``, uint64 (batch, c, h, w), where the strip has them."""
        per_group = self.in_shape[0] // self.groups
        by_phase = strip.reshape(self.groups, len(self.phases), per_group, self.strip_rows, self.pitch)
        for b, image in enumerate(images):
            grouped = image.reshape(self.groups, per_group, *self.in_shape[1:])
            for index, source, target in self._places(b):
                grouped[(slice(None), slice(None), *target)] = by_phase[(slice(None), index, slice(None), *source)]

    def _places(self, b: int) -> Iterator[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
        """Per phase that has pixels: its index, rows and columns of image b in the strip and in the image."""
        padded = tuple(rows + r - 1 for rows, r in zip(self.out_shape[1:], self.reach, strict=True))
        for index, phase in enumerate(self.phases):
            (top, rows, y), (left, columns, x) = (
                _phase(self.in_shape[1 + d], self.stride[d], self.padding[d], phase[d], padded[d]) for d in (0, 1)
            )
            if rows > 0 and columns > 0:
                first = b * self.image_rows + top
                (dy, dx) = self.stride
                pixels = slice(y, y + (rows - 1) * dy + 1, dy), slice(x, x + (columns - 1) * dx + 1, dx)
                yield index, (slice(first, first + rows), slice(left, left + columns)), pixels

    def weights(self, weight: Weights, group: int) -> Weights:
        """The group's weights by phase: int64 (outputs, channels, reach), zero where a phase has no tap.

        A view where there is one phase: fully connected layers have weights of a gigabyte.
        """
        own = weight[group * self.outputs : (group + 1) * self.outputs]
        if self.stride == (1, 1):
            return own
        out = np.zeros((self.outputs, len(self.phases), own.shape[1], *self.reach), np.int64)
        for index, (a, b) in enumerate(self.phases):
            taps = own[:, :, a :: self.stride[0], b :: self.stride[1]]
            out[:, index, :, : taps.shape[2], : taps.shape[3]] = taps
        return out.reshape(self.outputs, self.channels, *self.reach)

    def taps(self, first: int, last: int) -> Iterator[Tap]:
        """Everything that request ciphertexts first <= i < last of a tile are multiplied with."""
        for o in range(self.out_slots):
            rows = min(self.answers, self.outputs - o * self.answers)
            for slot in range(self.slots):
                begin = slot * self.inputs + first
                columns = min(slot * self.inputs + last, self.channels) - begin
                if rows <= 0 or columns <= 0:
                    continue
                base = (o * self.slots + slot) * self.size
                for u in range(self.reach[0]):
                    for v in range(self.reach[1]):
                        shift = base + u * self.pitch + v
                        yield Tap(o * self.answers, rows, begin, columns, u, v, shift, -1 if o else 1)

    def positions(self, tile: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Output slot 0's useful positions in an answer, and what each holds: pixel (b out_h + i) out_w + j."""
        out_h, out_w = self.out_shape[1:]
        first = tile * self.step
        last = min(first + self.step, self.strip_rows - self.reach[0] + 1)
        rows = np.arange(first, last)
        rows = rows[rows % self.image_rows < out_h]
        columns = np.arange(out_w)
        position = (rows - first)[:, None] * self.pitch + columns
        pixel = (rows // self.image_rows * out_h + rows % self.image_rows)[:, None] * out_w + columns
        return position.reshape(-1), pixel.reshape(-1)

    def outputs_at(self, tile: int) -> Iterator[tuple[int, int, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Per output slot: its first output, how many, and where they lie in answers 0, 1, ... (see ``positions``)."""
        position, pixel = self.positions(tile)
        for o in range(self.out_slots):
            count = min(self.answers, self.outputs - o * self.answers)
            if count > 0:
                yield o * self.answers, count, (position - o * self.slots * self.size) % self.n, pixel


@functools.lru_cache(maxsize=8)
def _real(layout: Packing) -> npt.NDArray[np.bool_]:
    """Whether a strip's positions hold a pixel in every phase: (strip_rows, pitch). To be read only."""
    one = dataclasses.replace(layout, groups=1, in_shape=(1, *layout.in_shape[1:]), channels=len(layout.phases))
    ones = np.ones((layout.batch, *one.in_shape), np.uint64)
    return np.asarray(one.strip(ones)[0].all(axis=0))


def _phase(length: int, stride: int, padding: int, phase: int, padded: int) -> tuple[int, int, int]:
    """Along one axis: where a phase's pixels begin in the padded phase, how many there are, the first pixel's index."""
    begin = max(0, -(-(padding - phase) // stride))
    pixel = begin * stride + phase - padding
    count = max(0, -(-(length - pixel) // stride))
    return begin, min(count, padded - begin), pixel


def plan(network: Network, op_index: int, batch: int, n: int, max_out_slots: int) -> Packing:
    """Layout of the network's Linear op ``op_index`` for ``batch`` images in polynomials of n coefficients.

    At most ``max_out_slots`` outputs share an answer: their noise adds up. Raises NetworkError where not even the rows
    under the kernel fit a polynomial.
    """
    op = network.ops[op_index]
    if not isinstance(op, Linear):
        raise NetworkError(f"operation {op_index} is {type(op).__name__}, not Linear")
    in_shape, out_shape = network.values[op.inputs[0]].shape, network.values[op.output].shape
    phases = tuple(
        (a, b) for a in range(min(op.stride[0], op.kernel[0])) for b in range(min(op.stride[1], op.kernel[1]))
    )
    reach, padded, shared = [0, 0], [0, 0], [0, 0]
    for d in (0, 1):
        reach[d] = -(-op.kernel[d] // op.stride[d])
        padded[d] = out_shape[1 + d] + reach[d] - 1
        ends = [_phase(in_shape[1 + d], op.stride[d], op.padding[d], phase[d], padded[d]) for phase in phases]
        # Zeros that every phase has both before and behind its pixels; outputs must stay apart.
        before = min(begin for begin, _, _ in ends)
        behind = min(padded[d] - begin - max(count, 0) for begin, count, _ in ends)
        shared[d] = max(0, min(before, behind, reach[d] - 1))
    pitch, image_rows = padded[1] - shared[1], padded[0] - shared[0]
    strip_rows = (batch - 1) * image_rows + padded[0]
    tile_rows = n // pitch
    if tile_rows < reach[0]:
        raise NetworkError(f"operation {op_index}: rows of {padded[1]} pixels under a kernel of {op.kernel} do not fit")
    step = tile_rows - reach[0] + 1
    tiles = -(-(strip_rows - reach[0] + 1) // step)
    channels, outputs = len(phases) * in_shape[0] // op.groups, out_shape[0] // op.groups
    room = n // (strip_rows * pitch) if tiles == 1 else 1
    slots, out_slots = _slots(room, channels, outputs, max_out_slots)
    return Packing(
        n=n,
        batch=batch,
        groups=op.groups,
        in_shape=in_shape,
        out_shape=out_shape,
        stride=op.stride,
        padding=op.padding,
        phases=phases,
        reach=(reach[0], reach[1]),
        channels=channels,
        outputs=outputs,
        pitch=pitch,
        image_rows=image_rows,
        strip_rows=strip_rows,
        tile_rows=tile_rows,
        tiles=tiles,
        slots=slots,
        out_slots=out_slots,
    )


def _slots(room: int, channels: int, outputs: int, max_out_slots: int) -> tuple[int, int]:
    """slots * out_slots <= room with the fewest ciphertexts; an answer costs about twice a request."""
    best: tuple[int, int, int] | None = None
    for out_slots in range(1, max(1, min(room, outputs, max_out_slots)) + 1):
        answers = -(-outputs // out_slots)
        inputs = -(-channels // max(1, min(room // out_slots, channels)))
        if best is None or inputs + 2 * answers < best[0]:
            best = (inputs + 2 * answers, -(-channels // inputs), out_slots)
    assert best is not None
    return best[1], best[2]
