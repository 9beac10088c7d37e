"""Random correlated OT without traffic to speak of: Ferret, a silent extension.

Yang, Weng, Lan, Zhang and Wang, "Ferret: Fast Extension for coRRElated oT with small communication" (CCS 2020, eprint
2020/924), with regular noise, semi-honest; single-point OTs as in spcot.py.

Sender holds delta; bit 0 of it is 1, bit 0 of each row q_j is 0. Receiver ends with rows t_j = q_j ^ x_j delta, so
that its random bit x_j is bit 0 of t_j. An iteration turns k + t h correlated OTs into n = t 2^h:

1. k of them are the code's input: u at Sender, s = u ^ e delta at Receiver for k random bits e.
2. The others make t single-point OTs of 2^h rows (spcot.py): v at Sender, w at Receiver, which differ by delta at one
   secret place in each vector.
3. Output p: q = v ^ A u, t = w ^ A s. A is a public n x k matrix with ten ones a row, fresh every iteration
   (kernels/lpn.py). The x are A e ^ noise, where the noise has a single one in every 2^h: pseudorandom to Sender, which
   learns nothing of e and the noise, by learning parity with noise (LPN).

The first k + t h outputs (``reserve``, in whole blocks of 64) are kept for the next iteration, and IKNP makes those of
the first one. The rest (``fresh``) is handed out. Outputs are made when they are asked for, tree by tree; only the
reserve, the code's input, roots and sums stay in memory: 2.5 to 18 MiB an end.

So that nobody waits: at an iteration's begin Receiver sends the choices of the next (spcot.py, step 1), and after half
of the fresh outputs Sender answers with its sums (step 2). Over a slow link a direction gets at most one iteration a
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

Cost of all COTs drawn (``bytes_sent``): once IKNP's bytes for the reserve; then, an iteration, t h bits from Receiver
and 16 t h bytes from Sender, which is what the table's last column says. Two flows more at the first begin, one of them
IKNP's; later nobody waits.

Adversary: semi-honest; LPN with regular noise and this code; spcot.py's assumption. Delta has 127 unknown bits, here
and for the hash of pads.py: half as many as elsewhere have to be tried. No branch or index depends on delta, rows, bits
or noise positions at either party.
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

from mpcd.kernels import ferret
from mpcd.kernels.aes import expand_key
from mpcd.kernels.bits import clear_tail, unpack_bits
from mpcd.protocol.channel import Channel
from mpcd.protocol.ot import extension, iknp, spcot
from mpcd.protocol.ot.extension import CHUNK, grown
from mpcd.protocol.ot.inbox import Expected, Inbox

Words = npt.NDArray[np.uint64]
Trees = spcot.SenderSeeds | spcot.ReceiverSeeds

_BIT_0 = np.array([1, 0], np.uint64)


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
        return _whole(self.dimension + self.points)

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
    first = sum(iknp.bytes_sent(n) for n in _first_chunks(parameters))
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
        """Step 3 for outputs from ``first`` on."""

    def key(self, purpose: bytes) -> Words:
        """Round keys, public, for one purpose in the next iteration."""
        digest = hashlib.sha256(self._seed + self.iteration.to_bytes(8, "little") + purpose).digest()
        round_keys: Words = expand_key(np.frombuffer(digest[:16], np.uint8))
        return round_keys


class SenderOutputs(Outputs):
    """``delta``: uint64 (2,), bit 0 set."""

    def __init__(self, session_key: bytes, direction: int, parameters: Parameters, delta: Words) -> None:
        super().__init__(session_key, direction, parameters)
        self._delta = delta

    async def _expand(self, channel: Channel, first: int, rows: Words, choices: Words) -> None:
        tree_keys, code_keys = self._keys
        trees = tree_keys, self.trees.roots, self._delta, self.parameters.depth
        await channel.compute(ferret.sender_rows, *trees, code_keys, self.table, first, rows)


class ReceiverOutputs(Outputs):
    async def _expand(self, channel: Channel, first: int, rows: Words, choices: Words) -> None:
        tree_keys, code_keys = self._keys
        trees = tree_keys, self.trees.points, self.trees.siblings
        await channel.compute(ferret.receiver_rows, *trees, code_keys, self.table, first, rows, choices)


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


class _End(Drawing):
    """The schedule, the same at both ends. ``seeds``: if set, rows are not made, only what they can be made from."""

    def __init__(self, outputs: Outputs, inbox: Inbox) -> None:
        super().__init__(outputs)
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
    async def _opened(self, channel: Channel) -> Trees:
        """The next iteration's trees."""

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
            await self._ask(channel)
            await self._answer(channel)
        trees = await self._opened(channel)
        await outputs.begin(channel, trees)
        if self.seeds is not None:
            if self.seeds.table is None:
                self.seeds.iteration, self.seeds.position = outputs.iteration - 1, outputs.position
                self.seeds.table = outputs.table
            self.seeds.trees.append(trees)
        self._answered = False
        await self._ask(channel)

    @property
    def _for_points(self) -> Words:
        """The COTs for the next iteration's single-point OTs."""
        p = self._parameters
        return self._outputs.reserve[p.dimension : p.dimension + p.points]


class Sender(_End):
    """Holds delta, uint64 (2,). Rows are valid until the next call: one buffer is reused.

    ``cot`` makes the first correlated OTs. Its delta is ours but for bit 0, which both sides overwrite.
    """

    def __init__(
        self, cot: extension.Sender, session_key: bytes, direction: int, parameters: Parameters, inbox: Inbox
    ) -> None:
        self.delta: Words = cot.delta | _BIT_0
        super().__init__(SenderOutputs(session_key, direction, parameters, self.delta), inbox)
        self._cot = cot
        self._choices: Expected[spcot.Choices]
        self._next_trees: spcot.Sender

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
        await channel.send(await channel.compute(self._next_trees.sums, self._for_points, choices))

    async def _opened(self, channel: Channel) -> Trees:
        return self._next_trees.seeds()


class Receiver(_End):
    """Rows are valid until the next call: one buffer is reused. ``cot`` makes the first correlated OTs."""

    runs_ahead = False

    def __init__(
        self, cot: extension.Receiver, session_key: bytes, direction: int, parameters: Parameters, inbox: Inbox
    ) -> None:
        super().__init__(ReceiverOutputs(session_key, direction, parameters), inbox)
        self._cot = cot
        self._sums: Expected[spcot.Sums]
        self._next_trees: spcot.Receiver

    async def extend(self, channel: Channel, n: int) -> tuple[Words, Words]:
        """(x, t), x as words with tail zero, t uint64 (n, 2), for 1 <= n <= CHUNK."""
        x = np.empty(_whole(n) // 64, np.uint64)
        t = await self._draw(channel, n, x)
        return clear_tail(x, n), t

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

    async def _opened(self, channel: Channel) -> Trees:
        self._next_trees.open(self._for_points, await self._inbox.open(channel, self._sums))
        return self._next_trees.seeds()


def _whole(n: int) -> int:
    """n in whole blocks of 64."""
    return -(-n // 64) * 64


def _first_chunks(parameters: Parameters) -> list[int]:
    """The lengths of the extensions that make the first reserve."""
    return [min(CHUNK, parameters.reserve - done) for done in range(0, parameters.reserve, CHUNK)]
