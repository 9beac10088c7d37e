"""Both parties in one thread: the driver of tests and of cost estimates.

Runs the two coroutines in turn, moves frames between two queues, counts bytes and flows, hashes each direction, and
reports deadlock (both wait) and leftovers (a frame nobody read).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Coroutine
from typing import Any

from mpcd.protocol.channel import Compute, Recv, Send
from mpcd.protocol.wire import WireError


class Deadlock(RuntimeError):
    """Both parties wait for the other, or one waits for a party that has finished."""


@dataclasses.dataclass
class Traffic:
    """What one direction carried. A flow is a maximal run of messages without one in the other direction."""

    payload_bytes: int = 0
    header_bytes: int = 0
    messages: int = 0
    digest: Any = dataclasses.field(default_factory=hashlib.sha256)


@dataclasses.dataclass
class Run:
    """Results of P0 and P1, traffic from P0 and from P1, and the number of flows."""

    results: tuple[Any, Any]
    traffic: tuple[Traffic, Traffic]
    flows: int


def run(party0: Coroutine[Any, Any, Any], party1: Coroutine[Any, Any, Any]) -> Run:
    """Run both to the end. Raises what either raises; Deadlock; RuntimeError for frames left unread."""
    coroutines = (party0, party1)
    inbox: tuple[deque[tuple[bytes, bytes]], ...] = (deque(), deque())
    traffic = (Traffic(), Traffic())
    results: list[Any] = [None, None]
    waiting: list[Recv | None] = [None, None]
    running = [True, True]
    reply: list[Any] = [None, None]
    flows = 0
    last_sender = -1
    try:
        while any(running):
            progressed = False
            for me in (0, 1):
                while running[me]:
                    want = waiting[me]
                    if want is not None:
                        if not inbox[me]:
                            break
                        header, payload = inbox[me].popleft()
                        if len(payload) > want.limit:
                            raise WireError(f"payload of {len(payload)} bytes, at most {want.limit} expected")
                        reply[me], waiting[me] = (header, payload), None
                    progressed = True
                    try:
                        effect = coroutines[me].send(reply[me])
                    except StopIteration as stop:
                        results[me], running[me] = stop.value, False
                        break
                    reply[me] = None
                    if isinstance(effect, Send):
                        payload = b"".join(effect.frame.payload)
                        inbox[1 - me].append((effect.frame.header, payload))
                        count = traffic[me]
                        count.payload_bytes += len(payload)
                        count.header_bytes += len(effect.frame.header)
                        count.messages += 1
                        count.digest.update(effect.frame.header + payload)
                        flows += last_sender != me
                        last_sender = me
                    elif isinstance(effect, Recv):
                        waiting[me] = effect
                    elif isinstance(effect, Compute):
                        reply[me] = effect.function(*effect.args)
                    else:
                        raise TypeError(f"not an effect: {effect!r}")
            if not progressed:
                raise Deadlock(f"P0 {'waits' if running[0] else 'done'}, P1 {'waits' if running[1] else 'done'}")
    finally:
        for coroutine in coroutines:
            coroutine.close()
    if inbox[0] or inbox[1]:
        raise RuntimeError("frames were sent that nobody read")
    return Run((results[0], results[1]), traffic, flows)
