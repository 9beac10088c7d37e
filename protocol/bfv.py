"""BFV with coefficient packing, cut down to what a matrix triple needs: encrypt, integer combinations, answer, decrypt.

Ring Z_q[X]/(X^4096 + 1), q a product of four NTT primes of 27 + 27 + 26 + 26 bits, log q = 105.997; plaintext modulus
2^l, message m encoded as round(q m / 2^l). Secret: uniform ternary. Errors: centred binomial of 42 coins in constant
time, variance 10.5 (sigma 3.24), at most 21. 128-bit security: log q = 106 is the classical limit of the 2024 tables
for N = 4096, ternary secrets and sigma 3.19 (Bossuat et al., eprint 2024/463); 109 was that of the 2018 standard.

A ciphertext (b, a) has phase b + a s. a is uniform, expanded from a public seed (AES-128-CTR with rejection, in
coefficients, where the evaluator's matrix products happen).

*The message follows from the ciphertext.* With t = e - a s let w be the integer with D(w) <= t + h < D(w + 1), where
D(w) = round(q w / 2^l) and h is half a step: w are the top l bits of t, the rest b = t - D(w) is a remainder below
q / 2^l. (b, a) is an encryption of r = -w mod 2^l, and b, of 106 - l bits, is all that is sent. Were t uniform modulo
q, w and b would be independent and w uniform: for all b but the last of a step, met with probability 2^(l - 106),
exactly 2^l values of t give it, one for each w. So by RLWE (b, a) and w cannot be told from (b, a) and an independent
uniform w: r is a uniform mask known to the key's owner only. (Top bits of b could as well come from a public seed; any
public constant gives the same distribution, and zero leaves the evaluator shorter numbers.) Where r must have a given
value r*, v = r* - r = r* + w is sent as well, and the evaluator adds W v: that is the ordinary ciphertext t + D(r*),
cut in two.

b loses its last ``request_drop`` bits, rounded: a further error of the sender's own, accounted for below.

*One a for several keys.* Ciphertexts under keys s_1 ... s_m may share a (multi-secret RLWE; Peikert, Vaikuntanathan,
Waters, CRYPTO 2008; Bae et al.): replace the (a, e_i - a s_i) by uniform pairs one key at a time; the other keys'
pairs can be made from a alone, so an advantage against m keys is m times one against RLWE. Public keys
(-a_pk s_i + e_i, a_pk) share a_pk in the same way.

An answer for the combination sum_j w_j X^{-t_j} has a second polynomial c1, shared by all keys, and for key i a first:
    c1 = sum_j w_j X^{-t_j} a_j + a_pk u + e2
    c0 = sum_j w_j X^{-t_j} b_ij + b_pk,i u + flood_i - round(q mask_i / 2^l)
with fresh u, e2 for every combination (shared by the keys), fresh flood_i and mask_i, uniform on all 4096
coefficients, for every key. c1 is switched to the two 27-bit primes; so is c0, which then loses its last
``answer_drop`` bits, rounded: functions of what could already be published.
What the keys' owner sees of W: c0 = -c1 s_i + round(q (W r - mask) / 2^l) + flood_i + d_i with the small
d_i = W e_i + e_pk,i u + e2 s_i + roundings. flood_i hides d_i whatever u, e2 and W are, for every i by itself since
floods are independent; what is left is a function of c1, which alone depends on u and e2: one RLWE sample
(a_pk, a_pk u + e2) under the secret u, however many keys there are, so that c1 looks uniform. No e1 is added to c0,
the flood is one.

``NoiseBudget`` proves that an answer decrypts. Terms are worst cases, which never fail, except two sums of 4096
independent terms against a ternary polynomial, which pass their bound with probability 2^-90 a coefficient:
e_pk u + e2 s (errors are sub-Gaussian with their variance 10.5) and the rounding of the switch (Hoeffding; c1 looks
uniform). A study of 2^33 coefficients fails with probability below 2^-55.

The flood is the sum of four uniform integers of ``width`` bits, the widest that fits: a discrete bell of standard
deviation sigma = 2^width sqrt(4 / 12), sampled exactly, in constant time and with bounded support. Against a shift by
d its total variation distance is at most d / (2.5 sigma) (d times its greatest probability), its Fisher information is
I = 1.04 / sigma^2, so the squared Hellinger distance is at most d^2 I / 8 and n coefficients together leak at
most d sqrt(n I) / 2 = (d / sigma) sqrt(n) / 1.9, where d is the largest shift that the weights can cause. A flood is
sized by the public bound on sum |W|, never by W. ``flood_bits`` states the distance of one coefficient in that worst
case, and less than ``MIN_FLOOD_BITS`` is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mpcd.kernels import bits as bit_kernels
from mpcd.kernels import ntt, rns, sampling
from mpcd.kernels.ntt import Residues
from mpcd.protocol.randomness import Prg
from mpcd.protocol.wire import WireError

Words = npt.NDArray[np.uint64]

N = 4096
PRIMES = (134176769, 134111233, 67084289, 67043329)
KEPT = 2  # primes of an answer
PRIME_BITS = (27, 27, 26, 26)
MODULUS = math.prod(PRIMES)
KEPT_MODULUS = math.prod(PRIMES[:KEPT])
MIN_FLOOD_BITS = 40.0
FISHER = 1.04  # Fisher information of a flood times its variance
MODULUS_BITS = MODULUS.bit_length()
KEPT_BITS = KEPT_MODULUS.bit_length()
GOOD_FLOOD_BITS = 46.0  # requests lose bits only while flooding stays this good: 2^-35 for an image
MIN_DROP, MAX_DROP = 3, 16  # bits that requests lose; three cost a quarter of a bit of flooding
KEY_BYTES = N * sum(PRIME_BITS) // 8
HEAD_BYTES = N * sum(PRIME_BITS[:KEPT]) // 8

# Both at 2^-90 a coefficient: sqrt(2 variance N ln(2 / 2^-90)) = 2,330; and 1/2 + sqrt(N / 2 ln(2 / 2^-90)) = 360 for
# the rounding errors of c0 and of c1 s.
ZERO_TAIL = math.sqrt(2 * sampling.BINOMIAL_BOUND / 2 * N * 91 * math.log(2))
SWITCH_ROUNDING = 0.5 + math.sqrt(N / 2 * 91 * math.log(2))

_TABLES = ntt.tables(PRIMES, N)
_Q = _TABLES.q
_BATCH = 16  # ciphertexts at a time: their residues stay in the second-level cache
_CANDIDATES = N // 2 + 64  # words a polynomial: at most 0.1 % of the candidates are rejected, 3 % may be


class NoiseError(ValueError):
    """A layer whose answers would not decrypt, or whose noise could not be flooded enough."""


@dataclasses.dataclass(frozen=True, slots=True)
class NoiseBudget:
    """Why answers of one layer decrypt. ``row_l1`` bounds sum |w| over one answer ciphertext's weights.

    Noise before the switch, in worst cases with E = 21 the bound of an error:
        input     row_l1 (E + 1/2 + 2^(request_drop - 1))     W e, round(q r / 2^l), the bits that requests lose
        zero      2 ZERO_TAIL                                 e_pk u + e2 s
        mask      1/2                                         the rounding of round(q s / 2^l)
        flood     2^(width + 1)
    and, divided by the dropped primes, plus ``SWITCH_ROUNDING`` and 2^(answer_drop - 1) it must stay below
    q' / 2^(l + 1).
    """

    layer: str
    bits: int
    row_l1: int

    def _hidden(self, drop: int) -> float:
        return self.row_l1 * (sampling.BINOMIAL_BOUND + 0.5 + 2.0 ** (drop - 1)) + 2 * ZERO_TAIL + 0.5

    @property
    def request_drop(self) -> int:
        """Bits that a request's coefficients lose."""
        return _request_drop(self)

    @property
    def request_bits(self) -> int:
        """Of a coefficient of b as it travels."""
        return MODULUS_BITS - self.bits - self.request_drop

    @property
    def _room(self) -> float:
        """What the noise may reach after the switch, without ``answer_drop``."""
        return KEPT_MODULUS / 2.0 ** (self.bits + 1) - SWITCH_ROUNDING

    @property
    def answer_drop(self) -> int:
        """Bits that c0 loses: their rounding takes at most an eighth of the room.

        16 are left, so that rounding q' - 1 up does not reach 2^54.
        """
        return min(max(0, math.floor(math.log2(self._room)) - 2), KEPT_BITS - 16) if self._room > 1 else 0

    @property
    def answer_bits(self) -> int:
        """Of a coefficient of c0 as it travels."""
        return KEPT_BITS - self.answer_drop

    @property
    def hidden(self) -> float:
        """Bound on the part of the noise that must not be seen."""
        return self._hidden(self.request_drop)

    @property
    def limit(self) -> float:
        """What the noise before the switch may reach."""
        return MODULUS // KEPT_MODULUS * (self._room - 2.0 ** (self.answer_drop - 1))

    def _flood_width(self, drop: int) -> int:
        room = self.limit - self._hidden(drop)
        return min(math.floor(math.log2(room)) - 1, sampling.MAX_FLOOD_WIDTH) if room > 0 else -1

    def flood_bits_at(self, drop: int) -> float:
        """``flood_bits`` if requests lost ``drop`` bits."""
        sigma = 2.0 ** self._flood_width(drop) * math.sqrt(sampling.FLOOD_TERMS / 12)
        return math.log2(sigma * math.sqrt(2 * math.pi) / (2 * self._hidden(drop)))

    @property
    def flood_width(self) -> int:
        """The widest flood that fits, capped where the sampler ends; negative where none fits."""
        return self._flood_width(self.request_drop)

    @property
    def flood_sigma(self) -> float:
        return 2.0**self.flood_width * math.sqrt(sampling.FLOOD_TERMS / 12)

    @property
    def flood_bits(self) -> float:
        """-log2 of the statistical distance that one answer coefficient can show between two sets of weights."""
        return self.flood_bits_at(self.request_drop)

    @property
    def fisher_bits(self) -> float:
        """log2 of d^2 I / 4: n coefficients together show at most the square root of n times this."""
        return 2 * math.log2(2 * self.hidden / self.flood_sigma) + math.log2(FISHER / 4)

    @property
    def bound(self) -> float:
        """Proven bound on the noise before the switch, flood included."""
        return self.hidden + 2.0 ** (self.flood_width + 1)

    def exceeds(self, flood_bits: float) -> bool:
        """Whether answers decrypt under a flood that is at least this good."""
        return self.flood_width >= sampling.MIN_FLOOD_WIDTH and self.flood_bits >= flood_bits

    @property
    def fits(self) -> bool:
        return self.exceeds(MIN_FLOOD_BITS)

    def check(self) -> None:
        """Raise NoiseError, which says what would fit."""
        if self.fits:
            return
        ring = self.bits
        while ring > 1 and not dataclasses.replace(self, bits=ring).fits:
            ring -= 1
        l1 = self.row_l1
        while l1 > 0 and not dataclasses.replace(self, row_l1=l1).fits:
            l1 //= 2
        ways = [f"a ring of {ring} bits with these weights"] if ring > 1 else []
        ways += [f"weights with sum |w| of at most {l1} in this ring"] if l1 > 0 else []
        raise NoiseError(
            f"{self.layer}: a ring of {self.bits} bits with sum |w| up to {self.row_l1} leaves no room for "
            f"{MIN_FLOOD_BITS:.0f} bits of flooding noise; {' or '.join(ways) or 'nothing'} would fit"
        )


@functools.cache
def _request_drop(budget: NoiseBudget) -> int:
    for drop in range(MAX_DROP, MIN_DROP, -1):
        if budget.flood_bits_at(drop) >= GOOD_FLOOD_BITS:
            return drop
    return MIN_DROP


@dataclasses.dataclass(frozen=True, slots=True)
class _Factor:
    """A polynomial to multiply others with: its values and their companions, uint32 (P, N)."""

    values: Residues
    shoup: Residues

    @classmethod
    def of(cls, coefficients: Residues) -> _Factor:
        values = coefficients.copy()
        ntt.forward(values, _TABLES)
        return cls(values[0], ntt.companions(values[0], _Q))

    def times_values(self, values: Residues) -> Residues:
        """Product, in coefficients, with polynomials given by values, uint32 (m, P' <= P, N)."""
        primes = values.shape[1]
        product = ntt.multiply(values, self.values[:primes], self.shoup[:primes], _Q[:primes])
        ntt.inverse(product, _TABLES)
        return product


@dataclasses.dataclass(frozen=True, slots=True)
class SecretKey:
    factor: _Factor

    @classmethod
    def generate(cls, prg: Prg) -> SecretKey:
        return cls(_Factor.of(rns.lift(sampling.ternary(prg.words(N)).reshape(1, N), _Q)))


@dataclasses.dataclass(frozen=True, slots=True)
class PublicKeys:
    """Encryptions of zero (b_i, a) = (-a s_i + e_i, a), one for each secret key."""

    b: tuple[_Factor, ...]
    a: _Factor

    @classmethod
    def of(cls, seed: bytes, b: Residues) -> PublicKeys:
        """From the seed of a and all b, uint32 (m, 4, N)."""
        return cls(tuple(_Factor.of(one[None]) for one in b), _Factor.of(expand(seed, 1)))


def expand(seed: bytes, count: int) -> Residues:
    """``count`` uniform polynomials from a public seed: uint32 (count, 4, N)."""
    prg = Prg(seed)
    out = np.empty((count, len(PRIMES), N), np.uint32)
    for start in range(0, count, _BATCH):
        size = min(_BATCH, count - start)
        words = prg.words(size * len(PRIMES) * _CANDIDATES).reshape(size, len(PRIMES), _CANDIDATES)
        out[start : start + size] = sampling.uniform_residues(words, _Q, N)
    return out


def to_values(polynomials: Residues) -> Residues:
    """Transform in place: what ``encrypt`` and ``decrypt`` take, once for all keys. uint32 (m, P, N)."""
    ntt.forward(polynomials, _TABLES)
    return polynomials


def publish(secrets: Sequence[SecretKey], prg: Prg, seed: bytes) -> Residues:
    """b of the public keys, uint32 (m, 4, N), for a from ``seed``."""
    a = to_values(expand(seed, 1))
    b = np.empty((len(secrets), len(PRIMES), N), np.uint32)
    for out, secret in zip(b, secrets, strict=True):
        part = np.zeros_like(a)
        rns.add_small(part, sampling.centred_binomial(prg.words(N).reshape(1, N)), _Q)
        rns.subtract(part, secret.factor.times_values(a), _Q)
        out[...] = part[0]
    return b


@functools.cache
def _remainder(bits: int, drop: int) -> rns.Remainder:
    return rns.remainder_tables(PRIMES, bits, drop)


@functools.cache
def _base(bits: int) -> rns.Base:
    return rns.base(PRIMES, bits)


@functools.cache
def _switch(bits: int) -> rns.Switch:
    return rns.switch_tables(PRIMES, bits)


def encrypt(key: SecretKey, prg: Prg, a: Residues, budget: NoiseBudget) -> tuple[Words, Words, Words]:
    """w = -r mod 2^l and b as it travels, below 2^request_bits, in words low and high: uint64 (m, N) each.

    ``a``: its values, uint32 (m, 4, N).
    """
    tables = _remainder(budget.bits, budget.request_drop)
    w, low, high = (np.empty((len(a), N), np.uint64) for _ in range(3))
    for start in range(0, len(a), _BATCH):
        part = slice(start, start + _BATCH)
        product = key.factor.times_values(a[part])
        errors = sampling.centred_binomial(prg.words(len(product) * N).reshape(-1, N))
        w[part], low[part], high[part] = rns.remainder(product, errors, tables)
    return w, low, high


def head(keys: PublicKeys, prg: Prg, combination: Residues) -> tuple[Residues, Residues]:
    """c1 of answers, uint32 (m, 2, N), and their u for ``answer``, (m, 4, N). ``combination``: of a, (m, 4, N)."""
    tables = _switch(1)
    c1 = np.empty((len(combination), KEPT, N), np.uint32)
    values = np.empty_like(combination)
    for start in range(0, len(combination), _BATCH):
        part = slice(start, start + _BATCH)
        u = values[part]
        size = len(u)
        u[...] = rns.lift(sampling.ternary(prg.words(size * N).reshape(size, N)), _Q)
        ntt.forward(u, _TABLES)
        c = keys.a.times_values(u)
        rns.add_small(c, sampling.centred_binomial(prg.words(size * N).reshape(size, N)), _Q)
        rns.add(c, combination[part], _Q)
        c1[part] = rns.switch(c, tables)
    return c1, values


def answer(
    keys: PublicKeys, index: int, prg: Prg, u: Residues, combination: Residues, masks: Words, budget: NoiseBudget
) -> Words:
    """c0 of answers under key ``index`` as they travel: uint64 (m, N) below 2^answer_bits.

    ``u``: from ``head``; ``combination``: of b, uint32 (m, 4, N); ``masks``: uint64 (m, N), uniform below 2^bits.
    Raises NoiseError where the budget does not fit.
    """
    budget.check()
    width = budget.flood_width
    base, tables = _base(budget.bits), _switch(budget.bits)
    centre = np.array([(1 << (width + 1)) % q for q in PRIMES], np.uint64)
    out = np.empty((len(masks), N), np.uint64)
    for start in range(0, len(masks), _BATCH):
        part = slice(start, start + _BATCH)
        c = keys.b[index].times_values(u[part])
        rns.add(c, combination[part], _Q)
        words = prg.words(len(c) * N * 2 * sampling.FLOOD_TERMS)
        high, low = sampling.flood(words.reshape(len(c), N, -1), width)
        rns.add_wide(c, high, low, centre, base)
        rns.subtract(c, rns.scale(masks[part], base), _Q)
        out[part] = rns.shorten(rns.switch(c, tables), tables, budget.answer_drop)
    return out


def decrypt(key: SecretKey, c1: Residues, c0: Words, budget: NoiseBudget) -> Words:
    """Plaintexts, uint64 (m, N) below 2^bits, from values of c1, uint32 (m, 2, N), and c0 as it travels."""
    tables = _switch(budget.bits)
    out = np.empty((len(c0), N), np.uint64)
    for start in range(0, len(c0), _BATCH):
        part = slice(start, start + _BATCH)
        phase = key.factor.times_values(c1[part])
        rns.add_shortened(phase, c0[part], budget.answer_drop, tables)
        out[part] = rns.round_to_ring(phase, tables)
    return out


def pack(residues: Residues) -> Words:
    """uint32 (..., P, N) to words, prime by prime, each residue in its prime's 27 or 26 bits."""
    primes = residues.shape[-2]
    parts = [
        bit_kernels.pack_ring(residues[..., p, :].reshape(-1).astype(np.uint64), PRIME_BITS[p]) for p in range(primes)
    ]
    return np.concatenate(parts)


def unpack(words: Words, shape: tuple[int, ...]) -> Residues:
    """Inverse of pack for an array of this shape. Raises WireError where a residue is not below its prime."""
    out = np.empty(shape, np.uint32)
    polynomials = math.prod(shape) // shape[-2]
    at = 0
    for p in range(shape[-2]):
        size = polynomials * PRIME_BITS[p] // 64
        values = bit_kernels.unpack_ring(words[at : at + size], PRIME_BITS[p], polynomials)
        if values.size and int(values.max()) >= PRIMES[p]:
            raise WireError("a residue is not below its prime")
        out[..., p, :] = values.reshape(*shape[:-2], shape[-1])
        at += size
    return out
