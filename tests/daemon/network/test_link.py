import asyncio
import contextlib
import dataclasses
import gc
import os
import socket
import ssl
import time
import weakref

import msgpack
import pytest
import structlog

from mpcd.daemon.config import Config
from mpcd.daemon.errors import (
    BadInput,
    ConfigError,
    Conflict,
    LinkError,
    MpcdError,
    NotFound,
    PeerClosed,
    PeerSilent,
    PeerUnreachable,
    Refused,
    VersionMismatch,
)
from mpcd.daemon.network import greeting, rpc, tls
from mpcd.daemon.network import link as link_module
from mpcd.daemon.network.identity import grouped
from mpcd.daemon.network.link import PeerError, PeerNetwork
from mpcd.daemon.network.peers import Peers
from mpcd.daemon.network.transport import dial
from mpcd.protocol.wire import Frame

JOB = bytes(range(16))
QUICK = {"keepalive": 0.1, "silence": 1.0, "retry_first": 0.05, "retry_most": 0.2, "handshake": 2.0, "dial": 2.0}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_folder(parent):
    folder = parent / "elsewhere"
    folder.mkdir()
    return folder


class Side:
    """One daemon's network half, with what happened to it."""

    def __init__(self, identity, name, folder, port=None, handlers=None, **settings):
        self.identity, self.name, self.port = identity, name, port or free_port()
        table = {"name": name, "listen": {"host": "127.0.0.1", "port": self.port}, "timeouts": QUICK}
        self.config = Config.parse({**table, **settings})
        self.peers = Peers(folder / f"{name}.json", identity.fingerprint)
        self.events = []
        self.handlers = handlers if handlers is not None else {"echo": self.echo}
        self.net = self.network()

    def network(self):
        return PeerNetwork(
            self.config,
            self.identity,
            self.peers,
            self.handlers,
            lambda peer: self.events.append(("up", peer)),
            lambda peer: self.events.append(("down", peer)),
        )

    async def echo(self, peer, params):
        return {"from": peer, **params}

    def knows(self, other, address=None):
        at = f"127.0.0.1:{other.port}" if address is None else address
        self.peers.add(other.identity.invite(other.name), address=at)


@pytest.fixture
def sides(identities, tmp_path):
    a, b = identities
    return Side(a, "alpha", tmp_path), Side(b, "beta", tmp_path)


@pytest.fixture
def logged():
    with structlog.testing.capture_logs() as entries:
        yield entries


@contextlib.asynccontextmanager
async def up(*sides):
    async with asyncio.timeout(60):
        for side in sides:
            await side.net.start()
        try:
            yield
        finally:
            for side in sides:
                await side.net.stop()


async def until(condition, timeout=10.0):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        await asyncio.sleep(0.01)


async def linked(*sides):
    for side in sides:
        for peer in side.peers.list():
            await side.net.wait_connected(peer.name, 10)


def meet(a, b, who_dials):
    a.knows(b, None if who_dials in ("a", "both") else "")
    b.knows(a, None if who_dials in ("b", "both") else "")


@contextlib.asynccontextmanager
async def proxy(target):
    """A TCP relay that can be frozen (packets stop, nobody is told) or cut. Yields it with ``port``."""

    class Relay:
        def __init__(self):
            self.frozen, self.writers, self.accepting = False, [], True

        def cut(self):
            for writer in self.writers:
                writer.transport.abort()

        async def handle(self, reader, writer):
            if not self.accepting:
                writer.transport.abort()
                return
            onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", target)
            self.writers += [writer, onward_writer]
            await asyncio.gather(self.pump(reader, onward_writer), self.pump(onward_reader, writer))

        async def pump(self, reader, writer):
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    while self.frozen:
                        await asyncio.sleep(0.01)
                    writer.write(data)
                    await writer.drain()
            writer.transport.abort()

    relay = Relay()
    server = await asyncio.start_server(relay.handle, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        relay.frozen = False
        relay.cut()
        server.close()


# The control link.


@pytest.mark.parametrize("who_dials", ["a", "b", "both"])
def test_calls_both_ways_whoever_dials(run, sides, who_dials):
    a, b = sides
    meet(a, b, who_dials)

    async def main():
        async with up(a, b):
            await linked(a, b)
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


def test_errors_of_handlers_travel_bugs_do_not(run, sides, logged):
    a, b = sides
    meet(a, b, "a")

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

    b.handlers.update(refuse=refuse, private=private, crash=crash, wrong=wrong, huge=huge, never=never)

    async def main():
        async with up(a, b):
            await linked(a, b)
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


def test_too_many_calls_at_once_are_turned_away(run, identities, tmp_path):
    a, b = identities
    gate = asyncio.Event()

    async def wait(peer, params):
        await gate.wait()
        return {}

    one = Side(a, "alpha", tmp_path)
    two = Side(b, "beta", tmp_path, handlers={"wait": wait}, limits={"calls_per_peer": 3})
    meet(one, two, "a")

    async def main():
        async with up(one, two):
            await linked(one, two)
            calls = [asyncio.create_task(one.net.call("beta", "wait", {})) for _ in range(5)]
            await until(lambda: sum(call.done() for call in calls) == 2)
            gate.set()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [getattr(result, "code", result) for result in results] == [{}, {}, {}, "busy", "busy"]

    run(main())


def test_a_flood_of_calls_is_not_read(run, identities, tmp_path):
    a, b = identities
    gate = asyncio.Event()
    held = asyncio.Event()

    async def wait(peer, params):
        await gate.wait()
        return {}

    one = Side(a, "alpha", tmp_path)
    two = Side(b, "beta", tmp_path, handlers={"wait": wait}, limits={"calls_per_peer": 3})
    meet(one, two, "a")

    async def main():
        async with up(one, two):
            await linked(one, two)
            link = two.net._states["alpha"].link
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


def test_not_connected_says_why(run, sides):
    a, b = sides
    a.knows(b)

    async def main():
        async with up(a):
            with pytest.raises(NotFound):
                await a.net.call("nobody", "echo", {})
            with pytest.raises(PeerUnreachable, match="cannot be reached"):
                await a.net.wait_connected("beta", 0.5)
            with pytest.raises(PeerUnreachable, match=rf"beta at 127\.0\.0\.1:{b.port} cannot be reached"):
                await a.net.call("beta", "echo", {})
            assert a.net.status("beta").code == "peer_unreachable"
        b.knows(a, "")
        async with up(b):
            with pytest.raises(PeerUnreachable, match="waits for alpha to dial"):
                await b.net.call("alpha", "echo", {})

    run(main())


def test_port_in_use_is_named(run, sides, tmp_path):
    a, b = sides
    second = Side(b.identity, "second", tmp_path, port=a.port)

    async def main():
        async with up(a):
            with pytest.raises(ConfigError, match=f"port {a.port}"):
                await second.net.start()

    run(main())


# Links that break.


def test_reconnects_after_the_connection_is_cut(run, sides):
    a, b = sides

    async def main():
        async with proxy(b.port) as relay, contextlib.AsyncExitStack() as stack:
            a.knows(b, f"127.0.0.1:{relay.port}")
            b.knows(a, "")
            await stack.enter_async_context(up(a, b))
            await linked(a, b)
            for _ in range(3):
                before = len(a.events), len(b.events)
                relay.cut()
                await until(lambda x=before: len(a.events) >= x[0] + 2 and len(b.events) >= x[1] + 2)
                assert (await a.net.call("beta", "echo", {}))["from"] == "alpha"
            assert a.events == [("up", "beta"), *[("down", "beta"), ("up", "beta")] * 3]

    run(main())


def test_call_in_flight_when_the_link_breaks(run, sides):
    a, b = sides
    meet(a, b, "b")
    called = asyncio.Event()

    async def never(peer, params):
        called.set()
        await asyncio.sleep(60)

    b.handlers["never"] = never

    async def main():
        async with up(a, b):
            await linked(a, b)
            call = asyncio.create_task(a.net.call("beta", "never", {}))
            await called.wait()
            a.net._states["beta"].link.connection._transport.abort()
            with pytest.raises(LinkError):
                await call

    run(main())


def test_silent_link_is_noticed_on_both_sides_and_replaced(run, sides):
    a, b = sides

    async def main():
        async with proxy(b.port) as relay, contextlib.AsyncExitStack() as stack:
            a.knows(b, f"127.0.0.1:{relay.port}")
            b.knows(a, "")
            await stack.enter_async_context(up(a, b))
            await linked(a, b)
            relay.frozen = True
            await until(lambda: ("down", "beta") in a.events and ("down", "alpha") in b.events)
            relay.frozen = False
            await linked(a, b)
            await until(lambda: a.events[-1] == ("up", "beta") and b.events[-1] == ("up", "alpha"))

    run(main())


def test_restarted_peer_replaces_its_old_link_at_once(run, sides):
    """The old link is dead but nobody has noticed: the new instance must not wait for that."""
    a, b = sides

    async def main():
        async with proxy(b.port) as relay, contextlib.AsyncExitStack() as stack:
            b.config = dataclasses.replace(
                b.config, timeouts=dataclasses.replace(b.config.timeouts, silence=60.0, keepalive=30.0)
            )
            b.net = b.network()
            a.knows(b, f"127.0.0.1:{relay.port}")
            b.knows(a, "")
            await stack.enter_async_context(up(b))
            await a.net.start()
            await linked(a, b)
            relay.frozen = True
            await a.net.stop()
            a.net = a.network()
            a.peers.add(b.identity.invite("beta"), address=f"127.0.0.1:{b.port}")
            await stack.enter_async_context(up(a))
            await linked(a, b)
            assert (await b.net.call("alpha", "echo", {}))["from"] == "beta"
            await until(lambda: b.events == [("up", "alpha"), ("down", "alpha"), ("up", "alpha")])

    run(main())


def test_a_job_is_given_up_when_the_peer_was_restarted(run, sides):
    """The new instance knows nothing of it: there is nothing to wait for."""
    a, b = sides

    async def main():
        a.knows(b)
        b.knows(a, "")
        async with up(a):
            await b.net.start()
            await linked(a, b)
            waiting = asyncio.create_task(a.net.open_channel("beta", JOB, 60))
            await asyncio.sleep(0.1)
            await b.net.stop()
            await asyncio.sleep(0.1)
            assert not waiting.done(), "a link that breaks may come back"
            b.net = b.network()
            async with up(b):
                with pytest.raises(LinkError, match="beta was restarted"):
                    async with asyncio.timeout(10):
                        await waiting

    run(main())


# Who may connect.


def test_unknown_peer_is_refused_told_why_and_shown_to_the_operator(run, sides, logged):
    a, b = sides
    a.knows(b)

    async def main():
        async with up(a, b):
            with pytest.raises(PeerUnreachable, match="beta does not know this daemon's certificate") as caught:
                await a.net.wait_connected("beta", 1.0)
            assert grouped(a.identity.fingerprint) in caught.value.message
            assert "mpcctl peer add" in caught.value.hint
            assert a.net.status("beta").code == "unknown_peer"
            await until(lambda: b.net.strangers())
            (stranger,) = b.net.strangers()
            assert (stranger.name, stranger.fingerprint) == ("alpha", a.identity.fingerprint)
            b.knows(a, "")  # added while both run
            await linked(a, b)
            assert (await b.net.call("alpha", "echo", {}))["from"] == "beta"

    run(main())
    assert any(grouped(a.identity.fingerprint) == entry.get("fingerprint") for entry in logged)


def test_changed_certificate_is_named_with_both_fingerprints(run, sides, make_identity, tmp_path):
    a, b = sides
    a.knows(b)
    impostor = Side(make_identity("impostor"), "beta", make_folder(tmp_path), port=b.port)
    impostor.peers.add(a.identity.invite("alpha"), address="")

    async def main():
        async with up(a, impostor):
            with pytest.raises(PeerUnreachable, match="the certificate of 'beta' changed") as caught:
                await a.net.wait_connected("beta", 1.0)
            assert grouped(b.identity.fingerprint) in caught.value.message
            assert grouped(impostor.identity.fingerprint) in caught.value.message
            assert a.net.status("beta").code == "certificate_changed"
            assert impostor.events == []

    run(main())


def test_removed_peer_loses_its_links_and_is_refused(run, sides):
    a, b = sides
    meet(a, b, "a")

    async def main():
        async with up(a, b):
            await linked(a, b)
            ends = await asyncio.gather(a.net.open_channel("beta", JOB), b.net.open_channel("alpha", JOB))
            b.peers.remove("alpha")
            await until(lambda: a.net.status("beta").code == "unknown_peer")
            for end in ends:
                with pytest.raises(MpcdError):
                    await end.recv_frame(0)
            with pytest.raises(NotFound):
                await b.net.call("alpha", "echo", {})

    run(main())


def test_one_address_cannot_take_every_place(run, identities, tmp_path):
    a, b = identities
    one = Side(
        a,
        "alpha",
        tmp_path,
        limits={"unauthenticated": 8, "unauthenticated_per_address": 3},
        timeouts={**QUICK, "handshake": 30.0},
    )
    two = Side(b, "beta", tmp_path)
    one.knows(two, "")
    two.knows(one)

    async def main():
        async with up(one):
            scanner = [
                await asyncio.open_connection("127.0.0.1", one.port, local_addr=("127.0.0.9", 0)) for _ in range(20)
            ]
            await until(lambda: sorted(one.net._doorway.waiting.values()) == ["127.0.0.9"] * 3)
            async with up(two):
                await linked(one, two)
            assert sorted(one.net._doorway.waiting.values()) == ["127.0.0.9"] * 3
            for _, writer in scanner:
                writer.close()

    run(main())


def test_strangers_cannot_use_up_the_daemon(run, identities, tmp_path):
    a, b = identities
    one = Side(a, "alpha", tmp_path, limits={"unauthenticated": 4}, timeouts={**QUICK, "handshake": 0.5})
    two = Side(b, "beta", tmp_path)
    one.knows(two, "")
    two.knows(one)

    async def main():
        async with up(one):
            loiterers = [await asyncio.open_connection("127.0.0.1", one.port) for _ in range(10)]
            for reader, writer in loiterers:  # six give way at once, four leave after the handshake timeout
                with contextlib.suppress(OSError):
                    assert await asyncio.wait_for(reader.read(), 3) == b""
                writer.close()
            assert not one.net._doorway.waiting
            async with up(two):
                await linked(one, two)

    run(main())


def test_a_data_connection_that_nobody_wants_is_dropped(run, sides, monkeypatch):
    monkeypatch.setattr(link_module, "UNCLAIMED", 0.3)
    a, b = sides
    b.knows(a, "")

    async def main():
        async with up(b):
            connection = await dial(
                "127.0.0.1", b.port, tls.client_context(a.identity, b.identity.certificate), b.config.timeouts
            )
            await connection.recv_frame(10_000)
            fields = msgpack.packb(hello(a, purpose=greeting.CHANNEL, job=JOB))
            await connection.send_frame(Frame(b"greeting", (memoryview(fields),)))
            with pytest.raises(PeerClosed):
                await connection.recv_frame(10_000)
            assert not b.net._states["alpha"].arrived
            connection.abort()

    run(main())


def test_a_peer_that_dials_without_end_is_held_to_its_rate(run, sides, monkeypatch):
    """Control links one after the other: old ones are not kept, and beyond the rate the connection is dropped."""
    monkeypatch.setattr(link_module, "CONNECTIONS_A_SECOND", 0.01)
    a, b = sides
    b.knows(a, "")

    async def main():
        async with up(b):
            open_ones, dropped = [], 0
            for _ in range(25):
                try:
                    connection = await dial(
                        "127.0.0.1", b.port, tls.client_context(a.identity, b.identity.certificate), b.config.timeouts
                    )
                    await connection.recv_frame(10_000)
                    await connection.send_frame(Frame(b"greeting", (memoryview(msgpack.packb(hello(a))),)))
                    await connection.recv_frame(10_000)
                    open_ones.append(connection)
                except LinkError:
                    dropped += 1
            assert len(open_ones) == link_module.CONNECTIONS_AT_ONCE / link_module.LINK_COSTS
            assert dropped == 25 - len(open_ones)
            assert b.net.connected("alpha")
            await until(lambda: sum(c.failure is None for c in open_ones) <= link_module.RETIRING + 1)
            for connection in open_ones:
                connection.abort()

    run(main())


def test_tasks_are_bounded_while_strangers_come_and_none_is_left(run, identities, tmp_path):
    a, b = identities
    one = Side(a, "alpha", tmp_path, limits={"unauthenticated": 16}, timeouts={**QUICK, "handshake": 1.0})
    two = Side(b, "beta", tmp_path)
    one.knows(two, "")
    two.knows(one)

    async def main():
        async with up(one):
            before = len(asyncio.all_tasks())
            writers = []
            for number in range(300):
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(
                        "127.0.0.1", one.port, local_addr=(f"127.0.1.{1 + number % 100}", 0)
                    )
                    writers.append(writer)
            await asyncio.sleep(0.1)
            # A task for each place, and for those that are being dropped.
            await until(lambda: len(asyncio.all_tasks()) - before <= 2 * 16)
            async with up(two):
                await linked(one, two)
            await until(lambda: len(asyncio.all_tasks()) <= before + 1)
            assert not one.net._doorway.waiting
            for writer in writers:
                writer.close()

    run(main())


@pytest.mark.parametrize("data", [b"GET / HTTP/1.0\r\n\r\n", os.urandom(300), b""])
def test_plaintext_and_garbage_do_the_daemon_no_harm(run, sides, data):
    a, b = sides
    meet(a, b, "a")

    async def main():
        async with up(a, b):
            reader, writer = await asyncio.open_connection("127.0.0.1", b.port)
            writer.write(data)
            writer.write_eof()
            with contextlib.suppress(OSError):
                await asyncio.wait_for(reader.read(), 5)
            writer.close()
            await linked(a, b)

    run(main())


def test_tls_1_2_dialer_does_not_get_in(run, sides):
    a, b = sides
    meet(a, b, "a")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_cert_chain(a.identity.file)

    async def main():
        async with up(b):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("127.0.0.1", b.port, ssl=old)

    run(main())


# The greeting.


async def greet_by_hand(a, b, fields, then=None):
    """Dial b as a with this greeting; the acceptor's first frame and its verdict."""
    connection = await dial(
        "127.0.0.1", b.port, tls.client_context(a.identity, b.identity.certificate), b.config.timeouts
    )
    try:
        first = msgpack.unpackb((await connection.recv_frame(10_000))[1])
        data = fields if isinstance(fields, bytes) else msgpack.packb(fields)
        await connection.send_frame(Frame(b"greeting", (memoryview(data),)))
        verdict = msgpack.unpackb((await connection.recv_frame(10_000))[1])
        if then is not None:
            await then(connection)
        return first, verdict
    finally:
        connection.abort()


def hello(side, **changes):
    fields = dataclasses.asdict(greeting.hello_of(side.identity.fingerprint, side.name, "by-hand", greeting.CONTROL))
    return {**fields, **changes}


@pytest.mark.parametrize(
    ("version", "who"), [(greeting.PROTOCOL_VERSION + 1, "this daemon must be upgraded"), (0, "alpha must be upgraded")]
)
def test_acceptor_refuses_another_version_and_says_who_must_upgrade(run, sides, version, who):
    a, b = sides
    b.knows(a, "")

    async def main():
        async with up(b):
            first, verdict = await greet_by_hand(a, b, hello(a, protocol=version, newest=version))
            assert (first["protocol"], first["newest"]) == (greeting.OLDEST_PROTOCOL, greeting.PROTOCOL_VERSION)
            assert verdict["error"]["code"] == "version_mismatch"
            assert who in verdict["error"]["message"]
            before_ranges = {key: value for key, value in hello(a, protocol=version).items() if key != "newest"}
            assert (await greet_by_hand(a, b, before_ranges))[1] == verdict
            assert not b.net.connected("alpha")

    run(main())


@pytest.mark.parametrize(("version", "who"), [(7, "this daemon must be upgraded"), (0, "beta must be upgraded")])
def test_dialer_refuses_another_version_and_says_who_must_upgrade(run, sides, monkeypatch, version, who):
    a, b = sides
    meet(a, b, "a")
    monkeypatch.setattr(b.net, "_hello", lambda *args: greeting.Hello("beta", "x", version, version))

    async def main():
        async with up(a, b):
            with pytest.raises(PeerUnreachable, match=who):
                await a.net.wait_connected("beta", 1.0)
            status = a.net.status("beta")
            assert status.code == VersionMismatch.code
            assert status.hint

    run(main())


@pytest.mark.parametrize(
    "fields",
    [
        b"\xc1",
        b"",
        [],
        {},
        {"protocol": str(greeting.PROTOCOL_VERSION)},
        {"protocol": greeting.PROTOCOL_VERSION},
        {"protocol": greeting.PROTOCOL_VERSION, "name": 5},
        {"newest": "1"},
        {"newest": 0},
        {"newest": True},
        {"purpose": "other"},
        {"purpose": "channel"},
        {"purpose": "channel", "job": b"short"},
        {"job": bytes(16)},
        {"name": "\x1b[2J"},
        {"software": "\n"},
        {"name": "x" * 65},
    ],
)
def test_malformed_greetings_are_refused(run, sides, fields):
    a, b = sides
    b.knows(a, "")
    sent = hello(a, **fields) if isinstance(fields, dict) and fields and "protocol" not in fields else fields

    async def main():
        async with up(b):
            _, verdict = await greet_by_hand(a, b, sent)
            assert verdict["error"]["code"] == "protocol_violation"
            assert not b.net.connected("alpha")

    run(main())


@pytest.mark.parametrize(
    "data", [b"\xc1", b"", msgpack.packb({}), msgpack.packb(["call", 1, "echo"]), msgpack.packb(["other", 1, {}])]
)
def test_garbage_on_the_control_link_drops_it_and_the_daemon_stays_up(run, sides, data):
    a, b = sides
    b.knows(a, "")

    async def garbage(connection):
        await connection.send_frame(Frame(b"rpc", (memoryview(data),)))
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
            await connection.send_frame(Frame(b"rpc", (memoryview(msgpack.packb(message)),)))

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


# Data connections.


@pytest.mark.parametrize("who_dials", ["a", "b"])
def test_a_data_connection_that_ended_is_forgotten(run, sides, who_dials):
    """By whoever dialled: a daemon has thousands in a night."""
    a, b = sides
    meet(a, b, who_dials)
    ended = []

    async def main():
        async with up(a, b):
            await linked(a, b)
            for _ in range(5):
                job = os.urandom(16)
                ends = await asyncio.gather(a.net.open_channel("beta", job), b.net.open_channel("alpha", job))
                ended.extend(map(weakref.ref, ends))
                await asyncio.gather(*(end.close() for end in ends))
                del ends
            states = a.net._states["beta"], b.net._states["alpha"]
            await until(lambda: not any(state.channels or state.arrived for state in states))
            a.net.status("beta"), b.net.status("alpha")
            for state in states:
                state.traffic.moved()

            def gone():
                gc.collect()
                return all(end() is None for end in ended)

            await until(gone)

    run(main())


@pytest.mark.parametrize("who_dials", ["a", "b", "both"])
@pytest.mark.parametrize("first", ["a", "b"])
def test_open_channel_either_direction_whoever_asks_first(run, sides, who_dials, first):
    a, b = sides
    meet(a, b, who_dials)

    async def main():
        async with up(a, b):
            await linked(a, b)
            early = asyncio.create_task(
                a.net.open_channel("beta", JOB) if first == "a" else b.net.open_channel("alpha", JOB)
            )
            await asyncio.sleep(0.1)
            assert not early.done()  # open means: on both sides
            late = await (b.net.open_channel("alpha", JOB) if first == "a" else a.net.open_channel("beta", JOB))
            one, two = await early, late
            data = os.urandom(3_000_000)
            for tx, rx in ((one, two), (two, one)):
                task = asyncio.create_task(tx.send_frame(Frame(b"x", (memoryview(data),))))
                assert bytes((await rx.recv_frame(len(data)))[1]) == data
                await task

    run(main())


def test_channels_of_several_jobs_do_not_get_mixed_up(run, sides):
    a, b = sides
    meet(a, b, "both")
    jobs = [os.urandom(16) for _ in range(6)]

    async def main():
        async with up(a, b):
            await linked(a, b)
            ours = [asyncio.create_task(a.net.open_channel("beta", job)) for job in jobs]
            theirs = [asyncio.create_task(b.net.open_channel("alpha", job)) for job in reversed(jobs)]
            for job, task in zip(jobs, ours, strict=True):
                await (await task).send_frame(Frame(job, ()))
            for job, task in zip(reversed(jobs), theirs, strict=True):
                assert (await (await task).recv_frame(0))[0] == job

    run(main())


def test_channel_for_a_job_the_peer_does_not_want_times_out(run, sides):
    a, b = sides
    meet(a, b, "a")

    async def main():
        async with up(a, b):
            await linked(a, b)
            for net, peer in ((a.net, "beta"), (b.net, "alpha")):
                with pytest.raises(PeerUnreachable, match=r"did not open its end .* within 0\.3 seconds"):
                    await net.open_channel(peer, JOB, timeout=0.3)
            with pytest.raises(ValueError, match="16 bytes"):
                await a.net.open_channel("beta", b"short")
            # And what was left of the failed attempts does not stand in the way.
            one, two = await asyncio.gather(a.net.open_channel("beta", JOB), b.net.open_channel("alpha", JOB))
            await one.send_frame(Frame(b"x", ()))
            assert (await two.recv_frame(0))[0] == b"x"

    run(main())


def test_same_job_twice_at_the_same_time_is_refused(run, sides):
    a, b = sides
    meet(a, b, "a")

    async def main():
        async with up(a, b):
            await linked(a, b)
            first = asyncio.create_task(b.net.open_channel("alpha", JOB, timeout=0.5))
            await asyncio.sleep(0)
            with pytest.raises(Conflict):
                await b.net.open_channel("alpha", JOB)
            with pytest.raises(PeerUnreachable):
                await first

    run(main())


def test_too_many_channels_are_turned_away_until_some_close(run, identities, tmp_path):
    a, b = identities
    one = Side(a, "alpha", tmp_path)
    two = Side(b, "beta", tmp_path, limits={"channels_per_peer": 2})
    meet(one, two, "a")

    async def main():
        async with up(one, two):
            await linked(one, two)

            async def pair():
                job = os.urandom(16)
                theirs = asyncio.create_task(two.net.open_channel("alpha", job, timeout=5))
                try:
                    return await one.net.open_channel("beta", job, timeout=5), await theirs
                finally:
                    theirs.cancel()

            first = await pair()
            await pair()
            with pytest.raises(PeerError) as caught:
                await pair()
            assert caught.value.code == "busy"
            await first[0].close()
            await pair()

    run(main())


def test_channel_is_opened_across_a_reconnect(run, sides):
    a, b = sides

    async def main():
        async with proxy(b.port) as relay, contextlib.AsyncExitStack() as stack:
            a.knows(b, f"127.0.0.1:{relay.port}")
            b.knows(a, "")
            await stack.enter_async_context(up(a, b))
            await linked(a, b)
            relay.accepting = False
            relay.cut()
            await until(lambda: not a.net.connected("beta"))
            both = asyncio.gather(a.net.open_channel("beta", JOB), b.net.open_channel("alpha", JOB))
            await asyncio.sleep(0.2)
            relay.accepting = True
            one, two = await both
            await one.send_frame(Frame(b"x", ()))
            assert (await two.recv_frame(0))[0] == b"x"
            relay.cut()
            for end in (one, two):
                with pytest.raises(LinkError):
                    await end.recv_frame(0)

    run(main())


def test_nothing_is_left_running_after_stop(run, sides):
    a, b = sides
    meet(a, b, "both")

    async def main():
        async with up(a, b):
            await linked(a, b)
            await asyncio.gather(a.net.open_channel("beta", JOB), b.net.open_channel("alpha", JOB))
        await asyncio.sleep(0.05)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())
