"""Real identities, real TLS, real sockets on loopback."""

import asyncio
import contextlib
import gc

import pytest
import uvloop

from mpcd.daemon.config import Timeouts
from mpcd.daemon.network import tls
from mpcd.daemon.network.identity import Identity
from mpcd.daemon.network.transport import Connection, dial


@pytest.fixture
def run():
    """Run a coroutine to its end on uvloop; no error may be left that nobody saw."""

    async def watched(main, lost):
        def handle(_, context):
            # Of a stand-in's connection that ends with its test: a flaw of CPython 3.11's asyncio.streams.
            if not isinstance(context.get("exception"), asyncio.CancelledError):
                lost.append(context)

        asyncio.get_running_loop().set_exception_handler(handle)
        return await main

    def run(main):
        lost = []
        result = uvloop.run(watched(main, lost))
        gc.collect()
        assert not lost, lost
        return result

    return run


@pytest.fixture
def make_identity(tmp_path):
    def make(name):
        (tmp_path / name).mkdir(exist_ok=True)
        return Identity.load_or_create(tmp_path / name, name)

    return make


@pytest.fixture
def identities(make_identity):
    return make_identity("alpha"), make_identity("beta")


@pytest.fixture
def connected(identities):
    """``async with connected() as (server, client)``: two ends of one connection, pinned both ways."""
    a, b = identities

    @contextlib.asynccontextmanager
    async def connect(server_timeouts=None, client_timeouts=None):
        loop = asyncio.get_running_loop()
        accepted = loop.create_future()

        def accept():
            context = tls.server_context(a, [b.certificate])
            accepted.set_result(Connection(context, server_side=True, timeouts=server_timeouts))
            return accepted.result()

        listener = await loop.create_server(accept, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        context = tls.client_context(b, a.certificate)
        client = await dial("127.0.0.1", port, context, client_timeouts or Timeouts())
        server = await accepted
        await server.established()
        try:
            yield server, client
        finally:
            server.abort()
            client.abort()
            listener.close()

    return connect
