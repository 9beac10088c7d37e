"""A party whose frames are meddled with on their way out: below it the protocol is honest, above it the wire lies.

TLS keeps the network from doing this; a peer may, and no such frame may be taken for another.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import msgpack

from mpcd.protocol import lockstep
from mpcd.protocol.channel import Effect, Send
from mpcd.protocol.lockstep import Deadlock
from mpcd.protocol.wire import Frame, WireError

Change = Callable[[list[Frame], int, random.Random], list[Frame]]


def joined(frame: Frame) -> bytes:
    return b"".join(frame.payload)


def frame_of(header: bytes, payload: bytes) -> Frame:
    return Frame(header, (memoryview(payload),) if payload else ())


def flipped(data: bytes, rng: random.Random) -> bytes:
    """One bit changed; no bit where there are none."""
    if not data:
        return data
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


# Each gets all frames sent so far, the last of them to be changed, and gives what is sent in its place.


def dropped(sent: list[Frame], at: int, rng: random.Random) -> list[Frame]:
    return []


def duplicated(sent: list[Frame], at: int, rng: random.Random) -> list[Frame]:
    return [sent[at], sent[at]]


def replayed(sent: list[Frame], at: int, rng: random.Random) -> list[Frame]:
    """An earlier frame of this run in its place; there is none before the first, which is dropped."""
    return [sent[rng.randrange(at)]] if at else []


def inserted(sent: list[Frame], at: int, rng: random.Random) -> list[Frame]:
    """An earlier frame once more, before this one."""
    return [sent[rng.randrange(at + 1)], sent[at]] if at else [sent[at], sent[at]]


def truncated(sent: list[Frame], at: int, rng: random.Random) -> list[Frame]:
    """The payload cut, where there is one; else the header."""
    payload = joined(sent[at])
    if payload:
        return [frame_of(sent[at].header, payload[: rng.randrange(len(payload))])]
    return [frame_of(sent[at].header[: rng.randrange(1, len(sent[at].header))], b"")]


def lengthened(sent: list[Frame], at: int, rng: random.Random) -> list[Frame]:
    return [frame_of(sent[at].header, joined(sent[at]) + rng.randbytes(rng.choice([1, 8, 64])))]


def flipped_header(sent: list[Frame], at: int, rng: random.Random) -> list[Frame]:
    while True:
        header = flipped(sent[at].header, rng)
        if _form(header) != _form(sent[at].header):
            return [Frame(header, sent[at].payload)]


def _form(header: bytes) -> Any:
    """A header without the content of its blobs; a change there is one of content, as in a payload."""
    try:
        kind, number, arrays, blobs = msgpack.unpackb(header)
        return [kind, number, arrays, {name: len(blob) for name, blob in blobs.items()}]
    except Exception:
        return None


def renumbered(sent: list[Frame], at: int, rng: random.Random) -> list[Frame]:
    """The header of one frame over the payload of another."""
    return [frame_of(sent[rng.randrange(at)].header, joined(sent[at]))] if at else []


def flipped_payload(sent: list[Frame], at: int, rng: random.Random) -> list[Frame]:
    return [frame_of(sent[at].header, flipped(joined(sent[at]), rng))]


CHANGES: tuple[Change, ...] = (
    dropped, duplicated, replayed, inserted, truncated, lengthened, flipped_header, renumbered,
)  # fmt: skip


def meddled(
    party: Coroutine[Any, Any, Any], at: int, change: Change, rng: random.Random
) -> Generator[Effect, Any, Any]:
    """``party`` with frame ``at`` of those it sends changed."""
    sent: list[Frame] = []
    reply: Any = None
    try:
        while True:
            try:
                effect = party.send(reply)
            except StopIteration as stop:
                return stop.value
            if not isinstance(effect, Send):
                reply = yield effect
                continue
            reply = None
            sent.append(effect.frame)
            for frame in change(sent, at, rng) if len(sent) == at + 1 else [effect.frame]:
                yield Send(frame)
    finally:
        party.close()


def swapped(party: Coroutine[Any, Any, Any], at: int) -> Generator[Effect, Any, Any]:
    """``party`` with frames ``at`` and ``at + 1`` exchanged, if it sends the second before it has to read."""
    number, held, reply = -1, None, None
    try:
        while True:
            try:
                effect = party.send(reply)
            except StopIteration as stop:
                return stop.value
            reply = None
            if isinstance(effect, Send):
                number += 1
                if number == at:
                    held = effect
                    continue
                yield effect
                if held is not None:
                    yield held
                    held = None
            else:
                reply = yield effect
    finally:
        party.close()


def outcome(party0: Any, party1: Any) -> Any:
    """P1's result, or the name of the clean end that the run came to. Anything else is raised."""
    try:
        return lockstep.run(party0, party1).results[1]
    except WireError:
        return "refused"
    except Deadlock:
        return "waits"
    except RuntimeError as error:
        if "nobody read" not in str(error):
            raise
        return "left over"
