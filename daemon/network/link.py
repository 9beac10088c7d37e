"""The network of known peers: one listening port, one control link to every peer, data connections on demand.

Whoever has an address for the other dials, and dials again. If both do and both get through, the connection dialled by
the side with the smaller fingerprint (of those that the two show on it) stays; both ends judge alike. A data
connection is dialled by the side that dialled the control link (the other may be unreachable from outside), and is open
when both sides have asked for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import os
import random
import ssl
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from mpcd.daemon import log
from mpcd.daemon.config import Config
from mpcd.daemon.errors import (
    ConfigError,
    Conflict,
    InternalError,
    LinkError,
    MpcdError,
    PeerClosed,
    PeerError,
    PeerUnreachable,
    Refused,
    UnknownPeer,
)
from mpcd.daemon.network import authority, greeting, inspection, tls
from mpcd.daemon.network.announcing import Announcer
from mpcd.daemon.network.bandwidth import Bandwidth
from mpcd.daemon.network.dialler import Dialler
from mpcd.daemon.network.doorway import Doorway, origin_of
from mpcd.daemon.network.greeting import CHANNEL, CONTROL, KNOCK, Hello
from mpcd.daemon.network.identity import Identity, grouped
from mpcd.daemon.network.keys import DAY, KEEP_DAYS, Keys
from mpcd.daemon.network.peers import CA, Peer, Peers
from mpcd.daemon.network.rate import Rate
from mpcd.daemon.network.rpc import Handler, Link
from mpcd.daemon.network.traffic import Moved, Traffic
from mpcd.daemon.network.transport import Connection
from mpcd.daemon.version import PROTOCOL_VERSION

__all__ = ["PROTOCOL_VERSION", "PeerError", "PeerNetwork", "PeerStatus", "Stranger"]

STRANGERS = 32  # remembered for the operator
LOG_PAUSE = 5.0  # seconds between two log lines of a kind about connections from nobody we know
# Of one peer, which has shown who it is: connections a second, and at once; a control link counts for ten.
CONNECTIONS_A_SECOND, CONNECTIONS_AT_ONCE, LINK_COSTS = 50.0, 200.0, 10.0
RETIRING = 4  # old control links of a peer that finish what is under way
UNCLAIMED = 120.0  # seconds that a data connection waits for its job to be wanted here
TIDY = 3600.0  # seconds between two looks at what has a date
_DUPLICATE = "duplicate_link"

Watcher = Callable[[str], Any]


class DuplicateLink(Refused):
    """There is a control link already, and it stays."""

    code = _DUPLICATE


class TooManyChannels(Refused):
    """Too many data connections to this peer are open."""

    code = "busy"


@dataclasses.dataclass(frozen=True, slots=True)
class Stranger:
    """Somebody who knocked: what they say of themselves, which nothing proves."""

    name: str
    fingerprint: str
    address: str
    time: float


@dataclasses.dataclass(frozen=True, slots=True)
class PeerStatus:
    """``error`` says why there is no link, ``hint`` what to do; ``software`` and ``digest`` are the peer's.

    ``retry`` is when this side dials next, Unix seconds (0: it does not), after ``attempts`` that failed in a row.
    ``expires``: of the peer's certificate, if it has an end that is known.
    """

    connected: bool
    dialled: bool
    address: str
    since: float
    software: str
    digest: str
    code: str
    error: str
    hint: str
    retry: float = 0.0
    attempts: int = 0
    expires: float | None = None


class _PeerState:
    """What the network keeps of one peer."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.link: Link | None = None
        self.error: MpcdError | None = None
        self.renew = False  # the link is of an identity that changed; another takes its place
        self.retry, self.attempts = 0.0, 0
        self.task: asyncio.Task[None] | None = None
        self.channels: set[Connection] = set()
        self.arrived: dict[bytes, Connection] = {}  # dialled by the peer, not yet asked for here
        self.wanted: set[bytes] = set()
        self.changed = asyncio.Event()
        self.traffic = Traffic()
        self.connections = Rate(CONNECTIONS_A_SECOND, CONNECTIONS_AT_ONCE, time.monotonic())
        self.retiring: deque[Link] = deque()

    def notify(self) -> None:
        """Wake everybody who waits for a change of this peer."""
        self.changed.set()
        self.changed = asyncio.Event()

    def open_channels(self) -> int:
        self.arrived = {job: c for job, c in self.arrived.items() if c.failure is None}
        return sum(c.failure is None for c in self.channels) + len(self.arrived)


class PeerNetwork:
    """``handlers``: method name to ``async (peer name, params) -> result``; params and results are msgpack maps.

    ``on_connect`` and ``on_disconnect`` get the peer's name; a coroutine they return runs as a task.
    """

    def __init__(
        self,
        config: Config,
        identity: Identity | Keys,
        peers: Peers,
        handlers: Mapping[str, Handler],
        on_connect: Watcher | None = None,
        on_disconnect: Watcher | None = None,
    ) -> None:
        self._config = config
        self.keys = identity if isinstance(identity, Keys) else Keys(identity)
        self._peers = peers
        self._announcer = Announcer(self.keys, peers)
        self._handlers = handlers
        self.dialler = Dialler(config, self.keys, lambda purpose, job: self._hello(purpose, job))
        limit = config.limits.bandwidth_mbit_s
        self._bandwidth = Bandwidth(limit) if limit else None
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._instance = os.urandom(8).hex()
        self._states: dict[str, _PeerState] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self._server_context: ssl.SSLContext | None = None
        self._context_of = 0  # the keys' count of changes when it was made
        self._doorway = Doorway(config.limits)
        self._strangers: deque[Stranger] = deque(maxlen=STRANGERS)
        self._stranger_logged: dict[str, float] = {}
        self._unwatch: Callable[[], None] | None = None
        self._log = log.get("link")
        self.on_stranger: Callable[[str], Any] = lambda event: None  # gets one of a few texts of ours, now and then

    # What the daemon calls.

    async def start(self) -> None:
        """Listen, and begin to dial. Raises ConfigError if the address cannot be had."""
        listen = self._config.listen
        loop = asyncio.get_running_loop()
        if listen.enabled and listen.host:
            try:
                self._server = await loop.create_server(self._accept, listen.host, listen.port)
            except OSError as error:
                raise ConfigError(
                    f"cannot listen on {listen.host} port {listen.port}: {error.strerror or error}",
                    "choose another listen.host or listen.port in mpcd.toml, or stop what uses it",
                ) from error
            self._log.info("listening", host=listen.host, port=self.port)

        def follow() -> None:
            loop.call_soon_threadsafe(self._follow_peers)

        self._unwatch = self._peers.watch(follow)
        self._follow_peers()
        self._spawn(self._tidy())

    async def stop(self) -> None:
        """Close everything. What is in flight fails on both sides."""
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        if self._server is not None:
            self._server.close()
        closing = []
        for state in self._states.values():
            for connection in (*state.channels, *state.arrived.values()):
                connection.abort()
            if state.link is not None:
                state.link.stop()
                closing.append(state.link.connection.close(wait=0.5))
            if state.task is not None:
                state.task.cancel()
        await asyncio.gather(*closing, return_exceptions=True)
        tasks = [*self._tasks, *(state.task for state in self._states.values() if state.task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._states.clear()

    @property
    def port(self) -> int:
        """The port we listen on; 0 for none."""
        return int(self._server.sockets[0].getsockname()[1]) if self._server and self._server.sockets else 0

    def connected(self, peer: str) -> bool:
        state = self._states.get(peer)
        return state is not None and state.link is not None

    def status(self, peer: str) -> PeerStatus:
        state = self._state(peer)
        link, error = state.link, state.error
        if link is None:
            if error is None and not state.peer.address and not self.port:
                error = self._unreachable(state)
            code = error.code if error else ""
            hint = error.hint if error else ""
            why = (code, str(error or ""), hint)
            return PeerStatus(False, False, state.peer.address, 0.0, "", "", *why, state.retry, state.attempts)
        address = state.peer.address if link.dialled else link.connection.peer_address
        theirs, ends = link.theirs, None
        if state.peer.known_by == CA:
            ends = authority.expires(link.connection.peer_certificate)
        return PeerStatus(
            True, link.dialled, address, link.since, theirs.software, theirs.digest, "", "", "", expires=ends
        )

    def protocol(self, peer: str) -> int:
        """The protocol version that this daemon and the peer speak. Raises PeerUnreachable while there is no link."""
        state = self._state(peer)
        if state.link is None:
            raise self._unreachable(state)
        return state.link.theirs.agreed

    def traffic(self, peer: str) -> Moved:
        """Bytes to and from this peer since the start."""
        return self._state(peer).traffic.moved()

    def strangers(self) -> tuple[Stranger, ...]:
        """Who knocked lately, the last one last."""
        return tuple(self._strangers)

    async def wait_connected(self, peer: str, timeout: float) -> None:
        """Raises PeerUnreachable, with the last reason, if there is no link by then."""
        state = self._state(peer)
        try:
            async with asyncio.timeout(timeout):
                while state.link is None:
                    await state.changed.wait()
        except TimeoutError:
            raise self._unreachable(state) from None

    async def call(
        self, peer: str, method: str, params: dict[str, Any], timeout: float | None = None
    ) -> dict[str, Any]:
        """The peer's answer. Raises PeerError with the peer's code and message; LinkError if the link is or goes down.

        After a LinkError the peer may or may not have done what was asked.
        """
        state = self._state(peer)
        if state.link is None:
            raise self._unreachable(state)
        return await state.link.call(method, params, self._config.timeouts.call if timeout is None else timeout)

    async def open_channel(self, peer: str, job: bytes, timeout: float = 30.0) -> Connection:
        """A data connection for this job, which the peer has asked for as well. Raises LinkError, PeerError."""
        if len(job) != greeting.JOB_BYTES:
            raise ValueError(f"a job id has {greeting.JOB_BYTES} bytes")
        state = self._state(peer)
        if job in state.wanted:
            raise Conflict(f"the data connection of job {job.hex()} is being opened already")
        state.wanted.add(job)
        try:
            async with asyncio.timeout(timeout):
                return await self._open_channel(state, job)
        except TimeoutError:
            if state.link is None:
                raise self._unreachable(state) from None
            raise PeerUnreachable(
                f"{peer} did not open its end of the data connection within {timeout:g} seconds",
                f"the control link is up: look at the log of {peer}'s daemon, and at firewalls between",
            ) from None
        finally:
            state.wanted.discard(job)

    # Peers come and go.

    def _state(self, peer: str) -> _PeerState:
        known = self._peers.get(peer)
        return self._states.get(peer) or _PeerState(known)

    def _follow_peers(self) -> None:
        """Make the states agree with the store."""
        self._server_context = None
        known = {peer.name: peer for peer in self._peers.list()}
        for name, state in list(self._states.items()):
            if name not in known or known[name].id != state.peer.id:
                del self._states[name]
                self._drop(state)
        for name, peer in known.items():
            state = self._states.setdefault(name, _PeerState(peer))
            before, state.peer = state.peer, peer
            if before.certificate != peer.certificate:
                self._renew(state)
            if state.task is None or before.address != peer.address:
                if state.task is not None:
                    state.task.cancel()
                state.task = asyncio.create_task(self._keep_dialling(state))

    def _drop(self, state: _PeerState) -> None:
        self._log.info("peer removed, its connections are closed", peer=state.peer.name)
        gone = UnknownPeer(f"{state.peer.name!r} was removed from this daemon's peers")
        if state.task is not None:
            state.task.cancel()
        for connection in (*state.channels, *state.arrived.values()):
            connection.abort(gone)
        if state.link is not None:
            state.link.stop()
            state.link.connection.abort(gone)
        state.notify()

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tell(self, watcher: Watcher | None, peer: str) -> None:
        if watcher is None:
            return
        try:
            result = watcher(peer)
            if inspect.isawaitable(result):
                self._spawn(self._logged(result, peer))
        except Exception:
            self._log.exception("a connection watcher failed", peer=peer)

    async def _logged(self, awaitable: Any, peer: str) -> None:
        try:
            await awaitable
        except Exception:
            self._log.exception("a connection watcher failed", peer=peer)

    def _unreachable(self, state: _PeerState) -> MpcdError:
        name = state.peer.name
        if state.error is not None:
            return PeerUnreachable(f"{name} is not connected: {state.error}", state.error.hint)
        if state.peer.address:
            return PeerUnreachable(
                f"{name} is not connected yet", "try again in a moment; `mpcctl peer list` shows why"
            )
        if not self.port:
            return PeerUnreachable(
                f"{name} cannot be connected: this side has no address for it and listens on no port, so neither dials",
                f"one of the two must listen: get an invite with an address from {name} and add it again, or let this"
                " daemon listen ([listen] in mpcd.toml)",
            )
        return PeerUnreachable(
            f"{name} is not connected: this side has no address for it and waits for {name} to dial",
            f"ask {name} whether their daemon runs and can reach this one, or add the invite again with --address",
        )

    # The control link.

    async def _keep_dialling(self, state: _PeerState) -> None:
        times, delay = self._config.timeouts, 0.0
        while state.peer.address:
            changed = state.changed
            if state.link is None or state.renew:
                state.retry = time.time() + delay
                try:
                    async with asyncio.timeout(delay):
                        await changed.wait()
                    continue
                except TimeoutError:
                    pass
                state.attempts += 1
                if await self._try_dialling(state):
                    state.retry, state.attempts = 0.0, 0
                    delay = times.retry_first * random.uniform(0.5, 1.0)
                else:
                    grown = max(times.retry_first, min(2 * delay, times.retry_most))
                    delay = grown * random.uniform(0.75, 1.0)
            else:
                await changed.wait()

    async def _try_dialling(self, state: _PeerState) -> bool:
        peer = state.peer.name
        try:
            connection, theirs = await self.dialler.dial(state.peer, CONTROL)
        except MpcdError as error:
            if error.code == _DUPLICATE:
                return False
            if state.error is None or str(state.error) != str(error):
                self._log.warning("cannot connect", peer=peer, error=error, hint=error.hint, code=error.code)
            if isinstance(error, UnknownPeer) and not isinstance(state.error, UnknownPeer):
                self._spawn(self.dialler.knock(state.peer))
            state.error = error
            return False
        except Exception as error:  # a bug of ours must not end the dialling
            self._log.exception("cannot connect", peer=peer)
            state.error = InternalError(f"{type(error).__name__}: {error}", "the daemon's log has more")
            return False
        if self._states.get(peer) is not state:
            connection.abort()
            return False
        self._install(state, connection, theirs, dialled=True)
        return True

    def _prefers(self, state: _PeerState, connection: Connection, instance: str, dialled: bool) -> bool:
        """Whether a new control link takes the place of the one there is."""
        old = state.link
        if old is None or old.connection.failure is not None or old.theirs.instance != instance:
            return True
        if old.dialled == dialled:
            return True  # the peer lost the old one, else it would not dial again
        return dialled == _ours_wins(connection)

    def _install(self, state: _PeerState, connection: Connection, theirs: Hello, dialled: bool) -> None:
        peer = state.peer.name
        if not self._prefers(state, connection, theirs.instance, dialled):
            self._spawn(connection.close())
            return
        link = Link(
            peer,
            connection,
            theirs,
            {**self._handlers, **self._announcer.handlers},
            dialled=dialled,
            most_calls=self._config.limits.calls_per_peer,
        )
        old, state.link, state.error, state.renew = state.link, link, None, False
        state.traffic.count(connection)
        self._spawn(self._run_link(state, link))
        state.notify()
        if self.keys.rotation is not None:
            self._spawn(self._announce(state, link))
        if old is not None and old.theirs.instance == theirs.instance:
            self._spawn(old.retire(self._config.timeouts.call))
            state.retiring.append(old)
            if len(state.retiring) > RETIRING:
                state.retiring.popleft().connection.abort()
            return
        if old is not None:
            old.connection.abort(LinkError(f"{peer} was restarted"))
            self._tell(self._on_disconnect, peer)
        self._log.info("connected", peer=peer, dialled=dialled, address=connection.peer_address)
        if theirs.digest != self._hello(CONTROL).digest:
            self._log.warning("the peer runs other software", peer=peer, version=theirs.software, digest=theirs.digest)
        self._tell(self._on_connect, peer)

    async def _run_link(self, state: _PeerState, link: Link) -> None:
        reason = await link.run()
        if state.link is not link:
            return
        state.link = None
        state.error = reason if isinstance(reason, MpcdError) else LinkError(str(reason))
        state.notify()
        self._log.warning("disconnected", peer=link.peer, error=reason)
        self._tell(self._on_disconnect, link.peer)

    def _hello(self, purpose: str, job: bytes = b"") -> Hello:
        return greeting.hello_of(self.keys.fingerprint, self._config.name, self._instance, purpose, job)

    # Keys that change.

    async def rotate_key(self, keep: float = KEEP_DAYS * DAY) -> None:
        """A new key: peers that are connected hear of it before this returns, the others when they connect next."""
        peers = [peer.id for peer in self._peers.list()]
        await asyncio.to_thread(self.keys.rotate, self._config.name, peers, keep)
        self._follow_key()
        linked = [(state, state.link) for state in self._states.values() if state.link is not None]
        await asyncio.gather(*(self._announce(state, link) for state, link in linked))

    async def finish_key(self) -> None:
        """Give the previous key up at once."""
        await asyncio.to_thread(self.keys.finish)
        self._follow_key()

    def _follow_key(self) -> None:
        self._peers.own_fingerprint = self.keys.fingerprint

    async def _announce(self, state: _PeerState, link: Link) -> None:
        stale = link.connection.shown_fingerprint != self.keys.fingerprint
        if await self._announcer.tell(state.peer, link, self._config.timeouts.call):
            self._follow_key()
            if stale and state.link is link:
                self._renew(state)

    def _renew(self, state: _PeerState) -> None:
        """Have a link with the present identities take the place of the one there is, whoever dialled that."""
        if state.link is not None and state.link.dialled:
            state.renew = True
            state.notify()

    async def _tidy(self) -> None:
        while True:
            await asyncio.to_thread(self.keys.tidy, [peer.id for peer in self._peers.list()])
            self.keys.refresh()
            self._follow_key()
            await asyncio.sleep(TIDY)

    # Accepting.

    def _accept(self) -> asyncio.BaseProtocol:
        self.keys.refresh()
        if self._server_context is None or self._context_of != self.keys.changes:
            self._context_of = self.keys.changes
            peers = self._peers.list()
            trusted = [peer.certificate for peer in peers if peer.certificate]
            vouched = any(peer.known_by == CA for peer in peers)
            self._server_context = tls.server_context(
                self.keys.current, trusted, self.keys.ca_file if vouched else None, self.keys.previous
            )
        connection = Connection(
            self._server_context, server_side=True, timeouts=self._config.timeouts, admit=self._admit
        )
        self._spawn(self._serve(connection))
        return connection

    def _admit(self, connection: Connection) -> bool:
        """Whether there is a place for a connection from this address to show who it is."""
        origin = origin_of(connection.peer_address)
        why_not = self._doorway.enter(connection, origin, time.monotonic())
        if why_not:
            self._about_stranger(why_not, address=origin)
        return not why_not

    def _about_stranger(self, event: str, **details: Any) -> None:
        """Log, but do not let strangers fill the log. ``event``: one of a few texts of ours."""
        now = time.monotonic()
        if now - self._stranger_logged.get(event, float("-inf")) >= LOG_PAUSE:
            self._stranger_logged[event] = now
            self._log.warning(event, **details)
            self.on_stranger(event)

    async def _serve(self, connection: Connection) -> None:
        """Find out who it is and what for."""
        known = False
        try:
            try:
                async with asyncio.timeout(self._config.timeouts.handshake):
                    peer, theirs = await self._greet(connection)
                known = True
            finally:
                self._doorway.leave(connection, known=known)
        except TimeoutError:
            self._about_stranger("a connection did not show who it is in time", address=connection.peer_address)
            connection.abort()
        except tls.NotPinned:
            # OpenSSL does not show us a certificate it refused; the dialer's knock will say which one it was.
            self._about_stranger("refused an unknown certificate", address=connection.peer_address)
        except PeerClosed:
            self._about_stranger("a connection was closed before it said what for", address=connection.peer_address)
            connection.abort()
        except MpcdError as error:
            self._about_stranger("refused a connection", address=connection.peer_address, error=error, code=error.code)
            await self._refuse(connection, error)
        except BaseException:
            connection.abort()
            raise
        else:
            await self._receive(connection, peer, theirs)

    async def _greet(self, connection: Connection) -> tuple[Peer, Hello]:
        await connection.established()
        shown = connection.peer_fingerprint
        peer = self._peers.find(shown) if shown else None
        if shown and peer is None and not inspection.is_ours(connection.peer_certificate):
            peer = self._peers.find_certified(connection.peer_certificate)
        if shown and peer is None:
            raise UnknownPeer(f"the certificate {grouped(shown)} belongs to no peer of this daemon")
        theirs = await greeting.acceptor(connection, self._hello(CONTROL), peer.name if peer else "the other side")
        if peer is None or theirs.purpose == KNOCK:
            self._remember(theirs, connection.peer_address)
            raise UnknownPeer("this daemon does not know that certificate", "ask its operator to add your invite")
        return peer, theirs

    def _remember(self, theirs: Hello, address: str) -> None:
        if theirs.purpose != KNOCK:
            return
        stranger = Stranger(theirs.name, theirs.fingerprint, address.rpartition(":")[0], time.time())
        for old in [s for s in self._strangers if s.fingerprint == stranger.fingerprint]:
            self._strangers.remove(old)
        self._strangers.append(stranger)
        pinned = next((peer for peer in self._peers.list() if peer.name == theirs.name), None)
        self._about_stranger(
            "an unknown daemon knocked; nothing proves what it says",
            name=theirs.name,
            fingerprint=grouped(theirs.fingerprint),
            address=address,
            hint="to accept it, get its invite, compare the fingerprint, and run mpcctl peer add"
            if pinned is None
            else f"{pinned.name!r} is pinned as {grouped(pinned.fingerprint)}: if that changed, remove it first",
        )

    async def _refuse(self, connection: Connection, error: MpcdError) -> None:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(1.0):
                await greeting.refuse(connection, error)
        await connection.close(wait=1.0)

    async def _receive(self, connection: Connection, peer: Peer, theirs: Hello) -> None:
        """A greeted connection from a known peer."""
        state = self._states.get(peer.name)
        try:
            if state is None or state.peer.id != peer.id:
                raise UnknownPeer("this daemon no longer knows that certificate")
            cost = LINK_COSTS if theirs.purpose == CONTROL else 1.0
            if not state.connections.take(time.monotonic(), cost):
                self._about_stranger("a peer opens connections too fast; one was dropped", peer=peer.name)
                connection.abort()
                return
            if theirs.purpose == CONTROL:
                if not self._prefers(state, connection, theirs.instance, dialled=False):
                    raise DuplicateLink()
                await greeting.welcome(connection)
                if self._states.get(peer.name) is state:
                    self._install(state, connection, theirs, dialled=False)
                else:
                    connection.abort()
                return
            if state.open_channels() >= self._config.limits.channels_per_peer:
                raise TooManyChannels()
            before = state.arrived.pop(theirs.job, None)
            if before is not None:
                before.abort()
            state.arrived[theirs.job] = connection
            state.notify()
            asyncio.get_running_loop().call_later(
                UNCLAIMED, _drop_unclaimed, state, theirs.job, weakref.ref(connection)
            )
        except Refused as error:
            await self._refuse(connection, error)
        except MpcdError:
            connection.abort()

    # Data connections.

    async def _open_channel(self, state: _PeerState, job: bytes) -> Connection:
        times = self._config.timeouts
        dialling: asyncio.Task[tuple[Connection, Hello]] | None = None
        pause, earliest = times.retry_first, 0.0
        # Should both sides dial, because the control link is being replaced, then the smaller fingerprint's counts.
        yields = False
        instance = ""
        try:
            while True:
                if self._states.get(state.peer.name) is not state:
                    raise self._unreachable(state)
                if state.link is not None and state.link.theirs.instance != instance:
                    if instance:  # it knows nothing of this job any more
                        raise LinkError(f"{state.peer.name} was restarted")
                    instance = state.link.theirs.instance
                changed = state.changed
                if (dialling is None or yields) and (arrived := state.arrived.pop(job, None)) is not None:
                    if await self._take(arrived):
                        return self._opened(state, arrived)
                    continue
                if dialling is not None and dialling.done():
                    try:
                        connection, _ = dialling.result()
                    except LinkError:
                        dialling, earliest = None, time.monotonic() + pause
                        pause = min(2 * pause, times.retry_most)
                    else:
                        dialling = None
                        return self._opened(state, connection)
                wait: float | None = None
                if dialling is None and state.link is not None and state.link.dialled:
                    wait = earliest - time.monotonic()
                    if wait <= 0:
                        dialling, wait = asyncio.create_task(self.dialler.dial(state.peer, CHANNEL, job)), None
                        yields = not _ours_wins(state.link.connection)
                waiter = asyncio.create_task(changed.wait())
                try:
                    await asyncio.wait(
                        {waiter, dialling} if dialling else {waiter},
                        timeout=wait,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                finally:
                    waiter.cancel()
        finally:
            if dialling is not None:
                dialling.add_done_callback(_discard)
                dialling.cancel()

    def _opened(self, state: _PeerState, connection: Connection) -> Connection:
        if self._states.get(state.peer.name) is not state:  # removed meanwhile
            connection.abort()
            raise self._unreachable(state)
        state.channels.add(connection)
        connection.when_closed(state.channels.discard)
        state.traffic.count(connection)
        connection.limit_bandwidth(self._bandwidth)
        return connection

    async def _take(self, arrived: Connection) -> bool:
        """Welcome a data connection that waited for its job; False if its dialer gave up meanwhile."""
        try:
            async with asyncio.timeout(self._config.timeouts.handshake):
                await greeting.welcome(arrived)
                await greeting.confirmed(arrived)
        except (MpcdError, TimeoutError):
            arrived.abort()
            return False
        except BaseException:
            arrived.abort()
            raise
        return True


def _ours_wins(connection: Connection) -> bool:
    """Whether, of two connections that both sides dialled, ours stays; the peer sees the same two fingerprints."""
    return connection.shown_fingerprint < connection.peer_fingerprint


def _drop_unclaimed(state: _PeerState, job: bytes, arrived: weakref.ref[Connection]) -> None:
    """A data connection that nobody here asked for. One that has ended must not stay in memory for that question."""
    connection = arrived()
    if connection is not None and state.arrived.get(job) is connection:
        del state.arrived[job]
        connection.abort(LinkError("nobody here asked for this data connection"))


def _discard(task: asyncio.Task[tuple[Connection, Hello]]) -> None:
    """A dial nobody waits for any more."""
    if not task.cancelled() and task.exception() is None:
        task.result()[0].abort()
