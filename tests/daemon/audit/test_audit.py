"""What two daemons write into their audit logs, and that either log refers to the other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mpcd.daemon.audit import chain
from mpcd.daemon.config import Timeouts
from mpcd.daemon.errors import MpcdError, NotEnough, PeerError
from mpcd.daemon.network import tls
from mpcd.daemon.network.identity import Identity
from mpcd.daemon.network.transport import dial
from mpcd.daemon.service import Daemon
from tests.daemon.two_daemons import DATASET, HOSPITAL, MODEL, VENDOR, Client, config, daemons, paths

Run = Callable[[Awaitable[Any]], Any]


def entries(daemon: Daemon, event: str = "") -> list[dict[str, Any]]:
    return [dict(e.fields) for e in daemon.context.audit.journal.entries() if event in ("", e.event)]


async def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def client(daemon: Daemon) -> Client:
    return Client(daemon.context.paths.control_socket)


async def session(vendor: Daemon, hospital: Daemon, images: int) -> str:
    """To its end, approved by the vendor's operator."""
    asked = await client(hospital).call("session.start", peer=VENDOR, model=MODEL, dataset=DATASET, images=images)
    id = str(asked["session"]["id"])
    await client(vendor).call("session.approve", session=id)
    await client(hospital).call("session.watch", session=id)
    await until(lambda: vendor.context.records.get(id).over)
    return id


def matched(daemon: Daemon, count: int) -> bool:
    return daemon.context.audit.journal.count_references() == (count, 0)


def test_a_session_in_both_logs(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with daemons(tmp_path) as (vendor, hospital):
            id = await session(vendor, hospital, 3)
            await until(lambda: matched(vendor, 2) and matched(hospital, 2))
            for daemon in (vendor, hospital):
                verified = await client(daemon).call("audit.verify")
                assert verified["ok"], verified
                assert verified["references"] == {"matched": 2, "waiting": 0}
                assert verified["head"]["seq"] == verified["entries"] == len(entries(daemon))
                read = await client(daemon).call("audit.read")
                assert chain.verify([read["data"]]).entries == verified["entries"]
                assert (read["next"], read["size"]) == (None, len(read["data"]))
            ours, theirs = (list(d.context.audit.journal.entries()) for d in (vendor, hospital))
            assert chain.match(ours, theirs) == (4, [])
            check(vendor, hospital, id)

    run(main())


def check(vendor: Daemon, hospital: Daemon, id: str) -> None:
    terms = vendor.context.records.get(id).terms
    here, there = vendor.context.identity.fingerprint, hospital.context.identity.fingerprint
    me = os.getuid()
    for daemon, role, peer, fingerprint in (
        (vendor, "model-owner", HOSPITAL, there),
        (hospital, "data-owner", VENDOR, here),
    ):
        own = daemon.context.identity.fingerprint
        first = entries(daemon)[:2]
        assert [e["event"] for e in first] == ["key.created", "daemon.started"]
        assert [e["who"]["fingerprint"] for e in first] == [own, own]
        (added,) = entries(daemon, "peer.added")
        assert (added["who"]["peer"], added["who"]["fingerprint"]) == (peer, fingerprint)
        (proposed,) = entries(daemon, "session.proposed")
        (approved,) = entries(daemon, "session.approved")
        (began,) = entries(daemon, "session.began")
        (over,) = entries(daemon, "session.over")
        for entry in (proposed, approved, began, over):
            assert (entry["session"], entry["role"]) == (id, role)
            assert (entry["who"]["peer"], entry["who"]["fingerprint"]) == (peer, fingerprint)
            assert entry["run_digest"] == proposed["run_digest"]
        expected = {name: value for name, value in terms.as_dict().items() if name != "model"}
        assert proposed["run"] == approved["run"] == expected
        assert approved["who"]["by"] == "operator"
        bound = daemon.context.records.get(id).bound
        assert bound is not None
        assert approved["approval"] == bound.digest(terms)
        software = daemon.context.software
        assert (approved["software"], began["peer_software"], over["peer_software"]) == (software, software, software)
        assert (over["result"], over["images"], over["done"], over["units"]) == ("done", 3, 3, 3)
        assert over["offline_bytes"] > 0
        assert over["online_bytes"] > 0
        (made,) = entries(daemon, "units.made")
        assert (made["count"], made["model_commitment"]) == (3, terms.model_commitment)
        assert made["who"]["peer"] == peer
    assert "operator" not in entries(hospital, "session.approved")[0]["who"], "it was not theirs who approved"
    assert entries(vendor, "session.approved")[0]["who"]["operator"] == me
    assert entries(hospital, "session.proposed")[0]["who"]["operator"] == me
    assert "operator" not in entries(vendor, "session.proposed")[0]["who"]
    revealed = entries(vendor, "image.revealed")
    assert sorted(e["image"] for e in revealed) == [0, 1, 2]
    assert [e["count"] for e in revealed] == [1, 2, 3]
    assert {(e["to"], e["what"], e["session"]) for e in revealed} == {(there, "scores", id)}
    assert [entries(d, "session.over")[0]["revealed"] for d in (vendor, hospital)] == [3, 0]
    digests = {entries(d, "session.approved")[0]["run_digest"] for d in (vendor, hospital)}
    assert len(digests) == 1


def test_what_else_is_written(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with daemons(tmp_path) as (vendor, hospital):
            ours, theirs = client(vendor), client(hospital)
            asked = await theirs.call("session.start", peer=VENDOR, model=MODEL, dataset=DATASET, images=1)
            await ours.call("session.deny", session=asked["session"]["id"], reason="patient DOE^JOHN")
            asked = await theirs.call("session.start", peer=VENDOR, model=MODEL, dataset=DATASET, images=2)
            await theirs.call("session.cancel", session=asked["session"]["id"])
            await until(lambda: matched(vendor, 2) and matched(hospital, 2))
            assert [e["who"]["by"] for e in entries(vendor, "session.denied")] == ["operator"]
            assert [e["who"]["operator"] for e in entries(vendor, "session.denied")] == [os.getuid()]
            for daemon in (vendor, hospital):
                (over,) = entries(daemon, "session.over")
                assert (over["result"], over["done"], over["units"]) == ("cancelled", 0, 0)
                assert ("operator" in over["who"]) == (daemon is hospital)
                assert "DOE" not in repr(entries(daemon))
            # Refused: a session that nobody approved.
            asked = await theirs.call("session.start", peer=VENDOR, model=MODEL, dataset=DATASET, images=1)
            image = {"session": asked["session"]["id"], "image": 0, "unit": b"u" * 16, "job": b"j" * 16}
            for _ in range(25):
                with pytest.raises(PeerError):
                    await hospital.net.call(VENDOR, "session.image", image)
            refused = entries(vendor, "refused")
            assert len(refused) == 20
            assert {(e["what"], e["code"], e["who"]["peer"]) for e in refused} == {
                ("session.image", "refused", HOSPITAL)
            }
            # Policy, data set, units burnt with their model, peers.
            vendor.context.policy_file.write_text("[offline]\nmax_units = 7\n")
            assert vendor.context.policy.max_units == 7
            assert vendor.context.policy.max_units == 7
            assert len(entries(vendor, "policy.changed")[-1]["digest"]) == 64
            changed = len(entries(vendor, "policy.changed"))
            assert vendor.context.policy.max_units == 7
            assert len(entries(vendor, "policy.changed")) == changed
            await theirs.call("session.cancel", session=asked["session"]["id"])
            await until(lambda: not any(not s.over for s in vendor.context.records.all()))
            await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=2)
            commitment = vendor.context.library.model(MODEL).commitment
            await ours.call("model.remove", name=MODEL)
            assert [e["model_commitment"] for e in entries(vendor, "model.removed")] == [commitment]
            assert [e["count"] for e in entries(vendor, "units.burnt")] == [2]
            dataset = hospital.context.library.dataset(DATASET)
            await theirs.call("dataset.remove", name=DATASET)
            (removed,) = entries(hospital, "dataset.removed")
            assert (removed["dataset_commitment"], removed["images"]) == (dataset.commitment, len(dataset.entries))
            assert removed["who"] == {"operator": os.getuid()}
            await theirs.call("peer.remove", name=VENDOR)
            (gone,) = entries(hospital, "peer.removed")
            assert gone["who"]["peer"] == VENDOR
            assert gone["who"]["operator"] == os.getuid()
            assert (await ours.call("audit.verify"))["ok"]
            assert (await theirs.call("audit.verify"))["ok"]
        for daemon in (vendor, hospital):
            log = (daemon.context.paths.state / "audit" / "000000000001.jsonl").read_bytes()
            last = chain.opened(log.splitlines()[-1])
            assert last is not None
            assert last.event == "daemon.stopped"
            assert (b'"what":"more","code":"","count":5' in log) == (daemon is vendor)

    run(main())


def test_references_catch_up_when_the_peer_was_away(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with daemons(tmp_path) as (vendor, hospital):
            exchanges = [daemon._exchange for daemon in (vendor, hospital)]
            await until(lambda: not any(exchange._tasks for exchange in exchanges))
            for exchange in exchanges:
                exchange._loop = None  # as if every call got lost
            await session(vendor, hospital, 1)
            for daemon, exchange in zip((vendor, hospital), exchanges, strict=True):
                assert daemon.context.audit.journal.count_references() == (0, 2)
                exchange.start()
            hospital._on_connect(VENDOR)
            await until(lambda: matched(vendor, 2) and matched(hospital, 2))
            ours, theirs = (list(d.context.audit.journal.entries()) for d in (vendor, hospital))
            assert chain.match(ours, theirs) == (4, [])

    run(main())


def test_a_peer_that_lies_about_its_log(run: Run, tmp_path: Path) -> None:
    """The first answer counts; nonsense, and other parties' sessions, do not."""

    async def main() -> None:
        async with daemons(tmp_path) as (vendor, hospital):
            id = await session(vendor, hospital, 1)
            await until(lambda: matched(vendor, 2) and matched(hospital, 2))
            entry = {"session": id, "event": "session.over", "seq": 1, "hash": "0" * 64}
            before = len(entries(vendor))
            answer = await hospital.net.call(VENDOR, "audit.references", {"entries": [entry] * 200})
            assert len(entries(vendor)) == before
            assert {e["seq"] for e in answer["entries"]} == {entries(vendor, "session.over")[0]["seq"]}
            unknown = {**entry, "session": "0" * 32}
            assert (await hospital.net.call(VENDOR, "audit.references", {"entries": [unknown]}))["entries"] == []
            for wrong in (
                {},
                {"entries": {}},
                {"entries": [entry] * 201},
                {"entries": [{**entry, "seq": True}]},
                {"entries": [{**entry, "seq": -1}]},
                {"entries": [{**entry, "hash": "x" * 64}]},
                {"entries": [{**entry, "event": "daemon.started"}]},
                {"entries": [{**entry, "session": id + "\n"}]},
                {"entries": ["entry"]},
            ):
                with pytest.raises(PeerError, match="malformed"):
                    await hospital.net.call(VENDOR, "audit.references", wrong)
            assert len(entries(vendor, "peer.reference")) == 2

    run(main())


def test_nothing_is_approved_or_revealed_that_cannot_be_written_down(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with daemons(tmp_path) as (vendor, hospital):

            def full(*_: object) -> None:
                raise NotEnough("the disk is full: the audit log cannot be written", peer_text="the disk is full")

            asked = await client(hospital).call("session.start", peer=VENDOR, model=MODEL, dataset=DATASET, images=1)
            id = asked["session"]["id"]
            audit = vendor.context.audit
            append, audit.journal.append = audit.journal.append, full  # type: ignore[method-assign,assignment]
            with pytest.raises(PeerError, match="audit log"):
                await client(vendor).call("session.approve", session=id)
            assert vendor.context.records.get(id).state == "proposed"
            audit.journal.append = append  # type: ignore[method-assign]
            await client(vendor).call("session.approve", session=id)
            audit.revealed = full  # type: ignore[method-assign]
            await until(lambda: vendor.context.records.get(id).attempts >= 1)
            await asyncio.sleep(0.5)
            assert vendor.context.records.revealed(id) == 0
            assert hospital.context.records.get(id).done == 0
            del audit.revealed
            await until(lambda: hospital.context.records.get(id).state == "done", 60)
            assert vendor.context.records.revealed(id) == 1

    run(main())


def test_a_daemon_ends_on_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    """In order and to its end: what the log lacks, the next start says."""
    root = paths(tmp_path, HOSPITAL)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    daemon = Daemon(root, config(HOSPITAL))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        daemon.context.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        daemon.context.audit.journal.noted("running")
    again = Daemon(root, config(HOSPITAL))
    assert entries(again, "daemon.stopped") == []
    assert [e["unclean"] for e in entries(again, "daemon.started")] == [False, True]
    again.context.close()


def test_entries_have_declared_fields_only(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with daemons(tmp_path) as (vendor, hospital):
            audit = vendor.context.audit
            for event, fields in (
                ("refused", {"who": {}, "path": "/x"}),
                ("refused", {"who": {}, "what": b"bytes"}),
                ("refused", {"who": {}, "what": "x" * 501}),
            ):
                with pytest.raises(ValueError, match="audit entry"):
                    audit._append(event, **fields)
            with pytest.raises(KeyError):
                audit._append("invented", who={})
            audit.refused(HOSPITAL, "a\nb\x1b[31m", "x" * 99)
            (entry,) = entries(vendor, "refused")
            assert (entry["what"], entry["code"]) == ("a?b??31m", "x" * 60)
            before = len(entries(vendor))
            audit.key()
            assert len(entries(vendor)) == before
            old = vendor.context.identity.fingerprint
            await client(vendor).call("key.rotate")
            (changed,) = entries(vendor, "key.changed")
            new = vendor.context.identity.fingerprint
            assert (changed["before"], changed["who"]) == (old, {"operator": os.getuid(), "fingerprint": new})
            await until(lambda: entries(hospital, "peer.changed"))
            (told,) = entries(hospital, "peer.changed")
            assert (told["before"], told["who"]) == (old, {"peer": VENDOR, "fingerprint": new})

    run(main())


def test_strangers(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with daemons(tmp_path) as (vendor, _):
            (tmp_path / "other").mkdir()
            other = Identity.load_or_create(tmp_path / "other", "other")
            context = tls.client_context(other, vendor.context.identity.certificate)
            for _ in range(3):
                with contextlib.suppress(MpcdError):
                    connection = await dial("127.0.0.1", vendor.net.port, context, Timeouts())
                    await connection.recv_frame(1000)
            await until(lambda: entries(vendor, "refused"))
            refused = entries(vendor, "refused")
            assert {repr(e["who"]) for e in refused} == {"{}"}
            assert {e["what"] for e in refused} == {"refused an unknown certificate"}

    run(main())
