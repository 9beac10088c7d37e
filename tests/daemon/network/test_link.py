"""The control link of two networks over real TLS: whoever dials, whatever breaks, and what is said of it."""

import asyncio
import dataclasses

import pytest

from mpcd.daemon.errors import NotFound, PeerUnreachable, VersionMismatch
from mpcd.daemon.network import greeting
from mpcd.daemon.network.identity import grouped
from tests.daemon.network.sides import Side, joined_by_relay, linked, meet, relay_to, until, up, wait_connected


def test_both_dialling_leaves_one_link_the_same_on_both_sides(run, sides):
    a, b = sides
    meet(a, b, "both")

    async def main():
        for _ in range(5):
            async with up(a, b):
                await linked(a, b)

                def settled():
                    mine, theirs = a.net.status("beta"), b.net.status("alpha")
                    return mine.connected and theirs.connected and mine.dialled != theirs.dialled

                await asyncio.sleep(0.3)
                await until(settled)
                assert await a.net.call("beta", "echo", {"n": 1}) == {"from": "alpha", "n": 1}
                assert await b.net.call("alpha", "echo", {"n": 2}) == {"from": "beta", "n": 2}
            a.net, b.net = a.network(), b.network()

    run(main())


def test_not_connected_says_why(run, sides):
    a, b = sides
    a.knows(b)

    async def main():
        async with up(a):
            with pytest.raises(NotFound):
                await a.net.call("nobody", "echo", {})
            with pytest.raises(PeerUnreachable, match="cannot be reached"):
                await wait_connected(a.net, "beta", 0.5)
            with pytest.raises(PeerUnreachable, match=rf"beta at 127\.0\.0\.1:{b.port} cannot be reached"):
                await a.net.call("beta", "echo", {})
            assert a.net.status("beta").code == "peer_unreachable"
        b.knows(a, "")
        async with up(b):
            with pytest.raises(PeerUnreachable, match="waits for alpha to dial"):
                await b.net.call("alpha", "echo", {})

    run(main())


def test_reconnects_after_the_connection_is_cut(run, sides):
    a, b = sides

    async def main():
        async with joined_by_relay(a, b) as relay:
            for _ in range(3):
                before = len(a.events), len(b.events)
                relay.cut()
                await until(lambda x=before: len(a.events) >= x[0] + 2 and len(b.events) >= x[1] + 2)
                assert (await a.net.call("beta", "echo", {}))["from"] == "alpha"
            assert a.events == [("up", "beta"), *[("down", "beta"), ("up", "beta")] * 3]

    run(main())


def test_silent_link_is_noticed_on_both_sides_and_replaced(run, sides):
    a, b = sides

    async def main():
        async with joined_by_relay(a, b) as relay:
            relay.frozen = True
            await until(lambda: ("down", "beta") in a.events and ("down", "alpha") in b.events)
            relay.frozen = False
            await linked(a, b)
            await until(lambda: a.events[-1] == ("up", "beta") and b.events[-1] == ("up", "alpha"))

    run(main())


def test_restarted_peer_replaces_its_old_link_at_once(run, sides):
    """The old link is dead but nobody has noticed: the new instance must not wait for that."""
    a, b = sides
    patient = dataclasses.replace(b.config.timeouts, silence=60.0, keepalive=30.0)
    b.config = dataclasses.replace(b.config, timeouts=patient)
    b.net = b.network()

    async def main():
        async with relay_to(b.port) as relay:
            a.knows(b, f"127.0.0.1:{relay.port}")
            b.knows(a, "")
            async with up(b):
                await a.net.start()
                await linked(a, b)
                relay.frozen = True
                await a.net.stop()
                a.net = a.network()
                a.knows(b)
                async with up(a):
                    await linked(a, b)
                    assert (await b.net.call("alpha", "echo", {}))["from"] == "beta"
                    await until(lambda: b.events == [("up", "alpha"), ("down", "alpha"), ("up", "alpha")])

    run(main())


def test_changed_certificate_is_named_with_both_fingerprints(run, sides, make_identity, tmp_path):
    a, b = sides
    a.knows(b)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    impostor = Side(make_identity("impostor"), "beta", elsewhere, port=b.port)
    impostor.knows(a, "")

    async def main():
        async with up(a, impostor):
            with pytest.raises(PeerUnreachable, match="the certificate of 'beta' changed") as caught:
                await wait_connected(a.net, "beta", 1.0)
            assert grouped(b.identity.fingerprint) in caught.value.message
            assert grouped(impostor.identity.fingerprint) in caught.value.message
            assert a.net.status("beta").code == "certificate_changed"
            assert impostor.events == []

    run(main())


@pytest.mark.parametrize(("version", "who"), [(7, "this daemon must be upgraded"), (0, "beta must be upgraded")])
def test_dialer_refuses_another_version_and_says_who_must_upgrade(run, sides, monkeypatch, version, who):
    a, b = sides
    meet(a, b, "a")
    monkeypatch.setattr(b.net._acceptor, "_hello", lambda *args: greeting.Hello("beta", "x", version, version))

    async def main():
        async with up(a, b):
            with pytest.raises(PeerUnreachable, match=who):
                await wait_connected(a.net, "beta", 1.0)
            status = a.net.status("beta")
            assert status.code == VersionMismatch.code
            assert status.hint

    run(main())
