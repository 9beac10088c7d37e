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

============  =====  ==========  ======================
extension     bytes  AES blocks  made by
============  =====  ==========  ======================
iknp          16     2 or 1      ot/iknp.py
softspoken2   7.875  2           ot/softspoken.py, k = 2
softspoken4   3.875  4           k = 4
softspoken8   1.875  32          k = 8
============  =====  ==========  ======================

Cost of set-up: ``set_up_bytes_sent`` each way, in 2 flows with IKNP and 3 with the others. One flow a need; two for
AndNeed while it fits into ``bit_triples.RUN_AHEAD`` chunks. Where the receiver only sends, it is never made to wait.

An OtPair lives as long as its session and is never stored: a second use of its streams would repeat every pad. After
an exception it must be dropped, as the two ends may no longer agree.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

from mpcd.protocol import bit_triples
from mpcd.protocol.channel import DATA_OWNER, MODEL_OWNER, Channel
from mpcd.protocol.correlations import AndNeed, LeafNeed, Need, StringNeed
from mpcd.protocol.ot import base, ggm, iknp, one_of_many, pads, random_ot, softspoken

OtNeed = LeafNeed | AndNeed | StringNeed
Extension = Literal["iknp", "softspoken2", "softspoken4", "softspoken8"]
EXTENSIONS: tuple[Extension, ...] = get_args(Extension)


@dataclasses.dataclass(frozen=True, slots=True)
class OtPair:
    """One party's end of both directions."""

    sending: pads.SendingEnd
    receiving: pads.ReceivingEnd

    async def make(self, channel: Channel, need: Need) -> Any:
        """This party's part of ``need``, of the type that correlations.py names for it. ValueError for a bad need."""
        match _checked(need):
            case LeafNeed(block, count) if channel.party == MODEL_OWNER:
                return await one_of_many.send(channel, self.sending, block, count)
            case LeafNeed(block, count):
                return await one_of_many.receive(channel, self.receiving, block, count)
            case AndNeed(count):
                return await bit_triples.make(channel, self.sending, self.receiving, count)
            case StringNeed(bits, count, sender) if channel.party == sender:
                return await random_ot.send(channel, self.sending, bits, count)
            case StringNeed(bits, count):
                return await random_ot.receive(channel, self.receiving, bits, count)


async def set_up(channel: Channel, extension: Extension = "iknp") -> OtPair:
    """Base OTs both ways. Roles swap: the chooser of a base OT becomes the sender of the extension."""
    depth = _depth(extension)
    ots = await base.base_ots(channel)
    sending, receiving = (pads.HashKeys(ots.session_key, direction) for direction in (channel.party, 1 - channel.party))
    if depth == 1:
        sender, receiver = iknp.Sender(ots.choices, ots.chosen_keys), iknp.Receiver(ots.sender_keys)
        return OtPair(pads.SendingEnd(sender, sending), pads.ReceivingEnd(receiver, receiving))
    all_leaves = await ggm.own(channel, ots.sender_keys, depth)
    leaves = await ggm.puncture(channel, ots.choices, ots.chosen_keys, depth)
    return OtPair(
        pads.SendingEnd(await channel.compute(softspoken.Sender, ots.choices, leaves), sending),
        pads.ReceivingEnd(await channel.compute(softspoken.Receiver, all_leaves), receiving),
    )


def set_up_bytes_sent(extension: Extension = "iknp") -> int:
    """Payload bytes that each party sends in ``set_up``."""
    depth = _depth(extension)
    return base.BYTES_SENT + (ggm.bytes_sent(depth) if depth > 1 else 0)


def _depth(extension: Extension) -> int:
    """SoftSpokenOT's k; 1 for IKNP. ValueError for a name that is none of EXTENSIONS."""
    if extension not in EXTENSIONS:
        raise ValueError(f"{extension!r} is not an OT extension: {', '.join(EXTENSIONS)}")
    return 1 if extension == "iknp" else int(extension.removeprefix("softspoken"))


def _cot_bytes(extension: Extension) -> Callable[[int], int]:
    """The payload bytes of one extension as a function of its length."""
    depth = _depth(extension)
    return iknp.bytes_sent if depth == 1 else functools.partial(softspoken.bytes_sent, depth=depth)


def _checked(need: Need) -> OtNeed:
    """``need``, or ValueError unless oblivious transfers make it."""
    match need:
        case LeafNeed(block, count) if 1 <= block <= 4 and count >= 0:
            return need
        case AndNeed(count) if count >= 0:
            return need
        case StringNeed(bits, count, sender) if 1 <= bits <= 64 and count >= 0 and sender in (MODEL_OWNER, DATA_OWNER):
            return need
    raise ValueError(f"oblivious transfers do not make {need}")


def cots(need: Need) -> tuple[int, int]:
    """Correlated OTs that ``need`` takes in direction A and in direction B."""
    match _checked(need):
        case LeafNeed(block, count):
            return block * count, 0
        case StringNeed(_, count, sender):
            return (count, 0) if sender == MODEL_OWNER else (0, count)
        case AndNeed(count):
            return count, count


def bytes_by_party(need: Need, extension: Extension = "iknp") -> tuple[int, int]:
    """Payload bytes that P0 and P1 send for ``need``."""
    cot_bytes = _cot_bytes(extension)
    match _checked(need):
        case LeafNeed(block, count):
            return 0, pads.bytes_sent(count, block, cot_bytes)
        case StringNeed(_, count, sender):
            each = pads.bytes_sent(count, 1, cot_bytes)
            return (0, each) if sender == MODEL_OWNER else (each, 0)
        case AndNeed(count):
            each = pads.bytes_sent(count, 1, cot_bytes)
            return each, each


def bytes_sent(need: Need, extension: Extension = "iknp") -> int:
    """Payload bytes that ``need`` takes, both directions together."""
    return sum(bytes_by_party(need, extension))
