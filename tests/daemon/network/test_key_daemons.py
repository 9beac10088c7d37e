"""Two whole daemons: units, an approval and a session outlive a change of keys, also of a side that was away."""

import asyncio
import time

import pytest

from mpcd.daemon import log
from mpcd.daemon.errors import PeerError
from mpcd.daemon.service import Daemon
from tests.daemon.two_daemons import (
    DATASET,
    HOSPITAL,
    MODEL,
    VENDOR,
    Client,
    audit,
    config,
    daemons,
    expected,
    install,
    pair,
    paths,
    results,
)

START = {"peer": VENDOR, "model": MODEL, "dataset": DATASET, "reveal": "scores"}


async def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        await asyncio.sleep(0.05)


def clients(*both):
    return [Client(daemon.context.paths.control_socket) for daemon in both]


def test_units_and_an_approval_outlive_both_sides_new_keys(run, tmp_path):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            ours, theirs = clients(vendor, hospital)
            before = (await ours.call("key.show"))["key"]
            assert (before["mode"], before["rotation"], before["expires"]) == ("pinned", None, None)
            await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=2)
            session = (await theirs.call("session.start", **START, images=2))["session"]
            after = (await ours.call("key.rotate"))["key"]
            assert after["fingerprint"] != before["fingerprint"]
            assert after["rotation"] is None
            await theirs.call("key.rotate", keep_days=3)
            assert (await ours.call("id"))["fingerprint"] == after["fingerprint"]
            (peer,) = (await theirs.call("peer.list"))["peers"]
            assert (peer["fingerprint"], peer["known_by"], peer["connected"]) == (after["fingerprint"], "pin", True)
            (stock,) = (await theirs.call("offline.status"))["units"]
            assert (stock["peer"], stock["ready"]) == (VENDOR, 2)
            await ours.call("session.approve", session=session["id"])
            done = (await theirs.call("session.watch", session=session["id"]))["session"]
            assert (done["state"], done["done"], done["attempts"]) == ("done", 2, 2)
            assert done["offline"]["bytes"] == 0, "the units made before were used"
            return session["id"]

    session = run(main())
    want = expected(tmp_path)
    assert results(tmp_path, session) == {i: want[i] for i in range(2)}
    audit(tmp_path)


@pytest.mark.parametrize("approved", ["before", "after"])
@pytest.mark.parametrize("changes", [VENDOR, HOSPITAL])
def test_a_session_goes_on_after_one_side_changed_its_key_while_the_other_was_away(run, tmp_path, changes, approved):
    other = HOSPITAL if changes == VENDOR else VENDOR

    async def main():
        both = {name: Daemon(paths(tmp_path, name), config(name)) for name in (VENDOR, HOSPITAL)}
        for daemon in both.values():
            await daemon.start(warm=False)
        try:
            port = both[VENDOR].net.port
            contexts = [both[name].context for name in (VENDOR, HOSPITAL)]
            pair(*(context.peers for context in contexts), *(context.identity for context in contexts), port)
            await until(lambda: both[HOSPITAL].net.connected(VENDOR) and both[VENDOR].net.connected(HOSPITAL))
            ours, theirs = clients(*both.values())
            await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=3)
            session = (await theirs.call("session.start", **START, images=3))["session"]["id"]
            if changes == VENDOR:
                await both[HOSPITAL].stop()
            if approved == "before":
                await ours.call("session.approve", session=session)
            if changes == HOSPITAL:
                await both[VENDOR].stop()
            stays = ours if changes == VENDOR else theirs
            shown = (await stays.call("key.rotate"))["key"]
            assert shown["rotation"]["pending"] == [other]
            assert [p["knows_key"] for p in (await stays.call("peer.list"))["peers"]] == [False]
            assert shown["rotation"]["until"] - shown["rotation"]["started"] == pytest.approx(30 * 86400)
            status = await stays.call("status")
            assert status["key"] == shown
            assert any(check["name"] == "key" and other in check["text"] for check in status["health"])
            with pytest.raises(PeerError, match="still to hear"):
                await stays.call("key.rotate")

            both[other] = Daemon(paths(tmp_path, other), config(other, port if other == VENDOR else 0))
            await both[other].start(warm=False)
            ours, theirs = clients(both[VENDOR], both[HOSPITAL])

            await until(lambda: both[changes].context.identity.rotation is None)
            if approved == "after":
                await ours.call("session.approve", session=session)
            done = (await theirs.call("session.watch", session=session))["session"]
            assert (done["state"], done["done"], done["reason"]) == ("done", 3, "")
            assert done["offline"]["bytes"] == 0
        finally:
            for daemon in (both[HOSPITAL], both[VENDOR]):
                await daemon.stop()
        return session

    log.configure(as_json=True)
    install(tmp_path)
    session = run(main())
    assert results(tmp_path, session) == {i: want for i, want in expected(tmp_path).items() if i < 3}
    audit(tmp_path)
