"""Matrix triples: the offline half of a linear layer, from BFV.

Bae, Cheon, Hanrot, Park, Stehle, "Plaintext-ciphertext matrix multiplication and FHE bootstrapping", CRYPTO 2024
(eprint 2024/1284): with a channel to a ciphertext, W times ciphertexts is an integer matrix product on their
coefficients. Packing: protocol/packing.py. Encryption, rerandomisation, flooding and their proof: protocol/bfv.py.

P0 (model owner) holds the weights W and a mask s per image, expanded from its secret seed of that unit. P1 (data owner)
obtains a mask r per image, uniform, and c = W r - s mod 2^l (no bias); P0 obtains nothing.

0. Per batch of images P1 draws secret keys and sends public ones, as many as the layer cut into most tiles can use, at
   most ``KEYS``.                                                                                (``PublicKeysMessage``)
Per Linear operation, for every group of channels and every ``KEYS`` tiles of positions:
1. P1 sends the seed of one a for every polynomial of a tile, the same for all tiles.                        (``Start``)
2. P0 takes the combinations of a that W prescribes, residue by residue, as float64 matrix products that are exact
   because sum |W| is publicly bounded; hides each by a fresh encryption of zero; switches to two primes.
                                                                                                              (``Head``)
And for each of these tiles, i-th under the i-th key:
3. P1 makes ciphertexts under a; what they encrypt becomes r (protocol/bfv.py says why it is uniform) but where r is
   *bound* (packing.Packing.bound): zero at padding, equal where tiles overlap; there P1 sends the difference v,
   besides the short b.                                                                                    (``Request``)
4. P0 takes the combinations of b and v; adds the encryption of zero under this key and fresh flooding noise; adds W v;
   subtracts s where an output lies and fresh uniform numbers everywhere else; switches and shortens.       (``Answer``)
5. P1 decrypts and keeps the outputs' positions.

Cost, exact in ``traffic``: a key 54,272 bytes; a head 27,648 an answer; a request ciphertext 512 (106 - l -
request_drop) bytes and l bits a bound position; an answer 512 (54 - answer_drop) bytes. Two flows for a group's tile;
P1 sends the next tile's requests while P0 still works on one.

Adversary: semi-honest. P0 sees RLWE samples and v, which they pad. P1 knows its keys and r, so an answer must not tell
more than c: c1 is hidden by the encryption of zero, all 4096 plaintext coefficients by masks, the noise by flooding
(protocol/bfv.py).

Retries. If W r - s and W r' - s were both answered, P1 would learn W (r - r'). Hence nothing is ever answered again:
seeds are fresh for every unit, a unit that was not finished is burnt whole at both parties, and a retry has new keys,
a, r, s, u and floods. So s belongs to the one request that its unit ever saw, which is what hashing the request into s
would enforce. A batch's key object holds to it: each operation once, and one set of seeds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mpcd.kernels import aes, rns
from mpcd.kernels import bits as bit_kernels
from mpcd.kernels.ntt import Residues
from mpcd.protocol import bfv, packing
from mpcd.protocol.channel import Channel
from mpcd.protocol.combination import Combination
from mpcd.protocol.network import Linear, LinearNumbers, Network, weights_within
from mpcd.protocol.packing import Packing
from mpcd.protocol.randomness import Prg
from mpcd.protocol.wire import array, blob, message

Words = npt.NDArray[np.uint64]
Index = npt.NDArray[np.int64]

KEYS = 64  # that share an a: one for a tile of a layer
REQUESTS_A_MESSAGE = 256
ANSWERS_A_MESSAGE = 128
SHARED_FLOOD_BITS = 44.0  # outputs share an answer only where flooding stays this good

_Q = np.array(bfv.PRIMES, np.uint64)
_RESIDUE = max(bfv.PRIME_BITS)


class ReuseError(RuntimeError):
    """A batch's keys or seeds were to be used a second time."""


@message("matrix.keys")
class PublicKeysMessage:
    """Step 0, P1 to P0: encryptions of zero; their a is expanded from ``seed``."""

    seed: bytes = blob(16)
    b: Words = array("uint64", 1)


@message("matrix.start")
class Start:
    """Step 1, P1 to P0: all a come from ``seed``."""

    seed: bytes = blob(16)


@message("matrix.head")
class Head:
    """Step 2, P0 to P1: c1 of up to 128 answers modulo two primes, packed."""

    c: Words = array("uint64", 1)


@message("matrix.request")
class Request:
    """Step 3, P1 to P0: up to 256 ciphertexts, packed: bits 0 to 63 and further bits of b; v at bound positions."""

    low: Words = array("uint64", 1)
    high: Words = array("uint64", 1)
    v: Words = array("uint64", 1)


@message("matrix.answer")
class Answer:
    """Step 4, P0 to P1: c0 of up to 128 answers, packed."""

    c: Words = array("uint64", 1)


class _Once:
    """What a batch has used up."""

    def __init__(self) -> None:
        self._seeds: tuple[bytes, ...] | None = None
        self._operations: set[int] = set()

    def claim(self, op_index: int, seeds: Sequence[bytes] = ()) -> None:
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

    secrets: tuple[bfv.SecretKey, ...]
    once: _Once


@dataclasses.dataclass(frozen=True, slots=True)
class ServerKeys:
    """P0's for one batch."""

    public: bfv.PublicKeys
    once: _Once


def mask(seed: bytes, op: int, shape: tuple[int, ...], bits: int) -> Words:
    """The mask of operation ``op`` under a unit's secret seed: uint64 of ``shape``, uniform below 2^bits.

    AES_seed(op) keys a counter-mode stream, so operations are independent. This is s at P0.
    """
    block = np.empty((1, 2), np.uint64)
    aes.ctr_keystream(aes.expand_key(np.frombuffer(seed, np.uint8)), op, block)
    return Prg(block.tobytes()).uniform(shape, bits)


def budget(network: Network, op_index: int, batch: int = 1) -> bfv.NoiseBudget:
    """The noise proof of a Linear operation; its ``check`` says whether the operation can be made at all.

    The answer does not depend on ``batch``: outputs share ciphertexts only where that leaves room to spare.
    """
    return _layout(network, op_index, batch)[1]


def flooding_bits(network: Network, batch: int) -> tuple[float, float]:
    """-log2 of the statistical distance that answers can show between two models within the network's public bounds:
    by one coefficient of the worst operation, and by all coefficients of one image. n images: log2(n) / 2 fewer.

    Raises NoiseError where an operation does not fit.
    """
    worst, total = math.inf, 0.0
    for index, op in enumerate(network.ops):
        if isinstance(op, Linear):
            layout, noise = _layout(network, index, batch)
            noise.check()
            worst = min(worst, noise.flood_bits)
            coefficients = layout.groups * layout.tiles * layout.answers * bfv.N / batch
            total += coefficients * 2.0**noise.fisher_bits
    return worst, -math.log2(total) / 2 if total else math.inf


def keys_needed(network: Network, batch: int) -> int:
    """How many keys a batch of images has."""
    linear = (i for i, op in enumerate(network.ops) if isinstance(op, Linear))
    return max((min(KEYS, _layout(network, i, batch)[0].tiles) for i in linear), default=1)


def key_bytes(network: Network, batch: int) -> int:
    """Payload bytes of step 0, P1 to P0."""
    return keys_needed(network, batch) * bfv.KEY_BYTES


def traffic(network: Network, op_index: int, batch: int) -> tuple[int, int]:
    """Payload bytes (P1 to P0, P0 to P1) of one operation's triples for a batch of images; see also ``key_bytes``."""
    layout, noise = _layout(network, op_index, batch)
    up = down = 0
    for chunk in _chunks(layout):
        down += layout.answers * bfv.HEAD_BYTES
        for tile in chunk:
            bound = len(layout.bound(tile))
            for first, last in _parts(layout.inputs, REQUESTS_A_MESSAGE):
                up += 8 * sum(_request_words(noise, last - first, bound))
            for first, last in _parts(layout.answers, ANSWERS_A_MESSAGE):
                down += 8 * _answer_words(noise, last - first)
    return layout.groups * up, layout.groups * down


async def client_keys(channel: Channel, network: Network, batch: int) -> ClientKeys:
    """Step 0 at P1, for a batch of images."""
    count = keys_needed(network, batch)
    secrets, seed, b = await channel.compute(_generate, channel.prg.seed(), count)
    await channel.send(PublicKeysMessage(seed, bfv.pack(b)))
    return ClientKeys(secrets, _Once())


async def server_keys(channel: Channel, network: Network, batch: int) -> ServerKeys:
    """Step 0 at P0."""
    count = keys_needed(network, batch)
    received = await channel.recv(PublicKeysMessage, b=(count * bfv.KEY_BYTES // 8,))
    b = bfv.unpack(received.b, (count, len(bfv.PRIMES), bfv.N))
    return ServerKeys(await channel.compute(bfv.PublicKeys.of, received.seed, b), _Once())


async def client_triples(
    channel: Channel, keys: ClientKeys, network: Network, op_index: int, batch: int
) -> list[tuple[Words, Words]]:
    """Steps 1, 3 and 5 at P1: r of the input's and c of the output's shape, for each image."""
    keys.once.claim(op_index)
    layout, noise = _layout(network, op_index, batch)
    noise.check()
    # What no free position of a ciphertext holds stays as it is here.
    r = await channel.compute(_uniform, channel.prg.seed(), (batch, *layout.in_shape), noise.bits)
    strip = await channel.compute(layout.strip, r)
    c = np.empty((layout.out_shape[0], batch * layout.pixels), np.uint64)
    waiting: list[tuple[int, int, int]] = []
    heads: dict[int, Residues] = {}
    for group in range(layout.groups):
        for chunk in _chunks(layout):
            seed = channel.prg.seed()
            await channel.send(Start(seed))
            a = await channel.compute(_values, seed, layout.inputs)
            for index, tile in enumerate(chunk):
                bound = await channel.compute(layout.bound, tile)
                for first, last in _parts(layout.inputs, REQUESTS_A_MESSAGE):
                    own = channel.prg.seed()
                    place = (group, tile, first, last)
                    request = await channel.compute(
                        _encrypt, keys.secrets[index], own, a, layout, strip, place, bound, noise
                    )
                    await channel.send(request)
                waiting.append((group, tile, index))
                if len(waiting) > 1:
                    await _receive(channel, keys, layout, waiting.pop(0), noise, heads, c)
    for unit in waiting:
        await _receive(channel, keys, layout, unit, noise, heads, c)
    await channel.compute(layout.images, strip, r)
    by_image = c.reshape(-1, batch, layout.pixels).swapaxes(0, 1)
    return [(one, out.reshape(layout.out_shape)) for one, out in zip(r, by_image, strict=True)]


async def _receive(
    channel: Channel,
    keys: ClientKeys,
    layout: Packing,
    unit: tuple[int, int, int],
    noise: bfv.NoiseBudget,
    heads: dict[int, Residues],
    c: Words,
) -> None:
    """Step 5 for a tile; before a chunk's first its heads, which replace the last chunk's."""
    group, tile, index = unit
    parts = list(_parts(layout.answers, ANSWERS_A_MESSAGE))
    if index == 0:
        for first, last in parts:
            head = await channel.recv(Head, c=((last - first) * bfv.HEAD_BYTES // 8,))
            heads[first] = await channel.compute(_opened, head.c, last - first)
    for first, last in parts:
        received = await channel.recv(Answer, c=(_answer_words(noise, last - first),))
        await channel.compute(
            _decrypt, keys.secrets[index], heads[first], received.c, layout, (group, tile), first, noise, c
        )


async def server_triples(
    channel: Channel, keys: ServerKeys, network: Network, op_index: int, numbers: LinearNumbers, seeds: Sequence[bytes]
) -> None:
    """Steps 2 and 4 at P0. ``seeds``: this party's of each image, from which ``mask`` makes s.

    Raises NoiseError where the layer does not fit, ValueError where the weights pass the network's bound on them.
    """
    keys.once.claim(op_index, seeds)
    layout, noise = _layout(network, op_index, len(seeds))
    noise.check()
    check_weights(network, op_index, numbers)
    s = await channel.compute(_masks, op_index, seeds, layout, noise.bits)
    sums = _Sums(layout, noise)
    for group in range(layout.groups):
        weights = Combination(layout, layout.weights(numbers.weight, group))
        for chunk in _chunks(layout):
            start = await channel.recv(Start)
            head, u = await channel.compute(_head, keys.public, channel.prg.seed(), start.seed, weights, layout, noise)
            for first, last in _parts(layout.answers, ANSWERS_A_MESSAGE):
                await channel.send(Head(bfv.pack(head[first:last])))
            for index, tile in enumerate(chunk):
                bound = await channel.compute(layout.bound, tile)
                sums.clear(len(bound) > 0)
                for first, last in _parts(layout.inputs, REQUESTS_A_MESSAGE):
                    low, high, v = _request_words(noise, last - first, len(bound))
                    request = await channel.recv(Request, low=(low,), high=(high,), v=(v,))
                    await channel.compute(_accumulate, sums, weights, noise, first, last, bound, request)
                for first, last in _parts(layout.answers, ANSWERS_A_MESSAGE):
                    c = await channel.compute(
                        _answer,
                        keys.public,
                        index,
                        channel.prg.seed(),
                        u[first:last],
                        sums,
                        layout,
                        (group, tile),
                        first,
                        last,
                        s,
                        noise,
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
        shared < bfv.N and noise(2 * shared).exceeds(SHARED_FLOOD_BITS) and 2 * shared * l1 << _RESIDUE - 1 <= rns.EXACT
    ):
        shared *= 2
    layout = packing.plan(network, op_index, batch, bfv.N, shared)
    return layout, noise(layout.out_slots)


def _parts(count: int, size: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + size, count)) for first in range(0, count, size))


def _chunks(layout: Packing) -> Iterator[range]:
    """Tiles that share an a."""
    return (range(first, last) for first, last in _parts(layout.tiles, KEYS))


def _request_words(noise: bfv.NoiseBudget, count: int, bound: int) -> tuple[int, int, int]:
    """Sizes of ``Request``'s fields for ``count`` ciphertexts."""
    low = min(noise.request_bits, 64)
    size = count * bfv.N // 64
    return size * low, size * (noise.request_bits - low), -(-count * bound * noise.bits // 64)


def _answer_words(noise: bfv.NoiseBudget, count: int) -> int:
    return count * bfv.N * noise.answer_bits // 64


def _generate(seed: bytes, count: int) -> tuple[tuple[bfv.SecretKey, ...], bytes, Residues]:
    prg = Prg(seed)
    secrets = tuple(bfv.SecretKey.generate(prg) for _ in range(count))
    public_seed = prg.seed()
    return secrets, public_seed, bfv.publish(secrets, prg, public_seed)


def _uniform(seed: bytes, shape: tuple[int, ...], bits: int) -> Words:
    return Prg(seed).uniform(shape, bits)


def _values(seed: bytes, count: int) -> Residues:
    return bfv.to_values(bfv.expand(seed, count))


def _masks(op_index: int, seeds: Sequence[bytes], layout: Packing, bits: int) -> Words:
    """s of all images: uint64 (channels, images' pixels)."""
    s = np.empty((layout.out_shape[0], len(seeds), layout.pixels), np.uint64)
    for image, seed in enumerate(seeds):
        s[:, image] = mask(seed, op_index, layout.out_shape, bits).reshape(-1, layout.pixels)
    return s.reshape(layout.out_shape[0], -1)


def _encrypt(
    secret: bfv.SecretKey,
    own_seed: bytes,
    a: Residues,
    layout: Packing,
    strip: Words,
    place: tuple[int, int, int, int],
    bound: Index,
    noise: bfv.NoiseBudget,
) -> Request:
    """Step 3 for ciphertexts first <= i < last of a tile; r is written to the strip where it is not bound."""
    group, tile, first, last = place
    w, low, high = bfv.encrypt(secret, Prg(own_seed), a[first:last], noise)
    v = layout.polynomials(strip, group, tile, first, last)[:, bound] + w[:, bound]
    layout.keep(strip, group, tile, first, last, (np.uint64(0) - w) & np.uint64((1 << noise.bits) - 1), bound)
    return Request(
        _packed(low, min(noise.request_bits, 64)), _packed(high, noise.request_bits - 64), _packed(v, noise.bits)
    )


def _packed(x: Words, bits: int) -> Words:
    if bits <= 0 or not x.size:
        return np.empty(0, np.uint64)
    flat = x.reshape(-1)
    return flat if bits == 64 else bit_kernels.pack_ring(flat, bits)


def _unpacked(words: Words, bits: int, shape: tuple[int, int]) -> Words:
    if bits <= 0:
        return np.zeros(shape, np.uint64)
    return bit_kernels.unpack_ring(words, bits, math.prod(shape)).reshape(shape)


def _width(noise: bfv.NoiseBudget, bits: int) -> int:
    """Of the fewest digits of ``bits``-bit numbers whose products with the weights are exact."""
    widest = (rns.EXACT // noise.row_l1).bit_length()
    if widest < 2:
        raise bfv.NoiseError(f"{noise.layer}: weights with sum |w| up to {noise.row_l1} are beyond exact products")
    return -(-bits // -(-bits // widest))


def _head(
    keys: bfv.PublicKeys,
    own_seed: bytes,
    seed: bytes,
    weights: Combination,
    layout: Packing,
    noise: bfv.NoiseBudget,
) -> tuple[Residues, Residues]:
    """Step 2: c1 of all answers and their u."""
    sums = np.zeros((layout.answers, len(bfv.PRIMES), bfv.N), np.uint32)
    a = bfv.expand(seed, layout.inputs)
    width = _width(noise, _RESIDUE)
    for first, last in _parts(layout.inputs, REQUESTS_A_MESSAGE):
        for prime, q in enumerate(_Q):
            planes = rns.residue_digits(a[first:last], prime, q, width)
            for i, top, product in weights.apply(list(planes), first, last):
                factors = np.uint64(1 << (i * width)) % _Q
                rns.accumulate(sums[top : top + len(product)], product, factors, prime, prime + 1, _Q)
    return bfv.head(keys, Prg(own_seed), sums)


class _Sums:
    """A tile's combinations, digit by digit, exact in float64: of b (digits, answers, n) and of v."""

    def __init__(self, layout: Packing, noise: bfv.NoiseBudget) -> None:
        self.width = _width(noise, noise.request_bits)
        self.v_width = _width(noise, noise.bits)
        self.b = np.zeros((-(-noise.request_bits // self.width), layout.answers, bfv.N))
        self.v = np.zeros((-(-noise.bits // self.v_width), 0, bfv.N))

    def clear(self, bound: bool) -> None:
        """Begin a tile; ``bound``: whether there is v."""
        self.b[...] = 0
        self.v = np.zeros((len(self.v), self.b.shape[1] if bound else 0, bfv.N))


def _accumulate(
    sums: _Sums, weights: Combination, noise: bfv.NoiseBudget, first: int, last: int, bound: Index, request: Request
) -> None:
    """Add what ciphertexts first <= i < last contribute.

    Exact: all partial sums stay below row_l1 2^(width - 1) <= 2^53 - 2^28.
    """
    shape = last - first, bfv.N
    bits = noise.request_bits
    low = _unpacked(request.low, min(bits, 64), shape)
    high = _unpacked(request.high, bits - 64, shape)
    for i, top, product in weights.apply(list(rns.digits(low, high, bits, sums.width)), first, last):
        sums.b[i, top : top + len(product)] += product
    if len(bound):
        v = np.zeros(shape, np.uint64)
        v[:, bound] = _unpacked(request.v, noise.bits, (last - first, len(bound)))
        # Digits are those of a number minus 2^(bits - 1), which is to stand for zero.
        v ^= np.uint64(1 << (noise.bits - 1))
        for i, top, product in weights.apply(
            list(rns.digits(v, np.zeros_like(v), noise.bits, sums.v_width)), first, last
        ):
            sums.v[i, top : top + len(product)] += product


def _answer(
    public: bfv.PublicKeys,
    index: int,
    own_seed: bytes,
    u: Residues,
    sums: _Sums,
    layout: Packing,
    unit: tuple[int, int],
    first: int,
    last: int,
    s: Words,
    noise: bfv.NoiseBudget,
) -> Words:
    """Answers first <= r < last of a tile, packed. Masks are s where an output lies, fresh elsewhere."""
    prg = Prg(own_seed)
    count = last - first
    masks = prg.uniform((count, bfv.N), noise.bits)
    for rows, channels, position, pixels in _places(layout, unit, first, count):
        masks[rows, position] = s[channels, pixels]
    for i, part in enumerate(sums.v[:, first:last]):
        if len(part):
            masks -= part.astype(np.int64).astype(np.uint64) << np.uint64(i * sums.v_width)
    masks &= np.uint64((1 << noise.bits) - 1)
    combination = np.zeros((count, len(bfv.PRIMES), bfv.N), np.uint32)
    for i, part in enumerate(sums.b[:, first:last]):
        factors = np.array([pow(2, noise.request_drop + i * sums.width, q) for q in bfv.PRIMES], np.uint64)
        rns.accumulate(combination, part, factors, 0, len(bfv.PRIMES), _Q)
    return _packed(bfv.answer(public, index, prg, u, combination, masks, noise), noise.answer_bits)


def _opened(words: Words, count: int) -> Residues:
    """Values of heads."""
    return bfv.to_values(bfv.unpack(words, (count, bfv.KEPT, bfv.N)))


def _decrypt(
    secret: bfv.SecretKey,
    head: Residues,
    words: Words,
    layout: Packing,
    unit: tuple[int, int],
    first: int,
    noise: bfv.NoiseBudget,
    c: Words,
) -> None:
    """Write the outputs of answers first <= r < first + len(head) to ``c``, uint64 (channels, images' pixels)."""
    plain = bfv.decrypt(secret, head, _unpacked(words, noise.answer_bits, (len(head), bfv.N)), noise)
    for rows, channels, position, pixels in _places(layout, unit, first, len(head)):
        c[channels, pixels] = plain[rows, position]


def _places(
    layout: Packing, unit: tuple[int, int], first: int, count: int
) -> Iterator[tuple[slice, slice, Index | slice, Index | slice]]:
    """Per output slot of answers first <= r < first + count: rows from ``first``, their channels, the outputs'
    positions in a polynomial and among the images' pixels."""
    group, tile = unit
    for begin, outputs, position, at in layout.outputs_at(tile):
        last = min(first + count, outputs)
        if last > first:
            channel = group * layout.outputs + begin
            yield slice(last - first), slice(channel + first, channel + last), _run(position), _run(at)


def _run(index: Index) -> Index | slice:
    """A slice where the index counts up: several times faster."""
    if len(index) and (np.diff(index) == 1).all():
        return slice(int(index[0]), int(index[-1]) + 1)
    return index
