"""Changing our key and telling peers over the old identity; hearing of theirs (rotation.py has what is said).

keys.py has what that means on the disk. Here is what follows from it for the peers: who is told, which links are made
anew, and which key the store of peers takes for our own.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from mpcd.daemon import log
from mpcd.daemon.config import Config
from mpcd.daemon.errors import MpcdError, Refused
from mpcd.daemon.network import rotation
from mpcd.daemon.network.identity import grouped
from mpcd.daemon.network.keys import Keys
from mpcd.daemon.network.link import ControlLink
from mpcd.daemon.network.peers import PIN, Peer, Peers
from mpcd.daemon.network.rate import Rate
from mpcd.daemon.network.rpc import Link

A_SECOND, AT_ONCE = 1 / 60, 10.0  # announcements of one peer: each is a write to the disk
TIDY = 3600.0  # seconds between two looks at what has a date

_log = log.get("keys")


class TooManyKeys(Refused):
    """You announce new keys too often."""

    code = "busy"


class Announcer:
    """Our key's changes, and both ends of ``key.rotated``."""

    def __init__(self, config: Config, keys: Keys, peers: Peers) -> None:
        self._config = config
        self._keys = keys
        self._peers = peers
        self._taken: dict[str, Rate] = {}
        self.handlers = {rotation.METHOD: self._serve}

    async def rotate(self, keep: float) -> None:
        """A new key, which no peer has heard of yet."""
        await asyncio.to_thread(self._keys.rotate, self._config.name, self._known(), keep)
        self._follow_key()

    async def finish(self) -> None:
        """Give the previous key up at once."""
        await asyncio.to_thread(self._keys.finish)
        self._follow_key()

    async def tidy(self) -> None:
        """Now and then, without end: give up what is over, take up what the authority renewed."""
        while True:
            try:
                await asyncio.to_thread(self._keys.tidy, self._known())
            except (MpcdError, OSError) as error:
                _log.error("the old key cannot be given up yet; it is tried again", reason=error)
            self._keys.refresh()
            self._follow_key()
            await asyncio.sleep(TIDY)

    async def tell(self, control: ControlLink, link: Link) -> None:
        """See to it that the peer at the other end knows our key; if it does, the link is to show no older one."""
        stale = link.connection.shown_fingerprint != self._keys.fingerprint
        if await self._told(control.peer, link):
            self._follow_key()
            if stale and control.current is link:
                control.renew()

    async def _told(self, peer: Peer, link: Link) -> bool:
        """Say it where the connection shows another one. Whether the peer knows our key now."""
        current = self._keys.fingerprint
        if link.connection.shown_fingerprint != current:
            announced = await asyncio.to_thread(self._keys.announcement)
            if announced is None:
                return False
            try:
                await link.call(rotation.METHOD, {"announcement": announced}, self._config.timeouts.call)
            except MpcdError as error:
                _log.warning("the peer did not take the new key; it is told again", peer=peer.name, reason=str(error))
                return False
            _log.info("the peer knows the new key", peer=peer.name)
        if self._keys.fingerprint == current:
            await asyncio.to_thread(self._keys.acknowledge, peer.id)
        return True

    def _known(self) -> list[str]:
        return [peer.id for peer in self._peers.list()]

    def _follow_key(self) -> None:
        self._peers.own_fingerprint = self._keys.fingerprint

    async def _serve(self, name: str, params: dict[str, Any]) -> dict[str, Any]:
        peer = self._peers.get(name)
        if peer.known_by != PIN:
            raise Refused("this daemon knows you by an authority and a name, not by a key")
        rate = self._taken.setdefault(peer.id, Rate(A_SECOND, AT_ONCE, time.monotonic()))
        if not rate.take(time.monotonic()):
            raise TooManyKeys()
        try:
            certificate = rotation.verify(params.get("announcement"), peer.certificate)
        except rotation.ForgedAnnouncement:
            _log.error("refused an announcement of a new key that the pinned key did not sign", peer=name)
            raise
        changed = await asyncio.to_thread(self._peers.change_key, name, certificate)
        _log.info(
            "the peer has a new key, announced and signed by the old one; the old one is refused from now on",
            peer=name,
            fingerprint=grouped(changed.fingerprint),
            previous=grouped(peer.fingerprint),
        )
        return {}
