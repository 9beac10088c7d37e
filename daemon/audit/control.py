"""What mpcctl asks about the audit log (docs/control-api.md)."""

from __future__ import annotations

from typing import Any

from mpcd.daemon.audit import journal
from mpcd.daemon.context import Context, aside
from mpcd.daemon.control.jobs import Job
from mpcd.daemon.control.server import Method, Params

CHUNK = 1024 * 1024


class AuditMethods:
    """``audit.*``. A verification reads the whole log: in a thread, beside what goes on."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.methods: dict[str, Method] = {"audit.verify": self._verify, "audit.read": self._read}

    async def verify(self) -> dict[str, Any]:
        """The result of ``audit.verify``."""
        log = self._context.audit.journal
        verdict, place = await aside(log.verify)
        matched, waiting = await aside(log.count_references)
        bad = verdict.bad
        return {
            "ok": bad is None,
            "entries": verdict.entries,
            "segments": len(journal.segments(log.folder)),
            "head": None if verdict.last is None else {"seq": verdict.last.seq, "hash": verdict.last.hash},
            "bad": None if bad is None else {"line": bad.line, "where": place, "problem": bad.problem},
            "references": {"matched": matched, "waiting": waiting},
            "folder": str(log.folder),
        }

    async def _verify(self, params: Params, job: Job) -> dict[str, Any]:
        params.end()
        return await self.verify()

    async def _read(self, params: Params, job: Job) -> dict[str, Any]:
        """The log's bytes from a position on."""
        position = params.position("position")
        params.end()
        log = self._context.audit.journal
        size = await aside(log.size)
        end = min(size, position + CHUNK)
        data = await aside(lambda: b"".join(log.read(position, end)))
        return {"data": data, "next": end if end < size else None, "size": size}
