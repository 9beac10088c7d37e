"""BFV with coefficient packing, cut down to what a matrix triple needs: encrypt, integer combinations, answer, decrypt.

Ring Z_q[X]/(X^4096 + 1), q a product of four NTT primes of 27 + 27 + 26 + 26 bits, log q = 105.997; plaintext modulus
2^l, message m encoded as round(q m / 2^l). Secret: uniform ternary. Errors: centred binomial of 42 coins in constant
time, variance 10.5 (sigma 3.24), at most 21. 128-bit security: log q = 106 is the classical limit of the 2024 tables
for N = 4096, ternary secrets and sigma 3.19 (Bossuat et al., eprint 2024/463); 109 was that of the 2018 standard.

A ciphertext (b, a) has phase b + a s. A fresh one is ``b = -a s + e + round(q m / 2^l)``; a is expanded from a public
seed (AES-128-CTR with rejection, in coefficients, where the evaluator's matrix products happen), so b alone travels.

An answer is (sum_i w_i X^{-t_i} b_i, sum_i w_i X^{-t_i} a_i) with, for every ciphertext anew:
    + (b_pk u + e1, a_pk u + e2)      an encryption of zero: hides W a, from which W follows by linear algebra
    + (flood, 0)                      hides the noise W e, which the key's owner sees, and e_pk u + e1 + e2 s
    - (round(q mask / 2^l), 0)        a uniform mask on all 4096 coefficients
and is then switched to the two 27-bit primes, a function of what could already be published.

``NoiseBudget`` proves that an answer decrypts. Terms are worst cases, which never fail, except two sums of 4096
independent terms against a ternary polynomial, which pass their bound with probability 2^-90 a coefficient:
e_pk u + e2 s (errors are sub-Gaussian with their variance 10.5) and the rounding of the switch (Hoeffding; c1 looks
uniform). A study of 2^33 coefficients fails with probability below 2^-55.

The flood is the sum of eight uniform integers of ``width`` bits, the widest that fits: a discrete bell of standard
deviation sigma = 2^width sqrt(8 / 12), sampled exactly, in constant time and with bounded support. Against a shift by d
its total variation distance is at most d / (2.5 sigma) (d times its greatest probability), its Fisher information
1.01 / sigma^2; hence n coefficients together leak at most (d / sigma) sqrt(n) / 1.9 (Pinsker), where d is the largest
shift that the weights can cause. A flood is sized by the public bound on sum |W|, never by W. ``flood_bits`` states the
distance of one coefficient in that worst case, and less than ``MIN_FLOOD_BITS`` is refused.
"""

from __future__ import annotations

import dataclasses
import math

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
REQUEST_BYTES = N * sum(PRIME_BITS) // 8
ANSWER_BYTES = 2 * N * sum(PRIME_BITS[:KEPT]) // 8

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
        input     row_l1 (E + 1/2)        W e, and the rounding of round(q r / 2^l)
        zero      2 ZERO_TAIL + E         e_pk u + e2 s + e1
        mask      1/2                     the rounding of round(q s / 2^l)
        flood     2^(width + 2)
    and, divided by the dropped primes, plus ``SWITCH_ROUNDING`` it must stay below q' / 2^(l + 1).
    """

    layer: str
    bits: int
    row_l1: int

    @property
    def hidden(self) -> float:
        """Bound on the part of the noise that must not be seen."""
        bound = sampling.BINOMIAL_BOUND
        return self.row_l1 * (bound + 0.5) + 2 * ZERO_TAIL + bound + 0.5

    @property
    def limit(self) -> float:
        """What the noise before the switch may reach."""
        dropped = MODULUS // KEPT_MODULUS
        return dropped * (KEPT_MODULUS / 2.0 ** (self.bits + 1) - SWITCH_ROUNDING)

    @property
    def flood_width(self) -> int:
        """The widest flood that fits, capped where the sampler ends; negative where none fits."""
        room = self.limit - self.hidden
        return min(math.floor(math.log2(room)) - 2, sampling.MAX_FLOOD_WIDTH) if room > 0 else -1

    @property
    def flood_sigma(self) -> float:
        return 2.0**self.flood_width * math.sqrt(sampling.FLOOD_TERMS / 12)

    @property
    def flood_bits(self) -> float:
        """-log2 of the statistical distance that one answer coefficient can show between two sets of weights."""
        return math.log2(self.flood_sigma * math.sqrt(2 * math.pi) / (2 * self.hidden))

    @property
    def bound(self) -> float:
        """Proven bound on the noise before the switch, flood included."""
        return self.hidden + 2.0 ** (self.flood_width + 2)

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

    def times(self, x: Residues) -> Residues:
        """Product with polynomials given by coefficients, uint32 (m, P' <= P, N)."""
        values = x.copy()
        ntt.forward(values, _TABLES)
        return self.times_values(values)

    def times_values(self, values: Residues) -> Residues:
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
class PublicKey:
    """An encryption of zero (b, a) = (-a s + e, a)."""

    b: _Factor
    a: _Factor

    @classmethod
    def of(cls, seed: bytes, b: Residues) -> PublicKey:
        """From the seed of a and b, uint32 (1, 4, N)."""
        return cls(_Factor.of(b), _Factor.of(expand(seed, 1)))


def expand(seed: bytes, count: int) -> Residues:
    """``count`` uniform polynomials from a public seed: uint32 (count, 4, N)."""
    prg = Prg(seed)
    out = np.empty((count, len(PRIMES), N), np.uint32)
    for start in range(0, count, _BATCH):
        size = min(_BATCH, count - start)
        words = prg.words(size * len(PRIMES) * _CANDIDATES).reshape(size, len(PRIMES), _CANDIDATES)
        out[start : start + size] = sampling.uniform_residues(words, _Q, N)
    return out


def encrypt(key: SecretKey, prg: Prg, seed: bytes, messages: Words, bits: int) -> Residues:
    """b of fresh encryptions of ``messages`` (uint64 (m, N) below 2^bits) with a from ``seed``: uint32 (m, 4, N)."""
    base = rns.base(PRIMES, bits)
    b = expand(seed, len(messages))
    for start in range(0, len(messages), _BATCH):
        part = slice(start, start + _BATCH)
        product = key.factor.times(b[part])
        scaled = rns.scale(messages[part], base)
        rns.add_small(scaled, sampling.centred_binomial(prg.words(scaled.shape[0] * N).reshape(-1, N)), _Q)
        rns.subtract(scaled, product, _Q)
        b[part] = scaled
    return b


def answer(key: PublicKey, prg: Prg, combination: Residues, masks: Words, budget: NoiseBudget) -> Residues:
    """Rerandomise, flood, mask and switch: uint32 (m, 2, 2, N). Raises NoiseError where the budget does not fit.

    ``combination``: uint32 (m, 2, 4, N), polynomials b then a; ``masks``: uint64 (m, N), uniform below 2^bits.
    """
    budget.check()
    width = budget.flood_width
    base = rns.base(PRIMES, budget.bits)
    tables = rns.switch_tables(PRIMES, budget.bits)
    centre = np.array([(1 << (width + 2)) % q for q in PRIMES], np.uint64)
    out = np.empty((len(masks), 2, KEPT, N), np.uint32)
    for start in range(0, len(masks), _BATCH):
        part = slice(start, start + _BATCH)
        size = len(masks[part])
        u = rns.lift(sampling.ternary(prg.words(size * N).reshape(size, N)), _Q)
        ntt.forward(u, _TABLES)
        for poly, factor in enumerate((key.b, key.a)):
            c = factor.times_values(u)
            rns.add_small(c, sampling.centred_binomial(prg.words(size * N).reshape(size, N)), _Q)
            rns.add(c, combination[part, poly], _Q)
            if poly == 0:
                words = prg.words(size * N * 2 * sampling.FLOOD_TERMS)
                high, low = sampling.flood(words.reshape(size, N, -1), width)
                rns.add_wide(c, high, low, centre, base)
                rns.subtract(c, rns.scale(masks[part], base), _Q)
            out[part, poly] = rns.switch(c, tables)
    return out


def decrypt(key: SecretKey, answers: Residues, bits: int) -> Words:
    """uint32 (m, 2, 2, N) to uint64 (m, N) below 2^bits."""
    tables = rns.switch_tables(PRIMES, bits)
    out = np.empty((len(answers), N), np.uint64)
    for start in range(0, len(answers), _BATCH):
        part = slice(start, start + _BATCH)
        phase = key.factor.times(answers[part, 1])
        rns.add(phase, answers[part, 0], _Q[:KEPT])
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
