"""The offline phase: what an image will cost, and making it.

``plan`` lists the correlations that one image's online phase takes, in order; ``make_units`` makes them for a batch
of images and hands them to sinks. Matrix triples come first, for the whole batch (one ciphertext carries the same
channel of several images); the correlations that come from oblivious transfer follow image by image.

A unit is what one image eats. Its ``seed`` is 16 fresh bytes of the operating system's at each party, from which that
party's masks are expanded (s at P0; r, P1's, comes out of the triples' making and is stored). A unit that was not
finished is burnt whole: a retry has a new id, new seeds, new homomorphic keys and new base OTs, so that old and new are
never mixed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mpcd.protocol import growth, linear, matrix_triple, max_pool, relu, truncation
from mpcd.protocol.channel import DATA_OWNER, MODEL_OWNER, Channel
from mpcd.protocol.correlations import (
    AndNeed,
    LeafNeed,
    MatrixClient,
    MatrixNeed,
    MatrixServer,
    Need,
    StringNeed,
)
from mpcd.protocol.network import (
    Extend,
    Grow,
    Linear,
    LinearNumbers,
    MaxPool,
    Network,
    Op,
    PrivateNumbers,
    Relu,
    Truncate,
    TruncateRelu,
)
from mpcd.protocol.ot import correlate
from mpcd.protocol.ot.compact import Kept, keep, kept_bytes
from mpcd.protocol.ot.correlate import Extension
from mpcd.protocol.shared_leaves import Piece, comparisons

Progress = Callable[[int, int], None]

# The silent extension with larger sets: a compact DenseNet-121 unit has 133 MB at the data owner, with "silent" 170.
COMPACT_EXTENSION: Extension = "silent17"


class Sink(Protocol):
    """Takes one unit's correlations as they are made: matrix triples first, then the others, in the plan's order."""

    def put(self, need: Need, correlation: Any) -> None: ...


class SeedSink(Protocol):
    """Takes the seeds of the others, all at once, in their place: a compact unit's."""

    def put_seeds(self, kept: Kept) -> None: ...


def op_needs(network: Network, index: int, pieces: tuple[Piece, ...] | None = None) -> tuple[Need, ...]:
    """What operation ``index`` of the network takes from the source, in order.

    ``pieces``: of a Relu that shares leaves (shared_leaves.comparisons).
    """
    op: Op = network.ops[index]
    out = network.values[op.output]
    match op:
        case Linear():
            return linear.needs(network, index)
        case Truncate():
            return truncation.needs(out.size, op.fraction, out.bits)
        case TruncateRelu():
            return relu.truncate_relu_needs(out.size, op.fraction, out.bits)
        case Relu():
            return relu.relu_needs(out.size, out.bits, pieces)
        case Grow():
            return growth.grow_needs(out.size, network.values[op.inputs[0]].bits, out.bits)
        case Extend():
            return growth.extend_needs(out.size, network.values[op.inputs[0]].bits, out.bits)
        case MaxPool():
            shape = network.values[op.inputs[0]].shape
            return max_pool.needs(shape, out.bits, op.kernel, op.stride, op.padding)
        case _:
            return ()


def plan(network: Network) -> tuple[Need, ...]:
    """Every correlation of one image, in the order in which the online phase takes them."""
    pieces = comparisons(network)
    return tuple(need for index in range(len(network.ops)) for need in op_needs(network, index, pieces.get(index)))


def matrix_needs(network: Network) -> tuple[MatrixNeed, ...]:
    return tuple(need for need in plan(network) if isinstance(need, MatrixNeed))


def ot_needs(network: Network) -> tuple[Need, ...]:
    return tuple(need for need in plan(network) if not isinstance(need, MatrixNeed))


async def make_units(
    channel: Channel,
    network: Network,
    numbers: PrivateNumbers | None,
    seeds: Sequence[bytes],
    sinks: Sequence[Sink],
    progress: Progress,
    extension: Extension = "iknp",
    seed_sinks: Sequence[SeedSink] | None = None,
) -> None:
    """Make the correlations of ``len(sinks)`` images.

    ``numbers``: P0's weights; None at P1. ``seeds``: this party's mask seed of each unit. ``progress(done, total)``
    counts COTs, matrix triples included at their weight in time. ``extension``: the same at both parties.
    ``seed_sinks``: take what the oblivious transfers' correlations grow from (ot/compact.py); each party as it likes, a
    silent extension only.
    """
    total = sum(_matrix_work(network, need, len(sinks)) for need in matrix_needs(network))
    total += len(sinks) * sum(_cots(need) for need in ot_needs(network))
    done = 0

    def tell(work: int) -> None:
        nonlocal done
        done += work
        progress(done, total)

    await make_matrix_triples(channel, network, numbers, seeds, sinks, tell)
    if seed_sinks is None:
        await make_ot_correlations(channel, network, sinks, tell, extension)
    else:
        await make_seeds(channel, network, seed_sinks, tell, extension)


async def make_matrix_triples(
    channel: Channel,
    network: Network,
    numbers: PrivateNumbers | None,
    seeds: Sequence[bytes],
    sinks: Sequence[Sink],
    tell: Callable[[int], None],
) -> None:
    """The first half of ``make_units``. ``tell(work)``: so much more is done."""
    if len(seeds) != len(sinks) or len(set(seeds)) != len(seeds):
        raise ValueError("every unit of a batch has its own sink and its own seed")
    keys: matrix_triple.ServerKeys | matrix_triple.ClientKeys
    if channel.party == MODEL_OWNER:
        keys = await matrix_triple.server_keys(channel, network, len(seeds))
    else:
        keys = await matrix_triple.client_keys(channel, network, len(seeds))
    for need in matrix_needs(network):
        triples = await _matrix_triples(channel, keys, network, numbers, need, list(seeds))
        for sink, triple in zip(sinks, triples, strict=True):
            await channel.compute(sink.put, need, triple)
        tell(_matrix_work(network, need, len(sinks)))


async def make_ot_correlations(
    channel: Channel,
    network: Network,
    sinks: Sequence[Sink],
    tell: Callable[[int], None],
    extension: Extension = "iknp",
) -> None:
    """The second half of ``make_units``. A sink's unit is good only once this returns: before, no check has held."""
    ots = await correlate.set_up(channel, extension)
    needs = ot_needs(network)
    for sink in sinks:
        for need in needs:
            await channel.compute(sink.put, need, await ots.make(channel, need))
            tell(_cots(need))
        await ots.check(channel)


async def make_seeds(
    channel: Channel,
    network: Network,
    sinks: Sequence[SeedSink],
    tell: Callable[[int], None],
    extension: Extension,
) -> None:
    """In place of ``make_ot_correlations``; the peer may do either."""
    ots = await correlate.set_up(channel, extension)
    needs = ot_needs(network)
    for sink in sinks:
        await channel.compute(sink.put_seeds, await keep(channel, ots, needs, lambda need: tell(_cots(need))))


async def _matrix_triples(
    channel: Channel,
    keys: Any,
    network: Network,
    numbers: PrivateNumbers | None,
    need: MatrixNeed,
    seeds: list[bytes],
) -> list[MatrixServer] | list[MatrixClient]:
    """One linear layer's triples, an entry per image."""
    if channel.party == MODEL_OWNER:
        assert numbers is not None
        own = numbers[need.op]
        assert isinstance(own, LinearNumbers)
        await matrix_triple.server_triples(channel, keys, network, need.op, own, seeds)
        return [MatrixServer(matrix_triple.mask(seed, need.op, need.output_shape, need.bits)) for seed in seeds]
    made = await matrix_triple.client_triples(channel, keys, network, need.op, len(seeds))
    return [MatrixClient(r, c) for r, c in made]


def _cots(need: Need) -> int:
    """Correlated OTs that a need costs, both directions together."""
    match need:
        case LeafNeed():
            return need.block * need.count
        case AndNeed():
            return 2 * need.count
        case StringNeed():
            return need.count
        case MatrixNeed():
            return 0


def _matrix_work(network: Network, need: MatrixNeed, batch: int) -> int:
    """A matrix triple's time as a number of COTs: about 50 multiply-accumulates on ciphertexts take as long as one."""
    op = network.ops[need.op]
    assert isinstance(op, Linear)
    positions = max(batch * math.prod(need.output_shape[1:]), 4096)
    taps = op.kernel[0] * op.kernel[1] * need.input_shape[0] // op.groups
    return positions * need.output_shape[0] * taps * 8 // 50


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """What ``images`` images cost. Bytes are both directions together; disk is each party's, until used.

    ``compact_*``: with ot/compact.py's seeds; as with ``COMPACT_EXTENSION`` where the extension is not silent.
    """

    images: int
    cots: int
    offline_bytes: int
    online_bytes: int
    disk_bytes_model_owner: int
    disk_bytes_data_owner: int
    compact_disk_bytes_model_owner: int
    compact_disk_bytes_data_owner: int
    memory_bytes: int


def online_bits(need: Need) -> int:
    """Bits that a need's online use moves, both directions together (each protocol's docstring has the formula)."""
    match need:
        case LeafNeed():
            return need.count * (need.block + need.uses * 2 * ((1 << need.block) - 1))
        case AndNeed():
            return need.count * 6
        case StringNeed():
            return need.count * (1 + need.bits)
        case MatrixNeed():
            return need.bits * math.prod(need.input_shape)


def stored_bits(need: Need, party: int) -> int:
    """Bits of a need's correlation at rest at one party. P0's masks are kept as the unit's seed."""
    match need:
        case LeafNeed():
            return need.count * (need.uses * (2 << need.block) if party == MODEL_OWNER else need.block + 2 * need.uses)
        case AndNeed():
            return need.count * 5
        case StringNeed():
            return need.count * (2 * need.bits if party == need.sender else 1 + need.bits)
        case MatrixNeed():
            entries = math.prod(need.input_shape) + math.prod(need.output_shape)
            return need.bits * entries if party == DATA_OWNER else 0


def estimate(network: Network, images: int, batch: int, extension: Extension = "iknp") -> Estimate:
    """The cost of ``images`` images made in batches of ``batch``."""
    needs = plan(network)
    matrices = [need for need in needs if isinstance(need, MatrixNeed)]
    others = [need for need in needs if not isinstance(need, MatrixNeed)]
    cots = sum(_cots(need) for need in needs)

    def matrix_bytes(size: int) -> int:
        return sum(sum(matrix_triple.traffic(network, need.op, size)) for need in matrices) if size else 0

    compact = kept_bytes(others, extension if extension.startswith("silent") else COMPACT_EXTENSION)
    whole, rest = divmod(images, batch)
    matrix = (whole * matrix_bytes(batch) if whole else 0) + matrix_bytes(rest)
    return Estimate(
        images=images,
        cots=cots * images,
        offline_bytes=sum(correlate.bytes_sent(need, extension) for need in others) * images + matrix,
        online_bytes=sum(online_bits(need) for need in needs) * images // 8,
        disk_bytes_model_owner=sum(stored_bits(need, MODEL_OWNER) for need in needs) * images // 8,
        disk_bytes_data_owner=sum(stored_bits(need, DATA_OWNER) for need in needs) * images // 8,
        compact_disk_bytes_model_owner=compact[MODEL_OWNER] * images,
        compact_disk_bytes_data_owner=compact[DATA_OWNER] * images
        + sum(stored_bits(need, DATA_OWNER) for need in matrices) * images // 8,
        memory_bytes=memory_bytes(network),
    )


def memory_bytes(network: Network, in_flight: int = 1) -> int:
    """Of a party with so many images in flight."""
    return _BASE_MEMORY + in_flight * max(value.size for value in network.values) * _BYTES_PER_ELEMENT


# Measured (docs/performance.md): the interpreter with its compiled kernels, and the live arrays of the largest layer.
_BASE_MEMORY = 600_000_000
_BYTES_PER_ELEMENT = 400
