"""Matrix triples: the offline half of a linear layer, from BFV.

Bae, Cheon, Hanrot, Park, Stehle, "Plaintext-ciphertext matrix multiplication and FHE bootstrapping", CRYPTO 2024
(eprint 2024/1284): with a channel to a ciphertext, W times ciphertexts is an integer matrix product on their
coefficients. Packing: protocol/packing.py. Encryption, rerandomisation, flooding and their proof: protocol/bfv.py.

P1 (data owner) holds a mask r per image, P0 (model owner) the weights W and a mask s per image, each expanded from the
party's secret seed of that unit. P1 obtains c = W r - s mod 2^l (no bias); P0 obtains nothing.

0. Per batch of images P1 draws a secret key and sends a public one.                              (``PublicKeyMessage``)
Per Linear operation, for every group of channels and tile of positions:
1. P1 encrypts the tile's polynomials of r, zero at padding, and sends b and the seed of a.       (``Request``)
2. P0 takes the combinations that W prescribes, residue by residue, as float64 matrix products that are exact because
   sum |W| is publicly bounded; adds to every answer a fresh encryption of zero and fresh flooding noise; subtracts s
   where an output lies and fresh uniform numbers everywhere else; switches to two primes.        (``Answer``)
3. P1 decrypts and keeps the outputs' positions.

Cost, exact in ``traffic``: 54,272 bytes a request ciphertext, 55,296 an answer; one public key of 54,272 bytes. Two
flows for a group's tile; P1 sends the next tile's requests while P0 still works on one.

Adversary: semi-honest. P0 sees ciphertexts under P1's key (RLWE). P1 knows its key and r, so an answer must not tell
more than c: c1 is hidden by the encryption of zero, all 4096 plaintext coefficients by masks, the noise by flooding.

Retries. If W r - s and W r' - s were both answered, P1 would learn W (r - r'); if r and r' were encrypted with one a
and one key, P0 would learn r - r'. Hence nothing is ever answered again: seeds are fresh for every unit, a unit that
was not finished is burnt whole at both parties, and a retry has new keys, a, r, s, u and floods. So s belongs to the
one request that its unit ever saw, which is what hashing the request into s would enforce. A batch's key object holds
to it: each operation once, and one set of seeds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mpcd.kernels import aes, rns
from mpcd.kernels.ntt import Residues
from mpcd.protocol import bfv, packing
from mpcd.protocol.channel import Channel
from mpcd.protocol.network import LinearNumbers, Network, weights_within
from mpcd.protocol.packing import Packing, Tap
from mpcd.protocol.randomness import Prg
from mpcd.protocol.wire import array, blob, message

Words = npt.NDArray[np.uint64]
Weights = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

REQUESTS_A_MESSAGE = 256
ANSWERS_A_MESSAGE = 128
SHARED_FLOOD_BITS = 44.0  # outputs share an answer only where flooding stays this good
KEY_BYTES = bfv.REQUEST_BYTES

_HALF_PRIME = 1 << 26  # bounds a centred residue
_STACK = 256  # rows of one matrix product that small shifted blocks are joined to
_BLOCK = 1 << 23  # weights held as float64 at once
_ROWS = 512


class ReuseError(RuntimeError):
    """A batch's keys or seeds were to be used a second time."""


@message("matrix.key")
class PublicKeyMessage:
    """Step 0, P1 to P0: an encryption of zero; a is expanded from ``seed``."""

    seed: bytes = blob(16)
    b: Words = array("uint64", 1)


@message("matrix.request")
class Request:
    """Step 1, P1 to P0: b of up to 256 ciphertexts, packed; all a from ``seed``."""

    seed: bytes = blob(16)
    b: Words = array("uint64", 1)


@message("matrix.answer")
class Answer:
    """Step 2, P0 to P1: both polynomials of up to 128 ciphertexts modulo two primes, packed."""

    c: Words = array("uint64", 1)


class _Once:
    """What a batch has used up."""

    def __init__(self) -> None:
        self._seeds: tuple[bytes, ...] | None = None
        self._operations: set[int] = set()

    def claim(self, op_index: int, seeds: Sequence[bytes]) -> None:
        """Raise ReuseError unless ``op_index`` is new to this batch and ``seeds`` are its seeds, all different."""
        if len(set(seeds)) != len(seeds):
            raise ReuseError("two images of a batch have the same seed")
        if self._seeds is not None and self._seeds != tuple(seeds):
            raise ReuseError("a batch's keys serve one set of seeds only")
        if op_index in self._operations:
            raise ReuseError(f"operation {op_index} was already done with these keys and seeds")
        self._seeds = tuple(seeds)
        self._operations.add(op_index)


@dataclasses.dataclass(frozen=True, slots=True)
class ClientKeys:
    """P1's for one batch."""

    secret: bfv.SecretKey
    once: _Once


@dataclasses.dataclass(frozen=True, slots=True)
class ServerKeys:
    """P0's for one batch."""

    public: bfv.PublicKey
    once: _Once


def mask(seed: bytes, op: int, shape: tuple[int, ...], bits: int) -> Words:
    """The mask of operation ``op`` under a unit's secret seed: uint64 of ``shape``, uniform below 2^bits.

    AES_seed(op) keys a counter-mode stream, so operations are independent. r at P1, s at P0.
    """
    block = np.empty((1, 2), np.uint64)
    aes.ctr_keystream(aes.expand_key(np.frombuffer(seed, np.uint8)), op, block)
    return Prg(block.tobytes()).uniform(shape, bits)


def budget(network: Network, op_index: int, batch: int = 1) -> bfv.NoiseBudget:
    """The noise proof of a Linear operation; its ``check`` says whether the operation can be made at all.

    The answer does not depend on ``batch``: outputs share ciphertexts only where that leaves room to spare.
    """
    return _layout(network, op_index, batch)[1]


def traffic(network: Network, op_index: int, batch: int) -> tuple[int, int]:
    """Payload bytes (P1 to P0, P0 to P1) of one operation's triples for a batch of images; see also ``KEY_BYTES``."""
    layout, _ = _layout(network, op_index, batch)
    units = layout.groups * layout.tiles
    return units * layout.inputs * bfv.REQUEST_BYTES, units * layout.answers * bfv.ANSWER_BYTES


async def client_keys(channel: Channel) -> ClientKeys:
    """Step 0 at P1."""
    secret, seed, b = await channel.compute(_generate, channel.prg.seed())
    await channel.send(PublicKeyMessage(seed, bfv.pack(b)))
    return ClientKeys(secret, _Once())


async def server_keys(channel: Channel) -> ServerKeys:
    """Step 0 at P0."""
    received = await channel.recv(PublicKeyMessage, b=(bfv.REQUEST_BYTES // 8,))
    b = bfv.unpack(received.b, (1, len(bfv.PRIMES), bfv.N))
    return ServerKeys(await channel.compute(bfv.PublicKey.of, received.seed, b), _Once())


async def client_triples(
    channel: Channel, keys: ClientKeys, network: Network, op_index: int, seeds: Sequence[bytes]
) -> list[Words]:
    """Steps 1 and 3 at P1: c of the output's shape, one per image. ``seeds``: this party's of each image."""
    keys.once.claim(op_index, seeds)
    layout, noise = _layout(network, op_index, len(seeds))
    noise.check()
    strip = await channel.compute(_strip, layout, op_index, seeds, noise.bits)
    c = np.empty((len(seeds), network.values[network.ops[op_index].output].shape[0], layout.pixels), np.uint64)
    waiting: list[tuple[int, int]] = []
    for unit in layout.units():
        for first, last in _parts(layout.inputs, REQUESTS_A_MESSAGE):
            seed = channel.prg.seed()
            b = await channel.compute(
                _encrypt, keys.secret, channel.prg.seed(), seed, layout, strip, unit, first, last, noise.bits
            )
            await channel.send(Request(seed, b))
        waiting.append(unit)
        if len(waiting) > 1:
            await _receive(channel, keys.secret, layout, waiting.pop(0), noise.bits, c)
    for unit in waiting:
        await _receive(channel, keys.secret, layout, unit, noise.bits, c)
    return [image.reshape(layout.out_shape) for image in c]


async def _receive(
    channel: Channel, secret: bfv.SecretKey, layout: Packing, unit: tuple[int, int], bits: int, c: Words
) -> None:
    for first, last in _parts(layout.answers, ANSWERS_A_MESSAGE):
        received = await channel.recv(Answer, c=((last - first) * bfv.ANSWER_BYTES // 8,))
        await channel.compute(_decrypt, secret, received.c, layout, unit, first, last, bits, c)


async def server_triples(
    channel: Channel, keys: ServerKeys, network: Network, op_index: int, numbers: LinearNumbers, seeds: Sequence[bytes]
) -> None:
    """Step 2 at P0. ``seeds``: this party's of each image, from which ``mask`` makes s.

    Raises NoiseError where the layer does not fit, ValueError where the weights pass the network's bound on them.
    """
    keys.once.claim(op_index, seeds)
    layout, noise = _layout(network, op_index, len(seeds))
    noise.check()
    check_weights(network, op_index, numbers)
    s = await channel.compute(_masks, op_index, seeds, layout, noise.bits)
    for group in range(layout.groups):
        weights = layout.weights(numbers.weight, group)
        for tile in range(layout.tiles):
            sums = np.zeros((layout.answers, 2, len(bfv.PRIMES), bfv.N), np.uint32)
            for first, last in _parts(layout.inputs, REQUESTS_A_MESSAGE):
                request = await channel.recv(Request, b=((last - first) * bfv.REQUEST_BYTES // 8,))
                await channel.compute(
                    _accumulate, sums, weights, layout, noise.row_l1, first, last, request.seed, request.b
                )
            for first, last in _parts(layout.answers, ANSWERS_A_MESSAGE):
                c = await channel.compute(
                    _answer, keys.public, channel.prg.seed(), sums[first:last], layout, (group, tile), first, s, noise
                )
                await channel.send(Answer(c))


def check_weights(network: Network, op_index: int, numbers: LinearNumbers) -> None:
    """Raise ValueError unless the weights keep to the public bound that every proof of exactness rests on."""
    bound = network.weight_l1[op_index]
    if not weights_within(numbers.weight, bound):
        raise ValueError(f"operation {op_index}: sum |w| of an output passes the {bound} that the network states")


def _layout(network: Network, op_index: int, batch: int) -> tuple[Packing, bfv.NoiseBudget]:
    op = network.ops[op_index]
    out = network.values[op.output]
    l1 = network.weight_l1[op_index]
    name = f"operation {op_index} (Linear to {'x'.join(map(str, out.shape))})"

    def noise(outputs: int) -> bfv.NoiseBudget:
        return bfv.NoiseBudget(name, out.bits, outputs * l1)

    shared = 1
    while (
        shared < bfv.N and noise(2 * shared).exceeds(SHARED_FLOOD_BITS) and 2 * shared * l1 * _HALF_PRIME <= rns.EXACT
    ):
        shared *= 2
    layout = packing.plan(network, op_index, batch, bfv.N, shared)
    return layout, noise(layout.out_slots)


def _parts(count: int, size: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + size, count)) for first in range(0, count, size))


def _generate(seed: bytes) -> tuple[bfv.SecretKey, bytes, Residues]:
    prg = Prg(seed)
    secret = bfv.SecretKey.generate(prg)
    public_seed = prg.seed()
    return secret, public_seed, bfv.encrypt(secret, prg, public_seed, np.zeros((1, bfv.N), np.uint64), 1)


def _strip(layout: Packing, op_index: int, seeds: Sequence[bytes], bits: int) -> Words:
    return layout.strip(mask(seed, op_index, layout.in_shape, bits) for seed in seeds)


def _masks(op_index: int, seeds: Sequence[bytes], layout: Packing, bits: int) -> Words:
    """s of all images: uint64 (images, channels, pixels)."""
    s = np.empty((len(seeds), layout.out_shape[0], layout.pixels), np.uint64)
    for image, seed in zip(s, seeds, strict=True):
        image[...] = mask(seed, op_index, layout.out_shape, bits).reshape(image.shape)
    return s


def _encrypt(
    secret: bfv.SecretKey,
    own_seed: bytes,
    public_seed: bytes,
    layout: Packing,
    strip: Words,
    unit: tuple[int, int],
    first: int,
    last: int,
    bits: int,
) -> Words:
    polynomials = layout.polynomials(strip, *unit, first, last)
    return bfv.pack(bfv.encrypt(secret, Prg(own_seed), public_seed, polynomials, bits))


def _accumulate(
    sums: Residues,
    weights: Weights,
    layout: Packing,
    row_l1: int,
    first: int,
    last: int,
    seed: bytes,
    words: Words,
) -> None:
    """Add to ``sums``, uint32 (answers, 2, 4, N), what request ciphertexts first <= i < last contribute.

    Exact: a product's partial sums stay below row_l1 2^26; where that passes 2^53 the weights are cut into limbs.
    """
    polynomials = (bfv.unpack(words, (last - first, len(bfv.PRIMES), bfv.N)), bfv.expand(seed, last - first))
    taps = list(layout.taps(first, last))
    width = sum(tap.columns for tap in taps)
    rows = min(_ROWS, max(16, _BLOCK // width))
    for top in range(0, layout.answers, rows):
        part = sums[top : top + rows]
        blocks = [_stacked(weights, group, top, rows) for group in _groups(taps)]
        for limb, shift in _limbs(blocks, row_l1, width):
            for poly, residues in enumerate(polynomials):
                for prime, q in enumerate(bfv.PRIMES):
                    x = rns.to_float(residues, prime, np.uint64(q))
                    product = np.zeros((len(part), bfv.N))
                    for w, group in zip(limb, _groups(taps), strict=True):
                        if len(w):
                            product[: len(w)] += w @ _shifted(x, group)
                    rns.accumulate(part, product, poly, prime, (1 << shift) % q, np.uint64(q))


def _groups(taps: list[Tap]) -> Iterator[list[Tap]]:
    """Neighbouring taps of the same outputs, joined while they are thin: one matrix product each."""
    group: list[Tap] = []
    for tap in taps:
        if group and (
            tap.first_output != group[0].first_output or sum(t.columns for t in group) + tap.columns > _STACK
        ):
            yield group
            group = []
        group.append(tap)
    if group:
        yield group


def _stacked(weights: Weights, group: list[Tap], top: int, rows: int) -> Weights:
    """The weights of a group of taps for answers top <= r < top + rows, side by side."""
    begin = group[0].first_output
    own = weights[begin + top : min(begin + top + rows, begin + group[0].rows)]
    return np.concatenate(
        [t.sign * own[:, t.first_channel : t.first_channel + t.columns, t.u, t.v] for t in group], axis=1
    )


def _shifted(x: Floats, group: list[Tap]) -> Floats:
    """The ciphertexts under a group of taps, each times its X^-shift: a view where it is a single tap."""
    parts = [x[: tap.columns, tap.shift : tap.shift + bfv.N] for tap in group]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _limbs(blocks: list[Weights], row_l1: int, width: int) -> Iterator[tuple[list[Floats], int]]:
    """The blocks as float64 and a shift: whole where row_l1 allows, else limbs so short that ``width`` do."""
    if row_l1 * _HALF_PRIME <= rns.EXACT:
        yield [block.astype(np.float64) for block in blocks], 0
        return
    size = 26 - width.bit_length()
    half = 1 << (size - 1)
    rest = [block.copy() for block in blocks]
    for i in range(math.ceil((row_l1.bit_length() + 1) / size)):
        low = [((block + half) & (2 * half - 1)) - half for block in rest]
        rest = [(block - limb) >> size for block, limb in zip(rest, low, strict=True)]
        yield [limb.astype(np.float64) for limb in low], i * size


def _answer(
    public: bfv.PublicKey,
    own_seed: bytes,
    sums: Residues,
    layout: Packing,
    unit: tuple[int, int],
    first: int,
    s: Words,
    noise: bfv.NoiseBudget,
) -> Words:
    """Answers first <= r < first + len(sums) of a unit, packed. Masks are s where an output lies, fresh elsewhere."""
    prg = Prg(own_seed)
    masks = prg.uniform((len(sums), bfv.N), noise.bits)
    for rows, channels, position, image, pixel in _places(layout, unit, first, len(sums)):
        masks[rows, position] = s[image, channels, pixel]
    return bfv.pack(bfv.answer(public, prg, sums, masks, noise))


def _decrypt(
    secret: bfv.SecretKey,
    words: Words,
    layout: Packing,
    unit: tuple[int, int],
    first: int,
    last: int,
    bits: int,
    c: Words,
) -> None:
    """Write the outputs that answers first <= r < last hold to ``c``, uint64 (images, channels, pixels)."""
    residues = bfv.unpack(words, (last - first, 2, bfv.KEPT, bfv.N))
    plain = bfv.decrypt(secret, residues, bits)
    for rows, channels, position, image, pixel in _places(layout, unit, first, last - first):
        c[image, channels, pixel] = plain[rows, position]


Index = npt.NDArray[np.int64]


def _places(
    layout: Packing, unit: tuple[int, int], first: int, count: int
) -> Iterator[tuple[Index, Index, Index, Index, Index]]:
    """Per output slot of answers first <= r < first + count: indices that broadcast to (answers, outputs' positions):
    row from ``first``, channel, position in the polynomial, image, pixel."""
    group, tile = unit
    for begin, outputs, position, at in layout.outputs_at(tile):
        rows = np.arange(first, min(first + count, outputs))[:, None]
        if rows.size:
            image, pixel = np.divmod(at, layout.pixels)
            yield rows - first, group * layout.outputs + begin + rows, position, image, pixel
