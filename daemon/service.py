"""One daemon: its parts put together, started and stopped."""

from __future__ import annotations

import asyncio
import contextlib

from mpcd.daemon import log, state
from mpcd.daemon.audit.audit import STRANGERS
from mpcd.daemon.audit.exchange import Exchange
from mpcd.daemon.catalogue import Catalogue
from mpcd.daemon.config import Config, Paths
from mpcd.daemon.context import Context, aside
from mpcd.daemon.control.api import Api
from mpcd.daemon.control.server import ControlServer
from mpcd.daemon.files import make_private
from mpcd.daemon.network.keys import Keys
from mpcd.daemon.network.partner import Partner
from mpcd.daemon.network.peer_network import PeerNetwork
from mpcd.daemon.network.peers import FILE_NAME as PEERS_FILE
from mpcd.daemon.network.peers import Peers
from mpcd.daemon.offline.agreement import Agreement
from mpcd.daemon.offline.making import Offline
from mpcd.daemon.operations.operations import Operations
from mpcd.daemon.sessions.sessions import Sessions
from mpcd.daemon.tasks import Tasks

DRAIN = 40.0  # seconds; systemd/mpcd.service allows 60 for all of stopping

_log = log.get("daemon")


class Daemon:
    """Runs between ``start`` and ``stop``. The caller holds the state folder's lock."""

    def __init__(self, paths: Paths, config: Config) -> None:
        state.upgrade(paths.state)
        keys = Keys.open(paths.state, config.name, config.tls)
        for opened in make_private(paths.state):
            _log.warning(opened)
        peers = Peers(paths.state / PEERS_FILE, keys.fingerprint)
        self.context = Context.open(paths, config, keys, peers)
        catalogue = Catalogue(self.context)
        agreement = Agreement(self.context)
        partner = Partner(self.context)
        self.offline = Offline(self.context, catalogue, agreement, partner)
        self.sessions = Sessions(self.context, catalogue, agreement, partner, self.offline)
        self.operations = Operations(self.context)
        handlers = {
            **catalogue.handlers,
            **agreement.handlers,
            **partner.handlers,
            **self.offline.handlers,
            **self.sessions.handlers,
            **self.operations.handlers,
        }
        self._exchange = Exchange(self.context)
        watched = self.context.audit.watching({**handlers, **self._exchange.handlers})
        self.net = PeerNetwork(config, keys, peers, watched, on_connect=self._on_connect)
        self.net.on_stranger = self._on_stranger
        peers.watch(self.context.audit.peers_changed)
        self.context.net = self.net
        self.api = Api(self.context, catalogue, self.offline, self.sessions, self.operations)
        self.control = ControlServer(paths.control_socket, self.api.methods, self.context.meters.error)
        self._warming: asyncio.Task[None] | None = None
        self._background = Tasks()

    async def start(self, warm: bool = True) -> None:
        """``warm`` False: kernels are compiled as they are first used (tests)."""
        if warm:
            self._warming = asyncio.create_task(self.context.kernels.run())
        else:
            self.context.kernels.ready.set()
        await self.operations.start()
        self._exchange.start()
        await self.net.start()
        await self.control.start()
        self.sessions.resume()
        _log.info(
            "started",
            name=self.context.config.name,
            fingerprint=self.context.identity.fingerprint,
            port=self.net.port,
            control=str(self.context.paths.control_socket),
        )

    def _on_stranger(self, event: str) -> None:
        self._background.spawn(aside(self.context.audit.refused, STRANGERS, event, ""))

    def _on_connect(self, peer: str) -> None:
        self.sessions.on_connect(peer)
        self._exchange.soon(peer)

    async def stop(self) -> None:
        """Sessions go on at the next start; units in the making are burnt; the image in flight gets a while to end."""
        await self.control.stop()
        await self.sessions.drain(DRAIN)
        await self.sessions.stop()
        await self.offline.stop()
        await self._exchange.stop()
        await self.net.stop()
        await self._background.wait()
        await self.operations.stop()
        if self._warming is not None:
            self._warming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._warming
        self.context.close()
        _log.info("stopped")
