"""The operator's side of one daemon: health, doctor, bundle, metrics and pulse, put together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from mpcd.daemon import log
from mpcd.daemon.context import Context, aside
from mpcd.daemon.control.jobs import Job
from mpcd.daemon.control.server import Method, Params
from mpcd.daemon.operations import bundle, checks
from mpcd.daemon.operations.asking import Asking
from mpcd.daemon.operations.checks import Check
from mpcd.daemon.operations.live import Live
from mpcd.daemon.operations.metrics import Metrics
from mpcd.daemon.operations.pulse import Pulse

Status = Callable[[], Awaitable[dict[str, Any]]]


class Operations:
    """Runs between ``start`` and ``stop``. ``status`` of the control API is given to ``methods``: the bundle has it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.pulse = Pulse(context.executor)
        self._asking = Asking(context)
        self._live = Live(context, self._asking, self.pulse)
        self._metrics = Metrics(context, self.pulse)
        self._unlisten: Callable[[], None] | None = None
        self.handlers = self._asking.handlers

    def methods(self, status: Status) -> dict[str, Method]:
        async def support_bundle(params: Params, job: Job) -> dict[str, Any]:
            params.end()
            found = await self._live.doctor(None)
            paths, config = self._context.paths, self._context.config
            return {"files": await aside(bundle.online, paths, config, found, await status(), log.last_lines())}

        return {"doctor": self._doctor, "support.bundle": support_bundle}

    async def start(self) -> None:
        self._unlisten = log.listen(self._context.meters.observe)
        self.pulse.start()
        self._metrics.start()

    async def stop(self) -> None:
        await aside(self._metrics.stop)
        await self.pulse.stop()
        if self._unlisten is not None:
            self._unlisten()

    async def health(self) -> list[Check]:
        """One line each."""
        return await self._live.health()

    async def _doctor(self, params: Params, job: Job) -> dict[str, Any]:
        peer = params.optional_text("peer")
        params.end()
        found = await self._live.doctor(peer)
        return {"checks": [check.as_dict() for check in found], "worst": checks.worst(found)}
