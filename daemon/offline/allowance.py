"""Which offline work of a peer this daemon takes on: as the policy says, and what an approved session still lacks."""

from __future__ import annotations

import contextlib
from typing import Any

from mpcd.daemon.context import Context, aside
from mpcd.daemon.errors import NotFound, PeerError, ProtocolViolation, Refused
from mpcd.daemon.library import Model
from mpcd.daemon.network.rpc import UnknownMethod
from mpcd.daemon.offline.agreement import Agreement
from mpcd.daemon.offline.capacity import BATCH
from mpcd.daemon.sessions.admission import Admission
from mpcd.daemon.sessions.records import RUNNING, Session


class Allowance:
    """Both ends of ``offline.may``: asked before ids are drawn for a batch that would be refused."""

    def __init__(self, context: Context, agreement: Agreement) -> None:
        self._context = context
        self._agreement = agreement
        self._admission = Admission(context)
        self.handlers = {"offline.may": self._serve_may}

    async def ask(self, peer: str, model: Model, count: int, session: str | None) -> None:
        """Data owner: raise unless both sides would make such a batch now."""
        await aside(lambda: self._context.policy.open_for())
        try:
            await self._context.net.call(peer, "offline.may", {"model": model.name, "units": count, "session": session})
        except PeerError as error:
            if error.code != UnknownMethod.code:
                raise

    async def _serve_may(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        name, count, session = params.get("model"), params.get("units"), params.get("session")
        if not isinstance(name, str) or type(count) is not int or not 1 <= count <= BATCH:
            raise ProtocolViolation("offline.may is malformed")
        await self.check(peer, await aside(self._context.library.model, name), count, session)
        return {}

    async def check(self, peer: str, model: Model, count: int, session: object) -> Session | None:
        """Model owner: raise NotNow or Refused unless ``count`` more units may be made; for which session."""
        context = self._context
        policy = await aside(lambda: context.policy)
        policy.open_for()
        counts = (await aside(context.ledger.counts)).get(self._agreement.stock(peer, model), {})
        unused = counts.get("ready", 0) + counts.get("making", 0)
        found = await aside(self._running, peer, model, session)
        if found is not None:
            await aside(self._admission.check, found)
            lacking = found.terms.images - found.done
            if unused + count <= lacking + BATCH:
                return found
        policy.check_offline(peer)
        if unused + count > policy.max_units:
            raise Refused(
                f"{unused} units are ready or in the making for {model.name} and {count} more asked for;"
                f" the model owner's policy keeps {policy.max_units}",
                "use them first, or have the model owner raise [offline] max_units in its policy.toml",
            )
        return found

    def check_request(self, peer: str, images: int) -> None:
        """Data owner: raise Refused unless the model owner may have us make so many."""
        policy = self._context.policy
        policy.check_offline(peer)
        if images > policy.max_units:
            raise Refused(
                f"{images} units asked for, the data owner's policy keeps {policy.max_units}",
                "ask for fewer, or have the data owner raise [offline] max_units in its policy.toml",
            )

    def _running(self, peer: str, model: Model, id: object) -> Session | None:
        """The peer's session of this model that is approved and not over."""
        with contextlib.suppress(NotFound):
            found = self._context.records.get(id) if isinstance(id, str) else None
            if found and found.peer == peer and found.state in RUNNING:
                return found if found.terms.model_commitment == model.commitment else None
        return None
