"""What an approval binds, and each rule of policy.toml, between two real daemons."""

import asyncio
import contextlib
import dataclasses
import datetime
import math
import time

import pytest

from mpcd.daemon.errors import Conflict, PeerError
from mpcd.daemon.files import write_private
from mpcd.daemon.network.identity import Identity
from mpcd.daemon.offline import making
from mpcd.daemon.offline.capacity import BATCH
from mpcd.daemon.sessions import running
from mpcd.daemon.sessions import sessions as sessions_module
from mpcd.daemon.sessions.records import FINAL
from mpcd.daemon.sessions.terms import Terms
from tests.daemon.two_daemons import DATASET, HOSPITAL, IMAGES, MODEL, VENDOR, Client, daemons

START = {"peer": VENDOR, "model": MODEL, "dataset": DATASET, "reveal": "scores"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(running, "NOT_NOW_PAUSE", 0.1)
    monkeypatch.setattr(making, "NOT_NOW_PAUSE", 0.1)
    monkeypatch.setattr(sessions_module, "WATCH", 0.2)


class Two:
    """Both daemons, their control APIs and policies."""

    def __init__(self, vendor, hospital):
        self.vendor, self.hospital = vendor, hospital
        self.model_owner = Client(vendor.context.paths.control_socket)
        self.data_owner = Client(hospital.context.paths.control_socket)

    def policy(self, side, text):
        """At once: a policy read while half of it is written is another policy."""
        write_private({VENDOR: self.vendor, HOSPITAL: self.hospital}[side].context.policy_file, text.encode())

    async def start(self, **given):
        return (await self.data_owner.call("session.start", **{**START, **given}))["session"]

    async def approve(self, id):
        return (await self.model_owner.call("session.approve", session=id))["session"]

    async def end(self, id):
        """Both sides' session once it is over, which has to be soon."""
        ends = []
        for daemon in (self.vendor, self.hospital):
            await until(lambda daemon=daemon: daemon.context.records.get(id).over)
            ends.append(daemon.context.records.get(id))
        return ends

    async def reason(self, id, part, side=HOSPITAL):
        records = {VENDOR: self.vendor, HOSPITAL: self.hospital}[side].context.records
        await until(lambda: part in records.get(id).reason)
        return records.get(id)


async def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.01)


def between(run, tmp_path, use, **settings):
    async def main():
        async with daemons(tmp_path, **settings) as both:
            return await use(Two(*both))

    return run(asyncio.wait_for(main(), 120))


def closed_hours(after=6):
    """The hour that begins ``after`` hours from now."""
    now = datetime.datetime.now()
    first, end = (f"{now + datetime.timedelta(hours=hours):%H:%M}" for hours in (after, after + 1))
    return f'[hours]\nallow = ["{first}-{end}"]\n'


# What an approval binds


def test_both_sides_show_the_same_binding_and_keep_it(run, tmp_path):
    async def use(two):
        session = await two.start(images=1)
        assert session["approval"] is None, "nothing is bound before the model owner says so"
        shown = (await two.model_owner.call("session.show", session=session["id"]))["session"]
        bound = shown["approval"]
        assert bound["data_owner"] == two.hospital.context.identity.fingerprint
        assert bound["model_owner"] == two.vendor.context.identity.fingerprint
        assert bound["data_owner_software"] == bound["model_owner_software"] == two.vendor.context.software
        assert abs(shown["expires"] - time.time() - 30 * 86400) < 60
        with pytest.raises(PeerError, match="something else") as wrong:
            await two.model_owner.call("session.approve", session=session["id"], approval="0" * 64)
        assert wrong.value.code == "conflict"
        await two.model_owner.call("session.approve", session=session["id"], approval=bound["digest"])
        assert {s.state for s in await two.end(session["id"])} == {"done"}
        for client in (two.model_owner, two.data_owner):
            assert (await client.call("session.show", session=session["id"]))["session"]["approval"] == bound

    between(run, tmp_path, use)


@pytest.mark.parametrize(
    ("change", "true_digest", "named"),
    [
        ({"data_owner_software": "x"}, False, "approval: here"),
        ({"data_owner": "f" * 64}, True, "data owner bound"),
        ({"model_owner": "f" * 64}, True, "model owner bound"),
    ],
)
def test_another_approval_than_told_is_a_mismatch(run, tmp_path, change, true_digest, named):
    async def use(two):
        answer = two.vendor.sessions.serving._answer

        def forged(session):
            told = answer(session)
            if session.bound is not None:
                bound = dataclasses.replace(session.bound, **change)
                told["approval"] = bound.told(session.terms)
                if not true_digest:
                    told["approval"]["digest"] = session.bound.digest(session.terms)
            return told

        two.vendor.sessions.serving._answer = forged
        session = await two.start(images=1)
        await two.approve(session["id"])
        assert {end.state for end in await two.end(session["id"])} == {"failed"}
        assert named in two.hospital.context.records.get(session["id"]).reason
        assert not two.hospital.context.ledger.uses()

    between(run, tmp_path, use)


@pytest.mark.parametrize("side", [VENDOR, HOSPITAL])
@pytest.mark.parametrize("upgraded", [VENDOR, HOSPITAL])
def test_an_upgrade_between_approval_and_end(run, tmp_path, side, upgraded):
    """Fine by default; refused by a side that wants the very same software, unless it was named."""

    async def use(two):
        for policy, state in (
            ('software = "same"\n', "failed"),
            ('software = "same"\napproved_software = ["upgraded"]\n', "done"),
            ("", "done"),
        ):
            two.policy(side, closed_hours())
            session = await two.start(images=1)
            await two.approve(session["id"])
            await two.reason(session["id"], "lets work run")
            context = {VENDOR: two.vendor, HOSPITAL: two.hospital}[upgraded].context
            before, context.software = context.software, "upgraded"
            later = closed_hours(after=9)
            two.policy(side, later)
            await two.reason(session["id"], later.split('"')[1])  # what was asked before the upgrade is answered
            two.policy(side, policy)
            ends = await two.end(session["id"])
            assert {end.state for end in ends} == {state}
            if state == "failed":
                reason = two.hospital.context.records.get(session["id"]).reason
                owner = "model owner" if upgraded == VENDOR else "data owner"
                assert f"the {owner}'s software changed after the approval" in reason
                assert "upgraded" in reason
            context.software = before

    between(run, tmp_path, use)


def test_a_data_set_added_again_is_not_the_one_that_was_approved(run, tmp_path):
    async def use(two):
        session = await two.start(images=1)
        library = two.hospital.context.library
        file = library._dataset_file(DATASET)
        salt = library.dataset(DATASET).salt.hex()
        file.write_text(file.read_text().replace(salt, salt[::-1]))
        await two.approve(session["id"])
        for end in await two.end(session["id"]):
            assert end.state == "failed"
        assert "data set commitment" in two.hospital.context.records.get(session["id"]).reason

    between(run, tmp_path, use)


# Its end


def test_a_session_expires_on_both_sides(run, tmp_path):
    async def use(two):
        session = await two.start(images=1, expires_seconds=1)
        for end in await two.end(session["id"]):
            assert end.state == "failed"
            assert "expired on 20" in end.reason
            assert "UTC" in end.reason
        with pytest.raises(PeerError, match="cannot become approved"):
            await two.approve(session["id"])

    between(run, tmp_path, use)


def test_a_session_expires_at_the_side_that_is_alone(run, tmp_path):
    async def use(two):
        two.policy(HOSPITAL, closed_hours())
        session = await two.start(images=1, expires_seconds=2)
        await two.approve(session["id"])
        await two.hospital.net.stop()
        for end in await two.end(session["id"]):
            assert end.state == "failed"
            assert "expired" in end.reason

    between(run, tmp_path, use)


def test_a_clock_that_jumps_there_and_back_costs_nothing(run, tmp_path, monkeypatch):
    async def use(two):
        monkeypatch.setattr(sessions_module, "WATCH", 5.0)
        two.policy(HOSPITAL, closed_hours())
        session = await two.start(images=1)
        await two.approve(session["id"])
        await two.reason(session["id"], "lets work run")
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 400 * 86400)
        two.policy(HOSPITAL, "")
        await two.reason(session["id"], "expired")
        monkeypatch.setattr(time, "time", now)
        assert {end.state for end in await two.end(session["id"])} == {"done"}

    between(run, tmp_path, use)


def test_longer_than_the_policy_allows(run, tmp_path):
    async def use(two):
        two.policy(VENDOR, 'expires = "7d"\n')
        with pytest.raises(PeerError, match="allows 7"):
            await two.start(images=1)
        session = await two.start(images=1, expires_seconds=7 * 86400)
        assert session["state"] == "proposed"
        two.policy(HOSPITAL, 'expires = "1d"\n')
        assert abs((await two.start(images=1))["expires"] - time.time() - 86400) < 60
        with pytest.raises(PeerError, match="2 days is asked for, the policy of this side allows 1"):
            await two.start(images=1, expires_seconds=2 * 86400)

    between(run, tmp_path, use)


@pytest.mark.parametrize("side", [VENDOR, HOSPITAL])
def test_the_peer_of_a_session_is_removed(run, tmp_path, side):
    async def use(two):
        session = await two.start(images=1)
        context = {VENDOR: two.vendor, HOSPITAL: two.hospital}[side].context
        other = {VENDOR: HOSPITAL, HOSPITAL: VENDOR}[side]
        context.peers.remove(other)
        await until(lambda: context.records.get(session["id"]).over)
        assert "was removed" in context.records.get(session["id"]).reason

    between(run, tmp_path, use)


def test_another_peer_under_the_same_name_gets_nothing(run, tmp_path):
    async def use(two):
        session = await two.start(images=1)
        peers = two.vendor.context.peers
        peers.remove(HOSPITAL)
        peers.add(Identity.load_or_create(tmp_path / "other", HOSPITAL).invite(HOSPITAL))
        with contextlib.suppress(PeerError):
            await two.approve(session["id"])
        await until(lambda: two.vendor.context.records.get(session["id"]).over)
        assert "removed" in two.vendor.context.records.get(session["id"]).reason

    (tmp_path / "other").mkdir(mode=0o700)
    between(run, tmp_path, use)


# The model owner is done only once the data owner said so, and only the model owner denies.
ENDS = [(a, b) for a in FINAL for b in FINAL if b != "denied" and (a != "done" or b == "done")]


@pytest.mark.parametrize(("ours", "theirs"), ENDS)
@pytest.mark.parametrize("crossing", [False, True])
def test_sides_that_ended_differently_agree_when_they_meet(run, tmp_path, ours, theirs, crossing):
    """``ours``: the model owner's."""

    async def use(two):
        id = "ab" * 16
        model = two.vendor.context.library.model(MODEL)
        terms = Terms.of(model, 1, "scores", "d" * 64, 1, int(time.time()) + 600)
        told, before = [], []
        for daemon, role, peer, state in (
            (two.vendor, "model-owner", HOSPITAL, ours),
            (two.hospital, "data-owner", VENDOR, theirs),
        ):
            records = daemon.context.records
            records.add(id, role, peer, terms, {"dataset": DATASET}, "", daemon.context.peers.get(peer).id)
            if state == "done":
                records.move(id, "approved")
            if role == "model-owner" and theirs == "done":
                records.reveal(id, 0)
            before.append(records.get(id))
            told.append(daemon.sessions._news._entry(records.move(id, state, "why")))
        if crossing:  # heard while our own end was being written
            with contextlib.suppress(Conflict):
                await two.vendor.sessions._news._take_one(before[0], told[1])
            with contextlib.suppress(Conflict):
                await two.hospital.sessions._news._take_one(before[1], told[0])
        else:
            await two.vendor.sessions._news._take(HOSPITAL, told[1:])
            await two.hospital.sessions._news._take(VENDOR, told[:1])
        assert two.vendor.context.records.get(id).state == two.hospital.context.records.get(id).state

    between(run, tmp_path, use)


def test_what_ended_while_away_is_told_and_asked(run, tmp_path):
    async def use(two):
        ids = [(await two.start(images=1))["id"] for _ in range(3)]
        # Ended here without the other hearing of it.
        two.vendor.context.records.move(ids[0], "cancelled", "by the model-owner")
        two.hospital.context.records.move(ids[1], "failed", "a reason of ours")
        # Lost here: the state folder was replaced.
        with two.hospital.context.records._db.transaction() as db:
            db.execute("DELETE FROM session WHERE id = ?", (ids[2],))
        two.hospital.sessions._live.close(ids[2])
        two.vendor.sessions.on_connect(HOSPITAL)
        two.hospital.sessions.on_connect(VENDOR)
        await until(lambda: all(two.vendor.context.records.get(id).over for id in ids))
        await until(lambda: two.hospital.context.records.get(ids[0]).state == "cancelled")
        states = [two.vendor.context.records.get(id).state for id in ids]
        assert states == ["cancelled", "failed", "failed"]
        assert "no record of this session" in two.vendor.context.records.get(ids[2]).reason

    between(run, tmp_path, use)


# Hours


@pytest.mark.parametrize("side", [VENDOR, HOSPITAL])
def test_work_waits_for_its_hours_and_costs_nothing_meanwhile(run, tmp_path, side):
    async def use(two):
        two.policy(side, closed_hours())
        session = await two.start(images=2)
        await two.approve(session["id"])
        await two.reason(session["id"], "lets work run")
        make = asyncio.create_task(two.data_owner.call("offline.make", peer=VENDOR, model=MODEL, images=1))
        await until(lambda: any("lets work run" in p["text"] for p in two.data_owner.progress))
        await asyncio.sleep(0.5)
        for daemon in (two.vendor, two.hospital):
            assert not daemon.context.ledger.counts()
            assert not daemon.context.records.get(session["id"]).over
        two.policy(side, "")
        assert {end.state for end in await two.end(session["id"])} == {"done"}
        await make

    between(run, tmp_path, use)


@pytest.mark.parametrize("side", [VENDOR, HOSPITAL])
def test_hours_that_end_in_the_middle_of_a_session(run, tmp_path, side):
    async def use(two):
        session = await two.start()
        await two.approve(session["id"])
        records = two.hospital.context.records
        await until(lambda: records.get(session["id"]).done >= 1)
        two.policy(side, closed_hours())
        if not records.get(session["id"]).over:
            with contextlib.suppress(AssertionError):
                await two.reason(session["id"], "lets work run")
        two.policy(side, "")
        ends = await two.end(session["id"])
        assert {end.state for end in ends} == {"done"}
        # What was in flight when the model owner's policy changed under it.
        assert records.get(session["id"]).attempts <= IMAGES + 4

    between(run, tmp_path, use)


def test_the_data_owner_stops_before_the_model_owner_s_hours_end(run, tmp_path, monkeypatch):
    """It is told how long; no unit is spent on an image that would be refused."""

    async def use(two):
        answered = two.vendor.sessions.serving._may_go_on
        begun = 0

        async def until_soon(session):
            nonlocal begun
            begun += 1
            return 0 if begun == 1 else await answered(session)

        two.vendor.sessions.serving._may_go_on = until_soon
        session = await two.start(images=2)
        await two.approve(session["id"])
        assert {end.state for end in await two.end(session["id"])} == {"done"}
        assert two.hospital.context.records.get(session["id"]).attempts == 2
        assert begun >= 4

    between(run, tmp_path, use)


@pytest.mark.parametrize("side", [VENDOR, HOSPITAL])
def test_a_mistake_in_the_policy_stops_all_until_it_is_mended(run, tmp_path, side):
    async def use(two):
        session = await two.start(images=1)
        two.policy(side, "[hors]\nallow = []\n")
        if side == VENDOR:
            with pytest.raises(PeerError, match="mistake"):
                await two.approve(session["id"])
            two.policy(side, "")
            await two.approve(session["id"])
            assert {end.state for end in await two.end(session["id"])} == {"done"}
            two.policy(side, "[hors]\n")
            with pytest.raises(PeerError, match="mistake") as refused:
                await two.hospital.net.call(VENDOR, "offline.may", {"model": MODEL, "units": 1, "session": None})
            assert refused.value.code == "not_now"
            assert "hors" not in str(refused.value)
            return
        await two.approve(session["id"])
        await two.reason(session["id"], "mistake")
        with pytest.raises(PeerError, match="mistake"):
            await two.start(images=1)
        two.policy(side, "")
        assert {end.state for end in await two.end(session["id"])} == {"done"}
        two.policy(side, "[hors]\n")
        with pytest.raises(PeerError, match="mistake"):
            await two.data_owner.call("report", session=session["id"])

    between(run, tmp_path, use)


# Cohorts


def test_cohorts_and_classes(run, tmp_path):
    """The labels: finding 0 in images 1, 3, 5 of six, finding 1 in images 0, 3."""

    async def use(two):
        two.policy(HOSPITAL, "[cohort]\nmin_images = 3\nmin_positives = 3\nmin_negatives = 3\n")
        with pytest.raises(PeerError, match="nothing of fewer than 3"):
            await two.start(images=2)
        with pytest.raises(PeerError, match="no finding has 3 images with it"):
            await two.start(images=5)
        session = await two.start(images=6)
        await two.approve(session["id"])
        assert {end.state for end in await two.end(session["id"])} == {"done"}
        first, second = (await two.data_owner.call("report", session=session["id"]))["report"]["findings"]
        assert (first["withheld"], first["n"], first["positives"]) == (False, 6, 3)
        assert second["withheld"]
        assert "fewer than 3" in second["reason"]
        assert all(second[key] is None for key in ("n", "positives", "auroc", "interval", "clear"))
        two.policy(HOSPITAL, "[cohort]\nmin_images = 7\n")
        with pytest.raises(PeerError, match="nothing of fewer than 7"):
            await two.data_owner.call("report", session=session["id"])

    between(run, tmp_path, use)


def test_the_model_owner_s_least_cohort(run, tmp_path):
    async def use(two):
        session = await two.start(images=2)
        two.policy(VENDOR, f'[cohort]\nmin_images = 3\n[[allow]]\npeer = "{HOSPITAL}"\nmodel = "*"\nmax_images = 9\n')
        with pytest.raises(PeerError, match="no session of fewer than 3") as refused:
            await two.start(images=2)
        assert refused.value.exit_status == 6
        two.hospital.sessions.on_connect(VENDOR)  # asks again
        with pytest.raises(PeerError, match="fewer than 3"):
            await two.approve(session["id"])
        assert (await two.start(images=3))["state"] == "approved"

    between(run, tmp_path, use)


# Budgets


def test_runs_in_a_period(run, tmp_path):
    async def use(two):
        rule = (
            f'[[allow]]\npeer = "{HOSPITAL}"\nmodel = "{MODEL}"\nmax_images = 9\nbudget = 100\nruns = 1\nper = "30d"\n'
        )
        two.policy(VENDOR, rule)
        first = await two.start(images=1)
        assert first["state"] == "approved"
        await two.end(first["id"])
        second = await two.start(images=1)
        assert second["state"] == "proposed"
        await two.data_owner.call("session.cancel", session=second["id"])
        await two.end(second["id"])
        records = two.vendor.context.records
        with records._db.transaction() as db:
            db.execute("UPDATE session SET finished = finished - 31 * 86400")
        assert (await two.start(images=1))["state"] == "approved"

    between(run, tmp_path, use)


# Offline work


def test_whose_offline_work_is_taken_on(run, tmp_path):
    async def use(two):
        two.policy(VENDOR, "[offline]\npeers = []\n")
        with pytest.raises(PeerError, match="outside an approved session") as refused:
            await two.data_owner.call("offline.make", peer=VENDOR, model=MODEL, images=1)
        assert refused.value.code == "refused"
        session = await two.start(images=1)
        await two.approve(session["id"])
        assert {end.state for end in await two.end(session["id"])} == {"done"}, "a session may"
        two.policy(HOSPITAL, '[offline]\npeers = ["somebody"]\n')
        with pytest.raises(PeerError, match="outside an approved session"):
            await two.model_owner.call("offline.make", peer=HOSPITAL, model=MODEL, images=1)

    between(run, tmp_path, use)


def test_units_of_a_session_are_bounded_by_what_it_lacks(run, tmp_path):
    async def use(two):
        two.policy(VENDOR, "[offline]\nmax_units = 0\n")
        two.policy(HOSPITAL, closed_hours())
        session = await two.start(images=2)
        await two.approve(session["id"])
        await two.reason(session["id"], "lets work run")
        model = two.vendor.context.library.model(MODEL)
        stock = two.vendor.offline._agreement.stock(HOSPITAL, model)
        ask = {"model": MODEL, "units": 2, "session": session["id"]}
        two.vendor.context.ledger.begin(stock, b"b" * 16, [bytes([i]) * 16 for i in range(BATCH)])
        await two.hospital.net.call(VENDOR, "offline.may", ask)
        for wrong in ({**ask, "units": 3}, {**ask, "session": None}, {**ask, "session": "f" * 32}):
            with pytest.raises(PeerError, match=f"{BATCH} units are ready or in the making"):
                await two.hospital.net.call(VENDOR, "offline.may", wrong)

    between(run, tmp_path, use)


def test_hours_are_told_to_nobody_as_endless(run, tmp_path):
    async def use(two):
        session = await two.start(images=1)
        await two.approve(session["id"])
        found = two.vendor.context.records.get(session["id"])
        left = await two.vendor.sessions.serving._may_go_on(found)
        assert left is not None
        assert not math.isinf(left)
        assert left <= 30 * 86400

    between(run, tmp_path, use)
