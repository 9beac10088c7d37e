"""Who comes to the port: strangers, scanners, garbage, daemons of another version."""

import asyncio
import contextlib
import os
import ssl

import pytest
import structlog

from mpcd.daemon.errors import ConfigError, PeerUnreachable
from mpcd.daemon.network import greeting
from mpcd.daemon.network.identity import grouped
from tests.daemon.network.sides import (
    QUICK,
    Side,
    greet_by_hand,
    hello,
    linked,
    meet,
    until,
    up,
    wait_connected,
)


@pytest.fixture
def logged():
    with structlog.testing.capture_logs() as entries:
        yield entries


def test_port_in_use_is_named(run, sides, tmp_path):
    a, b = sides
    second = Side(b.identity, "second", tmp_path, port=a.port)

    async def main():
        async with up(a):
            with pytest.raises(ConfigError, match=f"port {a.port}"):
                await second.net.start()

    run(main())


def test_unknown_peer_is_refused_told_why_and_shown_to_the_operator(run, sides, logged):
    a, b = sides
    a.knows(b)

    async def main():
        async with up(a, b):
            with pytest.raises(PeerUnreachable, match="beta does not know this daemon's certificate") as caught:
                await wait_connected(a.net, "beta", 1.0)
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
            await until(lambda: sorted(one.net._acceptor._doorway.waiting.values()) == ["127.0.0.9"] * 3)
            async with up(two):
                await linked(one, two)
            assert sorted(one.net._acceptor._doorway.waiting.values()) == ["127.0.0.9"] * 3
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
            assert not one.net._acceptor._doorway.waiting
            async with up(two):
                await linked(one, two)

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
            await until(lambda: not one.net._acceptor._doorway.waiting)
            await until(lambda: len(asyncio.all_tasks()) <= before)
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
