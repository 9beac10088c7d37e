"""Making units: both sides agree whatever fails at whatever step, and nothing half-made is ever used."""

import asyncio
import contextlib
import threading

import pytest

from mpcd.daemon.errors import LinkError, NotEnough, PeerError
from mpcd.daemon.offline import making as offline_module
from mpcd.daemon.offline.ledger import Ledger, Stock
from mpcd.daemon.offline.store import UnitWriter
from tests.daemon.two_daemons import HOSPITAL, MODEL, VENDOR, Client, audit, daemons


def clients(vendor, hospital):
    return Client(vendor.context.paths.control_socket), Client(hospital.context.paths.control_socket)


def ready(daemon):
    return set(daemon.context.ledger.all_ready())


def stored(daemon):
    return {folder.name for folder in daemon.context.store.root.iterdir()}


async def agreed(vendor, hospital):
    """After a comparison both have the same units, and files of no others."""
    model = await hospital.offline._catalogue.get(VENDOR, MODEL)
    units = await hospital.offline._agreement.sync(VENDOR, model)
    async with asyncio.timeout(10):
        while vendor.offline._batches:
            await asyncio.sleep(0.02)
    assert ready(vendor) == ready(hospital) == set(units)
    assert stored(vendor) == stored(hospital) == {unit.hex() for unit in units}
    for daemon in (vendor, hospital):
        assert all(counts["making"] == 0 for counts in daemon.context.ledger.counts().values())
    return units


def test_makes_what_is_missing(run, tmp_path):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            ours, theirs = clients(vendor, hospital)
            estimate = (await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=3, estimate_only=True))[
                "estimate"
            ]
            assert (estimate["missing"], estimate["measured"]) == (3, False)
            assert ready(vendor) == set()
            made = await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=2)
            assert (made["made"], made["ready"]) == (2, 2)
            assert made["bytes"] > made["estimate"]["offline_bytes"] > 0
            assert theirs.progress[0]["text"].startswith("2 of 2 units to make")
            more = await ours.call("offline.make", peer=HOSPITAL, model=MODEL, images=3)
            assert (more["made"], more["ready"]) == (1, 3), "a later call goes on; the model owner's asks the other"
            assert more["estimate"]["measured"]
            units = await agreed(vendor, hospital)
            assert len(units) == 3
            here = (await ours.call("offline.status"))["units"]
            there = (await theirs.call("offline.status", peer=VENDOR, model=MODEL))["units"]
            for stock in (*here, *there):
                assert (stock["ready"], stock["making"], stock["spent"], stock["burnt"]) == (3, 0, 0, 0)
            disk = sum(f.stat().st_size for f in hospital.context.store.root.rglob("*.bin"))
            assert 0.8 * disk < there[0]["disk_bytes"] * 1.0 <= disk
            nothing = await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=3)
            assert nothing["made"] == 0

    run(main())


def test_a_vendor_cannot_burn_the_data_owners_units(run, tmp_path):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            _, theirs = clients(vendor, hospital)
            await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=2)
            model = vendor.context.library.model(MODEL)
            call = {"model": model.commitment, "network": model.network.digest, "ready": []}
            with pytest.raises(PeerError) as refused:
                await vendor.net.call(HOSPITAL, "units.sync", call)
            assert refused.value.code == "not_found"
            assert len(ready(hospital)) == 2
            assert len(await agreed(vendor, hospital)) == 2

    run(main())


def test_units_in_the_making_count_like_those_that_are_ready(run, tmp_path):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            _, theirs = clients(vendor, hospital)
            (vendor.context.paths.state / "policy.toml").write_text("[offline]\nmax_units = 3\n")
            model = vendor.context.library.model(MODEL)
            stock = vendor.offline._agreement.stock(HOSPITAL, model)
            vendor.context.ledger.begin(stock, b"b" * 16, [bytes([i]) * 16 for i in range(2)])
            with pytest.raises(PeerError, match="2 units are ready or in the making"):
                await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=2)
            assert (await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=1))["made"] == 1

    run(main())


def test_batches_that_begin_at_once_are_counted_one_after_the_other(run, tmp_path):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            (vendor.context.paths.state / "policy.toml").write_text("[offline]\nmax_units = 3\n")
            model = vendor.context.library.model(MODEL)

            def begin(i):
                call = {
                    "job": bytes([i]) * 16,
                    "model": MODEL,
                    "units": [bytes([i, j]) * 8 for j in range(2)],
                    "model_commitment": model.commitment,
                    "network_digest": model.network.digest,
                    "extension": "iknp",
                }
                return hospital.net.call(VENDOR, "offline.begin", call)

            answers = await asyncio.gather(*(begin(i) for i in range(8)), return_exceptions=True)
            refused = [answer for answer in answers if isinstance(answer, PeerError)]
            assert len(refused) == 7
            assert all("2 units are ready or in the making" in str(error) for error in refused)

    run(main())


def test_what_the_data_owner_says_of_its_work_is_checked(run, tmp_path):
    answers = [
        {"result": {}},
        {"result": {"estimate": {"missing": "\x1b[2J"}}},
        {"progress": ["offline", "1", 2, "x"]},
        {"error": {"code": "\x1b", "message": "a\x1b[2Jb", "hint": 7}},
    ]

    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            ours, _ = clients(vendor, hospital)

            async def progress(peer, params):
                return answers[0]

            hospital.net._records[VENDOR].link.current._handlers["offline.progress"] = progress
            codes = []
            while answers:
                with pytest.raises(PeerError) as told:
                    await ours.call("offline.make", peer=HOSPITAL, model=MODEL, images=1)
                codes.append(told.value.code)
                assert str(told.value).isprintable()
                answers.pop(0)
            assert codes == ["protocol_violation"] * 3 + ["error"]

    run(main())


def test_batches(run, tmp_path, monkeypatch):
    monkeypatch.setattr(offline_module, "BATCH", 2)

    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            _, theirs = clients(vendor, hospital)
            made = await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=5)
            assert made["made"] == 5
            assert len(await agreed(vendor, hospital)) == 5
            done = [p["done"] / p["total"] for p in theirs.progress if p["total"] and p["stage"] == "offline"]
            assert done == sorted(done)

    run(main())


class Crash(Exception):
    """The step at which a party dies."""


def fail_after(monkeypatch, owner, name, times, error):
    """Let ``owner.name`` work ``times`` times, then raise; afterwards it works again."""
    original = getattr(owner, name)
    count = 0

    def wrapped(*args, **kwargs):
        nonlocal count
        count += 1
        if count == times + 1:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


STEPS = [
    # What fails, on whose side, after how many successes (begin, ready, finish are called by both sides in turn).
    ("ledger.begin", HOSPITAL, 0),
    ("ledger.begin", VENDOR, 0),
    ("store.writer", HOSPITAL, 0),
    ("store.writer", HOSPITAL, 1),
    ("store.writer", VENDOR, 1),
    ("ledger.ready", HOSPITAL, 0),
    ("ledger.ready", VENDOR, 0),
    ("library.numbers", VENDOR, 0),
]


@pytest.mark.parametrize(("step", "side", "times"), STEPS)
@pytest.mark.parametrize(
    "error",
    [Crash("died here"), NotEnough("the disk is full: /srv/units", peer_text="the disk is full")],
    ids=["bug", "full disk"],
)
def test_failing_at_any_step(run, tmp_path, monkeypatch, step, side, times, error):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            _, theirs = clients(vendor, hospital)
            part, name = step.split(".")
            owner = getattr({VENDOR: vendor, HOSPITAL: hospital}[side].context, part)
            fail_after(monkeypatch, owner, name, times, error)
            with pytest.raises(PeerError) as failed:
                await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=2)
            if isinstance(error, NotEnough):
                assert failed.value.code == "not_enough"
                assert "the disk is full" in failed.value.message, "also when it is the peer's"
                assert ("/srv/units" in failed.value.message) == (side == HOSPITAL), "but not where"
            assert await agreed(vendor, hospital) == []
            made = await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=2)
            assert made["made"] == 2
            assert len(await agreed(vendor, hospital)) == 2

    run(main())


@pytest.mark.parametrize("puts", [0, 1, 5, 30])
@pytest.mark.parametrize("sides", [0, 1])
def test_a_full_disk_in_the_middle(run, tmp_path, monkeypatch, puts, sides):
    """Reported in words; what was made before stays."""

    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            _, theirs = clients(vendor, hospital)
            await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=1)
            original, count = UnitWriter.put, 0

            def put(self, need, correlation):
                nonlocal count
                if self._party == sides:
                    count += 1
                    if count > puts:
                        raise NotEnough("the disk is full: no room in /srv", "Free it.", peer_text="the disk is full")
                original(self, need, correlation)

            with monkeypatch.context() as patch:
                patch.setattr(UnitWriter, "put", put)
                with pytest.raises(PeerError) as failed:
                    await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=3)
                assert "disk is full" in failed.value.message
            assert len(await agreed(vendor, hospital)) == 1
            assert (await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=2))["made"] == 1

    run(main())


@pytest.mark.parametrize("answered", [False, True])
def test_the_last_answer_is_lost(run, tmp_path, monkeypatch, answered):
    """The link breaks around ``offline.ready``: whether or not it arrived, both agree at the next comparison."""

    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            _, theirs = clients(vendor, hospital)
            call = hospital.net.call

            async def lossy(peer, method, params, timeout=None):
                if method != "offline.ready":
                    return await call(peer, method, params, timeout)
                if answered:
                    await call(peer, method, params, timeout)
                raise LinkError("the link broke")

            monkeypatch.setattr(offline_module, "READY_TIMEOUT", 0.5)
            with monkeypatch.context() as patch:
                patch.setattr(hospital.net, "call", lossy)
                with pytest.raises(PeerError, match="link broke"):
                    await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=2)
            assert len(ready(hospital)) == 2
            async with asyncio.timeout(20):
                while vendor.offline._batches:
                    await asyncio.sleep(0.02)
            assert len(await agreed(vendor, hospital)) == (2 if answered else 0)

    run(main())


@pytest.mark.parametrize("lost", [True, False], ids=["word lost", "no word to come"])
def test_a_comparison_settles_a_batch_that_waits(run, tmp_path, monkeypatch, lost):
    """Not after READY_TIMEOUT: the data owner's lists say whether its word was lost, or will never come."""

    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            _, theirs = clients(vendor, hospital)
            call = hospital.net.call

            async def lossy(peer, method, params, timeout=None):
                if method == "offline.ready":
                    raise LinkError("the link broke")
                return await call(peer, method, params, timeout)

            async def silent(peer, job, error):
                """As a daemon that was killed."""

            with monkeypatch.context() as patch:
                patch.setattr(hospital.net, "call", lossy)
                patch.setattr(hospital.offline._partner, "_tell", silent)
                if not lost:
                    fail_after(patch, hospital.context.ledger, "ready", 0, Crash("died here"))
                with pytest.raises(PeerError):
                    await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=2)
            async with asyncio.timeout(20):
                while not all(batch.finished.is_set() for batch in vendor.offline._batches.values()):
                    await asyncio.sleep(0.02)
            assert len(vendor.offline._batches) == 1, "it waits"
            assert len(await agreed(vendor, hospital)) == (2 if lost else 0)

    run(main())


def test_a_comparison_leaves_a_batch_in_the_making_alone(run, tmp_path):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            _, theirs = clients(vendor, hospital)
            making = asyncio.create_task(theirs.call("offline.make", peer=VENDOR, model=MODEL, images=3))
            model = await hospital.offline._catalogue.get(VENDOR, MODEL)
            while not making.done():
                await hospital.offline._agreement.sync(VENDOR, model)
            assert (await making)["made"] == 3
            assert len(await agreed(vendor, hospital)) == 3

    run(main())


def test_stopped_while_the_model_owner_looks_at_the_next_batch(run, tmp_path, monkeypatch):
    """Its half begins after the word that ours has ended: it does not wait for our data connection."""

    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            _, theirs = clients(vendor, hospital)
            check, call = vendor.offline._allowance.check, hospital.net.call
            looking, told = asyncio.Event(), asyncio.Event()

            async def slow(*args):
                if vendor.offline._beginning.locked():
                    looking.set()
                    await told.wait()
                return await check(*args)

            async def hear(peer, method, params, timeout=None):
                answer = await call(peer, method, params, timeout)
                if method == "job.failed":
                    told.set()
                return answer

            monkeypatch.setattr(vendor.offline._allowance, "check", slow)
            monkeypatch.setattr(hospital.net, "call", hear)
            making = asyncio.create_task(theirs.call("offline.make", peer=VENDOR, model=MODEL, images=2))
            await looking.wait()
            making.cancel()
            async with asyncio.timeout(20):
                await told.wait()
                while not (units := vendor.context.ledger.counts()) or any(c["making"] for c in units.values()):
                    await asyncio.sleep(0.02)
            assert await agreed(vendor, hospital) == []

    run(main())


def test_stopped_after_the_word_that_the_batch_is_ready(run, tmp_path, monkeypatch):
    """Both sides keep it."""

    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            _, theirs = clients(vendor, hospital)
            writing, stopped = threading.Event(), threading.Event()
            note = vendor.context.ledger.ready

            def slow(*args):
                writing.set()
                stopped.wait(20)
                note(*args)

            monkeypatch.setattr(vendor.context.ledger, "ready", slow)
            making = asyncio.create_task(theirs.call("offline.make", peer=VENDOR, model=MODEL, images=2))
            async with asyncio.timeout(20):
                while not writing.is_set():
                    await asyncio.sleep(0.01)
                making.cancel()
                while hospital.context.jobs.running:
                    await asyncio.sleep(0.01)
                stopped.set()
                while vendor.offline._batches:
                    await asyncio.sleep(0.02)
            assert len(await agreed(vendor, hospital)) == 2

    run(main())


def test_stopped_by_the_client(run, tmp_path):
    """Closing the connection stops it; the batch is burnt on both sides."""

    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            _, theirs = clients(vendor, hospital)
            making = asyncio.create_task(theirs.call("offline.make", peer=VENDOR, model=MODEL, images=8))
            async with asyncio.timeout(30):
                while not vendor.offline._batches:
                    await asyncio.sleep(0.01)
            making.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await making
            async with asyncio.timeout(30):
                while vendor.offline._batches or any(c["making"] for c in hospital.context.ledger.counts().values()):
                    await asyncio.sleep(0.02)
            assert await agreed(vendor, hospital) == []
            assert not hospital.context.jobs.running

    run(main())


def making(daemon):
    return sum(counts["making"] for counts in daemon.context.ledger.counts().values())


def test_a_stop_waits_for_what_is_giving_up_already(run, tmp_path, monkeypatch):
    """Whoever asked stops it, and once more, and the data owner's daemon ends meanwhile."""

    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            ours, _ = clients(vendor, hospital)
            give_up, reached = hospital.offline._give_up, asyncio.Event()

            async def slowly(*given):
                reached.set()
                await asyncio.sleep(0.3)
                await give_up(*given)

            monkeypatch.setattr(hospital.offline, "_give_up", slowly)
            asking = asyncio.create_task(ours.call("offline.make", peer=HOSPITAL, model=MODEL, images=8))
            async with asyncio.timeout(30):
                while not vendor.offline._batches:
                    await asyncio.sleep(0.01)
                asking.cancel()
                await reached.wait()
            (request,) = hospital.offline._asked
            await vendor.net.call(HOSPITAL, "offline.stop", {"request": request})
            await hospital.offline.stop()
            assert making(hospital) == 0

    run(main())


def test_nothing_begins_during_a_stop(run, tmp_path, monkeypatch):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            ledger, held, go_on = vendor.context.ledger, asyncio.Event(), threading.Event()
            begin, loop = ledger.begin, asyncio.get_running_loop()

            def slowly(*given):
                loop.call_soon_threadsafe(held.set)
                assert go_on.wait(30)
                begin(*given)

            monkeypatch.setattr(ledger, "begin", slowly)
            model = vendor.context.library.model(MODEL)
            call = {
                "model": MODEL,
                "model_commitment": model.commitment,
                "network_digest": model.network.digest,
                "extension": "iknp",
            }
            first = {**call, "job": b"a" * 16, "units": [b"a" * 16]}
            let_in = asyncio.create_task(hospital.net.call(VENDOR, "offline.begin", first))
            await held.wait()
            stopping = asyncio.create_task(vendor.offline.stop())
            await asyncio.sleep(0.05)
            go_on.set()
            await stopping
            await asyncio.gather(let_in, return_exceptions=True)
            assert (vendor.offline._batches, making(vendor)) == ({}, 0)
            await hospital.offline.stop()
            for asking, asked, method in (
                (hospital.net, VENDOR, "offline.begin"),
                (vendor.net, HOSPITAL, "offline.request"),
            ):
                with pytest.raises(PeerError) as refused:
                    await asking.call(asked, method, {**call, "job": b"b" * 16, "units": [b"b" * 16], "images": 1})
                assert refused.value.code == "stopped"
            assert not hospital.offline._asked

    run(main())


def test_units_of_one_side_are_burnt(run, tmp_path):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            _, theirs = clients(vendor, hospital)
            await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=4)
            units = hospital.context.ledger.all_ready()
            vendor.context.ledger.spend(units[0], "elsewhere", 0)
            vendor.context.ledger.burn([units[1]], "test")
            hospital.context.ledger.burn([units[2]], "test")
            hospital.context.store.remove([units[2]])
            vendor.context.store.remove(units[:2])
            assert await agreed(vendor, hospital) == [units[3]]

    run(main())


def test_refusals(run, tmp_path):
    async def main():
        async with daemons(tmp_path, vendor={"disk_reserve_gib": 4096.0}) as (vendor, hospital):
            ours, theirs = clients(vendor, hospital)
            with pytest.raises(PeerError, match="too little disk") as refused:
                await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=1)
            assert refused.value.code == "not_enough"
            for daemon in (vendor, hospital):
                (daemon.context.paths.state / "policy.toml").write_text("[offline]\nmax_units = 2\n")
            with pytest.raises(PeerError, match="policy keeps 2"):
                await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=3)
            with pytest.raises(PeerError, match="policy keeps 2"):
                await ours.call("offline.make", peer=HOSPITAL, model=MODEL, images=3)
            with pytest.raises(PeerError, match="no model 'other'"):
                await theirs.call("offline.make", peer=VENDOR, model="other", images=3)
            assert await agreed(vendor, hospital) == []

    run(main())


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("offline.begin", {}, "protocol_violation"),
        ("offline.begin", {"job": bytes(16), "model": MODEL, "units": [bytes(15)]}, "protocol_violation"),
        ("offline.begin", {"job": bytes(16), "model": MODEL, "units": [bytes(16)] * 2}, "protocol_violation"),
        ("offline.begin", {"job": bytes(16), "model": MODEL, "units": [bytes(16)]}, "mismatch"),
        ("offline.ready", {"job": bytes(16)}, "not_found"),
        ("offline.progress", {"request": "x"}, "not_found"),
        ("units.sync", {"model": "x", "network": "y", "ready": []}, "protocol_violation"),
        ("units.sync", {"model": "0" * 64, "network": "0" * 64, "ready": ["x"]}, "protocol_violation"),
        ("session.image", {}, "protocol_violation"),
        ("session.propose", {"session": "x"}, "protocol_violation"),
        ("session.begin", {"session": "0" * 32, "terms": {}, "software": ""}, "protocol_violation"),
        ("session.states", {"states": [1]}, "protocol_violation"),
        ("catalogue.get", {}, "not_found"),
    ],
)
def test_a_peer_that_does_not_speak_as_agreed(run, tmp_path, method, params, code):
    async def main():
        async with daemons(tmp_path) as (_, hospital):
            with pytest.raises(PeerError) as refused:
                await hospital.net.call(VENDOR, method, params)
            assert refused.value.code == code

    run(main())


def test_a_restart_burns_what_was_unfinished(run, tmp_path):
    """The vendor's ledger says ready, its files are gone; the hospital's says making."""
    from mpcd.daemon.service import Daemon
    from tests.daemon.two_daemons import config, paths

    stock = Stock("f" * 64, "m" * 64, "n" * 64)
    for name, state in ((VENDOR, "ready"), (HOSPITAL, "making")):
        ledger = Ledger(paths(tmp_path, name).state / "ledger.sqlite")
        ledger.begin(stock, bytes(16), [bytes(16)])
        if state == "ready":
            ledger.ready([bytes(16)])
        ledger.close()
        (tmp_path / name / "units" / bytes(16).hex()).mkdir(parents=True)
        daemon = Daemon(paths(tmp_path, name), config(name))
        assert daemon.context.ledger.state(bytes(16)) == "burnt"
        assert stored(daemon) == set()
        daemon.context.close()


def test_audit_of_nothing(run, tmp_path):
    async def main():
        async with daemons(tmp_path):
            pass

    run(main())
    assert audit(tmp_path) == ([], [])
