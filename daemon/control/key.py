"""``key.show``, ``key.rotate``, ``key.finish``: this daemon's key and its change (daemon/network/keys.py)."""

from __future__ import annotations

from typing import Any

from mpcd.daemon.context import Context, aside
from mpcd.daemon.control.jobs import Job
from mpcd.daemon.control.server import Method, Params
from mpcd.daemon.errors import BadInput
from mpcd.daemon.network.keys import DAY, KEEP_DAYS

MOST_DAYS = 365


class KeyMethods:
    """One method each."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.methods: dict[str, Method] = {
            "key.show": self._show,
            "key.rotate": self._rotate,
            "key.finish": self._finish,
        }

    def describe(self) -> dict[str, Any]:
        """As the control API has it (docs/control-api.md)."""
        keys = self._context.identity
        rotation = keys.rotation
        names = {peer.id: peer.name for peer in self._context.peers.list()}
        return {
            "mode": "ca" if keys.by_authority else "pinned",
            "fingerprint": keys.fingerprint,
            "expires": keys.expires,
            "rotation": rotation
            and {
                "previous": rotation.previous,
                "started": rotation.started,
                "until": rotation.until,
                "pending": sorted(names[peer] for peer in rotation.pending if peer in names),
            },
        }

    async def _show(self, params: Params, job: Job) -> dict[str, Any]:
        params.end()
        return {"key": self.describe()}

    async def _rotate(self, params: Params, job: Job) -> dict[str, Any]:
        days = params.optional_count("keep_days") or KEEP_DAYS
        params.end()
        if days > MOST_DAYS:
            raise BadInput(f"keep_days is {days}, must be 1 to {MOST_DAYS}")
        await self._context.net.rotate_key(days * DAY)
        await aside(self._context.audit.key)
        return {"key": self.describe()}

    async def _finish(self, params: Params, job: Job) -> dict[str, Any]:
        params.end()
        await self._context.net.finish_key()
        return {"key": self.describe()}
