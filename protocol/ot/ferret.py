"""Random correlated OT without traffic to speak of: Ferret, a silent extension.

Yang, Weng, Lan, Zhang and Wang, "Ferret: Fast Extension for coRRElated oT with small communication" (CCS 2020, eprint
2020/924), with regular noise and the consistency check of its figure 6, over all trees of an iteration at once;
single-point OTs as in spcot.py.

Sender holds delta; bit 0 of it is 1, bit 0 of each row q_j is 0. Receiver ends with rows t_j = q_j ^ x_j delta, so
that its random bit x_j is bit 0 of t_j. An iteration turns k + t h + 128 correlated OTs into n = t 2^h:

1. k of them are the code's input: u at Sender, s = u ^ e delta at Receiver for k random bits e.
2. t h of them make t single-point OTs of 2^h rows (spcot.py): v at Sender, w at Receiver, which differ by delta at one
   secret place in each vector.
3. Output p: q = v ^ A u, t = w ^ A s. A is a public n x k matrix with ten ones a row, fresh every iteration
   (kernels/lpn.py). The x are A e ^ noise, where the noise has a single one in every 2^h: pseudorandom to Sender, which
   learns nothing of e and the noise, by learning parity with noise (LPN).

4. Both hash the vectors: the sum over all trees and leaves, with a power of r for each (kernels/ferret.py). r in
   GF(2^128) is SHA-256 of the session, the iteration and the sums of step 2, cut. Sender gets V, Receiver W, and W is
   V + f delta, where f is the sum of the powers of its points.
5. Receiver, once it has the trees: sends x' = f + x*, where bit i of x* is the choice bit of the i-th of the last 128.
6. Both add those: Sender Y, the sum of X^i y_i, Receiver Z = Y + x* delta. Sender sends SHA-256 of V + Y + x' delta,
   Receiver compares with that of W + Z. Else ``Deviation``.

The first k + t h + 128 outputs (``reserve``, in whole blocks of 64) are kept for the next iteration, and IKNP makes
those of the first one, checked before they are used (consistency.py). The rest (``fresh``) is handed out. Outputs are
made when they are asked for, tree by tree; only the reserve, the code's input, roots and sums stay in memory: 2.5 to 18
MiB an end.

So that nobody waits: at an iteration's begin Receiver sends the choices of the next (spcot.py, step 1), and after half
of the fresh outputs Sender answers with its sums (step 2). It sends step 6's digest when all outputs are made, or at
``check``, when both hash the trees that were not made use of yet; Receiver looks at it one iteration later, or then.
Over a slow link a direction gets at most one iteration a
round trip, which speaks for the larger sets there.

====  ====  ====  ==  ==========  =============================  ==========
name  k     t     h   n           estimated security, bits       bits a COT
====  ====  ====  ==  ==========  =============================  ==========
2^16  2^16   850  10     870,400  128.6 (BJMM; SD-ISD 131.3)     1.38
2^17  2^17  1170  11   2,396,160  128.2 (hybrid; BJMM 132.5)     0.74
2^18  2^18  1520  12   6,225,920  136.6 (BJMM; SD-ISD 138.8)     0.40
2^19  2^19  1900  13  15,564,800  140.7 (BJMM; SD-ISD 142.5)     0.21
====  ====  ====  ==  ==========  =============================  ==========

A set is as strong as that for its own n alone: 2^16 with 15.6 M outputs would have 26 bits. They are emp-ot 1.0's
(2026, emp-ot/tuning.h), published for 128 bits after the attacks on regular noise. The estimates are by those attacks'
own estimator (YYW+25, lpnestimator.com, github.com/1234wangtr/Code_estimators), all of it: pooled Gauss, SD, SD 2.0,
SD-ISD and BJMM after regularity took t off n and k (Liu, Wang, Yang and Yu, eprint 2022/712), the algebraic attack of
Briaud and Oygarden (2023/176; for the two larger sets searched in steps) and its successor (2025/1476), regular ISD by
permutation, enumeration and representation (Esser and Santini, 2023/1568), and the hybrid (2025/1284). The smallest
counts. Sets from before these attacks, Ferret's own among them, are not offered.

Cost of all COTs drawn (``bytes_sent``): once IKNP's bytes for the reserve and its check's; then, an iteration, t h bits
from Receiver and 16 t h bytes from Sender, which is what the table's last column says, besides 16 and 32 in headers.
Four flows more at the first begin, three of them IKNP's with its check; later nobody waits but at ``check``.

Adversary: malicious, once checked; LPN with regular noise and this code; spcot.py's assumption; SHA-256 as a random
oracle. A malicious Receiver can only choose its points, and f is masked. A malicious Sender whose sums are wrong makes
W depend on the points in another way: for points that do not fit, W is what it is for others with probability at most n
/ 2^128 over r, and it may try q sums before it sends any, so q 2^24 / 2^128. So it is caught unless it guessed
something of the points that the wrong sums depend on; with a guess that holds half the time it learns one bit, and LPN
must stand that (their "static leakage"). Outputs do not leave a party before the check but as masks of choices, whose
bits stay pseudorandom whatever the sums were. After a failed check nothing is used again (consistency.py). Delta has
127 unknown bits, here and for the hash of pads.py: half as many as elsewhere have to be tried. No branch or index
depends on delta, rows, bits or noise positions at either party.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcd.kernels import ferret, gf128
from mpcd.kernels.aes import expand_key
from mpcd.kernels.bits import clear_tail, pack_bits, unpack_bits
from mpcd.protocol.channel import Channel
from mpcd.protocol.ot import consistency, extension, iknp, spcot
from mpcd.protocol.ot.extension import CHUNK, grown
from mpcd.protocol.ot.inbox import Expected, Inbox
from mpcd.protocol.wire import blob, message

Words = npt.NDArray[np.uint64]
Trees = spcot.SenderSeeds | spcot.ReceiverSeeds

_BIT_0 = np.array([1, 0], np.uint64)
_MASK = 128  # COTs that hide a sum of the check
# X^0, ..., X^127.
_BASIS = np.ascontiguousarray(np.packbits(np.eye(_MASK, dtype=np.uint8), axis=1, bitorder="little").view("<u8"))


@message("ferret-mask")
class Mask:
    """Step 5, Receiver to Sender: x'."""

    x: bytes = blob(16)


@message("ferret-check")
class Value:
    """Step 6, Sender to Receiver: the digest of V."""

    digest: bytes = blob(32)


@dataclasses.dataclass(frozen=True, slots=True)
class Parameters:
    """k = 2^bits, t = ``trees``, h = ``depth``."""

    bits: int
    trees: int
    depth: int

    @property
    def dimension(self) -> int:
        return 1 << self.bits

    @property
    def outputs(self) -> int:
        return self.trees << self.depth

    @property
    def points(self) -> int:
        """COTs that the single-point OTs take."""
        return self.trees * self.depth

    @property
    def reserve(self) -> int:
        return _whole(self.dimension + self.points + _MASK)

    @property
    def fresh(self) -> int:
        return self.outputs - self.reserve


SETS: Mapping[str, Parameters] = MappingProxyType(
    {
        "2^16": Parameters(16, 850, 10),
        "2^17": Parameters(17, 1170, 11),
        "2^18": Parameters(18, 1520, 12),
        "2^19": Parameters(19, 1900, 13),
    }
)


def rows_drawn(n: int) -> int:
    """Outputs that one ``extend`` by n takes."""
    return _whole(n)


def iteration_bytes_sent(parameters: Parameters) -> tuple[int, int]:
    """Payload bytes of one iteration's choices, from Receiver, and of its sums, from Sender."""
    return 8 * spcot.choices_shape(parameters.trees, parameters.depth)[0], 16 * parameters.points


def bytes_sent(parameters: Parameters, drawn: int) -> tuple[int, int]:
    """Payload bytes from Receiver and from Sender for all of a direction's ``extend`` so far, of ``drawn`` outputs."""
    if drawn == 0:
        return 0, 0
    full, part = divmod(drawn, parameters.fresh)
    choices, sums = iteration_bytes_sent(parameters)
    first = sum(iknp.bytes_sent(n) for n in _first_chunks(parameters)) + consistency.bytes_sent(iknp.bytes_sent(1))
    return first + choices * (1 + full + (part > 0)), sums * (1 + full + (part >= parameters.fresh // 2))


@dataclasses.dataclass(slots=True)
class Seeds:
    """What a stretch of one direction's rows can be made from again, by this party alone (compact.py).

    ``iteration``, ``position``: where the stretch begins. ``table``: that iteration's input of the code, None until it
    began. ``trees``: of it and of each after it.
    """

    iteration: int = 0
    position: int = 0
    table: Words | None = None
    trees: list[Trees] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Hash:
    """Step 4 for one iteration's leaves: those of outputs below ``position`` are in ``value``."""

    key: Words
    powers: Words
    scales: Words
    value: Words
    position: int = 0


NO_HASH = Hash(np.zeros(2, np.uint64), np.empty((0, 2), np.uint64), np.empty((0, 2), np.uint64), np.zeros(2, np.uint64))


class Outputs(abc.ABC):
    """Step 3, for which nobody else is needed: the outputs of one iteration after the other, given its trees."""

    def __init__(self, session_key: bytes, direction: int, parameters: Parameters) -> None:
        self._seed = b"mpcd/ot/ferret/1" + session_key + bytes([direction])
        self.parameters = parameters
        self.iteration = 0  # the number of the next one
        self.position = parameters.outputs  # the next output of the running one
        self.reserve: Words  # COTs for the next one
        self.table: Words  # the running one's input of the code, and the code
        self._keys: tuple[Words, Words]  # of the running one's trees and of its code
        self.trees: Any  # Trees, the kind that the end has
        self.hash = NO_HASH  # of the running one, until it is checked

    async def begin(self, channel: Channel, trees: Trees) -> None:
        """The next iteration becomes the running one."""
        p = self.parameters
        self.trees = trees
        self.table = self.reserve[: p.dimension]
        self._keys = self.key(b"trees"), self.key(b"code")
        self.iteration += 1
        reserve = np.empty((p.reserve, 2), np.uint64)
        await self._expand(channel, 0, reserve, np.empty(p.reserve // 64, np.uint64))
        self.reserve = reserve
        self.position = p.reserve

    @property
    def left(self) -> int:
        """Outputs that the running iteration still has."""
        return self.parameters.outputs - self.position

    async def take(self, channel: Channel, rows: Words, choices: Words) -> None:
        """The next ones of the running iteration."""
        await self._expand(channel, self.position, rows, choices)
        self.position += len(rows)

    @abc.abstractmethod
    async def _expand(self, channel: Channel, first: int, rows: Words, choices: Words) -> None:
        """Step 3 for outputs from ``first`` on, and 4 for their leaves unless that is done."""

    @abc.abstractmethod
    async def hash_rest(self, channel: Channel) -> None:
        """Step 4 for the leaves of outputs that were not made."""

    def _hashing(self) -> tuple[Words, Words, Words]:
        return self.hash.powers, self.hash.scales, self.hash.value

    def key(self, purpose: bytes) -> Words:
        """Round keys, public, for one purpose in the next iteration."""
        digest = hashlib.sha256(self._seed + self.iteration.to_bytes(8, "little") + purpose).digest()
        round_keys: Words = expand_key(np.frombuffer(digest[:16], np.uint8))
        return round_keys

    def check_key(self, sums: spcot.Sums) -> bytes:
        """r for the next iteration, whose trees the sums decide."""
        digest = hashlib.sha256(self._seed + self.iteration.to_bytes(8, "little") + b"check")
        digest.update(sums.c.tobytes())
        return digest.digest()[:16]

    def digest(self, value: Words) -> bytes:
        """What may be seen of the running iteration's V."""
        label = self._seed + self.iteration.to_bytes(8, "little") + b"value"
        return hashlib.sha256(label + value.tobytes()).digest()


class SenderOutputs(Outputs):
    """``delta``: uint64 (2,), bit 0 set."""

    def __init__(self, session_key: bytes, direction: int, parameters: Parameters, delta: Words) -> None:
        super().__init__(session_key, direction, parameters)
        self._delta = delta

    async def _expand(self, channel: Channel, first: int, rows: Words, choices: Words) -> None:
        tree_keys, code_keys = self._keys
        trees = tree_keys, self.trees.roots, self._delta, self.parameters.depth
        await channel.compute(ferret.sender_rows, *trees, code_keys, self.table, first, rows, *self._hashing())

    async def hash_rest(self, channel: Channel) -> None:
        trees = self._keys[0], self.trees.roots, self._delta
        await channel.compute(ferret.sender_hash, *trees, self.hash.position, *self._hashing())


class ReceiverOutputs(Outputs):
    async def _expand(self, channel: Channel, first: int, rows: Words, choices: Words) -> None:
        tree_keys, code_keys = self._keys
        trees = tree_keys, self.trees.points, self.trees.siblings
        code = code_keys, self.table
        await channel.compute(ferret.receiver_rows, *trees, *code, first, rows, choices, *self._hashing())

    async def hash_rest(self, channel: Channel) -> None:
        trees = self._keys[0], self.trees.points, self.trees.siblings
        await channel.compute(ferret.receiver_hash, *trees, self.hash.position, *self._hashing())


class Drawing(abc.ABC):
    """Rows, from one iteration after the other."""

    def __init__(self, outputs: Outputs) -> None:
        self._parameters = outputs.parameters
        self._outputs = outputs
        self._rows: Words = np.empty((0, 2), np.uint64)

    async def _draw(self, channel: Channel, n: int, choices: Words) -> Words:
        """n fresh rows, and the bits of whole blocks of them if ``choices`` has space."""
        if not 1 <= n <= CHUNK:
            raise ValueError(f"{n} rows at a time, not between 1 and {CHUNK}")
        count = rows_drawn(n)
        self._rows = grown(self._rows, count)
        done = 0
        while done < count:
            if self._outputs.left == 0:
                await self._begin(channel)
            last = min(count, done + self._outputs.left)
            await self._take(channel, self._rows[done:last], choices[done // 64 : last // 64])
            done = last
        return self._rows[:n]

    @abc.abstractmethod
    async def _begin(self, channel: Channel) -> None:
        """The next iteration."""

    async def _take(self, channel: Channel, rows: Words, choices: Words) -> None:
        await self._outputs.take(channel, rows, choices)

    async def checkpoint(self, channel: Channel) -> None:
        """Nothing here waits for a key."""
        return


class _End(Drawing):
    """The schedule, the same at both ends. ``seeds``: if set, rows are not made, only what they can be made from."""

    def __init__(self, outputs: Outputs, cot: extension.Sender | extension.Receiver, inbox: Inbox) -> None:
        super().__init__(outputs)
        self._cot = cot
        self._inbox = inbox
        self._answered = False
        self.seeds: Seeds | None = None

    @abc.abstractmethod
    async def _bootstrap(self, channel: Channel, n: int) -> Words:
        """n COTs for the first iteration from another extension, with bit 0 of the rows as here."""

    @abc.abstractmethod
    async def _ask(self, channel: Channel) -> None:
        """Choices of the next iteration: from Receiver to Sender."""

    @abc.abstractmethod
    async def _answer(self, channel: Channel) -> None:
        """Sums of the next iteration: from Sender to Receiver."""

    @abc.abstractmethod
    async def _opened(self, channel: Channel) -> tuple[Trees, bytes]:
        """The next iteration's trees, and the key of their check."""

    @abc.abstractmethod
    async def _mask(self, channel: Channel, rows: Words) -> None:
        """Step 5, for the trees just begun, with the COTs ``rows``: from Receiver to Sender."""

    @abc.abstractmethod
    async def _compare(self, channel: Channel) -> None:
        """Step 6, when the running iteration's leaves are all hashed: from Sender to Receiver."""

    async def check(self, channel: Channel) -> None:
        """Steps 4 and 6 for all of the running iteration, made use of or not. Raises Deviation."""
        await self._settle(channel)

    async def _settle(self, channel: Channel) -> None:
        outputs = self._outputs
        if outputs.hash is NO_HASH:
            return
        if outputs.hash.position < self._parameters.outputs:
            await outputs.hash_rest(channel)
        await self._compare(channel)
        outputs.hash = NO_HASH

    def keep(self) -> Seeds:
        """From here on keep seeds instead of making rows, into what is returned; until ``seeds`` is None again."""
        outputs = self._outputs
        self.seeds = Seeds()
        if outputs.left:
            running = outputs.iteration - 1
            self.seeds = Seeds(running, outputs.position, outputs.table, [outputs.trees])
        return self.seeds

    async def _take(self, channel: Channel, rows: Words, choices: Words) -> None:
        p, outputs = self._parameters, self._outputs
        if self.seeds is None:
            await outputs.take(channel, rows, choices)
            if outputs.hash is not NO_HASH:
                outputs.hash.position = outputs.position
        else:
            outputs.position += len(rows)
        if not self._answered and outputs.position >= p.reserve + p.fresh // 2:
            await self._answer(channel)
            self._answered = True

    async def _begin(self, channel: Channel) -> None:
        p, outputs = self._parameters, self._outputs
        if outputs.iteration == 0:
            await self._inbox.drain(channel)
            outputs.reserve = np.empty((p.reserve, 2), np.uint64)
            done = 0
            for n in _first_chunks(p):
                outputs.reserve[done : done + n] = await self._bootstrap(channel, n)
                done += n
            await self._cot.check(channel)
            await self._ask(channel)
            await self._answer(channel)
        await self._settle(channel)
        mask = self._for_mask
        trees, key = await self._opened(channel)
        outputs.hash = await channel.compute(_hash, key, p)
        await outputs.begin(channel, trees)
        outputs.hash.position = outputs.position
        if self.seeds is not None:
            if self.seeds.table is None:
                self.seeds.iteration, self.seeds.position = outputs.iteration - 1, outputs.position
                self.seeds.table = outputs.table
            self.seeds.trees.append(trees)
        self._answered = False
        await self._mask(channel, mask)
        await self._ask(channel)

    @property
    def _for_mask(self) -> Words:
        """The COTs for the check of the next iteration's trees."""
        first = self._parameters.dimension + self._parameters.points
        return self._outputs.reserve[first : first + _MASK]

    @property
    def _for_points(self) -> Words:
        """The COTs for the next iteration's single-point OTs."""
        p = self._parameters
        return self._outputs.reserve[p.dimension : p.dimension + p.points]


class Sender(_End):
    """Holds delta, uint64 (2,). Rows are valid until the next call: one buffer is reused.

    ``cot`` makes the first correlated OTs. Its delta is ours but for bit 0, which both sides overwrite.
    """

    _cot: extension.Sender

    def __init__(
        self, cot: extension.Sender, session_key: bytes, direction: int, parameters: Parameters, inbox: Inbox
    ) -> None:
        self.delta: Words = cot.delta | _BIT_0
        super().__init__(SenderOutputs(session_key, direction, parameters, self.delta), cot, inbox)
        self._choices: Expected[spcot.Choices]
        self._next_trees: spcot.Sender
        self._next_key: bytes
        self._masked: Expected[Mask]
        self._combined: Words

    async def extend(self, channel: Channel, n: int) -> Words:
        """q, uint64 (n, 2), for 1 <= n <= CHUNK."""
        return await self._draw(channel, n, np.empty(0, np.uint64))

    async def _bootstrap(self, channel: Channel, n: int) -> Words:
        rows: Words = await self._cot.extend(channel, n) & ~_BIT_0
        return rows

    async def _ask(self, channel: Channel) -> None:
        p = self._parameters
        self._choices = self._inbox.expect(spcot.Choices, b=spcot.choices_shape(p.trees, p.depth))

    async def _answer(self, channel: Channel) -> None:
        self._next_trees = spcot.Sender(self._outputs.key(b"trees"), self.delta, self._parameters.trees, channel.prg)
        choices = await self._inbox.open(channel, self._choices)
        sums = await channel.compute(self._next_trees.sums, self._for_points, choices)
        self._next_key = self._outputs.check_key(sums)
        await channel.send(sums)

    async def _opened(self, channel: Channel) -> tuple[Trees, bytes]:
        return self._next_trees.seeds(), self._next_key

    async def _mask(self, channel: Channel, rows: Words) -> None:
        self._combined = _combined(rows)
        self._masked = self._inbox.expect(Mask)

    async def _compare(self, channel: Channel) -> None:
        value = np.frombuffer((await self._inbox.open(channel, self._masked)).x, "<u8").astype(np.uint64)
        gf128.multiply_into(value, self.delta, np.zeros(gf128.PARTS, np.uint64))
        await channel.send(Value(self._outputs.digest(value ^ self._combined ^ self._outputs.hash.value)))


class Receiver(_End):
    """Rows are valid until the next call: one buffer is reused. ``cot`` makes the first correlated OTs."""

    _cot: extension.Receiver
    runs_ahead = False

    def __init__(
        self, cot: extension.Receiver, session_key: bytes, direction: int, parameters: Parameters, inbox: Inbox
    ) -> None:
        super().__init__(ReceiverOutputs(session_key, direction, parameters), cot, inbox)
        self._sums: Expected[spcot.Sums]
        self._next_trees: spcot.Receiver
        self._combined: Words
        self._compared: tuple[Expected[Value], bytes] | None = None

    async def extend(self, channel: Channel, n: int) -> tuple[Words, Words]:
        """(x, t), x as words with tail zero, t uint64 (n, 2), for 1 <= n <= CHUNK."""
        x = np.empty(_whole(n) // 64, np.uint64)
        t = await self._draw(channel, n, x)
        return clear_tail(x, n), t

    async def check(self, channel: Channel) -> None:
        await super().check(channel)
        await self._verify(channel)

    async def _bootstrap(self, channel: Channel, n: int) -> Words:
        x, t = await self._cot.extend(channel, n)
        rows = t & ~_BIT_0
        rows[:, 0] |= unpack_bits(x, n)
        return rows

    async def _ask(self, channel: Channel) -> None:
        p = self._parameters
        self._next_trees = spcot.Receiver(self._outputs.key(b"trees"), p.trees, p.depth, channel.prg)
        await channel.send(self._next_trees.choices(self._for_points[:, 0]))

    async def _answer(self, channel: Channel) -> None:
        p = self._parameters
        self._sums = self._inbox.expect(spcot.Sums, c=spcot.sums_shape(p.trees, p.depth))

    async def _opened(self, channel: Channel) -> tuple[Trees, bytes]:
        sums = await self._inbox.open(channel, self._sums)
        self._next_trees.open(self._for_points, sums)
        return self._next_trees.seeds(), self._outputs.check_key(sums)

    async def _mask(self, channel: Channel, rows: Words) -> None:
        self._combined = _combined(rows)
        hashes, points = self._outputs.hash, self._outputs.trees.points
        masked = pack_bits((rows[:, 0] & _BIT_0[0]).astype(np.uint8))
        await channel.compute(ferret.point_sum, points, hashes.key, self._parameters.depth, hashes.scales, masked)
        await channel.send(Mask(masked.tobytes()))

    async def _compare(self, channel: Channel) -> None:
        await self._verify(channel)
        digest = self._outputs.digest(self._combined ^ self._outputs.hash.value)
        self._compared = self._inbox.expect(Value), digest

    async def _verify(self, channel: Channel) -> None:
        """What the Sender said of the last iteration that was hashed: read late, so that nobody waits for it."""
        if self._compared is not None:
            expected, digest = self._compared
            self._compared = None
            if (await self._inbox.open(channel, expected)).digest != digest:
                consistency.deviated("its sums of single-point oblivious transfers")


def _hash(key: bytes, parameters: Parameters) -> Hash:
    """Before the first leaf."""
    r = np.frombuffer(key, "<u8").astype(np.uint64)
    powers = np.empty((1 << parameters.depth, 2), np.uint64)
    gf128.descending_powers(r, powers)
    scales = np.empty((parameters.trees, 2), np.uint64)
    scales[0] = _BASIS[0]
    if parameters.trees > 1:
        ascending = np.empty((parameters.trees - 1, 2), np.uint64)
        gf128.descending_powers(powers[0], ascending)
        scales[1:] = ascending[::-1]
    return Hash(r, powers, scales, np.zeros(2, np.uint64))


def _combined(rows: Words) -> Words:
    """The sum of X^i times row i, of 128 rows."""
    value = np.zeros(2, np.uint64)
    gf128.hash_blocks(np.ascontiguousarray(rows).reshape(-1), _BASIS, value)
    return value


def _whole(n: int) -> int:
    """n in whole blocks of 64."""
    return -(-n // 64) * 64


def _first_chunks(parameters: Parameters) -> list[int]:
    """The lengths of the extensions that make the first reserve."""
    return [min(CHUNK, parameters.reserve - done) for done in range(0, parameters.reserve, CHUNK)]
