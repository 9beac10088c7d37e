"""The control link to one peer, kept up over connections (rpc.Link) that come and go.

Whoever has an address for the other dials, and dials again. If both do and both get through, the connection dialled by
the side with the smaller fingerprint (of those that the two show on it) stays; both ends judge alike.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections import deque
from collections.abc import Callable, Mapping

from mpcd.daemon import log
from mpcd.daemon.config import Config
from mpcd.daemon.errors import InternalError, LinkError, MpcdError, PeerUnreachable, Refused, UnknownPeer
from mpcd.daemon.network import authority, greeting
from mpcd.daemon.network.dialler import Dialler
from mpcd.daemon.network.greeting import CONTROL, Hello
from mpcd.daemon.network.peers import CA, Peer
from mpcd.daemon.network.rpc import Handler, Link
from mpcd.daemon.network.traffic import Traffic
from mpcd.daemon.network.transport import Connection
from mpcd.daemon.tasks import Tasks
from mpcd.daemon.version import software_digest

RETIRING = 4  # old connections of the link that finish what is under way
_DUPLICATE = "duplicate_link"

_log = log.get("link")


class DuplicateLink(Refused):
    """There is a control link already, and it stays."""

    code = _DUPLICATE


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


@dataclasses.dataclass(frozen=True, slots=True)
class Events:
    """Whom a control link tells: of every connection that carries it from now on; that its peer is there, or gone."""

    carried: Callable[[ControlLink, Link], None]
    connected: Callable[[str], None]
    disconnected: Callable[[str], None]


class ControlLink:
    """``current``: over the connection of now, None while there is none. ``active``: the peer is (still) one of ours.

    ``changed`` is set at the next change; whoever waits for the one after takes it anew.
    """

    def __init__(
        self,
        peer: Peer,
        config: Config,
        dialler: Dialler,
        handlers: Mapping[str, Handler],
        traffic: Traffic,
        tasks: Tasks,
        events: Events,
    ) -> None:
        self.peer = peer
        self.active = False
        self.current: Link | None = None
        self.changed = asyncio.Event()
        self._config = config
        self._dialler = dialler
        self._handlers = handlers
        self._traffic = traffic
        self._tasks = tasks
        self._events = events
        self._dialling: asyncio.Task[None] | None = None
        self._error: MpcdError | None = None
        self._renewing = False  # the link is of an identity that changed; another takes its place
        self._retry, self._attempts = 0.0, 0
        self._retiring: deque[Link] = deque()

    # The peer comes, changes, and goes.

    def follow(self, peer: Peer) -> None:
        """What the store says of the peer now: keep a link to that."""
        before, self.peer, self.active = self.peer, peer, True
        if before.certificate != peer.certificate:
            self.renew()
        if self._dialling is None or before.address != peer.address:
            if self._dialling is not None:
                self._dialling.cancel()
            self._dialling = self._tasks.spawn(self._keep_dialling())

    def renew(self) -> None:
        """Have a link with the present identities take the place of the one there is, whoever dialled that."""
        if self.current is not None and self.current.dialled:
            self._renewing = True
            self.notify()

    def drop(self, reason: MpcdError) -> None:
        """The peer is none of ours any more."""
        self._leave(reason)
        if self.current is not None:
            self.current.connection.abort(reason)
        self.notify()

    async def stop(self) -> None:
        """This daemon stops."""
        self._leave()
        if self.current is not None:
            await self.current.connection.close(wait=0.5)

    def _leave(self, reason: MpcdError | None = None) -> None:
        """Dial no more, give up the peer's calls at work, and what is retiring; the present connection stays."""
        self.active = False
        if self._dialling is not None:
            self._dialling.cancel()
        if self.current is not None:
            self.current.stop()
        for link in self._retiring:
            link.stop()
            link.connection.abort(reason)

    def notify(self) -> None:
        """Wake everybody who waits for a change."""
        self.changed.set()
        self.changed = asyncio.Event()

    # How it is.

    def require(self) -> Link:
        """The link. Raises PeerUnreachable, with the reason, while there is none."""
        if self.current is None:
            raise self.unreachable()
        return self.current

    def unreachable(self) -> PeerUnreachable:
        name = self.peer.name
        if self._error is not None:
            return PeerUnreachable(f"{name} is not connected: {self._error}", self._error.hint)
        if self.peer.address:
            return PeerUnreachable(
                f"{name} is not connected yet", "try again in a moment; `mpcctl peer list` shows why"
            )
        if not self._config.listen.wanted:
            return PeerUnreachable(
                f"{name} cannot be connected: this side has no address for it and listens on no port, so neither dials",
                f"one of the two must listen: get an invite with an address from {name} and add it again, or let this"
                " daemon listen ([listen] in mpcd.toml)",
            )
        return PeerUnreachable(
            f"{name} is not connected: this side has no address for it and waits for {name} to dial",
            f"ask {name} whether their daemon runs and can reach this one, or add the invite again with --address",
        )

    def status(self) -> PeerStatus:
        link, error, address = self.current, self._error, self.peer.address
        if link is None:
            if error is None and not address and not self._config.listen.wanted:
                error = self.unreachable()
            why = (error.code, str(error), error.hint) if error is not None else ("", "", "")
            return PeerStatus(False, False, address, 0.0, "", "", *why, self._retry, self._attempts)
        if not link.dialled:
            address = link.connection.peer_address
        theirs, ends = link.theirs, self._expires(link)
        return PeerStatus(
            True, link.dialled, address, link.since, theirs.software, theirs.digest, "", "", "", expires=ends
        )

    def _expires(self, link: Link) -> float | None:
        """When what the peer is known by at the other end of this link does."""
        return authority.expires(link.connection.peer_certificate) if self.peer.known_by == CA else None

    # Connections for it.

    async def accept(self, connection: Connection, theirs: Hello) -> None:
        """One that the peer dialled. Raises DuplicateLink."""
        if not self._prefers(connection, theirs.instance, dialled=False):
            raise DuplicateLink()
        await greeting.welcome(connection)
        if self.active:
            self._install(connection, theirs, dialled=False)
        else:
            connection.abort()

    async def _keep_dialling(self) -> None:
        times, delay = self._config.timeouts, 0.0
        while self.peer.address:
            changed = self.changed
            if self.current is None or self._renewing:
                self._retry = time.time() + delay
                try:
                    async with asyncio.timeout(delay):
                        await changed.wait()
                    continue
                except TimeoutError:
                    pass
                self._attempts += 1
                if await self._try_dialling():
                    self._retry, self._attempts = 0.0, 0
                    delay = times.retry_first * random.uniform(0.5, 1.0)
                else:
                    grown = max(times.retry_first, min(2 * delay, times.retry_most))
                    delay = grown * random.uniform(0.75, 1.0)
            else:
                await changed.wait()

    async def _try_dialling(self) -> bool:
        peer = self.peer.name
        try:
            connection, theirs = await self._dialler.dial(self.peer, CONTROL)
        except MpcdError as error:
            if error.code == _DUPLICATE:
                return False
            if self._error is None or str(self._error) != str(error):
                _log.warning("cannot connect", peer=peer, error=error, hint=error.hint, code=error.code)
            if isinstance(error, UnknownPeer) and not isinstance(self._error, UnknownPeer):
                self._tasks.spawn(self._dialler.knock(self.peer))
            self._error = error
            return False
        except Exception as error:  # a bug of ours must not end the dialling
            _log.exception("cannot connect", peer=peer)
            self._error = InternalError(f"{type(error).__name__}: {error}", "the daemon's log has more")
            return False
        if not self.active:
            connection.abort()
            return False
        self._install(connection, theirs, dialled=True)
        return True

    def _prefers(self, connection: Connection, instance: str, dialled: bool) -> bool:
        """Whether a new connection takes the place of the one there is."""
        old = self.current
        if old is None or old.connection.failure is not None or old.theirs.instance != instance:
            return True
        if old.dialled == dialled:
            return True  # the peer lost the old one, else it would not dial again
        return dialled == ours_wins(connection)

    def _install(self, connection: Connection, theirs: Hello, dialled: bool) -> None:
        peer = self.peer.name
        if not self._prefers(connection, theirs.instance, dialled):
            self._tasks.spawn(connection.close())
            return
        most = self._config.limits.calls_per_peer
        link = Link(peer, connection, theirs, self._handlers, dialled=dialled, most_calls=most)
        old, self.current, self._error, self._renewing = self.current, link, None, False
        self._traffic.count(connection)
        self._tasks.spawn(self._run(link))
        self.notify()
        self._events.carried(self, link)
        if old is not None and old.theirs.instance == theirs.instance:
            self._retire(old)
            return
        if old is not None:
            old.connection.abort(LinkError(f"{peer} was restarted"))
            self._events.disconnected(peer)
        _log.info("connected", peer=peer, dialled=dialled, address=connection.peer_address)
        if theirs.digest != software_digest():
            _log.warning("the peer runs other software", peer=peer, version=theirs.software, digest=theirs.digest)
        self._events.connected(peer)

    def _retire(self, old: Link) -> None:
        self._tasks.spawn(old.retire(self._config.timeouts.call))
        self._retiring.append(old)
        if len(self._retiring) > RETIRING:
            self._retiring.popleft().connection.abort()

    async def _run(self, link: Link) -> None:
        ends, expiry = self._expires(link), None
        if ends is not None:  # TLS looks at it in the handshake only
            error = LinkError(
                f"the peer's certificate expired on {authority.date(ends)}", "ask the peer to have it renewed"
            )
            expiry = asyncio.get_running_loop().call_later(ends - time.time(), link.connection.abort, error)
        reason = await link.run()
        if expiry is not None:
            expiry.cancel()
        if self.current is not link:
            return
        self.current = None
        self._error = reason if isinstance(reason, MpcdError) else LinkError(str(reason))
        self.notify()
        _log.warning("disconnected", peer=link.peer, error=reason)
        self._events.disconnected(link.peer)


def ours_wins(connection: Connection) -> bool:
    """Whether, of two connections that both sides dialled, ours stays; the peer sees the same two fingerprints."""
    return connection.shown_fingerprint < connection.peer_fingerprint
