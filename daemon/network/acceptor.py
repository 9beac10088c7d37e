"""The listening port: whoever connects shows who it is and says what for; peers are handed on, others are refused.

What to do with a peer's connection is not known here: ``receive`` takes it, or raises what it is refused with.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import cast

from mpcd.daemon import log
from mpcd.daemon.config import Config
from mpcd.daemon.errors import ConfigError, MpcdError, PeerClosed, Refused, UnknownPeer
from mpcd.daemon.network import greeting, inspection, tls
from mpcd.daemon.network.doorway import Doorway, origin_of
from mpcd.daemon.network.greeting import CONTROL, KNOCK, Hello, HelloFor
from mpcd.daemon.network.identity import grouped
from mpcd.daemon.network.keys import Keys
from mpcd.daemon.network.peers import CA, Peer, Peers
from mpcd.daemon.network.strangers import Strangers
from mpcd.daemon.network.transport import Connection
from mpcd.daemon.tasks import Tasks

Receive = Callable[[Connection, Peer, Hello], Awaitable[None]]

_log = log.get("link")


class Acceptor:
    """``hello``: what to say of ourselves. ``receive`` may raise Refused, which the dialer is told, and LinkError."""

    def __init__(
        self,
        config: Config,
        keys: Keys,
        peers: Peers,
        hello: HelloFor,
        strangers: Strangers,
        tasks: Tasks,
        receive: Receive,
    ) -> None:
        self._config = config
        self._keys = keys
        self._peers = peers
        self._hello = hello
        self._strangers = strangers
        self._tasks = tasks
        self._receive = receive
        self._doorway = Doorway(config.limits)
        self._server: asyncio.Server | None = None
        self._context: ssl.SSLContext | None = None
        self._context_of: int | None = None  # the keys' count of changes when it was made
        self._trouble = ""  # why it could not be made anew, as it was logged

    async def start(self) -> None:
        """Listen, where that is wanted. Raises ConfigError if the address cannot be had."""
        listen = self._config.listen
        if not listen.wanted:
            return
        try:
            self._server = await asyncio.get_running_loop().create_server(self._accept, listen.host, listen.port)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {listen.host} port {listen.port}: {error.strerror or error}",
                "choose another listen.host or listen.port in mpcd.toml, or stop what uses it",
            ) from error
        _log.info("listening", host=listen.host, port=self.port)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    @property
    def port(self) -> int:
        """The port we listen on; 0 for none."""
        return int(self._server.sockets[0].getsockname()[1]) if self._server and self._server.sockets else 0

    def peers_changed(self) -> None:
        """Other certificates are to be let in from now on."""
        self._context_of = None

    # One connection.

    def _accept(self) -> asyncio.BaseProtocol:
        try:
            self._renew_context()
        except Exception as error:  # one that left here would end the listening
            known = isinstance(error, OSError)  # files that cannot be read, or that OpenSSL cannot use
            if str(error) != self._trouble:
                self._trouble = str(error)
                _log.error(
                    "the certificate, its key or the authority's cannot be used for who connects",
                    reason=error,
                    file=str(self._keys.current.file),
                    hint="put them right; until then "
                    + ("everybody is turned away" if self._context is None else "what was read before stays"),
                    exc_info=None if known else error,
                )
        if self._context is None:
            return _TurnedAway()
        timeouts = self._config.timeouts
        connection = Connection(self._context, server_side=True, timeouts=timeouts, admit=self._admit)
        self._tasks.spawn(self._serve(connection))
        return connection

    def _renew_context(self) -> None:
        """Read the files again, if something changed. Raises OSError; the context stays as it was."""
        self._keys.refresh()
        changes = self._keys.changes
        if self._context_of != changes:
            peers = self._peers.list()
            trusted = [peer.certificate for peer in peers if peer.certificate]
            vouched = any(peer.known_by == CA for peer in peers)
            self._context = tls.server_context(
                self._keys.current, trusted, self._keys.ca_file if vouched else None, self._keys.previous
            )
            self._context_of, self._trouble = changes, ""

    def _admit(self, connection: Connection) -> bool:
        """Whether there is a place for a connection from this address to show who it is."""
        origin = origin_of(connection.peer_address)
        why_not = self._doorway.enter(connection, origin, time.monotonic())
        if why_not:
            self._strangers.report(why_not, address=origin)
        return not why_not

    async def _serve(self, connection: Connection) -> None:
        """Find out who it is and what for."""
        report = self._strangers.report
        known = False
        try:
            try:
                async with asyncio.timeout(self._config.timeouts.handshake):
                    peer, theirs = await self._greet(connection)
                known = True
            finally:
                self._doorway.leave(connection, known=known)
        except TimeoutError:
            report("a connection did not show who it is in time", address=connection.peer_address)
            connection.abort()
        except tls.NotPinned:
            # OpenSSL does not show us a certificate it refused; the dialer's knock will say which one it was.
            report("refused an unknown certificate", address=connection.peer_address)
        except PeerClosed:
            report("a connection was closed before it said what for", address=connection.peer_address)
            connection.abort()
        except MpcdError as error:
            report("refused a connection", address=connection.peer_address, error=error, code=error.code)
            await _refuse(connection, error)
        except BaseException:
            connection.abort()
            raise
        else:
            await self._hand_on(connection, peer, theirs)

    async def _greet(self, connection: Connection) -> tuple[Peer, Hello]:
        await connection.established()
        shown = connection.peer_fingerprint
        peer = self._peers.find(shown) if shown else None
        if shown and peer is None and not inspection.is_ours(connection.peer_certificate):
            peer = self._peers.find_certified(connection.peer_certificate)
        if shown and peer is None:
            raise UnknownPeer(f"the certificate {grouped(shown)} belongs to no peer of this daemon")
        mine = self._hello(CONTROL, b"")
        theirs = await greeting.acceptor(connection, mine, peer.name if peer else "the other side")
        if theirs.purpose == KNOCK:
            self._strangers.knocked(theirs, connection.peer_address)
        if peer is None or theirs.purpose == KNOCK:
            raise UnknownPeer("this daemon does not know that certificate", "ask its operator to add your invite")
        return peer, theirs

    async def _hand_on(self, connection: Connection, peer: Peer, theirs: Hello) -> None:
        try:
            await self._receive(connection, peer, theirs)
        except Refused as error:
            await _refuse(connection, error)
        except MpcdError:
            connection.abort()


class _TurnedAway(asyncio.Protocol):
    """A connection that is dropped as soon as it is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


async def _refuse(connection: Connection, error: MpcdError) -> None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(1.0):
            await greeting.refuse(connection, error)
    await connection.close(wait=1.0)
