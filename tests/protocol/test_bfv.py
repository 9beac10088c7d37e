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
    total = key.factor.times_values(bfv.to_values(np.ascontiguousarray(ciphertexts[:, 1])))
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


KEYS = 3


@pytest.fixture(scope="module")
def keys() -> tuple[list[bfv.SecretKey], bfv.PublicKeys]:
    prg = Prg.fresh()
    secrets, seed = [bfv.SecretKey.generate(prg) for _ in range(KEYS)], prg.seed()
    return secrets, bfv.PublicKeys.of(seed, bfv.publish(secrets, prg, seed))


def request(secret: bfv.SecretKey, prg: Prg, a: np.ndarray, budget: NoiseBudget) -> tuple[np.ndarray, np.ndarray]:
    """What ciphertexts with these a encrypt, and whole ciphertexts (m, 2, 4, N)."""
    w, low, high = bfv.encrypt(secret, prg, bfv.to_values(a.copy()), budget)
    b = low.astype(object) + (high.astype(object) << 64)
    assert b.max() >> budget.request_bits == 0
    b = (b - (1 << (budget.request_bits - 1))) << budget.request_drop
    whole = np.stack([np.stack([b % p for p in PRIMES], axis=1).astype(np.uint32), a], axis=1)
    return (np.uint64(0) - w) & np.uint64((1 << budget.bits) - 1), whole


def test_parameters():
    assert math.log2(MODULUS) <= 106
    assert [p.bit_length() for p in PRIMES] == list(bfv.PRIME_BITS)
    assert all(p % (2 * N) == 1 and all(p % d for d in range(2, math.isqrt(p) + 1)) for p in PRIMES)
    assert bfv.KEY_BYTES == 54272
    assert bfv.HEAD_BYTES == 27648


def test_secret_is_ternary(keys):
    s = keys[0][0].factor.values[None].copy()
    ntt.inverse(s, ntt.tables(PRIMES, N))
    values = integers(s)[0]
    assert set(values.tolist()) == {-1, 0, 1}
    assert all(abs((values == v).mean() - 1 / 3) < 0.05 for v in (-1, 0, 1))


def test_public_key_encrypts_zero(keys):
    secrets, public = keys
    for secret, b in zip(secrets, public.b, strict=True):
        pair = np.stack([b.values, public.a.values])[None].copy()
        for poly in range(2):
            part = np.ascontiguousarray(pair[:, poly])
            ntt.inverse(part, ntt.tables(PRIMES, N))
            pair[:, poly] = part
        assert 0 < abs(phase(secret, pair)).max() <= sampling.BINOMIAL_BOUND


@pytest.mark.parametrize("bits", [2, 29, 33, 44])
def test_fresh_ciphertexts(keys, bits):
    """Noise within the bound; r and what is sent of b look uniform."""
    prg = Prg.fresh()
    budget = NoiseBudget("x", bits, 1 << 10)
    r, ciphertexts = request(keys[0][0], prg, bfv.expand(prg.seed(), 8), budget)
    noise = centred(phase(keys[0][0], ciphertexts) - scaled(r, MODULUS, bits), MODULUS)
    lost = 2 ** (budget.request_drop - 1)
    assert abs(noise).max() <= sampling.BINOMIAL_BOUND + 1 + lost
    assert abs(noise.astype(float).var() / (10.5 + lost**2 / 3) - 1) < 0.1
    for part, width in ((r.astype(float), bits), (integers(ciphertexts[:, 0]).astype(float), 106 - bits)):
        shifted = part / 2.0**width
        assert abs(shifted.std() - math.sqrt((1 - 4.0**-width) / 12)) < 0.01
        assert abs(shifted - shifted.mean()).max() < 0.55
    both = np.corrcoef(r.reshape(-1).astype(float), integers(ciphertexts[:, 0]).reshape(-1).astype(float))
    assert abs(both[0, 1]) < 0.04  # seven standard deviations


def test_keys_that_share_a_encrypt_unrelated_masks(keys):
    prg = Prg.fresh()
    a, budget = bfv.expand(prg.seed(), COUNT), NoiseBudget("x", 33, 1 << 10)
    r, ciphertexts = zip(*(request(secret, prg, a, budget) for secret in keys[0]), strict=True)
    for i in range(KEYS):
        for j in range(i):
            assert (r[i] == r[j]).sum() < 3  # one by chance in 700,000 runs
            assert (ciphertexts[i][:, 0] == ciphertexts[j][:, 0]).mean() < 0.001


def test_expansion_is_deterministic_and_uniform():
    seed = Prg.fresh().seed()
    a = bfv.expand(seed, 20)
    np.testing.assert_array_equal(a, bfv.expand(seed, 20))
    assert (a < Q[:, None].astype(np.uint32)).all()
    assert not (a == bfv.expand(Prg.fresh().seed(), 20)).mean() > 0.001
    assert abs((a / Q[:, None]).mean() - 0.5) < 0.01


def answered(keys, weight, budget):
    """Masked answers to weight * r under every key: c1's values, then of each key r, c0 and masks."""
    secrets, public = keys
    prg = Prg.fresh()
    a = bfv.expand(prg.seed(), COUNT)
    times = lambda x: (x.astype(object) * weight % Q.astype(object)[:, None]).astype(np.uint32)  # noqa: E731
    c1, u = bfv.head(public, prg, times(a))
    made = []
    for i, secret in enumerate(secrets):
        r, ciphertexts = request(secret, prg, a, budget)
        masks = messages(prg, budget.bits)
        made.append((r, bfv.answer(public, i, prg, u, times(ciphertexts[:, 0]), masks, budget), masks))
    return bfv.to_values(c1), made


def check_answers(keys, weight, budget):
    """Decryption is exact under every key."""
    c1, made = answered(keys, weight, budget)
    for secret, (r, c0, masks) in zip(keys[0], made, strict=True):
        expected = (r.astype(object) * weight - masks.astype(object)) % 2**budget.bits
        assert (bfv.decrypt(secret, c1, c0, budget) == expected).all()


@pytest.mark.parametrize(("bits", "weight"), [(2, 3), (17, 1 << 20), (29, 1 << 20), (33, -(1 << 20)), (40, 1 << 16)])
def test_answers_decrypt_with_noise_below_the_bound(keys, bits, weight):
    budget = NoiseBudget("layer", bits, abs(weight))
    check_answers(keys, weight, budget)
    c1, made = answered(keys, weight, budget)
    tables = rns.switch_tables(PRIMES, bits)
    for secret, (r, c0, masks) in zip(keys[0], made, strict=True):
        assert c0.max() >> budget.answer_bits == 0
        expected = (r.astype(object) * weight - masks.astype(object)) % 2**bits
        opened = secret.factor.times_values(c1)
        rns.add_shortened(opened, c0, budget.answer_drop, tables)
        noise = centred(integers(opened) * 2**bits - KEPT_MODULUS * expected, KEPT_MODULUS << bits)
        noise = noise.astype(float) / 2.0**bits
        rounding = bfv.SWITCH_ROUNDING + 2.0 ** (budget.answer_drop - 1)
        assert abs(noise).max() <= budget.bound / DROPPED + rounding
        # The flood is there, as wide as stated, and on every coefficient.
        spread = math.hypot(budget.flood_sigma / DROPPED, math.sqrt(N * 2 / 3 / 12), 2**budget.answer_drop / 12**0.5)
        assert abs(noise.std() / spread - 1) < 0.05
        assert abs(noise.mean()) < 0.08 * spread  # nearly nine standard deviations


def test_two_answers_to_one_request_are_unrelated(keys):
    secrets, public = keys
    budget = NoiseBudget("layer", 33, 1)
    prg = Prg.fresh()
    a = bfv.expand(prg.seed(), COUNT)
    _, ciphertexts = request(secrets[0], prg, a, budget)
    masks = np.zeros((COUNT, N), np.uint64)
    b = np.ascontiguousarray(ciphertexts[:, 0])
    one, two = (bfv.head(public, prg, a) for _ in range(2))
    difference = (one[0].astype(np.int64) - two[0]) % Q[:2, None].astype(np.int64) / Q[:2, None]
    first, second = (bfv.answer(public, 0, prg, u, b, masks, budget) for _, u in (one, two))
    low = (first - second) % np.uint64(1 << budget.answer_bits) / 2.0**budget.answer_bits
    # c0 and c1 both differ by what looks uniform, although masks and messages are the same.
    for x in (difference, low):
        assert abs(x.mean() - 0.5) < 0.02
        assert abs(x.std() - math.sqrt(1 / 12)) < 0.02
    # So do two answers inside one call; and the same u with another flood does not repeat the noise.
    assert (one[0][0] == one[0][1]).mean() < 0.001
    again = bfv.answer(public, 0, prg, one[1], b, masks, budget)
    assert (again == first).mean() < 0.5


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
    check_answers(keys, weight, at)
    with pytest.raises(NoiseError, match=r"features\.conv0: a ring of .* would fit"):
        answered(keys, weight + 1, past)


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
        c0 = rns.shorten(rns.switch(c, tables), tables, budget.answer_drop)
        opened = np.zeros((COUNT, 2, N), np.uint32)
        rns.add_shortened(opened, c0, budget.answer_drop, tables)
        return rns.round_to_ring(opened, tables)

    rounding = math.ceil((bfv.SWITCH_ROUNDING + 1) * DROPPED)
    for sign in (-1, 1):
        inside = math.floor(budget.bound) + rounding - 2 * DROPPED
        np.testing.assert_array_equal(opened(sign * inside), m)
        past = math.ceil(budget.limit) + rounding + DROPPED * (1 + (1 << budget.answer_drop))
        assert (opened(sign * past) != m).all()
    if budget.flood_width < sampling.MAX_FLOOD_WIDTH:
        assert budget.bound > budget.limit / 2 - budget.hidden


def test_extreme_floods_decrypt():
    """A flood of all ones and one of all zeros, at the width the budget chose."""
    bits = 40
    budget = NoiseBudget("x", bits, 1 << 12)
    m = messages(Prg.fresh(), bits)
    base, tables = rns.base(PRIMES, bits), rns.switch_tables(PRIMES, bits)
    centre = np.array([(1 << (budget.flood_width + 1)) % p for p in PRIMES], np.uint64)
    for word in (0, 2**64 - 1):
        c = rns.scale(m, base)
        rns.add_wide(c, *sampling.flood(np.full((COUNT, N, 8), word, np.uint64), budget.flood_width), centre, base)
        np.testing.assert_array_equal(rns.round_to_ring(rns.switch(c, tables), tables), m)


def test_flood_is_sized_by_public_numbers_only():
    assert NoiseBudget("a", 33, 1 << 14) == NoiseBudget("a", 33, 1 << 14)
    widths = {bits: NoiseBudget("a", bits, 1 << 14).flood_width for bits in (29, 33, 40)}
    assert widths == {29: 74, 33: 70, 40: 63}


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
    each = bfv.KEY_BYTES if shape[-2] == 4 else bfv.HEAD_BYTES
    assert words.nbytes == math.prod(shape[:-2]) * each
    np.testing.assert_array_equal(bfv.unpack(words, shape), x)


def test_unpack_refuses_residues_past_their_prime():
    x = np.zeros((2, 4, N), np.uint32)
    x[1, 3, 7] = PRIMES[3]
    with pytest.raises(WireError, match="not below its prime"):
        bfv.unpack(bfv.pack(x), x.shape)
