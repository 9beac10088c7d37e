"""Data owner: asking for a session, and what it will take."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

from mpcd.daemon import log
from mpcd.daemon.catalogue import Catalogue
from mpcd.daemon.context import Context, aside
from mpcd.daemon.errors import BadInput, Conflict, MpcdError, ProtocolViolation, Refused
from mpcd.daemon.image.dataset import Dataset
from mpcd.daemon.library import Model
from mpcd.daemon.network.greeting import printable
from mpcd.daemon.offline import capacity
from mpcd.daemon.offline.capacity import BATCH, JobEstimate
from mpcd.daemon.offline.making import Offline
from mpcd.daemon.sessions.admission import Admission
from mpcd.daemon.sessions.binding import Binding
from mpcd.daemon.sessions.news import News
from mpcd.daemon.sessions.policy import DAY, DEFAULT_EXPIRES, LONGEST, Cohort
from mpcd.daemon.sessions.records import DATA_OWNER_ROLE, FINAL, RUNNING, Session
from mpcd.daemon.sessions.terms import Terms

_log = log.get("sessions")


class Asking:
    """Calls ``session.propose``."""

    def __init__(
        self, context: Context, catalogue: Catalogue, offline: Offline, admission: Admission, news: News
    ) -> None:
        self._context = context
        self._news = news
        self._admission = admission
        self._catalogue = catalogue
        self._offline = offline

    async def start(
        self,
        peer: str,
        name: str,
        dataset_name: str,
        images: int | None,
        reveal: str,
        expires: int | None,
        estimate_only: bool,
    ) -> tuple[Session | None, JobEstimate]:
        """Propose a session that is over ``expires`` seconds from now; returns once the peer has it."""
        context = self._context
        policy = context.policy
        policy.check_usable()
        if reveal != "scores":
            raise BadInput(f"{reveal!r} cannot be revealed", "scores can")
        dataset = await aside(context.library.dataset, dataset_name)
        model = await self._catalogue.get(peer, name)
        dataset.check_recipe(model.recipe)
        images = len(dataset.entries) if images is None else images
        if not 1 <= images <= len(dataset.entries):
            raise BadInput(f"{images} images asked for, data set {dataset_name} has {len(dataset.entries)}")
        if not estimate_only:
            check_cohort(policy.cohort, dataset, images, model.network.findings)
        length = expires or policy.expires or DEFAULT_EXPIRES
        if length > (policy.expires or LONGEST):
            raise Refused(
                f"a session of {length // DAY} days is asked for, the policy of this side allows"
                f" {(policy.expires or LONGEST) // DAY}",
                "ask for less (--expires), or change expires in policy.toml",
            )
        estimate = await self.estimate(peer, model, images)
        if estimate_only:
            return None, estimate
        self.check_room(estimate)
        terms = Terms.of(
            model, images, reveal, dataset.commitment, context.net.protocol(peer), int(time.time()) + length
        )
        own = {
            "dataset": dataset_name,
            "findings": list(model.network.findings),
            "output_scale": model.network.output_scale,
        }
        id, known = os.urandom(16).hex(), context.peers.get(peer)
        session = await aside(context.records.add, id, DATA_OWNER_ROLE, peer, terms, own, "", known.id)
        try:
            session = await self.propose(session)
        except asyncio.CancelledError:
            await self._give_up(session, "cancelled", f"by the {session.role}")
            raise
        except MpcdError as error:
            await self._give_up(session, "failed", str(error))
            raise
        return session, estimate

    async def _give_up(self, session: Session, state: str, reason: str) -> None:
        """End a session that nothing here will run; the peer may have heard of it."""
        try:
            await self._news.end(session.id, state, reason)
        except Conflict:
            pass  # it has ended meanwhile
        except MpcdError as error:
            hint = f"run mpcctl session cancel {session.id[:12]}: otherwise it goes on at the daemon's next start"
            _log.error("a session that was given up cannot be ended", session=session.id, reason=error, hint=hint)

    async def propose(self, session: Session) -> Session:
        """Tell the peer, or ask it again; its decision so far goes into the record."""
        context = self._context
        answer = await context.net.call(
            session.peer,
            "session.propose",
            {"session": session.id, "terms": session.terms.as_dict(), "software": context.software},
        )
        await aside(context.records.set_peer_software, session.id, printable(answer.get("software"), 100))
        await self.take_approval(session.id, answer)
        state = answer.get("state")
        if state == "proposed":
            return context.records.get(session.id)
        if state in RUNNING:
            state = "approved"
        elif state not in FINAL or state == "done":
            raise ProtocolViolation(f"the peer calls a new session {str(state)[:20]!r}")
        return await aside(
            context.records.move,
            session.id,
            state,
            printable(answer.get("reason"), 500),
            printable(answer.get("approved_by"), 60),
        )

    async def take_approval(self, id: str, answer: dict[str, Any]) -> None:
        """What the model owner's approval binds, into our record; the first word counts. Raises Mismatch, Conflict."""
        session = self._context.records.get(id)
        if answer.get("approval") is None:
            return
        told = Binding.parse(answer["approval"], session.terms)
        if session.bound is None:
            self._admission.check_told(session, told)
        await aside(self._context.records.bind, id, told)

    async def estimate(self, peer: str, model: Model, images: int) -> JobEstimate:
        """As for offline.make, but a session makes a batch, uses it up, and makes the next: less disk."""
        whole = await self._offline.estimate(peer, model, images)
        if whole.missing <= BATCH:
            return whole
        batch = await self._offline.estimate(peer, model, BATCH, 0)
        return dataclasses.replace(whole, disk_bytes=batch.disk_bytes, peer_disk_bytes=batch.peer_disk_bytes)

    def check_room(self, estimate: JobEstimate) -> None:
        """Raises NotEnough."""
        limits = self._context.config.limits
        capacity.check_memory(estimate.memory_bytes, limits.memory_gib)
        if estimate.missing:
            capacity.check_disk(estimate.disk_bytes, self._context.store.free_bytes(), limits.disk_reserve_gib)


def check_cohort(least: Cohort, dataset: Dataset, images: int, findings: Sequence[str]) -> None:
    """Raise Refused where the report of these images would have to be withheld, or every finding of it."""
    if images < least.min_images:
        raise Refused(
            f"{images} images asked for, the policy of this side tells nothing of fewer than {least.min_images}",
            "take more images, or change [cohort] min_images in policy.toml",
        )
    labels = dataset.labels_for(list(findings))
    known = [[labels[entry.uid][finding] for entry in dataset.entries[:images]] for finding in findings]
    if findings and not any(
        values.count(True) >= least.min_positives and values.count(False) >= least.min_negatives for values in known
    ):
        raise Refused(
            f"no finding has {least.min_positives} images with it and {least.min_negatives} without it,"
            " which the policy of this side wants before anything of it is told",
            "take more images, or change [cohort] in policy.toml",
        )
