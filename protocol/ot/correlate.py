"""The offline phase's oblivious transfers: set up once, then make correlations as they are needed.

Direction A has P0 as the OT sender, direction B has P1. ``set_up`` runs the base OTs of both; every ``make`` extends
what it needs of either:

===========  =======================  =======================================
need         COTs in direction A, B   made by
===========  =======================  =======================================
LeafNeed     block * count, 0         ot/one_of_many.py, P0 the sender
AndNeed      count, count             bit_triples.py
StringNeed   count in the sender's    ot/random_ot.py
===========  =======================  =======================================

The extension is chosen at set-up, the same by both; all of them make the same correlations. Bytes are those of a COT,
from the direction's receiver to its sender, in whole blocks of 128 COTs in every chunk of at most 2^16
(``bytes_sent``); the work is at either end.

============  =====  ==========  ========================
extension     bytes  AES blocks  made by
============  =====  ==========  ========================
iknp          16     2 or 1      ot/iknp.py
softspoken2   7.875  2           ot/softspoken.py, k = 2
softspoken4   3.875  4           k = 4
softspoken8   1.875  32          k = 8
silent        0.172  3           ot/ferret.py, set "2^16"
silent17      0.092  5           set "2^17"
silent18      0.050  5           set "2^18"
silent19      0.027  5           set "2^19"
============  =====  ==========  ========================

The silent ones' bytes go mostly from the COT's sender, in blocks of 64 COTs, and not with the need that they are for:
``bytes_by_party`` is an average, ``total_by_party`` exact. The first COT of a direction costs 1.2 to 8.8 MB more.

``check`` finds out whether the peer followed the protocol since the last one (consistency.py, ferret.py): nothing made
is good before. ``check_by_party`` has its bytes; with the silent ones none but in headers.

Cost of set-up: ``set_up_bytes_sent`` each way, in 3 flows with SoftSpokenOT, else in 2. One flow a need; two for
AndNeed while it fits into ``bit_triples.RUN_AHEAD`` chunks; with the silent ones mostly none. Where the receiver only
sends, it is never made to wait.

An OtPair lives as long as its session and is never stored: a second use of its streams would repeat every pad (what
compact.py stores is one unit's stretch of them, and single-use like the unit). After
an exception it must be dropped, as the two ends may no longer agree.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

from mpcd.protocol import bit_triples
from mpcd.protocol.channel import DATA_OWNER, MODEL_OWNER, Channel
from mpcd.protocol.correlations import AndNeed, LeafNeed, Need, StringNeed
from mpcd.protocol.ot import base, consistency, ferret, ggm, iknp, one_of_many, pads, random_ot, softspoken
from mpcd.protocol.ot import extension as extensions
from mpcd.protocol.ot.inbox import Inbox

OtNeed = LeafNeed | AndNeed | StringNeed
Extension = Literal["iknp", "softspoken2", "softspoken4", "softspoken8", "silent", "silent17", "silent18", "silent19"]
EXTENSIONS: tuple[Extension, ...] = get_args(Extension)
_SILENT: Mapping[str, ferret.Parameters] = MappingProxyType(
    {
        "silent": ferret.SETS["2^16"],
        "silent17": ferret.SETS["2^17"],
        "silent18": ferret.SETS["2^18"],
        "silent19": ferret.SETS["2^19"],
    }
)


@dataclasses.dataclass(frozen=True, slots=True)
class OtPair:
    """One party's end of both directions."""

    sending: pads.SendingEnd
    receiving: pads.ReceivingEnd
    extension: Extension
    session_key: bytes
    inbox: Inbox

    async def make(self, channel: Channel, need: Need) -> Any:
        """This party's part of ``need``, of the type that correlations.py names for it. ValueError for a bad need.

        It must not be used, nor the channel for anything else, before ``check``.
        """
        match _checked(need):
            case LeafNeed(block, count, uses) if channel.party == MODEL_OWNER:
                return await one_of_many.send(channel, self.sending, block, count, uses)
            case LeafNeed(block, count, uses):
                return await one_of_many.receive(channel, self.receiving, block, count, uses)
            case AndNeed(count):
                return await bit_triples.make(channel, self.sending, self.receiving, count)
            case StringNeed(bits, count, sender) if channel.party == sender:
                return await random_ot.send(channel, self.sending, bits, count)
            case StringNeed(bits, count):
                return await random_ot.receive(channel, self.receiving, bits, count)

    async def check(self, channel: Channel) -> None:
        """All that was made since the last check may be used, or Deviation is raised: direction A first, then B."""
        ends: list[extensions.Sender | extensions.Receiver] = [self.sending.cot, self.receiving.cot]
        for end in ends if channel.party == MODEL_OWNER else ends[::-1]:
            await end.check(channel)
        await self.inbox.drain(channel)


async def set_up(channel: Channel, extension: Extension = "iknp") -> OtPair:
    """Base OTs both ways. Roles swap: the chooser of a base OT becomes the sender of the extension."""
    depth = _depth(extension)
    ots = await base.base_ots(channel)
    sending, receiving = (pads.HashKeys(ots.session_key, direction) for direction in (channel.party, 1 - channel.party))
    inbox = Inbox()
    named = extension, ots.session_key, inbox
    if depth > 1:
        all_leaves = await ggm.own(channel, ots.sender_keys, depth)
        leaves = await ggm.puncture(channel, ots.choices, ots.chosen_keys, depth)
        return OtPair(
            pads.SendingEnd(await channel.compute(softspoken.Sender, ots.choices, leaves, inbox), sending),
            pads.ReceivingEnd(await channel.compute(softspoken.Receiver, all_leaves, inbox), receiving),
            *named,
        )
    sender, receiver = iknp.Sender(ots.choices, ots.chosen_keys, inbox), iknp.Receiver(ots.sender_keys, inbox)
    if extension not in _SILENT:
        return OtPair(pads.SendingEnd(sender, sending), pads.ReceivingEnd(receiver, receiving), *named)
    common = _SILENT[extension], inbox
    silent_sender = ferret.Sender(sender, ots.session_key, channel.party, *common)
    silent_receiver = ferret.Receiver(receiver, ots.session_key, 1 - channel.party, *common)
    return OtPair(pads.SendingEnd(silent_sender, sending), pads.ReceivingEnd(silent_receiver, receiving), *named)


def set_up_bytes_sent(extension: Extension = "iknp") -> int:
    """Payload bytes that each party sends in ``set_up``."""
    depth = _depth(extension)
    return base.BYTES_SENT + (ggm.bytes_sent(depth) if depth > 1 else 0)


def _depth(extension: Extension) -> int:
    """SoftSpokenOT's k; 1 for the others, which begin with IKNP. ValueError for a name that is none of EXTENSIONS."""
    if extension not in EXTENSIONS:
        raise ValueError(f"{extension!r} is not an OT extension: {', '.join(EXTENSIONS)}")
    return int(extension.removeprefix("softspoken")) if extension.startswith("softspoken") else 1


def silent_parameters(extension: str) -> ferret.Parameters:
    """ValueError unless ``extension`` is one of the silent ones."""
    if extension not in _SILENT:
        raise ValueError(f"{extension!r} is not a silent extension: {', '.join(_SILENT)}")
    return _SILENT[extension]


def rows_by_direction(need: Need) -> tuple[int, int]:
    """A silent extension's rows that ``need`` takes in direction A and in direction B."""
    return _by_direction(need, ferret.rows_drawn)


def _checked(need: Need) -> OtNeed:
    """``need``, or ValueError unless oblivious transfers make it."""
    match need:
        case LeafNeed(block, count, uses) if 1 <= block <= 4 and count >= 0 and 1 <= uses <= 4:
            return need
        case AndNeed(count) if count >= 0:
            return need
        case StringNeed(bits, count, sender) if 1 <= bits <= 64 and count >= 0 and sender in (MODEL_OWNER, DATA_OWNER):
            return need
    raise ValueError(f"oblivious transfers do not make {need}")


def cots(need: Need) -> tuple[int, int]:
    """Correlated OTs that ``need`` takes in direction A and in direction B."""
    match _checked(need):
        case LeafNeed(block, count, _):
            return block * count, 0
        case StringNeed(_, count, sender):
            return (count, 0) if sender == MODEL_OWNER else (0, count)
        case AndNeed(count):
            return count, count


def _by_direction(need: Need, of_extension: Callable[[int], int]) -> tuple[int, int]:
    """``of_extension(n)`` over all extensions by n that ``need`` takes in direction A and in B."""
    match _checked(need):
        case LeafNeed(block, count, _):
            return pads.bytes_sent(count, block, of_extension), 0
        case StringNeed(_, count, sender):
            each = pads.bytes_sent(count, 1, of_extension)
            return (each, 0) if sender == MODEL_OWNER else (0, each)
        case AndNeed(count):
            each = pads.bytes_sent(count, 1, of_extension)
            return each, each


def bytes_by_party(need: Need, extension: Extension = "iknp") -> tuple[int, int]:
    """Payload bytes that P0 and P1 send for ``need``; with a silent extension their share of an iteration's."""
    depth = _depth(extension)
    if extension in _SILENT:
        p = _SILENT[extension]
        choices, sums = ferret.iteration_bytes_sent(p)
        a, b = rows_by_direction(need)
        return -(-(a * sums + b * choices) // p.fresh), -(-(a * choices + b * sums) // p.fresh)
    a, b = _by_direction(need, _cot_bytes(depth))
    return b, a  # direction A's receiver is P1


def check_by_party(needs: Iterable[Need], extension: Extension = "iknp") -> tuple[int, int]:
    """Payload bytes that P0 and P1 send for the check of ``needs``; none with a silent extension."""
    depth = _depth(extension)
    a, b = (any(drawn) for drawn in zip((0, 0), *(cots(need) for need in needs), strict=True))
    each = 0 if extension in _SILENT else consistency.bytes_sent(_cot_bytes(depth)(1))
    return each * b, each * a


def _cot_bytes(depth: int) -> Callable[[int], int]:
    return iknp.bytes_sent if depth == 1 else functools.partial(softspoken.bytes_sent, depth=depth)


def bytes_sent(need: Need, extension: Extension = "iknp") -> int:
    """Payload bytes that ``need`` takes, both directions together."""
    return sum(bytes_by_party(need, extension))


def total_by_party(needs: Iterable[Need], extension: Extension = "iknp") -> tuple[int, int]:
    """Payload bytes that P0 and P1 send for all ``needs`` of an OtPair and one check, without those of its set-up."""
    needs = list(needs)
    if extension not in _SILENT:
        each = [*(bytes_by_party(need, extension) for need in needs), check_by_party(needs, extension)]
        return sum(p0 for p0, _ in each), sum(p1 for _, p1 in each)
    drawn = [rows_by_direction(need) for need in needs]
    a_receiver, a_sender = ferret.bytes_sent(_SILENT[extension], sum(a for a, _ in drawn))
    b_receiver, b_sender = ferret.bytes_sent(_SILENT[extension], sum(b for _, b in drawn))
    return a_sender + b_receiver, a_receiver + b_sender
