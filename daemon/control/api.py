"""The methods of the control API: what mpcctl can ask for. Their contract is docs/control-api.md."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from mpcd.daemon import worker
from mpcd.daemon.audit.control import AuditMethods
from mpcd.daemon.catalogue import Catalogue
from mpcd.daemon.context import Context, aside
from mpcd.daemon.control.commitment import CommitmentMethods
from mpcd.daemon.control.jobs import Job
from mpcd.daemon.control.key import KeyMethods
from mpcd.daemon.control.server import Method, Params
from mpcd.daemon.errors import BadInput, Conflict, NotFound, Refused
from mpcd.daemon.library import Model
from mpcd.daemon.network.identity import Invite
from mpcd.daemon.network.peers import Peer
from mpcd.daemon.offline import capacity
from mpcd.daemon.offline.making import Offline
from mpcd.daemon.operations.checks import OK
from mpcd.daemon.operations.operations import Operations
from mpcd.daemon.report import report
from mpcd.daemon.sessions.policy import LONGEST
from mpcd.daemon.sessions.records import DATA_OWNER_ROLE, MODEL_OWNER_ROLE, Session
from mpcd.daemon.sessions.sessions import Sessions
from mpcd.daemon.version import PROTOCOL_VERSION, software_version
from mpcd.protocol import matrix_triple, preprocessing
from mpcd.protocol.channel import DATA_OWNER, MODEL_OWNER

Result = dict[str, Any]


class Api:
    """One method each; ``methods`` maps their names."""

    def __init__(
        self,
        context: Context,
        catalogue: Catalogue,
        offline: Offline,
        sessions: Sessions,
        operations: Operations,
    ) -> None:
        self._context = context
        self._catalogue = catalogue
        self._offline = offline
        self._sessions = sessions
        self._operations = operations
        self._key = KeyMethods(context)
        self._commitment = CommitmentMethods(context)
        self._started = time.time()
        self.methods: dict[str, Method] = {
            "status": self._status,
            "id": self._id,
            "peer.add": self._peer_add,
            "peer.list": self._peer_list,
            "peer.remove": self._peer_remove,
            "peer.measure": self._peer_measure,
            "model.add": self._model_add,
            "model.list": self._model_list,
            "model.show": self._model_show,
            "model.remove": self._model_remove,
            "model.evaluate": self._model_evaluate,
            "dataset.add": self._dataset_add,
            "dataset.list": self._dataset_list,
            "dataset.show": self._dataset_show,
            "dataset.remove": self._dataset_remove,
            "offline.make": self._offline_make,
            "offline.status": self._offline_status,
            "session.start": self._session_start,
            "session.list": self._session_list,
            "session.show": self._session_show,
            "session.watch": self._session_watch,
            "session.cancel": self._session_cancel,
            "session.approve": self._session_approve,
            "session.deny": self._session_deny,
            "report": self._report,
            **self._key.methods,
            **self._commitment.methods,
            **operations.methods(self.status),
            **AuditMethods(context).methods,
        }

    # The daemon

    async def _status(self, params: Params, job: Job) -> Result:
        params.end()
        return await self.status()

    async def status(self) -> Result:
        """What the daemon is doing, what it has, and how it is."""
        context = self._context
        # At once: each of them waits for a thread, and all of them for whatever computes.
        health, sessions, disk_free, stocks = await asyncio.gather(
            self._operations.health(), self._open_sessions(), aside(context.store.free_bytes), self._stocks(None, None)
        )
        return {
            "version": software_version(),
            "protocol_version": PROTOCOL_VERSION,
            "software": context.software,
            "name": context.config.name,
            "fingerprint": context.identity.fingerprint,
            "key": self._key.describe(),
            "listen": f"{context.config.listen.host}:{context.net.port}" if context.net.port else None,
            "state_dir": str(context.paths.state),
            "started": self._started,
            "threads": context.threads,
            "memory_available_bytes": psutil.virtual_memory().available,
            "disk_free_bytes": disk_free,
            "kernels": context.kernels.describe(),
            "peers": [self._peer(peer) for peer in context.peers.list()],
            "units": stocks,
            "sessions": sessions,
            "jobs": self._jobs(),
            "health": [check.as_dict() for check in health],
            "warnings": [check.text for check in health if check.level != OK],
        }

    async def _open_sessions(self) -> list[Result]:
        return await self._sessions.describe(await aside(self._context.records.open))

    async def _id(self, params: Params, job: Job) -> Result:
        params.end()
        context = self._context
        invite: Invite = context.identity.invite(context.config.name, context.config.advertise)
        return {
            "name": context.config.name,
            "fingerprint": context.identity.fingerprint,
            "address": context.config.advertise or None,
            "invite": str(invite),
            "key": self._key.describe(),
        }

    # Peers

    def _peer(self, peer: Peer) -> Result:
        status = self._context.net.status(peer.name)
        return {
            "name": peer.name,
            "fingerprint": peer.fingerprint,
            "known_by": peer.known_by,
            "ca_name": peer.ca_name or None,
            "expires": status.expires,
            "knows_key": self._context.identity.known_to(peer.id),
            "address": peer.address or None,
            "added": peer.added,
            "connected": status.connected,
            "error": status.error,
            "hint": status.hint,
            "attempts": status.attempts,
            "retry": status.retry or None,
        }

    async def _peer_add(self, params: Params, job: Job) -> Result:
        invite, name, address = params.text("invite"), params.optional_text("name"), params.optional_text("address")
        params.end()
        parsed = Invite.parse(invite)
        self._context.net.dialler.check_invite(parsed)
        return {"peer": self._peer(await aside(self._context.peers.add, parsed, name, address))}

    async def _peer_list(self, params: Params, job: Job) -> Result:
        params.end()
        return {"peers": [self._peer(peer) for peer in self._context.peers.list()]}

    async def _peer_remove(self, params: Params, job: Job) -> Result:
        name = params.text("name")
        params.end()
        await self._unused("peer", lambda session: session.peer == name)
        peer = self._peer(self._context.peers.get(name))
        await aside(self._context.peers.remove, name)
        return {"peer": {**peer, "connected": False}}

    async def _peer_measure(self, params: Params, job: Job) -> Result:
        name = params.text("name")
        params.end()
        self._context.peers.get(name)
        speed, received = await self._offline.link_speed.both_ways(name)
        return {
            "peer": name,
            "sent_bytes_per_second": speed.bytes_per_second,
            "received_bytes_per_second": received,
            "round_trip_seconds": speed.round_trip,
            "extension": await self._offline.link_speed.extension(name),
        }

    async def _unused(self, what: str, uses: Callable[[Session], bool]) -> None:
        using = [s for s in await aside(self._context.records.open) if uses(s)]
        if using:
            raise Conflict(
                f"session {using[0].id[:12]} still needs this {what}", f"mpcctl session cancel {using[0].id[:12]}"
            )

    # Models

    async def _model_add(self, params: Params, job: Job) -> Result:
        name = params.text("name")
        task: dict[str, Any] = {"task": "compile", "name": name}
        task["path"] = str(params.path("path"))
        task["arch"] = params.optional_text("arch")
        task["recipe"] = params.text("recipe")
        task["calibrate"] = str(params.path("calibrate"))
        labels = params.optional_path("labels")
        task["labels"] = None if labels is None else str(labels)
        task["findings"] = params.optional_texts("findings")
        params.end()
        library = self._context.library
        library.free_model_name(name)
        with library.scratch() as scratch:
            task["out"] = str(scratch)
            made = await worker.run(task, job, self._context.threads)
            model = await aside(self._add_model, name, scratch)
        return {"model": model.describe(), "report": made}

    def _add_model(self, name: str, scratch: Path) -> Model:
        model = self._context.library.add_model(name, scratch)
        self._audit_model("added", model)
        return model

    async def _model_list(self, params: Params, job: Job) -> Result:
        peer = params.optional_text("peer")
        params.end()
        models = await aside(self._context.library.models) if peer is None else await self._catalogue.list(peer)
        return {"models": [model.describe() for model in models]}

    async def _model_show(self, params: Params, job: Job) -> Result:
        name, peer = params.text("name"), params.optional_text("peer")
        params.end()
        library = self._context.library
        if peer is not None:
            model, shown = await self._catalogue.get(peer, name), None
        else:
            model = await aside(library.model, name)
            shown = await aside(library.report, name)
        party = MODEL_OWNER if peer is None else DATA_OWNER
        return {
            "model": model.describe(),
            "recipe": model.recipe.to_toml(),
            "report": shown,
            "estimate": await aside(_one_image, model, party),
        }

    async def _model_remove(self, params: Params, job: Job) -> Result:
        name = params.text("name")
        params.end()
        context = self._context
        model = await aside(context.library.model, name)
        await self._unused(
            "model", lambda s: s.role == MODEL_OWNER_ROLE and s.terms.model_commitment == model.commitment
        )
        await aside(self._burn_and_remove, model)
        return {"model": model.describe()}

    def _burn_and_remove(self, model: Model) -> None:
        """The model last: while it is there, what failed half way can be asked for again."""
        context = self._context
        for stock in context.ledger.counts():
            if stock.model == model.commitment:
                units = context.ledger.ready_units(stock)
                context.store.remove(context.ledger.burn(units, "the model was removed"))
        self._audit_model("removed", model)
        context.library.remove_model(model.name)

    def _audit_model(self, what: str, model: Model) -> None:
        self._context.audit.model(what, model.commitment, model.network.digest, model.recipe.digest)

    async def _model_evaluate(self, params: Params, job: Job) -> Result:
        name, path, labels = params.text("name"), params.path("dataset_path"), params.optional_path("labels")
        params.end()
        folder = self._context.library.model_folder(name)
        task = {
            "task": "evaluate",
            "model": str(folder),
            "path": str(path),
            "labels": None if labels is None else str(labels),
        }
        return {"evaluation": await worker.run(task, job, self._context.threads)}

    # Data sets

    async def _dataset_add(self, params: Params, job: Job) -> Result:
        name, path, labels = params.text("name"), params.path("path"), params.path("labels")
        params.end()
        library = self._context.library
        library.free_dataset_name(name)
        with library.scratch() as scratch:
            index = scratch / "index.json"
            task = {"task": "scan", "path": str(path), "labels": str(labels), "out": str(index)}
            await worker.run(task, job, self._context.threads)
            await aside(self._add_dataset, name, index)
        return {"dataset": await aside(library.describe_dataset, name)}

    def _add_dataset(self, name: str, index: Path) -> None:
        self._context.library.add_dataset(name, index)
        self._audit_dataset("added", name)

    async def _dataset_list(self, params: Params, job: Job) -> Result:
        params.end()
        library = self._context.library
        return {"datasets": [await aside(library.describe_dataset, name) for name in library.datasets()]}

    async def _dataset_show(self, params: Params, job: Job) -> Result:
        name = params.text("name")
        params.end()
        library = self._context.library
        dataset = await aside(library.dataset, name)
        return {
            "dataset": await aside(library.describe_dataset, name),
            "skipped_files": [{"file": s.path, "reason": f"{s.reason}: {s.detail}"} for s in dataset.skipped],
        }

    async def _dataset_remove(self, params: Params, job: Job) -> Result:
        name = params.text("name")
        params.end()
        library = self._context.library
        described = await aside(library.describe_dataset, name)
        await self._unused("data set", lambda s: s.role == DATA_OWNER_ROLE and s.own.get("dataset") == name)
        await aside(self._remove_dataset, name)
        return {"dataset": described}

    def _remove_dataset(self, name: str) -> None:
        self._audit_dataset("removed", name)
        self._context.library.remove_dataset(name)

    def _audit_dataset(self, what: str, name: str) -> None:
        dataset = self._context.library.dataset(name)
        self._context.audit.dataset(what, dataset.commitment, len(dataset.entries))

    # Offline

    async def _offline_make(self, params: Params, job: Job) -> Result:
        peer, name, images = params.text("peer"), params.text("model"), params.count("images")
        estimate_only, store = params.flag("estimate_only"), params.optional_text("store")
        job.idle = params.flag("idle")
        params.end()
        if store not in (None, "expanded", "compact"):
            raise BadInput(f"units cannot be kept {store!r}", "expanded or compact")
        context = self._context
        context.peers.get(peer)
        if context.library.has_model(name):
            if store is not None:
                raise BadInput("the data owner's daemon drives and has its own setting", "set [offline] store here")
            model = await aside(context.library.model, name)
            return await self._offline.ask(peer, model, images, estimate_only, job)
        model = await self._catalogue.get(peer, name)
        if estimate_only:
            return {"estimate": dataclasses.asdict(await self._offline.estimate(peer, model, images, None, store))}
        job.peer, job.model = peer, name
        context.jobs.running.add(job)
        try:
            return await self._offline.make(peer, model, images, job, None, store)
        finally:
            context.jobs.running.discard(job)

    async def _offline_status(self, params: Params, job: Job) -> Result:
        peer, model = params.optional_text("peer"), params.optional_text("model")
        params.end()
        return {
            "units": await self._stocks(peer, model),
            "jobs": self._jobs(),
            "reuse_count": await aside(self._context.ledger.reuse_count),
        }

    async def _stocks(self, peer: str | None, model: str | None) -> list[Result]:
        """What the ledger has, by names where they are known."""
        context = self._context
        peers = {p.id: p.name for p in context.peers.list()}
        ours, asked, stocks = await asyncio.gather(
            aside(context.library.names), aside(context.records.models), aside(context.ledger.counts)
        )
        models = ours | asked | self._catalogue.names
        found = []
        for stock, counts in stocks.items():
            entry = {
                "peer": peers.get(stock.peer, stock.peer[:16]),
                "model": models.get(stock.model, stock.model[:16]),
                "commitment": stock.model,
                "ready": counts["ready"],
                "making": counts["making"],
                "spent": counts["spent"],
                "burnt": counts["burnt"],
                "disk_bytes": counts["bytes"],
            }
            if peer in (None, entry["peer"]) and model in (None, entry["model"]):
                found.append(entry)
        return found

    def _jobs(self) -> list[Result]:
        return [
            {**dataclasses.asdict(job.progress), "peer": job.peer, "model": job.model}
            for job in self._context.jobs.running
        ]

    # Sessions

    async def _session_start(self, params: Params, job: Job) -> Result:
        peer, model, dataset = params.text("peer"), params.text("model"), params.text("dataset")
        images, reveal = params.optional_count("images"), params.optional_text("reveal") or "scores"
        expires = params.optional_count("expires_seconds", LONGEST)
        estimate_only = params.flag("estimate_only")
        params.end()
        session, estimate = await self._sessions.start(peer, model, dataset, images, reveal, expires, estimate_only)
        result: Result = {"estimate": dataclasses.asdict(estimate)}
        if session is not None:
            result |= await self._shown(session)
        return result

    async def _session_list(self, params: Params, job: Job) -> Result:
        everything = params.flag("all", True)
        params.end()
        sessions = await aside(self._context.records.all if everything else self._context.records.open)
        return {"sessions": await self._sessions.describe(sessions)}

    async def _session_show(self, params: Params, job: Job) -> Result:
        return await self._shown(await aside(self._context.records.find, _session_id(params)))

    async def _session_watch(self, params: Params, job: Job) -> Result:
        session = await aside(self._context.records.find, _session_id(params))
        if not session.over:
            with self._sessions.job(session.id).watched() as progress:
                async for item in progress:
                    job.relay(item)
        return await self._shown(await aside(self._context.records.get, session.id))

    async def _session_cancel(self, params: Params, job: Job) -> Result:
        return await self._shown(await self._sessions.cancel(_session_id(params)))

    async def _session_approve(self, params: Params, job: Job) -> Result:
        digest = params.optional_text("approval")
        return await self._shown(await self._sessions.approve(_session_id(params), digest))

    async def _session_deny(self, params: Params, job: Job) -> Result:
        reason = params.optional_text("reason") or ""
        return await self._shown(await self._sessions.deny(_session_id(params), reason))

    async def _shown(self, session: Session) -> Result:
        (described,) = await self._sessions.describe([session])
        return {"session": described}

    # Report

    async def _report(self, params: Params, job: Job) -> Result:
        clear = params.optional_path("clear")
        session = await aside(self._context.records.find, _session_id(params))
        described = await self._shown(session)
        return {"report": await aside(self._build_report, session, described["session"], clear)}

    def _build_report(self, session: Session, described: Result, clear: Path | None) -> Result:
        context, terms = self._context, session.terms
        if session.role != DATA_OWNER_ROLE:
            raise Conflict(
                f"the scores of session {session.id[:12]} are {session.peer}'s", "the data owner has the report"
            )
        results = context.records.results(session.id)
        if not results:
            raise Conflict(f"session {session.id[:12]} is {session.state} and has no results yet")
        least = context.policy.cohort_told()
        if len(results) < least.min_images:
            raise Refused(
                f"{len(results)} images are done, the policy of this side tells nothing of fewer than"
                f" {least.min_images}",
                "[cohort] min_images in policy.toml",
            )
        dataset = context.library.dataset(session.own["dataset"])
        if dataset.commitment != terms.dataset_commitment:
            raise Conflict(
                f"data set {session.own['dataset']!r} is not the one of session {session.id[:12]} any more",
                "it was removed and another added under its name; add the old one again where it was",
            )
        findings = list(session.own["findings"])
        # Of the units that the session used up, also of those made in the night before.
        seconds, moved = context.ledger.cost(session.id)
        return report.build(
            session=described,
            findings=findings,
            secure={dataset.entries[number].uid: logits or [] for number, logits in results.items()},
            output_scale=session.own["output_scale"],
            labels=dataset.labels_for(findings),
            least=(least.min_positives, least.min_negatives),
            clear=None if clear is None else _evaluation(clear),
            phases={
                "offline": {"seconds": seconds, "bytes": moved},
                "online": {"seconds": session.online_seconds, "bytes": session.online_bytes},
            },
            commitments={"model": terms.model_commitment, "dataset": terms.dataset_commitment},
            digests={
                "recipe": terms.recipe_digest,
                "network": terms.network_digest,
                "software": context.software,
                "peer_software": session.peer_software,
            },
            approvals=[
                {"party": context.config.name, "by": "operator", "at": session.created},
                {"party": session.peer, "by": session.approved_by, "at": session.approved},
            ],
        )


def _session_id(params: Params) -> str:
    found = params.text("session")
    params.end()
    return found


def _one_image(model: Model, party: int) -> Result:
    """What an image costs when a whole batch is made."""
    whole = preprocessing.estimate(model.network, capacity.BATCH, capacity.BATCH)
    disk = (whole.disk_bytes_model_owner, whole.disk_bytes_data_owner)
    coefficient, image = matrix_triple.flooding_bits(model.network, capacity.BATCH)
    return {
        "offline_bytes": whole.offline_bytes // capacity.BATCH,
        "online_bytes": whole.online_bytes // capacity.BATCH,
        "disk_bytes": disk[party] // capacity.BATCH,
        "peer_disk_bytes": disk[1 - party] // capacity.BATCH,
        "cots": whole.cots // capacity.BATCH,
        "memory_bytes": whole.memory_bytes,
        "flooding_bits_coefficient": round(coefficient, 2),
        "flooding_bits_image": round(image, 2),
    }


def _evaluation(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is not an evaluation: {error}", "mpcctl model evaluate --out writes one") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path} is not an evaluation", "mpcctl model evaluate --out writes one")
    return found
