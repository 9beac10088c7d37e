"""Matrix triples end to end against a plain integer convolution, and what must not happen with them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from mpcd.kernels import rns, sampling
from mpcd.protocol import bfv, combination, lockstep, matrix_triple
from mpcd.protocol import network as ir
from mpcd.protocol.bfv import N, NoiseError
from mpcd.protocol.channel import Channel
from mpcd.protocol.randomness import Prg
from mpcd.protocol.wire import WireError
from tests.protocol.one_layer import OP, Layer, l1

SESSION = bytes(16)


def seeds(count: int) -> list[bytes]:
    prg = Prg.fresh()
    return [prg.seed() for _ in range(count)]


@dataclasses.dataclass
class Made:
    """A run's outcome: r and c of every image, both keys, traffic."""

    made: list[tuple[np.ndarray, np.ndarray]]
    client: matrix_triple.ClientKeys
    server: matrix_triple.ServerKeys
    run: lockstep.Run


def make(network: ir.Network, numbers: ir.LinearNumbers, s: list[bytes]) -> Made:
    ends = Channel(0, SESSION), Channel(1, SESSION)

    async def server() -> matrix_triple.ServerKeys:
        keys = await matrix_triple.server_keys(ends[0], network, len(s))
        await matrix_triple.server_triples(ends[0], keys, network, OP, numbers, s)
        return keys

    async def client() -> tuple[matrix_triple.ClientKeys, list[tuple[np.ndarray, np.ndarray]]]:
        keys = await matrix_triple.client_keys(ends[1], network, len(s))
        return keys, await matrix_triple.client_triples(ends[1], keys, network, OP, len(s))

    run = lockstep.run(server(), client())
    return Made(run.results[1][1], run.results[1][0], run.results[0], run)


def numbers(weight: np.ndarray) -> ir.LinearNumbers:
    return ir.LinearNumbers(weight, np.full((len(weight), 1, 1), 12345))  # the bias is not the triple's matter


def check(layer: Layer, batch: int, bits: int, weight: np.ndarray | None = None) -> Made:
    if weight is None:
        weight = np.random.default_rng().integers(-300, 301, layer.weight_shape)
    network = layer.network(bits, l1(weight))
    s = seeds(batch)
    made = make(network, numbers(weight), s)
    shape = network.values[1].shape
    assert len(made.made) == batch
    for i, (r, c) in enumerate(made.made):
        assert r.shape == layer.shape
        assert r.max() >> bits == 0
        expected = layer.apply(weight, r) - matrix_triple.mask(s[i], OP, shape, bits)
        assert c.dtype == np.uint64
        np.testing.assert_array_equal(c, expected & np.uint64((1 << bits) - 1))
    up, down = matrix_triple.traffic(network, OP, batch)
    assert made.run.traffic[1].payload_bytes == up + matrix_triple.key_bytes(network, batch)
    assert made.run.traffic[0].payload_bytes == down
    layout, _ = matrix_triple._layout(network, OP, batch)
    units = layout.groups * layout.tiles
    assert made.run.flows == 2 if units == 1 else made.run.flows <= 2 * units
    return made


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "layer",
    [
        Layer((5, 1, 1), 3),
        Layer((1, 1, 1), 1),
        Layer((3, 7, 7), 4),
        Layer((3, 7, 5), 2, stride=(2, 2)),
        Layer((3, 7, 7), 4, (3, 3), padding=(1, 1)),
        Layer((3, 9, 6), 2, (3, 3), (2, 2), (1, 1)),
        Layer((3, 8, 8), 2, (3, 3), (2, 2)),
        Layer((2, 15, 15), 2, (7, 7), (2, 2), (3, 3)),
        Layer((2, 9, 9), 2, (7, 7), padding=(2, 2)),
        Layer((2, 5, 5), 2, (3, 3), padding=(3, 3)),
        Layer((2, 4, 6), 3, (1, 1), (2, 2), (1, 0)),
        Layer((4, 6, 6), 6, (3, 3), padding=(1, 1), groups=2),
        Layer((3, 6, 6), 3, (3, 3), (2, 2), (1, 1), groups=3),
        Layer((2, 56, 56), 2),
    ],
    ids=lambda layer: f"{layer.shape}-k{layer.kernel}-s{layer.stride}-p{layer.padding}-g{layer.groups}",
)
def test_convolutions(layer, batch):
    check(layer, batch, 33)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "layer",
    [
        Layer((1, 112, 112), 2, (3, 3), padding=(1, 1)),
        Layer((1, 112, 112), 2, (7, 7), (2, 2), (3, 3)),
        Layer((1, 112, 80), 1, (1, 1)),
    ],
)
def test_images_larger_than_a_ciphertext(layer, batch):
    check(layer, batch, 36)


@pytest.mark.parametrize("keys", [1, 3, 4, 64])
@pytest.mark.parametrize("groups", [1, 2])
def test_tiles_that_share_an_a(monkeypatch, keys, groups):
    monkeypatch.setattr(matrix_triple, "KEYS", keys)
    layer = Layer((2, 112, 112), 2, (3, 3), padding=(1, 1), groups=groups)
    made = check(layer, 1, 33)
    layout, _ = matrix_triple._layout(layer.network(33, 1), OP, 1)
    assert layout.tiles == 4
    assert len(made.client.secrets) == len(made.server.public.b) == min(keys, 4)
    starts = made.run.traffic[1].messages - 1 - 4 * groups
    assert starts == groups * -(-4 // keys)


@pytest.mark.parametrize("bits", [2, 17, 29, 40, 44])
def test_rings(bits):
    check(Layer((2, 5, 5), 2, (3, 3), padding=(1, 1)), 2, bits, np.random.default_rng().integers(-9, 10, (2, 2, 3, 3)))


def test_more_ciphertexts_than_a_message_holds(monkeypatch):
    monkeypatch.setattr(matrix_triple, "REQUESTS_A_MESSAGE", 3)
    monkeypatch.setattr(matrix_triple, "ANSWERS_A_MESSAGE", 2)
    monkeypatch.setattr(combination, "_ROWS", 4)  # and more answers than products are held for at once
    monkeypatch.setattr(combination, "_KEPT", 1)
    made = check(Layer((7, 60, 60), 35, (1, 1)), 1, 33)
    assert made.run.traffic[1].messages == 1 + 1 + 3
    assert made.run.traffic[0].messages == 18 + 18
    check(Layer((7, 30, 60), 35, (1, 1)), 1, 33)


@pytest.mark.parametrize(
    ("bits", "log_l1", "whole"),
    [(40, 17, True), (33, 24, True), (29, 27, True), (29, 28, False), (24, 29, False), (17, 34, False)],
)
def test_extreme_weights(bits, log_l1, whole):
    """Row sums at the stated bound: all weights at the maximum with equal and mixed signs, and a single huge one."""
    layer = Layer((4, 6, 6), 4, (3, 3), padding=(1, 1))
    largest = (1 << log_l1) // 36
    weight = np.full(layer.weight_shape, largest)
    weight[1] *= -1
    weight[2].reshape(-1)[::2] *= -1
    weight[3] = 0
    weight[3, 1, 2, 0] = -36 * largest
    layout, noise = matrix_triple._layout(layer.network(bits, l1(weight)), OP, 1)
    assert (matrix_triple._width(noise, 27) == 27) == whole
    assert noise.row_l1 == layout.out_slots * l1(weight)
    check(layer, 1, bits, weight)


@pytest.mark.parametrize("row_l1", [(1 << 20) - 8, (1 << 27) - 8, 1 << 40])
def test_sums_are_exact_at_the_extremes(row_l1):
    """Digits and residues where they are largest, with all weights pushing the same way."""
    layer = Layer((8, 60, 60), 2, (1, 1))
    layout, noise = matrix_triple._layout(layer.network(17, row_l1), OP, 1)
    assert (layout.inputs, layout.answers) == (8, 2)
    weight = np.full((2, 8, 1, 1), row_l1 // 8)
    weight[1, ::2] *= -1
    weights = combination.Combination(layout, weight)
    bits = noise.request_bits
    width = matrix_triple._width(noise, bits)
    largest = sum(2 ** (width - 1) << i * width for i in range(bits // width))
    middle = 1 << (bits - 1)
    values = np.full((8, N), middle, object)
    values[:, :4] = [0, 2 * middle - 1, middle - 1, middle + min(largest, middle - 1)]
    values[::2, 4] = 0
    values[1::2, 4] = 2 * middle - 1
    packed = [matrix_triple._packed((values >> at & 2**64 - 1).astype(np.uint64), min(bits - at, 64)) for at in (0, 64)]
    request = matrix_triple.Request(*packed, np.empty(0, np.uint64))
    sums = matrix_triple._Sums(layout, noise)
    sums.clear(False)
    matrix_triple._accumulate(sums, weights, noise, 0, 8, np.empty(0, np.int64), request)
    got = sum(part.astype(np.int64).astype(object) << i * width for i, part in enumerate(sums.b))
    np.testing.assert_array_equal(got, weight[:, :, 0, 0].astype(object) @ (values - middle))
    assert abs(sums.b).max() <= rns.EXACT


class Tapped(Channel):
    """Keeps what it received."""

    def __init__(self, prg: Prg | None) -> None:
        super().__init__(1, SESSION, prg)
        self.answers: list[np.ndarray] = []
        self.heads: list[np.ndarray] = []

    async def recv(self, cls, **shapes):
        message = await super().recv(cls, **shapes)
        (self.heads if cls is matrix_triple.Head else self.answers).append(message.c)
        return message


def everything_p1_sees(
    network: ir.Network, weight: np.ndarray, s: list[bytes], prg: Prg | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """r of the one image and all 4096 plaintext coefficients of all answers, as P1 can decrypt them.

    ``prg``: P1's randomness.
    """
    server_end, client_end = Channel(0, SESSION), Tapped(prg)

    async def server() -> None:
        keys = await matrix_triple.server_keys(server_end, network, 1)
        await matrix_triple.server_triples(server_end, keys, network, OP, numbers(weight), s)

    async def client() -> tuple[bfv.SecretKey, np.ndarray]:
        keys = await matrix_triple.client_keys(client_end, network, 1)
        ((r, _),) = await matrix_triple.client_triples(client_end, keys, network, OP, 1)
        return keys.secrets[0], r

    secret, r = lockstep.run(server(), client()).results[1]
    layout, noise = matrix_triple._layout(network, OP, 1)
    head = matrix_triple._opened(np.concatenate(client_end.heads), layout.answers)
    c0 = matrix_triple._unpacked(np.concatenate(client_end.answers), noise.answer_bits, (layout.answers, N))
    return r, bfv.decrypt(secret, head, c0, noise)


def test_every_coefficient_of_an_answer_is_masked():
    layer = Layer((1, 7, 7), 3, (3, 3), padding=(1, 1))
    bits = 33
    weight = np.random.default_rng().integers(1, 100, layer.weight_shape)
    network = layer.network(bits, l1(weight))
    s = seeds(1)
    r, seen = everything_p1_sees(network, weight, s)
    layout, _ = matrix_triple._layout(network, OP, 1)
    # What the answer would be without masks, from public layout, r and W.
    strip = layout.strip([r])
    inputs = layout.polynomials(strip, 0, 0, 0, layout.inputs)
    product = np.zeros((layout.answers, N), np.uint64)
    weights = layout.weights(weight, 0)
    for tap in layout.taps(0, layout.inputs):
        for row in range(tap.rows):
            for c in range(tap.columns):
                w = int(weights[tap.first_output + row, tap.first_channel + c, tap.u, tap.v]) * tap.sign
                shifted = np.concatenate([inputs[c], np.uint64(0) - inputs[c]])[tap.shift : tap.shift + N]
                product[row] += np.uint64(w % 2**64) * shifted
    hidden = (product - seen) & np.uint64((1 << bits) - 1)
    useful = np.zeros(seen.shape, bool)
    for _, count, position, _ in layout.outputs_at(0):
        useful[:count, position] = True
    assert useful.sum() == 3 * 49
    assert (product[~useful] != 0).any()  # there is something to hide
    # On junk as on useful positions the mask is what a uniform one looks like, all its bits.
    for part in (hidden[useful], hidden[~useful]):
        assert len(np.unique(part)) > len(part) - 5  # two are equal by chance in one run of a hundred
    ones = np.array([(hidden[~useful] >> np.uint64(i) & np.uint64(1)).mean() for i in range(bits)])
    assert abs(ones - 0.5).max() < 0.06
    np.testing.assert_array_equal(
        np.sort(hidden[useful]), np.sort(matrix_triple.mask(s[0], OP, (3, 7, 7), bits).reshape(-1))
    )


def test_two_answers_with_the_same_inputs_are_unrelated():
    layer = Layer((2, 6, 6), 2)
    weight = np.ones(layer.weight_shape, np.int64)
    network = layer.network(33, l1(weight))
    s, own = seeds(1), Prg.fresh().seed()
    (r1, one), (r2, two) = (everything_p1_sees(network, weight, s, Prg(own)) for _ in range(2))
    np.testing.assert_array_equal(r1, r2)
    # r and s are the same here, so c is the same and nothing else is. (Real units never meet twice.)
    assert 2 * 36 <= (one == two).sum() < 2 * 36 + 3  # of 33 bits: a few may be equal by chance
    (_, one), (_, two) = (everything_p1_sees(network, weight, seeds(1), Prg(own)) for _ in range(2))
    assert (one == two).sum() < 3


@pytest.mark.parametrize("layer", [Layer((4, 60, 60), 1), Layer((4, 60, 60), 1, (3, 3), (1, 1), (1, 1))])
def test_the_masks_that_follow_from_ciphertexts_are_uniform(layer):
    network, bits = layer.network(33, 100), 33
    made = make(network, numbers(np.ones(layer.weight_shape, np.int64)), seeds(2))
    r = np.concatenate([r.reshape(-1) for r, _ in made.made])
    assert len(np.unique(r)) > r.size - 8
    ones = np.array([(r >> np.uint64(i) & np.uint64(1)).mean() for i in range(bits)])
    assert abs(ones - 0.5).max() < 8 / 2 / np.sqrt(r.size)
    counts = np.bincount((r >> np.uint64(bits - 6)).astype(np.int64), minlength=64)
    assert abs(counts - r.size / 64).max() < 8 * np.sqrt(r.size / 64)
    again = make(network, numbers(np.ones(layer.weight_shape, np.int64)), seeds(2))
    assert (again.made[0][0] == made.made[0][0]).sum() < 3


def test_masks():
    seed = Prg.fresh().seed()
    for bits in (1, 33, 48):
        x = matrix_triple.mask(seed, 5, (3, 40, 40), bits)
        assert x.shape == (3, 40, 40)
        assert x.dtype == np.uint64
        assert x.max() >> bits == 0
        np.testing.assert_array_equal(x, matrix_triple.mask(seed, 5, (3, 40, 40), bits))
        other = [matrix_triple.mask(seed, 6, x.shape, bits), matrix_triple.mask(Prg.fresh().seed(), 5, x.shape, bits)]
        for y in other:
            assert abs((x == y).mean() - 2.0**-bits) < 0.06  # eight standard deviations
        assert abs((x >> np.uint64(bits - 1)).mean() - 0.5) < 0.06


def small() -> tuple[ir.Network, ir.LinearNumbers]:
    layer = Layer((1, 2, 2), 1)
    weight = np.full(layer.weight_shape, 3)
    return layer.network(33, 3), numbers(weight)


def run_again(made: Made, network: ir.Network, own: ir.LinearNumbers, s: list[bytes]) -> None:
    lockstep.run(
        matrix_triple.server_triples(Channel(0, SESSION), made.server, network, OP, own, s),
        matrix_triple.client_triples(Channel(1, SESSION), made.client, network, OP, 2),
    )


def test_nothing_is_answered_twice():
    network, own = small()
    s = seeds(2)
    made = make(network, own, s)
    with pytest.raises(matrix_triple.ReuseError, match="operation 1 was already done"):
        run_again(made, network, own, s)
    with pytest.raises(matrix_triple.ReuseError, match="one set of seeds"):
        run_again(made, network, own, seeds(2))
    # Each party refuses by itself.
    for coroutine in (
        matrix_triple.server_triples(Channel(0, SESSION), made.server, network, OP, own, s),
        matrix_triple.client_triples(Channel(1, SESSION), made.client, network, OP, 2),
    ):
        with pytest.raises(matrix_triple.ReuseError):
            coroutine.send(None)


def test_wire_baseline():
    """The bytes of a seeded run: a change that only tidies up must not move them."""
    layer = Layer((3, 9, 6), 2, (3, 3), (2, 2), (1, 1))
    weight = np.arange(-27, 27).reshape(layer.weight_shape)
    network = layer.network(33, l1(weight))
    ends = Channel(0, SESSION, Prg(bytes(16))), Channel(1, SESSION, Prg(bytes([1] * 16)))
    s = [bytes([0, i] * 8) for i in range(2)]

    async def server() -> None:
        keys = await matrix_triple.server_keys(ends[0], network, 2)
        await matrix_triple.server_triples(ends[0], keys, network, OP, numbers(weight), s)

    async def client() -> None:
        keys = await matrix_triple.client_keys(ends[1], network, 2)
        await matrix_triple.client_triples(ends[1], keys, network, OP, 2)

    digests = [t.digest.hexdigest()[:16] for t in lockstep.run(server(), client()).traffic]
    assert digests == ["7574a723d694fd0e", "63ef458fa9db22d1"]


def test_an_interrupted_operation_counts_as_done():
    network, own = small()
    made = make(network, own, seeds(1))
    s = seeds(1)
    keys = matrix_triple.ServerKeys(made.server.public, matrix_triple._Once())
    coroutine = matrix_triple.server_triples(Channel(0, SESSION), keys, network, OP, own, s)
    coroutine.send(None)
    coroutine.close()
    with pytest.raises(matrix_triple.ReuseError):
        matrix_triple.server_triples(Channel(0, SESSION), keys, network, OP, own, s).send(None)


def test_images_have_different_seeds():
    network, own = small()
    with pytest.raises(matrix_triple.ReuseError, match="same seed"):
        make(network, own, seeds(1) * 2)


def test_weights_past_the_stated_bound_are_refused():
    layer = Layer((2, 2, 2), 2)
    weight = np.array([[[[50]], [[-50]]], [[[51]], [[50]]]])
    with pytest.raises(ValueError, match=r"operation 1: sum \|w\| .* passes the 100"):
        make(layer.network(33, 100), numbers(weight), seeds(1))
    weight[1, 0] = 50
    make(layer.network(33, 100), numbers(weight), seeds(1))


def test_layers_without_room_for_noise_are_refused_by_name():
    layer = Layer((2, 2, 2), 2)
    network = layer.network(44, 1 << 20)
    with pytest.raises(NoiseError, match=r"operation 1 \(Linear to 2x2x2\): a ring of 44 bits"):
        make(network, numbers(np.ones(layer.weight_shape, np.int64)), seeds(1))
    with pytest.raises(NoiseError):
        matrix_triple.budget(network, OP).check()
    matrix_triple.budget(layer.network(44, 1 << 10), OP).check()


def test_malformed_residues_are_refused():
    ends = Channel(0, SESSION), Channel(1, SESSION)

    async def client() -> None:
        await ends[1].send(
            matrix_triple.PublicKeysMessage(bytes(16), np.full(bfv.KEY_BYTES // 8, 2**64 - 1, np.uint64))
        )

    with pytest.raises(WireError, match="not below its prime"):
        lockstep.run(matrix_triple.server_keys(ends[0], small()[0], 2), client())


def test_sharing_answers_keeps_the_flood_wide():
    """Many outputs to an answer where the budget is ample, one where it is tight."""
    layer = Layer((64, 1, 1), 64)
    ample, tight = (matrix_triple._layout(layer.network(bits, 1 << 12), OP, 1) for bits in (29, 40))
    assert ample[0].out_slots == 64
    assert ample[1].flood_bits >= matrix_triple.SHARED_FLOOD_BITS
    assert tight[0].out_slots < 8
    tight[1].check()


def test_flooding_of_an_image_is_what_its_coefficients_add_up_to():
    layer = Layer((64, 16, 16), 32, (3, 3), (1, 1), (1, 1))
    network = layer.network(33, 1 << 20)
    coefficient, image = matrix_triple.flooding_bits(network, 16)
    layout, noise = matrix_triple._layout(network, OP, 16)
    assert coefficient == noise.flood_bits >= bfv.MIN_FLOOD_BITS
    n = layout.tiles * layout.answers * layout.groups * bfv.N / 16
    # Hellinger: d sqrt(n I) / 2, d the largest shift and I = 1.04 / sigma^2.
    distance = 2 * noise.hidden / noise.flood_sigma * np.sqrt(1.04 * n) / 2
    assert image == pytest.approx(-np.log2(distance))
    with pytest.raises(bfv.NoiseError):
        matrix_triple.flooding_bits(layer.network(33, 1 << 40), 16)


def test_the_fisher_information_of_a_flood():
    """Of the density of four uniform numbers' sum, numerically."""
    terms = sampling.FLOOD_TERMS
    x, step = np.linspace(0, terms, 80_001, retstep=True)
    signs = [(-1) ** k * math.comb(terms, k) for k in range(terms + 1)]
    powers = (np.where(x > k, x - k, 0) ** (terms - 1) for k in range(terms + 1))
    density = sum(s * p for s, p in zip(signs, powers, strict=True)) / math.factorial(terms - 1)
    inside = density > 1e-13
    information = (np.gradient(density, step)[inside] ** 2 / density[inside]).sum() * step
    assert 1.03 < information * terms / 12 <= bfv.FISHER
