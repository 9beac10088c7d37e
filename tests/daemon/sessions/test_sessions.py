"""Sessions between two real daemons: to the end bit for bit, through refusals, cancellation, and kill -9."""

import asyncio
import itertools
import os
import random
import signal
import socket
import time

import pytest

from mpcd.daemon.errors import BadInput, NotEnough, PeerError
from mpcd.daemon.network.identity import Identity
from mpcd.daemon.network.peers import Peers
from mpcd.daemon.sessions import lanes, running, serving
from mpcd.daemon.sessions.records import MOST_AGAIN
from mpcd.daemon.sessions.terms import Terms
from mpcd.daemon.version import PROTOCOL_VERSION
from tests.daemon.two_daemons import (
    DATASET,
    HOSPITAL,
    IMAGES,
    MODEL,
    VENDOR,
    Client,
    Process,
    audit,
    daemons,
    expected,
    install,
    pair,
    paths,
    results,
)

START = {"peer": VENDOR, "model": MODEL, "dataset": DATASET, "reveal": "scores"}


def clients(vendor, hospital):
    return Client(vendor.context.paths.control_socket), Client(hospital.context.paths.control_socket)


async def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.005)
    return found


def test_to_the_end(run, tmp_path):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            ours, theirs = clients(vendor, hospital)
            began = await theirs.call("session.start", **START, images=3)
            session = began["session"]
            assert session["state"] == "proposed"
            assert began["estimate"]["missing"] == 3
            shown = (await ours.call("session.list"))["sessions"]
            assert [(s["id"], s["state"], s["role"], s["peer"]) for s in shown] == [
                (session["id"], "proposed", "model-owner", HOSPITAL)
            ]
            assert shown[0]["dataset"] is None, "the data set's name is nobody else's business"
            watching = asyncio.create_task(theirs.call("session.watch", session=session["id"][:8]))
            await ours.call("session.approve", session=session["id"][:10])
            done = (await watching)["session"]
            assert (done["state"], done["done"], done["attempts"], done["approved_by"]) == ("done", 3, 3, "operator")
            assert done["offline"]["bytes"] > 0
            assert done["online"]["seconds"] > 0
            assert {p["stage"] for p in theirs.progress} >= {"offline", "online"}
            await until(lambda: vendor.context.records.get(session["id"]).state == "done")
            assert vendor.context.records.get(session["id"]).done == 3
            report = (await theirs.call("report", session=session["id"]))["report"]
            assert report["images"] == 3
            assert report["commitments"]["model"] == done["model_commitment"]
            with pytest.raises(PeerError, match="hospital's"):
                await ours.call("report", session=session["id"])
            status = await theirs.call("offline.status")
            assert (status["reuse_count"], status["units"][0]["spent"], status["units"][0]["model"]) == (0, 3, MODEL)
            return session["id"]

    session = run(main())
    want = expected(tmp_path)
    assert results(tmp_path, session) == {i: want[i] for i in range(3)}
    vendor_uses, hospital_uses = audit(tmp_path)
    assert len(vendor_uses) == len(hospital_uses) == 3
    assert not list((tmp_path / VENDOR / "units").iterdir())
    assert not list((tmp_path / HOSPITAL / "units").iterdir())


def test_approval_by_policy_and_units_made_before(run, tmp_path):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            policy = f'[[allow]]\npeer = "{HOSPITAL}"\nmodel = "{MODEL}"\nmax_images = 2\nbudget = 3\n'
            (vendor.context.paths.state / "policy.toml").write_text(policy)
            ours, theirs = clients(vendor, hospital)
            made = await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=2)
            assert (made["made"], made["ready"]) == (2, 2)
            began = await theirs.call("session.start", **START, images=2)
            assert (began["estimate"]["missing"], began["estimate"]["ready"], began["estimate"]["measured"]) == (
                0,
                2,
                True,
            )
            assert (began["session"]["state"], began["session"]["approved_by"]) == ("approved", "policy")
            done = (await theirs.call("session.watch", session=began["session"]["id"]))["session"]
            assert (done["state"], done["offline"]["bytes"]) == ("done", 0)
            again = await theirs.call("session.start", **START, images=2)
            assert again["session"]["state"] == "proposed", "the budget of 3 images is used up"
            (vendor.context.paths.state / "policy.toml").write_text(policy.replace("budget", "bugdet"))
            with_mistake = await theirs.call("session.start", **START, images=1)
            assert with_mistake["session"]["state"] == "proposed"
            assert any("bugdet" in w for w in (await ours.call("status"))["warnings"])
            await theirs.call("session.cancel", session=again["session"]["id"])
            await until(lambda: vendor.context.records.get(again["session"]["id"]).state == "cancelled")

    run(main())
    audit(tmp_path)


def test_denied_cancelled_and_wrong_asks(run, tmp_path):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            ours, theirs = clients(vendor, hospital)
            first = (await theirs.call("session.start", **START))["session"]
            assert first["images"] == IMAGES
            with pytest.raises(PeerError, match="is ours") as wrong:
                await theirs.call("session.approve", session=first["id"])
            assert wrong.value.code == "conflict"
            await ours.call("session.deny", session=first["id"], reason="not this quarter")
            denied = (await theirs.call("session.watch", session=first["id"]))["session"]
            assert (denied["state"], denied["reason"]) == ("denied", "not this quarter")
            with pytest.raises(PeerError, match="denied"):
                await ours.call("session.approve", session=first["id"])
            second = (await theirs.call("session.start", **START))["session"]
            await ours.call("session.approve", session=second["id"])
            await until(lambda: hospital.context.records.get(second["id"]).attempts > 0)
            cancelled = (await ours.call("session.cancel", session=second["id"]))["session"]
            assert cancelled["state"] == "cancelled"
            ended = (await theirs.call("session.watch", session=second["id"]))["session"]
            assert ended["state"] == "cancelled"
            for bad, code, named in (
                ({"images": IMAGES + 1}, "bad_input", str(IMAGES)),
                ({"model": "other"}, "not_found", "other"),
                ({"dataset": "other"}, "not_found", "other"),
                ({"peer": "other"}, "not_found", "other"),
                ({"reveal": "weights"}, "bad_input", "weights"),
                ({"nonsense": 1}, "usage", "nonsense"),
                ({"images": "three"}, "usage", "images"),
            ):
                with pytest.raises(PeerError, match=named) as error:
                    await theirs.call("session.start", **{**START, **bad})
                assert error.value.code == code
            with pytest.raises(PeerError, match="no results"):
                await theirs.call("report", session=first["id"])

    run(main())
    audit(tmp_path)


def test_a_start_that_is_broken_off_is_cancelled_on_both_sides(run, tmp_path, monkeypatch):
    """While the peer has not answered. Otherwise it would go on at the next start."""

    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            asked, answer = asyncio.Event(), asyncio.Event()
            propose = vendor.sessions.serving.handlers["session.propose"]

            async def late(peer, params):
                answered = await propose(peer, params)
                asked.set()
                await answer.wait()
                return answered

            for link in (record.link for record in vendor.net._records.values()):
                monkeypatch.setitem(link._handlers, "session.propose", late)
            _, theirs = clients(vendor, hospital)
            start = asyncio.create_task(theirs.call("session.start", **START))
            await asked.wait()
            start.cancel()
            for daemon in (hospital, vendor):
                await until(lambda daemon=daemon: [s.state for s in daemon.context.records.all()] == ["cancelled"])
            answer.set()

    run(main())


def test_a_start_that_fails_on_a_full_disk_says_what_failed_first(run, tmp_path, monkeypatch, capsys):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            records = hospital.context.records

            def full(*_):
                raise NotEnough("the disk is full")

            def first(*_):
                raise BadInput("the first")

            monkeypatch.setattr(records, "move", full)
            monkeypatch.setattr(records, "set_peer_software", first)
            _, theirs = clients(vendor, hospital)
            with pytest.raises(PeerError, match="the first"):
                await theirs.call("session.start", **START)

    run(main())
    (left,) = [line for line in capsys.readouterr().err.splitlines() if "that was given up cannot be ended" in line]
    assert "mpcctl session cancel" in left


@pytest.mark.parametrize("when", ["moving", "settling"])
def test_an_end_is_whole_even_if_who_asked_for_it_is_gone(run, tmp_path, when):
    async def slow():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.3)

    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            ours, theirs = clients(vendor, hospital)
            id = (await theirs.call("session.start", **START))["session"]["id"]
            hospital.sessions._live.attach(id, asyncio.create_task(slow()))
            watched = [asyncio.create_task(one.call("session.watch", session=id)) for one in (ours, theirs)]
            await asyncio.sleep(0.05)
            cancel = asyncio.create_task(hospital.sessions.cancel(id))
            await asyncio.sleep(0)
            if when == "settling":
                await until(lambda: hospital.context.records.get(id).state == "cancelled")
                await asyncio.sleep(0.05)
            cancel.cancel()
            async with asyncio.timeout(10):
                assert {(await one)["session"]["state"] for one in watched} == {"cancelled"}
            with pytest.raises(asyncio.CancelledError):
                await cancel

    run(main())


def test_a_changed_model_is_a_mismatch(run, tmp_path):
    """Both values are named, and the session ends."""

    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            ours, theirs = clients(vendor, hospital)
            session = (await theirs.call("session.start", **START))["session"]
            library = vendor.context.library
            library.model_folder(MODEL).rename(library.model_folder(MODEL).parent / "old")
            made = library.model_folder("old")
            scratch = library.scratch_folder()
            for name in ("network.bin", "numbers.npz", "recipe.toml", "report.json"):
                (scratch / name).write_bytes((made / name).read_bytes())
            changed = library.add_model(MODEL, scratch).commitment
            await ours.call("session.approve", session=session["id"])
            ended = (await theirs.call("session.watch", session=session["id"]))["session"]
            assert ended["state"] == "failed"
            assert session["model_commitment"] in ended["reason"]
            assert changed in ended["reason"]
            await until(lambda: vendor.context.records.get(session["id"]).state == "failed")

    run(main())


def test_a_changed_image_fails_the_session(run, tmp_path):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            ours, theirs = clients(vendor, hospital)
            session = (await theirs.call("session.start", **START, images=1))["session"]
            with open(tmp_path / "images" / "dicom" / "0.dcm", "ab") as file:
                file.write(b"\0\0")
            await ours.call("session.approve", session=session["id"])
            ended = (await theirs.call("session.watch", session=session["id"]))["session"]
            assert ended["state"] == "failed"
            assert "changed" in ended["reason"]

    run(main())


@pytest.mark.parametrize("side", [VENDOR, HOSPITAL])
def test_too_little_memory_is_refused_before_the_start(run, tmp_path, side):
    async def main():
        async with daemons(tmp_path, **{side: {"memory_gib": 0.5}}) as (vendor, hospital):
            _, theirs = clients(vendor, hospital)
            with pytest.raises(PeerError, match="memory") as error:
                await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=1)
            assert (error.value.code, error.value.exit_status) == ("not_enough", 10)
            assert "GB" in error.value.message

    run(main())
    assert audit(tmp_path) == ([], [])


@pytest.mark.parametrize("side", [VENDOR, HOSPITAL])
def test_draining_lets_the_image_in_flight_end(run, tmp_path, side):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            ours, theirs = clients(vendor, hospital)
            id = (await theirs.call("session.start", **START))["session"]["id"]
            await ours.call("session.approve", session=id)
            await until(lambda: hospital.sessions.lanes.flying and vendor.sessions.serving.flying)
            before = hospital.context.records.get(id).done
            await {VENDOR: vendor, HOSPITAL: hospital}[side].sessions.drain(30)
            if side == VENDOR:  # the hospital is told, and waits for it to come back
                await until(lambda: "about to end" in hospital.context.records.get(id).reason)
            session = hospital.context.records.get(id)
            assert not session.over
            assert session.done > before
            # Where the vendor refused, the unit that the hospital offered is spent there and only there.
            assert session.attempts - session.done == len(hospital.context.ledger.uses()) - session.done
            assert len(vendor.context.ledger.uses()) == session.done

    run(main())
    audit(tmp_path)


PLANTED = "JANE-DOE-1957"


@pytest.mark.parametrize("error", [BadInput, NotEnough, RuntimeError, OSError], ids=lambda e: e.__name__)
def test_reasons_stay_at_home(run, tmp_path, monkeypatch, error):
    """A file's name, a label, an exception's words: nothing of it is written at the other side."""

    def fails(*_):
        raise error(f"/srv/pacs/{PLANTED}/IM0001.dcm cannot be read")

    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            ours, theirs = clients(vendor, hospital)
            monkeypatch.setattr(running, "FAILURES", 1)
            monkeypatch.setattr(lanes, "_load", fails)
            id = (await theirs.call("session.start", **START, images=1))["session"]["id"]
            await ours.call("session.approve", session=id)
            await until(lambda: PLANTED in hospital.context.records.get(id).reason)
            if error is NotEnough:  # waits for room
                await theirs.call("session.cancel", session=id)
            await until(lambda: vendor.context.records.get(id).over)
            assert vendor.context.records.get(id).reason
            # A half that fails, and an asked-for make that fails.
            monkeypatch.setattr(hospital.context.store, "writer", fails)
            with pytest.raises(PeerError) as told:
                await ours.call("offline.make", peer=HOSPITAL, model=MODEL, images=3)
            assert PLANTED not in str(told.value.as_dict())

    run(main())
    for file in (tmp_path / VENDOR).rglob("*"):
        if file.is_file():
            assert PLANTED.encode() not in file.read_bytes(), file


def test_a_budget_is_not_raced(run, tmp_path, monkeypatch):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            policy = f'[[allow]]\npeer = "{HOSPITAL}"\nmodel = "{MODEL}"\nmax_images = 4\nbudget = 9\n'
            (vendor.context.paths.state / "policy.toml").write_text(policy)
            model = await hospital.offline._catalogue.get(VENDOR, MODEL)
            terms = Terms.of(model, 4, "scores", "d" * 64, PROTOCOL_VERSION, int(time.time()) + 600).as_dict()
            calls = [
                hospital.net.call(VENDOR, "session.propose", {"session": f"{i:032x}", "terms": terms, "software": "x"})
                for i in range(serving.MOST_PROPOSED + 10)
            ]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            states = [a["state"] if isinstance(a, dict) else a.code for a in answers]
            assert (states.count("approved"), states.count("proposed")) == (2, serving.MOST_PROPOSED)
            assert states.count("refused") == 8
            assert vendor.context.records.asked(HOSPITAL, "", MODEL, model.commitment).images == 8

    run(main())


def test_scores_are_revealed_a_bounded_number_of_times(run, tmp_path, monkeypatch):
    """A data owner that "crashes" each time after it has its scores gets them a few times, each counted."""

    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            ours, theirs = clients(vendor, hospital)
            monkeypatch.setattr(running, "FAILURES", 100)

            def forget(*_):
                raise OSError("crashed before it was written down")

            monkeypatch.setattr(hospital.context.records, "image_done", forget)
            id = (await theirs.call("session.start", **START, images=1))["session"]["id"]
            await ours.call("session.approve", session=id)
            ended = (await theirs.call("session.watch", session=id))["session"]
            assert ended["state"] == "failed"
            assert f"revealed {1 + MOST_AGAIN} times" in ended["reason"]
            model = vendor.context.library.model(MODEL)
            assert vendor.context.records.asked(HOSPITAL, "", MODEL, model.commitment).images == 1 + MOST_AGAIN

    run(main())
    audit(tmp_path)


def test_a_peers_text_is_made_safe(run, tmp_path):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            _, theirs = clients(vendor, hospital)
            id = (await theirs.call("session.start", **START))["session"]["id"]
            entry = {"session": id, "state": "denied", "reason": "a\x1b[2J\u202eb\nc", "by": "\x1b]0;x\x07op"}
            await vendor.net.call(HOSPITAL, "session.states", {"states": [entry]})
            shown = (await theirs.call("session.list"))["sessions"][0]
            assert (shown["state"], shown["reason"], shown["approved_by"]) == ("denied", "a [2J b c", " ]0;x op")
            terms = hospital.context.records.get(id).terms.as_dict()
            call = {"session": "0" * 32, "terms": {**terms, "dataset_commitment": "\x1b[2J"}, "software": "x"}
            with pytest.raises(PeerError, match="dataset_commitment"):
                await hospital.net.call(VENDOR, "session.propose", call)

    run(main())


@pytest.mark.parametrize("side", [VENDOR, HOSPITAL])
def test_pads_are_removed_when_spending_is_interrupted(run, tmp_path, monkeypatch, side):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            ours, theirs = clients(vendor, hospital)
            await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=1)
            ledger = {VENDOR: vendor, HOSPITAL: hospital}[side].context.ledger
            spend, times = ledger.spend, 0

            def interrupted(*what):
                nonlocal times
                spent, times = spend(*what), times + 1
                if times == 1:
                    (unit,) = {VENDOR: vendor, HOSPITAL: hospital}[side].context.store.root.iterdir()
                    assert unit.name == what[0].hex()
                    raise RuntimeError("after the mark was made")
                return spent

            monkeypatch.setattr(ledger, "spend", interrupted)
            id = (await theirs.call("session.start", **START, images=1))["session"]["id"]
            await ours.call("session.approve", session=id)
            done = (await theirs.call("session.watch", session=id))["session"]
            assert (done["state"], times) == ("done", 2)

    run(main())
    audit(tmp_path)
    for name in (VENDOR, HOSPITAL):
        assert not list((tmp_path / name / "units").iterdir())


def test_a_peer_may_not_pile_up_proposals(run, tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "MOST_PROPOSED", 2)

    async def main():
        async with daemons(tmp_path) as (_, hospital):
            theirs = Client(hospital.context.paths.control_socket)
            for _ in range(2):
                await theirs.call("session.start", **START)
            with pytest.raises(PeerError, match="wait for approval already") as error:
                await theirs.call("session.start", **START)
            assert error.value.code == "refused"
            states = [s["state"] for s in (await theirs.call("session.list"))["sessions"]]
            assert states == ["failed", "proposed", "proposed"]

    run(main())


THREE = {VENDOR: {"in_flight": 3}, HOSPITAL: {"in_flight": 3}}


class Gate:
    """Holds the first ``count`` images of a side, their units spent, until ``opened``; ``met`` when all are there."""

    def __init__(self, side, count):
        self.met, self.opened = asyncio.Event(), asyncio.Event()
        self._infer, self._left = side._infer, count
        side._infer = self._held

    async def _held(self, *given):
        self._left -= 1
        if self._left == 0:
            self.met.set()
        await self.opened.wait()
        return await self._infer(*given)


async def most_until(condition, *counted):
    """The most that each of ``counted`` held until the condition was met."""
    most, end = [0] * len(counted), time.monotonic() + 60
    while not condition():
        most = [max(a, len(b())) for a, b in zip(most, counted, strict=True)]
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.002)
    return most


@pytest.mark.parametrize(("ours", "want"), [(3, 3), (2, 2), ("auto", 3)])
def test_several_images_in_flight(run, tmp_path, ours, want):
    """The data owner's three, up to the model owner's; progress only grows; a unit an image."""

    async def main():
        async with daemons(tmp_path, **{**THREE, VENDOR: {"in_flight": ours}}) as (vendor, hospital):
            model_owner, data_owner = clients(vendor, hospital)
            id = (await data_owner.call("session.start", **START))["session"]["id"]
            watching = asyncio.create_task(data_owner.call("session.watch", session=id))
            gate = Gate(hospital.sessions.lanes, want)
            await model_owner.call("session.approve", session=id)
            await gate.met.wait()
            assert len(hospital.sessions.lanes.flying) == len(vendor.sessions.serving.flying) == want
            gate.opened.set()
            most = await most_until(
                lambda: hospital.context.records.get(id).over,
                lambda: hospital.sessions.lanes.flying,
                lambda: vendor.sessions.serving.flying,
            )
            assert max(most) <= want
            done = (await watching)["session"]
            assert (done["state"], done["attempts"]) == ("done", IMAGES)
            assert done["online"]["seconds"] < done["finished"] - done["started"]
            shown = [p for p in data_owner.progress if p["stage"] == "online"]
            assert all(a["done"] <= b["done"] for a, b in itertools.pairwise(shown))
            assert shown[-1]["done"] <= shown[-1]["total"] == 1000 * IMAGES
            assert any(p["text"] == f"images 1 to {want} of {IMAGES}" for p in shown)
            await until(lambda: not vendor.sessions.serving.flying)
            assert vendor.context.records.get(id).done == IMAGES
            return id

    assert results(tmp_path, run(main())) == expected(tmp_path)
    ours_used, theirs_used = audit(tmp_path)
    assert len(ours_used) == len(theirs_used) == IMAGES


@pytest.mark.parametrize("side", [VENDOR, HOSPITAL])
def test_one_image_failing_leaves_the_others(run, tmp_path, side):
    async def main():
        async with daemons(tmp_path, **THREE) as (vendor, hospital):
            model_owner, data_owner = clients(vendor, hospital)
            await data_owner.call("offline.make", peer=VENDOR, model=MODEL, images=3)
            store = {VENDOR: vendor, HOSPITAL: hospital}[side].context.store
            second = hospital.context.ledger.all_ready()[1]
            with open(store.root / second.hex() / "pads.bin", "r+b") as file:
                file.seek(-1000, os.SEEK_END)
                byte = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte[0] ^ 1]))
            id = (await data_owner.call("session.start", **START, images=3))["session"]["id"]
            await model_owner.call("session.approve", session=id)
            done = (await data_owner.call("session.watch", session=id))["session"]
            assert (done["state"], done["attempts"]) == ("done", 4), "the two others were not begun again"
            return id

    found = results(tmp_path, run(main()))
    want = expected(tmp_path)
    assert found == {i: want[i] for i in range(3)}
    ours, theirs = audit(tmp_path)
    assert len(ours) == len(theirs) == 4


@pytest.mark.parametrize("side", [VENDOR, HOSPITAL])
def test_cancelling_stops_all_in_flight(run, tmp_path, side):
    async def main():
        async with daemons(tmp_path, **THREE) as (vendor, hospital):
            both = dict(zip((VENDOR, HOSPITAL), clients(vendor, hospital), strict=True))
            id = (await both[HOSPITAL].call("session.start", **START))["session"]["id"]
            gate = Gate(hospital.sessions.lanes, 3)
            await both[VENDOR].call("session.approve", session=id)
            await gate.met.wait()
            gate.opened.set()
            await asyncio.sleep(random.uniform(0, 0.05))
            assert (await both[side].call("session.cancel", session=id))["session"]["state"] == "cancelled"
            await until(lambda: not hospital.sessions.lanes.flying and not vendor.sessions.serving.flying)
            for daemon in (vendor, hospital):
                await until(lambda daemon=daemon: daemon.context.records.get(id).state == "cancelled")
                await until(lambda daemon=daemon: not daemon.context.jobs.running)
            attempts = hospital.context.records.get(id).attempts
            assert attempts <= hospital.context.records.get(id).done + 3
            assert len(hospital.context.ledger.uses()) == attempts

    run(main())
    audit(tmp_path)


def test_an_image_in_flight_is_not_served_twice(run, tmp_path):
    """Nor more images than agreed; one that the data owner gave up makes place."""
    two = {VENDOR: {"in_flight": 2}, HOSPITAL: {"in_flight": 2}}

    async def main():
        async with daemons(tmp_path, **two) as (vendor, hospital):
            model_owner, data_owner = clients(vendor, hospital)
            await data_owner.call("offline.make", peer=VENDOR, model=MODEL, images=IMAGES)
            id = (await data_owner.call("session.start", **START, images=4))["session"]["id"]
            gate = Gate(hospital.sessions.lanes, 2)
            await model_owner.call("session.approve", session=id)
            await gate.met.wait()
            flying = vendor.sessions.serving.flying
            unit = vendor.context.ledger.all_ready()[-1]
            ask = {"session": id, "unit": unit, "job": os.urandom(16), "beside": list(flying)}
            for image, why in ((next(iter(flying.values())).image, "is being served"), (3, "as many as agreed")):
                with pytest.raises(PeerError, match=why) as busy:
                    await hospital.net.call(VENDOR, "session.image", {**ask, "image": image})
                assert busy.value.code == "busy"
            assert vendor.context.ledger.state(unit) == "ready"
            gate.opened.set()
            done = (await data_owner.call("session.watch", session=id))["session"]
            assert (done["state"], done["attempts"]) == ("done", 4)
            return id

    found = results(tmp_path, run(main()))
    want = expected(tmp_path)
    assert found == {i: want[i] for i in range(4)}
    audit(tmp_path)


def test_two_sessions_take_turns(run, tmp_path):
    async def main():
        async with daemons(tmp_path, **THREE) as (vendor, hospital):
            model_owner, data_owner = clients(vendor, hospital)
            await data_owner.call("offline.make", peer=VENDOR, model=MODEL, images=2 * IMAGES)
            ids = [(await data_owner.call("session.start", **START))["session"]["id"] for _ in range(2)]
            gate = Gate(hospital.sessions.lanes, 3)
            for id in ids:
                await model_owner.call("session.approve", session=id)
            await until(lambda: hospital.context.jobs.contended)
            gate.opened.set()
            for id in ids:
                done = (await data_owner.call("session.watch", session=id))["session"]
                assert (done["state"], done["attempts"]) == ("done", IMAGES)
            uses = [use.session for use in hospital.context.ledger.uses()]
            assert len(list(itertools.groupby(uses))) > 2, "one session after the other"
            return ids

    for id in run(main()):
        assert results(tmp_path, id) == expected(tmp_path)
    audit(tmp_path)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_kill_nine_at_any_moment(run, tmp_path):
    """Either daemon dies by kill -9 again and again; the run ends with the same bits, no unit is used twice."""
    in_flight, kills = 3, 6
    install(tmp_path)
    port = free_port()
    identities = [Identity.load_or_create(paths(tmp_path, name).state, name) for name in (VENDOR, HOSPITAL)]
    books = [Peers(paths(tmp_path, name).state / "peers.json") for name in (VENDOR, HOSPITAL)]
    pair(*books, *identities, port)
    both = {name: Process(tmp_path, name, port, in_flight) for name in (VENDOR, HOSPITAL)}
    rng = random.Random()

    async def working():
        for process in both.values():
            while not ((status := await process.answers())["peers"][0]["connected"] and status["kernels"]["ready"]):
                await asyncio.sleep(0.02)

    async def main():
        await asyncio.wait_for(working(), 120)
        session = (await both[HOSPITAL].client.call("session.start", **START))["session"]
        await both[VENDOR].client.call("session.approve", session=session["id"])
        for kill in range(kills):
            await asyncio.wait_for(working(), 120)
            await asyncio.sleep(rng.uniform(0.0, 1.0))
            name = (VENDOR, HOSPITAL)[kill % 2]
            both[name].kill()
            both[name].start()
            await both[name].answers()
        while True:
            shown = (await both[HOSPITAL].client.call("session.show", session=session["id"]))["session"]
            if shown["state"] in ("done", "failed"):
                break
            await asyncio.sleep(0.2)
        await asyncio.sleep(1)
        assert shown["state"] == "done", shown["reason"]
        assert (await both[VENDOR].client.call("session.show", session=session["id"]))["session"]["state"] == "done"
        return shown

    try:
        shown = run(asyncio.wait_for(main(), 400))
    finally:
        statuses = [both[name].kill(signal.SIGTERM) for name in (HOSPITAL, VENDOR)]
    assert statuses == [0, 0]
    assert results(tmp_path, shown["id"]) == expected(tmp_path)
    vendor_uses, hospital_uses = audit(tmp_path)
    assert IMAGES <= len(hospital_uses) <= IMAGES + kills * in_flight, "a kill costs at most the images in flight"
    assert len(vendor_uses) <= len(hospital_uses)
    for name in (VENDOR, HOSPITAL):
        log = (tmp_path / f"{name}.log").read_text()
        assert "Traceback" not in log, log
