"""What goes into the audit log, event by event. Nothing else does: an unknown event or field is a bug.

No entry has a field for names of files or data sets, free text of people, image data, labels, scores, weights or keys:
commitments stand for what is secret, numbers count it. Texts of the peer that an entry repeats (its name for who
approved) are short and printable.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import platform
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpcd.daemon import log
from mpcd.daemon.audit.journal import Journal
from mpcd.daemon.control import operator
from mpcd.daemon.errors import MpcdError, NotFound, ProtocolViolation, Refused
from mpcd.daemon.version import PROTOCOL_VERSION, software_digest, software_version

if TYPE_CHECKING:
    from mpcd.daemon.network.peers import Peer, Peers
    from mpcd.daemon.network.rpc import Handler
    from mpcd.daemon.offline.ledger import Stock
    from mpcd.daemon.sessions.records import Session

EVENTS: dict[str, frozenset[str]] = {
    event: frozenset(fields.split())
    for event, fields in {
        "daemon.started": "who version software protocol python unclean",
        "daemon.stopped": "who",
        "key.created": "who",
        "key.changed": "who before",
        "peer.added": "who",
        "peer.removed": "who",
        "peer.changed": "who before",
        "model.added": "who model_commitment network_digest recipe_digest",
        "model.removed": "who model_commitment network_digest recipe_digest",
        "dataset.added": "who dataset_commitment images",
        "dataset.removed": "who dataset_commitment images",
        "policy.changed": "who before digest",
        "units.made": "who model_commitment network_digest count",
        "units.burnt": "who model_commitment network_digest count",
        "session.proposed": "who session role run run_digest",
        "session.approved": "who session role run run_digest approval software peer_software",
        "session.denied": "who session role run run_digest",
        "session.began": "who session role run_digest software peer_software",
        "image.revealed": "who session to what image count",
        "session.over": (
            "who session role run_digest result told images done units revealed offline_bytes online_bytes"
            " software peer_software"
        ),
        "peer.reference": "who session of entry entry_hash peer_seq peer_hash",
        "refused": "who what code count",
    }.items()
}
REFUSALS = 20  # entries an hour about refusals of one peer; those beyond are counted in one
HOUR = 3600.0
NOT_REFUSALS = ("busy", "stopped", "not_now", "duplicate_link")
STRANGERS = ""  # for the count of refusals: all who are nobody's peer, together

_PLAIN = re.compile(r"[^A-Za-z0-9 .,:;_@/#()+-]")

_log = log.get("audit")

Who = dict[str, Any]


class Audit:
    """The events of one daemon. Thread-safe; what writes waits for the disk.

    ``shared`` is called with a peer's name, in whatever thread, when there is an entry that the peer has, too.
    """

    def __init__(self, journal: Journal, peers: Peers, fingerprint: Callable[[], str]) -> None:
        """``fingerprint``: of our certificate as it is now."""
        self.journal = journal
        self._peers = peers
        self._fingerprint = fingerprint
        self._key, self._policy = journal.noted("key"), journal.noted("policy")
        self._lock = threading.RLock()
        self._refusals: dict[str, tuple[float, int]] = {}  # since when, how many
        self.shared: Callable[[str], None] = lambda peer: None

    def close(self) -> None:
        self.journal.close()

    # The daemon

    def started(self) -> None:
        """Also what changed while it did not run: its key, its peers."""
        unclean = self.journal.noted("running") == "yes"
        self.journal.note("running", "yes")
        self.key()
        self._append(
            "daemon.started",
            who={"fingerprint": self._fingerprint()},
            version=software_version(),
            software=software_digest(),
            protocol=PROTOCOL_VERSION,
            python=platform.python_version(),
            unclean=unclean,
        )
        self.peers_changed()

    def stopped(self) -> None:
        for peer in list(self._refusals):
            self._flush_refusals(peer)
        self._note("daemon.stopped", who={"fingerprint": self._fingerprint()})
        try:
            self.journal.note("running", "no")
        except MpcdError as error:
            _log.error("the next start will call this end unclean", reason=str(error))

    def key(self) -> None:
        """Whether our certificate is another one now: said before whatever is written under it."""
        with self._lock:
            before, now = self._key, self._fingerprint()
            if before == now:
                return
            who = {**_operator(), "fingerprint": now}
            if before:
                self._append("key.changed", who=who, before=before)
            else:
                self._append("key.created", who=who)
            self.journal.note("key", now)
            self._key = now

    def policy(self, file: Path) -> None:
        """The policy is about to be applied: who looks at an approval later sees which one it was."""
        try:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError:
            digest = ""
        if digest == self._policy:
            return
        with self._lock:
            if digest == self._policy:  # another thread was first
                return
            self._append("policy.changed", who=_operator(), before=self._policy, digest=digest)
            self.journal.note("policy", digest)
            self._policy = digest

    # Peers

    def peers_changed(self) -> None:
        """Compare with what was known before; call it after every change. What cannot be written now is next time."""
        try:
            self._compare_peers()
        except MpcdError as error:
            _log.error("the audit log lacks a change of peers", reason=str(error))

    def _compare_peers(self) -> None:
        with self._lock:
            before: dict[str, str] = json.loads(self.journal.noted("peers") or "{}")
            now = {peer.name: _known_as(peer) for peer in self._peers.list()}
            for name in sorted(before.keys() | now.keys()):
                who = {**_operator(), "peer": name, "fingerprint": now.get(name, before.get(name, ""))}
                if name not in before:
                    self._append("peer.added", who=who)
                elif name not in now:
                    self._append("peer.removed", who=who)
                elif before[name] != now[name]:
                    self._append("peer.changed", who=who, before=before[name])
            if before != now:
                self.journal.note("peers", json.dumps(now))

    def refused(self, peer: str, what: str, code: str) -> None:
        """A peer (or, with the name STRANGERS, nobody's) asked for what it may not have."""
        with self._lock:
            now = time.monotonic()
            since, count = self._refusals.get(peer, (now, 0))
            if now - since > HOUR:
                self._flush_refusals(peer)
                since, count = now, 0
            self._refusals[peer] = since, count + 1
            if count < REFUSALS:
                self._note("refused", who=self.who(peer), what=_plain(what), code=_plain(code), count=1)

    def _flush_refusals(self, peer: str) -> None:
        _, count = self._refusals.pop(peer)
        if count > REFUSALS:
            self._note("refused", who=self.who(peer), what="more", code="", count=count - REFUSALS)

    def watching(self, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """These handlers of a peer's calls, with their refusals in the log."""

        def watched(method: str, handler: Handler) -> Handler:
            async def handle(peer: str, params: dict[str, Any]) -> dict[str, Any]:
                try:
                    return await handler(peer, params)
                except (Refused, ProtocolViolation) as error:
                    if error.code not in NOT_REFUSALS:
                        await asyncio.to_thread(self.refused, peer, method, error.code)
                    raise

            return handle

        return {method: watched(method, handler) for method, handler in handlers.items()}

    # Models and data sets

    def model(self, what: str, commitment: str, network_digest: str, recipe_digest: str) -> None:
        """``what``: "added" or "removed"."""
        self._append(
            f"model.{what}",
            who=_operator(),
            model_commitment=commitment,
            network_digest=network_digest,
            recipe_digest=recipe_digest,
        )

    def dataset(self, what: str, commitment: str, images: int) -> None:
        """``what``: "added" or "removed"."""
        self._append(f"dataset.{what}", who=_operator(), dataset_commitment=commitment, images=images)

    # Units: what the ledger calls, when it has written

    def units(self, what: str, stock: Stock, count: int) -> None:
        """``what``: "made" or "burnt". Those spent are counted at their session's end."""
        name = next((peer.name for peer in self._peers.list() if peer.id == stock.peer), "")
        self._note(
            f"units.{what}",
            who=self.who(name),
            model_commitment=stock.model,
            network_digest=stock.network,
            count=count,
        )

    # Sessions: what the records call, before they write. If the log cannot be written, nothing happens.

    def proposed(self, session: Session) -> None:
        who = self.who(session.peer)
        if session.role == "data-owner":
            who |= _operator()
        self._append("session.proposed", who=who, **self._of(session), run=_run(session))

    def moved(self, before: Session, after: Session, told: str, revealed: int) -> None:
        """``told``: why it failed, in the words meant for the peer; ``revealed``: scores that left."""
        who, both = self.who(after.peer), {"software": software_digest(), "peer_software": after.peer_software}
        if after.state in ("approved", "denied"):
            who["by"] = _plain(after.approved_by)
            if after.role == "model-owner" and after.approved_by.startswith("operator"):
                who |= _operator()
            bound = {"approval": after.bound.digest(after.terms)} if after.bound is not None else {}
            more = {**both, **bound} if after.state == "approved" else {}
            self._append(f"session.{after.state}", who=who, **self._of(after), run=_run(after), **more)
        elif after.state in ("offline", "online"):
            if before.started is None:
                self._append("session.began", who=who, **self._of(after), **both)
            return
        else:
            if after.state == "cancelled" and after.reason == f"by the {after.role}":
                who |= _operator()
            self._append(
                "session.over",
                who=who,
                **self._of(after),
                result=after.state,
                told=told if after.state == "failed" else "",
                images=after.terms.images,
                done=after.done,
                units=after.attempts,
                revealed=revealed,
                offline_bytes=after.offline_bytes,
                online_bytes=after.online_bytes,
                **both,
            )
        self.shared(after.peer)

    def revealed(self, session: Session, image: int, count: int) -> None:
        """Our share of an image's scores goes out next. ``count``: of this session so far, this one included."""
        who = self.who(session.peer)
        self._append(
            "image.revealed",
            who=who,
            session=session.id,
            to=who["fingerprint"],
            what=session.terms.reveal,
            image=image,
            count=count,
        )

    # Writing

    def _of(self, session: Session) -> dict[str, Any]:
        return {"session": session.id, "role": session.role, "run_digest": _run_digest(session)}

    def who(self, peer: str) -> Who:
        if peer == STRANGERS:
            return {}
        try:
            return {"peer": peer, "fingerprint": _known_as(self._peers.get(peer))}
        except NotFound:
            return {"peer": peer, "fingerprint": ""}

    def _append(self, event: str, **fields: Any) -> None:
        if not event.startswith("key."):
            self.key()
        surplus = fields.keys() - EVENTS[event]
        if surplus:
            raise ValueError(f"an audit entry {event} has no {', '.join(surplus)}")
        self.journal.append(event, {name: _harmless(fields[name]) for name in fields})

    def _note(self, event: str, **fields: Any) -> None:
        """``_append`` for what has happened already: the log says so where it cannot be written."""
        try:
            self._append(event, **fields)
        except MpcdError as error:
            _log.error("the audit log lacks an entry", entry=event, reason=str(error))


def _known_as(peer: Peer) -> str:
    return peer.fingerprint or f"ca:{peer.ca_name}"


def _operator() -> Who:
    """The user that asked over the control socket."""
    uid = operator.uid.get()
    return {} if uid is None else {"operator": uid}


def _run(session: Session) -> dict[str, Any]:
    """What was agreed, without names: those of models may say what nobody else should read."""
    return {name: value for name, value in session.terms.as_dict().items() if name != "model"}


def _run_digest(session: Session) -> str:
    """SHA-256 of what was agreed: equal at both parties."""
    text = json.dumps(session.terms.as_dict(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(text: str) -> str:
    return _PLAIN.sub("?", text)[:60]


def _harmless(value: Any) -> Any:
    """Numbers, short texts, and maps and lists of these. Raises ValueError for bytes, arrays and the like."""
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, str) and len(value) <= 500:
        return value
    if isinstance(value, Mapping):
        return {str(key): _harmless(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and len(value) <= 100:
        return [_harmless(item) for item in value]
    raise ValueError(f"an audit entry holds no {type(value).__name__} such as this")
