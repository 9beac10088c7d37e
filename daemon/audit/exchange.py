"""Each party's log refers to the other's: of what both have an entry of, each tells the other which one it is.

``audit.references`` carries ``{entries: [{session, event, seq, hash}]}`` both ways, in the call and in its answer. The
one who wrote later calls; who could not be reached is called when it connects. What the peer told goes into the log
as ``peer.reference``. So neither party can rewrite its log up to there without contradicting the other's.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

from mpcd.daemon import log
from mpcd.daemon.audit import chain
from mpcd.daemon.audit.journal import Reference
from mpcd.daemon.context import Context, aside
from mpcd.daemon.errors import MpcdError, ProtocolViolation

METHOD = "audit.references"
MOST = 200  # entries in one call
PAUSE = 0.2  # seconds in which what else is written goes along

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SESSION = re.compile(r"[0-9a-f]{32}")

_log = log.get("audit")


class Exchange:
    """Both ends of ``audit.references``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self.handlers = {METHOD: self._serve}

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._context.audit.shared = self.soon

    async def stop(self) -> None:
        self._loop = None
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def soon(self, peer: str) -> None:
        """Tell this peer what it has not been told. From any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin, peer)

    def _begin(self, peer: str) -> None:
        if self._loop is None:
            return
        if peer in self._tasks:
            self._again.add(peer)
            return
        task = asyncio.create_task(self._tell(peer))
        self._tasks[peer] = task

        def gone(task: asyncio.Task[None]) -> None:
            del self._tasks[peer]
            if not task.cancelled() and task.exception() is not None:
                _log.error("references were not exchanged", peer=peer, exc_info=task.exception())

        task.add_done_callback(gone)

    async def _tell(self, peer: str) -> None:
        """Best effort: what does not get there now does when the peer connects."""
        context = self._context
        with contextlib.suppress(MpcdError):
            while True:
                await asyncio.sleep(PAUSE)
                self._again.discard(peer)
                if not context.net.connected(peer):
                    return
                ours = await aside(context.audit.journal.unmatched, peer, MOST)
                if ours:
                    answer = await context.net.call(peer, METHOD, {"entries": [_told(entry) for entry in ours]})
                    await aside(self._take, peer, _entries(answer))
                if peer not in self._again:
                    return

    async def _serve(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        theirs = _entries(params)
        return {"entries": await aside(self._take, peer, theirs)}

    def _take(self, peer: str, theirs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Write down what the peer told; our entries of the same events."""
        journal, ours = self._context.audit.journal, []
        for entry in theirs:
            found = journal.reference(entry["session"], entry["event"])
            if found is None or found.peer != peer:
                continue  # not yet, or none of its business
            journal.matched(found, entry["seq"], entry["hash"], self._context.audit.who(peer))
            ours.append(_told(found))
        return ours


def _told(entry: Reference) -> dict[str, Any]:
    return {"session": entry.session, "event": entry.event, "seq": entry.seq, "hash": entry.hash}


def _entries(message: dict[str, Any]) -> list[dict[str, Any]]:
    """A peer's list of its entries, checked."""
    given = message.get("entries")
    if not isinstance(given, list) or len(given) > MOST:
        raise ProtocolViolation("audit.references is malformed")
    for entry in given:
        match entry:
            case {"session": str(session), "event": str(event), "seq": int(seq), "hash": str(digest)}:
                if (
                    type(seq) is int
                    and 0 < seq < 1 << 53
                    and event in chain.SHARED
                    and _SESSION.fullmatch(session)
                    and _DIGEST.fullmatch(digest)
                ):
                    continue
        raise ProtocolViolation("audit.references is malformed")
    return given
