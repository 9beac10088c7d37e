"""Two networks on loopback, each one daemon's half: made to know each other, started, and waited for."""

import asyncio
import contextlib
import dataclasses
import socket
import time

import msgpack

from mpcd.daemon.config import Config
from mpcd.daemon.network import greeting, tls
from mpcd.daemon.network.peer_network import PeerNetwork
from mpcd.daemon.network.peers import Peers
from mpcd.daemon.network.transport import dial
from mpcd.protocol.wire import Frame

QUICK = {"keepalive": 0.1, "silence": 1.0, "retry_first": 0.05, "retry_most": 0.2, "handshake": 2.0, "dial": 2.0}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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

    def serve(self, **handlers):
        """These methods as well. Before the start only."""
        self.handlers.update(handlers)
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


async def wait_connected(net, peer, timeout=10.0):
    """Raises PeerUnreachable, with the last reason, if there is no link by then."""
    end = time.monotonic() + timeout
    while not net.connected(peer) and time.monotonic() < end:
        await asyncio.sleep(0.01)
    net.protocol(peer)


async def linked(*sides):
    for side in sides:
        for peer in side.peers.list():
            await wait_connected(side.net, peer.name)


def meet(a, b, who_dials):
    a.knows(b, None if who_dials in ("a", "both") else "")
    b.knows(a, None if who_dials in ("b", "both") else "")


@contextlib.asynccontextmanager
async def joined(a, b, who_dials="a"):
    """They know each other, run, and have a link."""
    meet(a, b, who_dials)
    async with up(a, b):
        await linked(a, b)
        yield


@contextlib.asynccontextmanager
async def joined_by_relay(a, b):
    """As ``joined``, where a dials b through a relay, which it yields."""
    async with relay_to(b.port) as relay:
        a.knows(b, f"127.0.0.1:{relay.port}")
        b.knows(a, "")
        async with up(a, b):
            await linked(a, b)
            yield relay


@contextlib.asynccontextmanager
async def relay_to(target):
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


def hello(side, **changes):
    fields = dataclasses.asdict(greeting.hello_of(side.identity.fingerprint, side.name, "by-hand", greeting.CONTROL))
    return {**fields, **changes}


async def dial_by_hand(a, b):
    """A connection from a to b after b's half of the greeting, and that half."""
    context = tls.client_context(a.identity, b.identity.certificate)
    connection = await dial("127.0.0.1", b.port, context, b.config.timeouts)
    return connection, msgpack.unpackb((await connection.recv_frame(10_000))[1])


async def send_by_hand(connection, header, message):
    """``message``: bytes as they are, all else packed."""
    data = message if isinstance(message, bytes) else msgpack.packb(message)
    await connection.send_frame(Frame(header, (memoryview(data),)))


async def greet_by_hand(a, b, fields, then=None):
    """Dial b as a with this greeting; the acceptor's first frame and its verdict."""
    connection, first = await dial_by_hand(a, b)
    try:
        await send_by_hand(connection, greeting.HEADER, fields)
        verdict = msgpack.unpackb((await connection.recv_frame(10_000))[1])
        if then is not None:
            await then(connection)
        return first, verdict
    finally:
        connection.abort()
