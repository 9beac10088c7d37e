"""The network of known peers, as the rest of the daemon sees it: one port, a control link to each, data on demand.

It keeps one record for each peer of the store, hands each connection that arrives to the peer's part that it is for,
and has our key changes told on all links. What each part does is in link.py, channels.py, acceptor.py, announcing.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mpcd.daemon import log
from mpcd.daemon.config import Config
from mpcd.daemon.errors import UnknownPeer
from mpcd.daemon.network import greeting
from mpcd.daemon.network.acceptor import Acceptor
from mpcd.daemon.network.announcing import Announcer
from mpcd.daemon.network.bandwidth import Bandwidth
from mpcd.daemon.network.channels import Channels
from mpcd.daemon.network.dialler import Dialler
from mpcd.daemon.network.greeting import CONTROL, Hello
from mpcd.daemon.network.identity import Identity
from mpcd.daemon.network.keys import DAY, KEEP_DAYS, Keys
from mpcd.daemon.network.link import ControlLink, Events, PeerStatus
from mpcd.daemon.network.peers import Peer, Peers
from mpcd.daemon.network.rate import Rate
from mpcd.daemon.network.rpc import Handler, Link
from mpcd.daemon.network.strangers import Stranger, Strangers
from mpcd.daemon.network.traffic import Moved, Traffic
from mpcd.daemon.network.transport import Connection
from mpcd.daemon.tasks import Tasks

# Of one peer, which has shown who it is: connections a second, and at once; a control link counts for ten.
CONNECTIONS_A_SECOND, CONNECTIONS_AT_ONCE, LINK_COSTS = 50.0, 200.0, 10.0

Watcher = Callable[[str], Any]

_log = log.get("link")


@dataclasses.dataclass(frozen=True, slots=True)
class _Record:
    """What the network keeps of one peer. ``arrivals``: how many connections it may still dial."""

    link: ControlLink
    channels: Channels
    traffic: Traffic
    arrivals: Rate


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
        self._peers = peers
        self._instance = os.urandom(8).hex()
        self._tasks = Tasks()
        self._records: dict[str, _Record] = {}
        self.on_stranger: Watcher = lambda event: None  # gets one of a few texts of ours, now and then
        self._strangers = Strangers(peers, lambda event: self.on_stranger(event))
        self.keys = identity if isinstance(identity, Keys) else Keys(identity)
        self.dialler = Dialler(config, self.keys, self._hello)
        self._acceptor = Acceptor(
            config, self.keys, peers, self._hello, self._strangers, self._tasks, receive=self._receive
        )
        self._announcer = Announcer(config, self.keys, peers)
        self._handlers = {**handlers, **self._announcer.handlers}
        limit = config.limits.bandwidth_mbit_s
        self._bandwidth = Bandwidth(limit) if limit else None
        self._events = Events(
            carried=self._carried,
            connected=lambda peer: self._tell(on_connect, peer),
            disconnected=lambda peer: self._tell(on_disconnect, peer),
        )
        self._unwatch: Callable[[], None] | None = None

    async def start(self) -> None:
        """Listen, and begin to dial. Raises ConfigError if the address cannot be had."""
        await self._acceptor.start()
        loop = asyncio.get_running_loop()

        def follow() -> None:
            loop.call_soon_threadsafe(self._follow_peers)

        self._unwatch = self._peers.watch(follow)
        self._follow_peers()
        self._tasks.spawn(self._announcer.tidy())

    async def stop(self) -> None:
        """Close everything. What is in flight fails on both sides."""
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        self._acceptor.close()
        for record in self._records.values():
            record.channels.abort()
        links = [record.link for record in self._records.values()]
        await asyncio.gather(*(link.stop() for link in links), return_exceptions=True)
        await self._tasks.stop()
        self._records.clear()

    # What the daemon asks for.

    @property
    def port(self) -> int:
        """The port we listen on; 0 for none."""
        return self._acceptor.port

    def connected(self, peer: str) -> bool:
        record = self._records.get(peer)
        return record is not None and record.link.current is not None

    def status(self, peer: str) -> PeerStatus:
        return self._record(peer).link.status()

    def protocol(self, peer: str) -> int:
        """The protocol version that this daemon and the peer speak. Raises PeerUnreachable while there is no link."""
        return self._record(peer).link.require().theirs.agreed

    def traffic(self, peer: str) -> Moved:
        """Bytes to and from this peer since the start."""
        return self._record(peer).traffic.moved()

    def strangers(self) -> tuple[Stranger, ...]:
        """Who knocked lately, the last one last."""
        return self._strangers.lately()

    async def call(
        self, peer: str, method: str, params: dict[str, Any], timeout: float | None = None
    ) -> dict[str, Any]:
        """The peer's answer. Raises PeerError with the peer's code and message; LinkError if the link is or goes down.

        After a LinkError the peer may or may not have done what was asked.
        """
        link = self._record(peer).link.require()
        return await link.call(method, params, self._config.timeouts.call if timeout is None else timeout)

    async def open_channel(self, peer: str, job: bytes, timeout: float = 30.0) -> Connection:
        """A data connection for this job, which the peer has asked for as well. Raises LinkError, PeerError."""
        return await self._record(peer).channels.open(job, timeout)

    async def rotate_key(self, keep: float = KEEP_DAYS * DAY) -> None:
        """A new key: peers that are connected hear of it before this returns, the others when they connect next."""
        await self._announcer.rotate(keep)
        linked = [(r.link, r.link.current) for r in self._records.values() if r.link.current is not None]
        await asyncio.gather(*(self._announcer.tell(control, link) for control, link in linked))

    async def finish_key(self) -> None:
        """Give the previous key up at once."""
        await self._announcer.finish()

    # Peers come and go.

    def _record(self, peer: str) -> _Record:
        known = self._peers.get(peer)
        return self._records.get(peer) or self._new(known)

    def _new(self, peer: Peer) -> _Record:
        traffic = Traffic()
        link = ControlLink(peer, self._config, self.dialler, self._handlers, traffic, self._tasks, self._events)
        channels = Channels(link, self._config, self.dialler, traffic, self._bandwidth)
        return _Record(link, channels, traffic, Rate(CONNECTIONS_A_SECOND, CONNECTIONS_AT_ONCE, time.monotonic()))

    def _follow_peers(self) -> None:
        """Make the records agree with the store."""
        self._acceptor.peers_changed()
        known = {peer.name: peer for peer in self._peers.list()}
        for name, record in list(self._records.items()):
            if name not in known or known[name].id != record.link.peer.id:
                del self._records[name]
                _log.info("peer removed, its connections are closed", peer=name)
                gone = UnknownPeer(f"{name!r} was removed from this daemon's peers")
                record.channels.abort(gone)
                record.link.drop(gone)
        for name, peer in known.items():
            if name not in self._records:
                self._records[name] = self._new(peer)
            self._records[name].link.follow(peer)

    async def _receive(self, connection: Connection, peer: Peer, theirs: Hello) -> None:
        """A greeted connection from a known peer."""
        record = self._records.get(peer.name)
        if record is None or record.link.peer.id != peer.id:
            raise UnknownPeer("this daemon no longer knows that certificate")
        if not record.arrivals.take(time.monotonic(), LINK_COSTS if theirs.purpose == CONTROL else 1.0):
            self._strangers.report("a peer opens connections too fast; one was dropped", peer=peer.name)
            connection.abort()
        elif theirs.purpose == CONTROL:
            await record.link.accept(connection, theirs)
        else:
            record.channels.arrive(theirs.job, connection)

    # What is told, and to whom.

    def _hello(self, purpose: str, job: bytes) -> Hello:
        return greeting.hello_of(self.keys.fingerprint, self._config.name, self._instance, purpose, job)

    def _carried(self, control: ControlLink, link: Link) -> None:
        if self.keys.rotation is not None:
            self._tasks.spawn(self._announcer.tell(control, link))

    def _tell(self, watcher: Watcher | None, peer: str) -> None:
        if watcher is None:
            return
        try:
            result = watcher(peer)
            if inspect.isawaitable(result):
                self._tasks.spawn(_logged(result, peer))
        except Exception:
            _log.exception("a connection watcher failed", peer=peer)


async def _logged(awaitable: Awaitable[Any], peer: str) -> None:
    try:
        await awaitable
    except Exception:
        _log.exception("a connection watcher failed", peer=peer)
