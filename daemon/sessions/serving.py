"""Model owner: what is asked of it is approved, and served image by image, never more than agreed."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import math
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcd.daemon import log
from mpcd.daemon.context import Context, aside
from mpcd.daemon.errors import Conflict, MpcdError, NotFound, ProtocolViolation, Refused
from mpcd.daemon.library import Model
from mpcd.daemon.network.partner import Partner, Stopped
from mpcd.daemon.offline import capacity
from mpcd.daemon.offline.agreement import Agreement
from mpcd.daemon.offline.capacity import BATCH
from mpcd.daemon.offline.ledger import LedgerError
from mpcd.daemon.sessions import flight
from mpcd.daemon.sessions.admission import Admission
from mpcd.daemon.sessions.flight import Flight
from mpcd.daemon.sessions.inference import infer, remove_spent
from mpcd.daemon.sessions.live import LiveSessions, settle
from mpcd.daemon.sessions.news import News
from mpcd.daemon.sessions.policy import DAY, LONGEST, Policy
from mpcd.daemon.sessions.records import MODEL_OWNER_ROLE, RUNNING, Session
from mpcd.daemon.sessions.terms import Proposal, Terms
from mpcd.protocol import preprocessing
from mpcd.protocol.channel import MODEL_OWNER
from mpcd.protocol.network import PrivateNumbers

MOST_PROPOSED = 20  # of one peer

_log = log.get("sessions")


class Busy(MpcdError):
    """This image is being served, or as many others as agreed."""

    code = "busy"
    exit_status = 6
    shared = True


@dataclasses.dataclass(slots=True)
class Served:
    """An image in flight."""

    session: str
    image: int
    task: asyncio.Task[None]


class Serving:
    """Answers ``session.propose``, ``session.begin`` and ``session.image``."""

    def __init__(
        self,
        context: Context,
        agreement: Agreement,
        partner: Partner,
        admission: Admission,
        live: LiveSessions,
        news: News,
    ) -> None:
        self._context = context
        self._admission = admission
        self._agreement = agreement
        self._partner = partner
        self._live = live
        self._news = news
        self._infer = functools.partial(infer, context, MODEL_OWNER)
        self.flying: dict[bytes, Served] = {}  # by the image's job
        self._approving = asyncio.Lock()  # between looking at what was asked so far and writing down what is granted
        self._numbers: tuple[str, PrivateNumbers] | None = None
        self._numbers_lock = asyncio.Lock()
        self.handlers = {
            "session.propose": self._serve_propose,
            "session.begin": self._serve_begin,
            "session.image": self._serve_image,
        }

    # Deciding

    async def approve(self, beginning: str, digest: str | None) -> Session:
        """Of what was shown with this ``digest``. Raises Conflict where it would bind something else by now."""
        async with self._approving:
            session = self._ours_to_decide(beginning)
            if session.state == "proposed":
                now = self._admission.bind(session).digest(session.terms)
                if digest not in (None, now):
                    raise Conflict(
                        f"the approval of session {session.id[:12]} would bind something else by now: {now}",
                        "look at it again with `mpcctl session show`",
                    )
                self._check_terms(session)
            session = await self._approve(session, "operator")
        self._news.tell(session.peer, [session])
        return session

    async def _approve(self, session: Session, by: str) -> Session:
        """First what it binds, then that it is given."""
        if session.state == "proposed":
            await aside(self._context.records.bind, session.id, self._admission.bind(session))
        return await aside(self._context.records.move, session.id, "approved", "", by)

    def _check_terms(self, session: Session) -> None:
        """Raise unless our policy lets this session be approved by anybody."""
        policy, terms = self._context.policy, session.terms
        policy.check_usable()
        self._admission.check_peer(session)
        check_terms(policy, terms)

    async def deny(self, beginning: str, reason: str) -> Session:
        found = self._ours_to_decide(beginning)
        return await self._news.end(found.id, "denied", reason or "the model owner said no", "operator")

    def _ours_to_decide(self, beginning: str) -> Session:
        session = self._context.records.find(beginning)
        if session.role != MODEL_OWNER_ROLE:
            raise Conflict(f"session {session.id[:12]} is ours", "the model owner approves or denies it")
        return session

    async def _serve_propose(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        context = self._context
        proposal = Proposal.parse(params)
        id, terms, known = proposal.id, proposal.terms, context.peers.get(peer)
        model = await aside(context.library.model, terms.model)
        terms.check_model(model)
        policy = await aside(lambda: context.policy)
        async with self._approving:
            try:
                session = context.records.get(id)
            except NotFound:
                check_terms(policy, terms)
                waiting = [s for s in await aside(context.records.open) if s.peer == peer and s.state == "proposed"]
                if len(waiting) >= MOST_PROPOSED:
                    raise Refused(
                        f"{len(waiting)} sessions of {peer} wait for approval already",
                        "cancel some, or have them decided",
                    ) from None
                session = await aside(
                    context.records.add, id, MODEL_OWNER_ROLE, peer, terms, {}, proposal.software, known.id
                )
                _log.info("session proposed", session=id, peer=peer, model=terms.model, images=terms.images)
            if session.peer != peer or session.role != MODEL_OWNER_ROLE or session.terms != terms:
                raise Refused("this session's id belongs to another session")
            if session.state == "proposed":
                await aside(context.records.set_peer_software, id, proposal.software)
                session = context.records.get(id)
                self._admission.check_peer(session)
                if not policy.mistake and await aside(self._by_a_rule, policy, session):
                    session = await self._approve(session, "policy")
                    _log.info("session approved by policy", session=id, peer=peer)
        return self._answer(session)

    def _by_a_rule(self, policy: Policy, session: Session) -> bool:
        terms = session.terms
        try:
            check_terms(policy, terms)  # the policy may have been another one when this was proposed
        except Refused:
            return False
        for rule in policy.rules:
            if rule.covers(session.peer, terms.model, terms.reveal, terms.images):
                since = 0.0 if rule.per is None else time.time() - rule.per
                asked = self._context.records.asked(
                    session.peer, session.peer_id, terms.model, terms.model_commitment, since
                )
                if rule.leaves_room(terms.images, asked):
                    return True
        return False

    # Beginning

    async def _serve_begin(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        """The handshake before work starts or goes on: both must still mean the same."""
        context = self._context
        proposal = Proposal.parse(params)
        id = proposal.id
        session = self._of(peer, id)
        session.terms.check_same(proposal.terms)
        left = None
        if not session.over:
            model = await aside(context.library.model, session.terms.model)
            session.terms.check_model(model)
            if session.state == "proposed":
                raise Refused(f"session {id[:12]} is not approved")
            await aside(context.records.set_peer_software, id, proposal.software)
            session = context.records.get(id)
            memory = (await aside(preprocessing.estimate, model.network, 1, BATCH)).memory_bytes
            capacity.check_memory(memory, context.config.limits.memory_gib)
            left = await self._may_go_on(session)
            self._live.of(id).granted = self._grant(id, model, params.get("in_flight"))
        return {**self._answer(session), "in_flight": self._live.granted(id), "seconds": left}

    async def _may_go_on(self, session: Session) -> int | None:
        """For how many seconds; None: without an end. Raises NotNow and what else Admission.check raises."""
        left = await aside(self._admission.check, session)
        return None if math.isinf(left) else int(left)

    def _grant(self, id: str, model: Model, wanted: object) -> int:
        """How many images of a session are served at the same time: what our limits and other sessions leave."""
        most = self._context.config.online.in_flight
        wanted = min(wanted, most if isinstance(most, int) else flight.MOST) if type(wanted) is int else 1
        others = {served.session for served in self.flying.values()} - {id}
        taken = sum(self._live.granted(other) for other in others)
        fitting = flight.fitting(max(1, wanted) + taken, model.network, self._context.config.limits)
        return max(1, min(wanted, fitting - taken))

    # Images

    async def _serve_image(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        context = self._context
        number, unit, unit_job = params.get("image"), params.get("unit"), params.get("job")
        if (
            not isinstance(number, int)
            or not isinstance(unit, bytes)
            or not isinstance(unit_job, bytes)
            or len(unit_job) != 16
        ):
            raise ProtocolViolation("session.image is malformed")
        session = self._of(peer, str(params.get("session")))
        if session.state not in RUNNING or not 0 <= number < session.terms.images:
            raise Refused(f"session {session.id[:12]} is {session.state}: image {number} is not served")
        if session.attempts >= 2 * session.terms.images + 20:
            raise Refused(
                f"session {session.id[:12]} has taken {session.attempts} attempts for {session.terms.images} images",
                "start a new session",
            )
        await self._may_go_on(session)
        await aside(context.records.check_reveal, session.id, number)
        self._live.check_draining()
        model = await aside(context.library.model, session.terms.model)
        session.terms.check_model(model)
        if unit not in await aside(context.ledger.ready_units, self._agreement.stock(peer, model)):
            raise LedgerError(peer_text="this unit is not ready at the model owner")
        beside = params.get("beside", [])
        await self._make_place(session.id, number, unit_job, beside if isinstance(beside, list) else [])
        if unit_job in self.flying:
            raise ProtocolViolation("session.image names a job that is at work already")
        spent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._serve(session, model, number, unit, unit_job, spent))
        self.flying[unit_job] = Served(session.id, number, task)
        self._live.attach(session.id, task)

        def gone(task: asyncio.Task[None]) -> None:
            del self.flying[unit_job]
            if not task.cancelled() and (error := task.exception()) is not None:
                known = isinstance(error, MpcdError)
                _log.warning("image failed", session=session.id, reason=error, exc_info=None if known else error)

        task.add_done_callback(gone)
        await asyncio.wait([task, spent], return_when=asyncio.FIRST_COMPLETED)
        if not spent.done():
            if task.cancelled():
                raise Stopped()
            task.result()
        return {}

    async def _make_place(self, id: str, number: int, unit_job: bytes, beside: list[object]) -> None:
        """Stop serving what the data owner no longer counts on: about to end, or its link broke, which it knew first.

        When this returns, and until the next ``await``, there is room for this image.
        """
        served = {job: served for job, served in self.flying.items() if served.session == id}
        await settle([given_up.task for job, given_up in served.items() if job not in beside])
        served = {job: served for job, served in self.flying.items() if served.session == id}
        if unit_job in self.flying or any(other.image == number for other in served.values()):
            raise Busy(f"image {number} of session {id[:12]} is being served")
        if len(served) >= self._live.granted(id):
            raise Busy(f"{len(served)} images of session {id[:12]} are being served, as many as agreed")

    async def _serve(
        self,
        session: Session,
        model: Model,
        number: int,
        unit: bytes,
        unit_job: bytes,
        spent: asyncio.Future[None],
    ) -> None:
        """One image. ``spent`` is set when the unit is."""
        context, id, live = self._context, session.id, self._live.of(session.id)
        ours = live.flight = live.flight or Flight(live.job, session.done, session.terms.images)

        def progress(at: int, of: int) -> None:
            ours.progress(unit_job, at, of)

        async def keep(_: npt.NDArray[np.int64] | None) -> None:
            await aside(context.records.image_done, id, number, None)

        async def before_reveal() -> None:
            await aside(context.records.reveal, id, number)

        first = number not in await aside(context.records.results, id)
        ours.begin(unit_job)
        context.jobs.running.add(live.job)
        try:
            await aside(context.records.move, id, "online")
            await aside(context.records.attempt, id)
            try:
                proof = await aside(context.ledger.spend, unit, id, number)
                reader = await aside(context.store.open, proof, MODEL_OWNER)
            finally:
                await aside(remove_spent, context, unit)
            spent.set_result(None)
            context.expansion.ahead(self._agreement.stock(session.peer, model), MODEL_OWNER)
            try:
                numbers = await self._numbers_of(model)
                half = self._infer(
                    session.peer,
                    unit_job,
                    model.network,
                    numbers,
                    reader,
                    None,
                    live.job,
                    progress,
                    keep,
                    before_reveal,
                )
                moved = await self._partner.run(session.peer, unit_job, half)
            finally:
                reader.close()
            seconds = ours.landed(unit_job, first)
            await aside(context.records.spent_time, id, "online", seconds, moved)
            context.meters.image_seconds.observe(seconds)
        finally:
            ours.lost(unit_job)
            if not ours.jobs:
                context.jobs.running.discard(live.job)

    async def _numbers_of(self, model: Model) -> PrivateNumbers:
        async with self._numbers_lock:
            if self._numbers is None or self._numbers[0] != model.commitment:
                self._numbers = (model.commitment, await aside(self._context.library.numbers, model.name))
            return self._numbers[1]

    def _of(self, peer: str, id: str) -> Session:
        session = self._context.records.get(id)
        if session.peer != peer or session.role != MODEL_OWNER_ROLE:
            raise NotFound(f"there is no session {id}")
        return session

    def _answer(self, session: Session) -> dict[str, Any]:
        return {
            "approval": None if session.bound is None else session.bound.told(session.terms),
            "state": session.state,
            "reason": self._news.reason_told(session),
            "approved_by": session.approved_by,
            "software": self._context.software,
        }


def check_terms(policy: Policy, terms: Terms) -> None:
    """Raise Refused unless the model owner may approve such a session at all, asked or not."""
    if terms.reveal != "scores" or terms.images < 1:
        raise Refused("a session reveals scores, of one image or more")
    if terms.images < policy.cohort.min_images:
        raise Refused(
            f"{terms.images} images asked for, the model owner's policy serves no session of fewer than"
            f" {policy.cohort.min_images}",
            "take more images",
        )
    longest, remaining = policy.expires or LONGEST, terms.expires - time.time()
    if remaining <= 0:
        raise Refused("by the model owner's clock the session has expired", "see that both clocks are right")
    if remaining > longest + DAY:  # clocks differ
        raise Refused(
            f"a session that expires in {remaining / DAY:.0f} days is asked for, the model owner's policy allows"
            f" {longest / DAY:.0f}",
            "ask for less, with --expires",
        )
