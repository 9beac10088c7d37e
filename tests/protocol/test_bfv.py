"""BFV: keys and ciphertexts against Python's integers, the noise budget against measured and extreme noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpcd.kernels import ntt, rns, sampling
from mpcd.protocol import bfv
from mpcd.protocol.bfv import KEPT_MODULUS, MODULUS, PRIMES, N, NoiseBudget, NoiseError
from mpcd.protocol.randomness import Prg
from mpcd.protocol.wire import WireError

DROPPED = MODULUS // KEPT_MODULUS
Q = np.array(PRIMES, np.uint64)
COUNT = 3


def integers(residues: np.ndarray) -> np.ndarray:
    """uint32 (..., P, n) to Python integers in (-Q/2, Q/2)."""
    primes = PRIMES[: residues.shape[-2]]
    q = math.prod(primes)
    total = sum(residues[..., i, :].astype(object) * (q // p * pow(q // p, -1, p)) for i, p in enumerate(primes))
    return (total + q // 2) % q - q // 2


def centred(x: np.ndarray, q: int) -> np.ndarray:
    return (x + q // 2) % q - q // 2


def phase(key: bfv.SecretKey, ciphertexts: np.ndarray) -> np.ndarray:
    """b + a s as integers. ``ciphertexts``: (m, 2, P, N)."""
    total = key.factor.times(np.ascontiguousarray(ciphertexts[:, 1]))
    rns.add(total, np.ascontiguousarray(ciphertexts[:, 0]), Q)
    return integers(total)


def scaled(m: np.ndarray, q: int, bits: int) -> np.ndarray:
    """round(q m / 2^bits) as integers."""
    return (2 * q * m.astype(object) + (1 << bits)) >> (bits + 1)


def messages(prg: Prg, bits: int) -> np.ndarray:
    m = prg.uniform((COUNT, N), bits)
    m[0, :4] = [0, 1, 2**bits - 1, 2 ** (bits - 1)]
    m[1] = 2**bits - 1
    return m


@pytest.fixture(scope="module")
def keys() -> tuple[bfv.SecretKey, bfv.PublicKey]:
    prg = Prg.fresh()
    secret, seed = bfv.SecretKey.generate(prg), prg.seed()
    return secret, bfv.PublicKey.of(seed, bfv.encrypt(secret, prg, seed, np.zeros((1, N), np.uint64), 1))


def request(secret: bfv.SecretKey, prg: Prg, m: np.ndarray, bits: int) -> np.ndarray:
    """Whole ciphertexts (m, 2, 4, N)."""
    seed = prg.seed()
    return np.stack([bfv.encrypt(secret, prg, seed, m, bits), bfv.expand(seed, len(m))], axis=1)


def test_parameters():
    assert math.log2(MODULUS) <= 106
    assert [p.bit_length() for p in PRIMES] == list(bfv.PRIME_BITS)
    assert all(p % (2 * N) == 1 and all(p % d for d in range(2, math.isqrt(p) + 1)) for p in PRIMES)
    assert bfv.REQUEST_BYTES == 54272
    assert bfv.ANSWER_BYTES == 55296


def test_secret_is_ternary(keys):
    s = keys[0].factor.values[None].copy()
    ntt.inverse(s, ntt.tables(PRIMES, N))
    values = integers(s)[0]
    assert set(values.tolist()) == {-1, 0, 1}
    assert all(abs((values == v).mean() - 1 / 3) < 0.05 for v in (-1, 0, 1))


def test_public_key_encrypts_zero(keys):
    secret, public = keys
    pair = np.stack([public.b.values, public.a.values])[None].copy()
    for poly in range(2):
        part = np.ascontiguousarray(pair[:, poly])
        ntt.inverse(part, ntt.tables(PRIMES, N))
        pair[:, poly] = part
    assert abs(phase(secret, pair)).max() <= sampling.BINOMIAL_BOUND


@pytest.mark.parametrize("bits", [2, 29, 33, 44])
def test_fresh_ciphertexts(keys, bits):
    prg = Prg.fresh()
    m = messages(prg, bits)
    noise = centred(phase(keys[0], request(keys[0], prg, m, bits)) - scaled(m, MODULUS, bits), MODULUS)
    assert abs(noise).max() <= sampling.BINOMIAL_BOUND
    assert abs(noise.astype(float).var() - 10.5) < 1


def test_expansion_is_deterministic_and_uniform():
    seed = Prg.fresh().seed()
    a = bfv.expand(seed, 20)
    np.testing.assert_array_equal(a, bfv.expand(seed, 20))
    assert (a < Q[:, None].astype(np.uint32)).all()
    assert not (a == bfv.expand(Prg.fresh().seed(), 20)).mean() > 0.001
    assert abs((a / Q[:, None]).mean() - 0.5) < 0.01


def answered(keys, bits, m, weight, budget):
    """Masked answers to weight * m; also the masks."""
    secret, public = keys
    prg = Prg.fresh()
    ciphertexts = request(secret, prg, m, bits).astype(object) * weight % Q.astype(object)[:, None]
    masks = prg.uniform(m.shape, bits)
    return bfv.answer(public, prg, ciphertexts.astype(np.uint32), masks, budget), masks


@pytest.mark.parametrize(("bits", "weight"), [(2, 3), (17, 1 << 20), (29, 1 << 20), (33, -(1 << 20)), (40, 1 << 16)])
def test_answers_decrypt_with_noise_below_the_bound(keys, bits, weight):
    budget = NoiseBudget("layer", bits, abs(weight))
    m = messages(Prg.fresh(), bits)
    answers, masks = answered(keys, bits, m, weight, budget)
    expected = (m.astype(object) * weight - masks.astype(object)) % 2**bits
    assert (bfv.decrypt(keys[0], answers, bits) == expected).all()
    noise = centred(phase(keys[0], answers) * 2**bits - KEPT_MODULUS * expected, KEPT_MODULUS << bits)
    noise = noise.astype(float) / 2.0**bits
    assert abs(noise).max() <= budget.bound / DROPPED + bfv.SWITCH_ROUNDING
    # The flood is there, as wide as stated, and on every coefficient.
    spread = math.hypot(budget.flood_sigma / DROPPED, math.sqrt(N * 2 / 3 / 12))
    assert abs(noise.std() / spread - 1) < 0.05
    assert abs(noise.mean()) < 0.05 * spread


def test_two_answers_to_one_request_are_unrelated(keys):
    bits, budget = 33, NoiseBudget("layer", 33, 1)
    prg = Prg.fresh()
    ciphertexts = request(keys[0], prg, messages(prg, bits), bits)
    masks = np.zeros((COUNT, N), np.uint64)
    one, two = (bfv.answer(keys[1], prg, ciphertexts, masks, budget) for _ in range(2))
    difference = (one.astype(np.int64) - two) % Q[:2, None].astype(np.int64) / Q[:2, None]
    # c0 and c1 both differ by what looks uniform, although masks and messages are the same.
    assert abs(difference.mean(axis=(0, 3)) - 0.5).max() < 0.02
    assert abs(difference.std(axis=(0, 3)) - math.sqrt(1 / 12)).max() < 0.02
    # So do two answers inside one call.
    assert (one[0, 1] == one[1, 1]).mean() < 0.001


def largest(bits: int) -> int:
    """The greatest row_l1 whose budget fits."""
    low, high = 0, 1 << 60
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if NoiseBudget("x", bits, middle).fits else (low, middle)
    return low


@pytest.mark.parametrize("bits", [29, 33, 40, 44])
def test_at_the_bound_and_just_past_it(keys, bits):
    weight = largest(bits)
    at, past = NoiseBudget("features.conv0", bits, weight), NoiseBudget("features.conv0", bits, weight + 1)
    assert at.flood_bits >= bfv.MIN_FLOOD_BITS
    m = messages(Prg.fresh(), bits)
    answers, masks = answered(keys, bits, m, weight, at)
    assert (bfv.decrypt(keys[0], answers, bits) == (m.astype(object) * weight - masks.astype(object)) % 2**bits).all()
    with pytest.raises(NoiseError, match=r"features\.conv0: a ring of .* would fit"):
        answered(keys, bits, m, weight + 1, past)


@pytest.mark.parametrize("bits", [2, 29, 33, 40, 44])
def test_proven_noise_decrypts_and_the_budget_is_not_slack(bits):
    """Deterministic: the bound itself as noise, the switch's rounding at its bound; and noise past the limit."""
    budget = NoiseBudget("x", bits, 1 << 10)
    assert budget.fits
    m = messages(Prg.fresh(), bits)
    tables = rns.switch_tables(PRIMES, bits)

    def opened(noise: int) -> np.ndarray:
        value = scaled(m, MODULUS, bits) + noise
        c = np.stack([(value % p).astype(np.uint32) for p in PRIMES], axis=1)
        return rns.round_to_ring(rns.switch(c, tables), tables)

    rounding = math.ceil((bfv.SWITCH_ROUNDING + 1) * DROPPED)
    for sign in (-1, 1):
        inside = math.floor(budget.bound) + rounding - 2 * DROPPED
        np.testing.assert_array_equal(opened(sign * inside), m)
        past = math.ceil(budget.limit) + rounding + DROPPED
        assert (opened(sign * past) != m).all()
    if budget.flood_width < sampling.MAX_FLOOD_WIDTH:
        assert budget.bound > budget.limit / 2 - budget.hidden


def test_extreme_floods_decrypt():
    """A flood of all ones and one of all zeros, at the width the budget chose."""
    bits = 40
    budget = NoiseBudget("x", bits, 1 << 12)
    m = messages(Prg.fresh(), bits)
    base, tables = rns.base(PRIMES, bits), rns.switch_tables(PRIMES, bits)
    centre = np.array([(1 << (budget.flood_width + 2)) % p for p in PRIMES], np.uint64)
    for word in (0, 2**64 - 1):
        c = rns.scale(m, base)
        rns.add_wide(c, *sampling.flood(np.full((COUNT, N, 16), word, np.uint64), budget.flood_width), centre, base)
        np.testing.assert_array_equal(rns.round_to_ring(rns.switch(c, tables), tables), m)


def test_flood_is_sized_by_public_numbers_only():
    assert NoiseBudget("a", 33, 1 << 14) == NoiseBudget("a", 33, 1 << 14)
    widths = {bits: NoiseBudget("a", bits, 1 << 14).flood_width for bits in (29, 33, 40)}
    assert widths == {29: 73, 33: 69, 40: 62}


@pytest.mark.parametrize(
    ("bits", "l1", "says"),
    [
        (
            33,
            1 << 40,
            r"^conv: a ring of 33 bits .* a ring of \d+ bits with these weights or weights with .* would fit$",
        ),
        (
            44,
            1 << 16,
            r"a ring of 41 bits with these weights or weights with sum \|w\| of at most 4096 in this ring would",
        ),
        (45, 1, r"a ring of 44 bits with these weights would fit"),
        (33, 1 << 70, r"with sum \|w\| of at most \d+ in this ring would fit"),
        (48, 1 << 70, r"nothing would fit"),
    ],
)
def test_refusals_say_what_would_fit(bits, l1, says):
    with pytest.raises(NoiseError, match=says):
        NoiseBudget("conv", bits, l1).check()


@pytest.mark.parametrize("shape", [(1, 4, N), (5, 4, N), (3, 2, 2, N), (0, 4, N)])
def test_packing(shape):
    prg = Prg.fresh()
    x = (prg.uniform(shape, 40) % Q[: shape[-2], None]).astype(np.uint32)
    words = bfv.pack(x)
    each = bfv.REQUEST_BYTES if shape[-2] == 4 else bfv.ANSWER_BYTES // 2
    assert words.nbytes == math.prod(shape[:-2]) * each
    np.testing.assert_array_equal(bfv.unpack(words, shape), x)


def test_unpack_refuses_residues_past_their_prime():
    x = np.zeros((2, 4, N), np.uint32)
    x[1, 3, 7] = PRIMES[3]
    with pytest.raises(WireError, match="not below its prime"):
        bfv.unpack(bfv.pack(x), x.shape)
