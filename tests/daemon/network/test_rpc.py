"""Calls over the control link of two networks: answers, errors, floods and garbage."""

import asyncio
import os
import time

import msgpack
import pytest

from mpcd.daemon.errors import BadInput, LinkError, PeerClosed, PeerError, PeerSilent, Refused
from mpcd.daemon.network import greeting, rpc
from tests.daemon.network.sides import Side, greet_by_hand, hello, joined, send_by_hand, until, up


@pytest.mark.parametrize("who_dials", ["a", "b", "both"])
def test_calls_both_ways_whoever_dials(run, sides, who_dials):
    a, b = sides

    async def main():
        async with joined(a, b, who_dials):
            description = os.urandom(100_000)
            assert await a.net.call("beta", "echo", {"d": description}) == {"from": "alpha", "d": description}
            assert await b.net.call("alpha", "echo", {}) == {"from": "beta"}
            status = a.net.status("beta")
            assert status.connected
            assert (status.software, len(status.digest)) == (greeting.software_version(), 64)
            many = await asyncio.gather(*(a.net.call("beta", "echo", {"i": i}) for i in range(50)))
            assert [answer["i"] for answer in many] == list(range(50))
        assert a.events[0] == ("up", "beta")

    run(main())


def test_errors_of_handlers_travel_bugs_do_not(run, sides):
    a, b = sides

    async def refuse(peer, params):
        raise Refused("the \x1b[31mrecipe is unknown", "add it")

    async def private(peer, params):
        raise BadInput("/srv/pacs/DOE^JANE.dcm cannot be read", "look into /srv")

    async def crash(peer, params):
        raise RuntimeError("secret detail")

    async def wrong(peer, params):
        return {"x": object()}

    async def huge(peer, params):
        return {"x": bytes(2 << 20)}

    async def never(peer, params):
        await asyncio.sleep(60)

    b.serve(refuse=refuse, private=private, crash=crash, wrong=wrong, huge=huge, never=never)

    async def main():
        async with joined(a, b):
            with pytest.raises(PeerError) as caught:
                await a.net.call("beta", "refuse", {})
            error = caught.value
            assert (error.code, error.hint, error.exit_status) == ("refused", "add it", 6)
            assert error.message == "the  [31mrecipe is unknown"
            with pytest.raises(PeerError) as caught:
                await a.net.call("beta", "private", {})
            error = caught.value
            assert (error.code, error.message, error.hint) == ("bad_input", "The input cannot be used.", "")
            for method, code in (("crash", "internal"), ("wrong", "internal"), ("huge", "message_too_large")):
                with pytest.raises(PeerError) as caught:
                    await a.net.call("beta", method, {})
                assert caught.value.code == code
                assert "secret" not in str(caught.value)
            with pytest.raises(PeerError, match="no method 'frobnicate'") as caught:
                await a.net.call("beta", "frobnicate", {})
            assert caught.value.code == "unknown_method"
            with pytest.raises(rpc.MessageTooLarge):
                await a.net.call("beta", "echo", {"x": bytes(2 << 20)})
            with pytest.raises(PeerSilent, match="did not answer 'never'"):
                await a.net.call("beta", "never", {}, timeout=0.1)
            assert (await a.net.call("beta", "echo", {}))["from"] == "alpha"  # the link is none the worse

    run(main())


def test_call_in_flight_when_the_link_breaks(run, sides):
    a, b = sides
    called = asyncio.Event()

    async def never(peer, params):
        called.set()
        await asyncio.sleep(60)

    b.serve(never=never)

    async def main():
        async with joined(a, b, "b"):
            call = asyncio.create_task(a.net.call("beta", "never", {}))
            await called.wait()
            a.net._records["beta"].link.current.connection._transport.abort()
            with pytest.raises(LinkError):
                await call

    run(main())


def three_calls_at_once(identities, folder):
    """Alpha, a beta that has no more of its calls at work, and the gate at which these wait."""
    gate = asyncio.Event()

    async def wait(peer, params):
        await gate.wait()
        return {}

    a, b = identities
    one = Side(a, "alpha", folder)
    two = Side(b, "beta", folder, handlers={"wait": wait}, limits={"calls_per_peer": 3})
    return one, two, gate


def test_too_many_calls_at_once_are_turned_away(run, identities, tmp_path):
    one, two, gate = three_calls_at_once(identities, tmp_path)

    async def main():
        async with joined(one, two):
            calls = [asyncio.create_task(one.net.call("beta", "wait", {})) for _ in range(5)]
            await until(lambda: sum(call.done() for call in calls) == 2)
            gate.set()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [getattr(result, "code", result) for result in results] == [{}, {}, {}, "busy", "busy"]

    run(main())


def test_a_flood_of_calls_is_not_read(run, identities, tmp_path):
    one, two, gate = three_calls_at_once(identities, tmp_path)
    held = asyncio.Event()

    async def main():
        async with joined(one, two):
            link = two.net._records["alpha"].link.current
            send, most = link._send, 0

            async def slowly(message):  # as to a peer that does not read
                nonlocal most
                most = max(most, len(link._tasks))
                await held.wait()
                await send(message)

            link._send = slowly
            calls = [asyncio.create_task(one.net.call("beta", "wait", {})) for _ in range(200)]
            await until(lambda: len(link._tasks) == 6)
            await asyncio.sleep(0.2)
            assert len(link._tasks) == 6
            held.set()
            await until(lambda: sum(call.done() for call in calls) == 197)
            assert most <= 6
            gate.set()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [getattr(result, "code", result) for result in results] == [{}] * 3 + ["busy"] * 197

    run(main())


@pytest.mark.parametrize(
    "data", [b"\xc1", b"", msgpack.packb({}), msgpack.packb(["call", 1, "echo"]), msgpack.packb(["other", 1, {}])]
)
def test_garbage_on_the_control_link_drops_it_and_the_daemon_stays_up(run, sides, data):
    a, b = sides
    b.knows(a, "")

    async def garbage(connection):
        await send_by_hand(connection, b"rpc", data)
        with pytest.raises(PeerClosed):
            await connection.recv_frame(1000)

    async def main():
        async with up(b):
            await greet_by_hand(a, b, hello(a), garbage)
            await until(lambda: b.events == [("up", "alpha"), ("down", "alpha")])
            assert b.net.status("alpha").code == "protocol_violation"

    run(main())


def test_messages_and_their_bytes_are_read_no_faster_than_agreed(run, identities, tmp_path, monkeypatch):
    """A flood of answers that nobody waits for, and of large calls: TCP holds the peer back, nothing piles up."""
    monkeypatch.setattr(rpc, "MESSAGES_A_SECOND", 20.0)
    monkeypatch.setattr(rpc, "MESSAGES_AT_ONCE", 50.0)
    a, b = identities
    gate, held = asyncio.Event(), []

    async def hold(peer, params):
        held.append(len(params["x"]))
        await gate.wait()
        return {}

    one = Side(a, "alpha", tmp_path)
    two = Side(b, "beta", tmp_path, handlers={"hold": hold})
    two.knows(one, "")

    async def flood(connection):
        async def send(message):
            await send_by_hand(connection, b"rpc", message)

        for number in range(8):
            await send(["call", number, "hold", {"x": bytes(1_000_000)}])
        await until(lambda: held)
        await asyncio.sleep(0.3)
        assert sum(held) <= rpc.MAX_AT_WORK + rpc.MAX_MESSAGE
        gate.set()
        await until(lambda: len(held) == 8)
        began = time.monotonic()
        for number in range(100):
            await send(["result", 1000 + number, {}])
        await send(["call", 9, "hold", {"x": b""}])
        await until(lambda: len(held) == 9)
        assert time.monotonic() - began > 2.0

    async def main():
        async with up(two):
            await greet_by_hand(one, two, hello(one), flood)

    run(main())


def test_calls_that_a_break_meets_while_they_are_being_sent(run, identities, tmp_path):
    """To a peer that reads nothing: one caller waits, one has gone. ``run`` finds the errors that nobody took."""
    a, b = identities
    one, two = Side(a, "alpha", tmp_path), Side(b, "beta", tmp_path)
    two.knows(one, "")

    async def deaf(connection):
        await until(lambda: two.net.connected("alpha"))
        call = {"x": bytes(1_000_000)}
        calls = [asyncio.create_task(two.net.call("alpha", "hold", call, timeout=30)) for _ in range(30)]
        gone = [asyncio.create_task(two.net.call("alpha", "hold", call, timeout=0.2)) for _ in range(3)]
        for error in await asyncio.gather(*gone, return_exceptions=True):
            assert isinstance(error, PeerSilent)
        connection.abort()
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, LinkError)

    async def main():
        async with up(two):
            await greet_by_hand(one, two, hello(one), deaf)

    run(main())
