"""Telling peers of our new key over the old identity, and hearing of theirs (rotation.py has what is said)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from mpcd.daemon import log
from mpcd.daemon.errors import MpcdError, Refused
from mpcd.daemon.network import rotation
from mpcd.daemon.network.identity import grouped
from mpcd.daemon.network.keys import Keys
from mpcd.daemon.network.peers import PIN, Peer, Peers
from mpcd.daemon.network.rate import Rate
from mpcd.daemon.network.rpc import Link

A_SECOND, AT_ONCE = 1 / 60, 10.0  # announcements of one peer: each is a write to the disk

_log = log.get("keys")


class TooManyKeys(Refused):
    """You announce new keys too often."""

    code = "busy"


class Announcer:
    """Both ends of ``key.rotated``."""

    def __init__(self, keys: Keys, peers: Peers) -> None:
        self._keys = keys
        self._peers = peers
        self._taken: dict[str, Rate] = {}
        self.handlers = {rotation.METHOD: self._serve}

    async def tell(self, peer: Peer, link: Link, timeout: float) -> bool:
        """See to it that the peer at the other end knows our key; False if it does not know it now."""
        current = self._keys.fingerprint
        if link.connection.shown_fingerprint != current:
            announced = await asyncio.to_thread(self._keys.announcement)
            if announced is None:
                return False
            try:
                await link.call(rotation.METHOD, {"announcement": announced}, timeout)
            except MpcdError as error:
                _log.warning("the peer did not take the new key; it is told again", peer=peer.name, reason=str(error))
                return False
            _log.info("the peer knows the new key", peer=peer.name)
        if self._keys.fingerprint == current:
            await asyncio.to_thread(self._keys.acknowledge, peer.id)
        return True

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
