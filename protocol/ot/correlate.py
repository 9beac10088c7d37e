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

Cost: set-up ``base.BYTES_SENT`` each way in 2 flows; then 16 bytes a COT, whole blocks of 128 in every chunk of at most
2^16, from the direction's receiver to its sender (``bytes_sent``). One flow a need; two for AndNeed while it fits into
``bit_triples.RUN_AHEAD`` chunks. Where the receiver only sends, it is never made to wait.

An OtPair lives as long as its session and is never stored: a second use of its streams would repeat every pad. After
an exception it must be dropped, as the two ends may no longer agree.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mpcd.protocol import bit_triples
from mpcd.protocol.channel import DATA_OWNER, MODEL_OWNER, Channel
from mpcd.protocol.correlations import AndNeed, LeafNeed, Need, StringNeed
from mpcd.protocol.ot import base, iknp, one_of_many, pads, random_ot

OtNeed = LeafNeed | AndNeed | StringNeed


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


async def set_up(channel: Channel) -> OtPair:
    """Base OTs both ways. Roles swap: the chooser of a base OT becomes the sender of the extension."""
    ots = await base.base_ots(channel)
    return OtPair(
        pads.SendingEnd(iknp.Sender(ots.choices, ots.chosen_keys), pads.HashKeys(ots.session_key, channel.party)),
        pads.ReceivingEnd(iknp.Receiver(ots.sender_keys), pads.HashKeys(ots.session_key, 1 - channel.party)),
    )


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


def bytes_by_party(need: Need) -> tuple[int, int]:
    """Payload bytes that P0 and P1 send for ``need``."""
    match _checked(need):
        case LeafNeed(block, count):
            return 0, pads.bytes_sent(count, block)
        case StringNeed(_, count, sender):
            each = pads.bytes_sent(count)
            return (0, each) if sender == MODEL_OWNER else (each, 0)
        case AndNeed(count):
            each = pads.bytes_sent(count)
            return each, each


def bytes_sent(need: Need) -> int:
    """Payload bytes that ``need`` takes, both directions together."""
    return sum(bytes_by_party(need))
