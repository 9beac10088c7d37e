"""Dialling a peer: through the proxy if there is one, with the identity that the peer knows, to a welcome.

What goes wrong is said in words for the operator: who did not answer, which certificate was there instead, and whether
it looks as if somebody between opens the TLS of both sides.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time

from mpcd.daemon.config import Config, split_address
from mpcd.daemon.errors import ConfigError, Conflict, MpcdError, PeerClosed, PeerError, PeerUnreachable, UnknownPeer
from mpcd.daemon.network import authority, greeting, inspection, tls
from mpcd.daemon.network.authority import CertificateExpired, WrongName
from mpcd.daemon.network.greeting import CHANNEL, CONTROL, KNOCK, Hello, HelloFor
from mpcd.daemon.network.identity import Identity, Invite, grouped
from mpcd.daemon.network.keys import Keys
from mpcd.daemon.network.peers import PIN, Peer
from mpcd.daemon.network.proxy import Proxy, ProxyRefused
from mpcd.daemon.network.transport import Connection, dial


class Dialler:
    """``hello``: what to say of ourselves."""

    def __init__(self, config: Config, keys: Keys, hello: HelloFor) -> None:
        self._config = config
        self._keys = keys
        self._hello = hello
        self.proxy = Proxy.of(config.proxy)
        self._asked_for: set[str] = set()  # fingerprints of peers who show them only when asked to

    async def dial(self, peer: Peer, purpose: str, job: bytes = b"") -> tuple[Connection, Hello]:
        """A connection that the peer has welcomed; with no purpose, one on which it has only said who it is.

        Raises MpcdError in words for the operator.
        """
        self._keys.refresh()
        self._check_own()
        first, *others = self._keys.to_show(peer.id)
        try:
            return await self._dial_as(first, peer, purpose, job)
        except UnknownPeer:
            if not others:
                raise
        return await self._dial_as(others[0], peer, purpose, job)

    async def reach(self, peer: Peer) -> None:
        """Connect, see the peer's certificate and have ours seen, then leave. Raises as ``dial`` does."""
        connection, _ = await self.dial(peer, "")
        connection.abort()

    async def knock(self, peer: Peer) -> None:
        """Tell the peer's operator who was refused. Best effort."""
        with contextlib.suppress(MpcdError, OSError):
            context = tls.knock_context(peer.certificate, self._keys.ca_file)
            connection = await self.connect(peer, context, _server_name(peer))
            try:
                _check(peer, connection)
                async with asyncio.timeout(self._config.timeouts.handshake):
                    await greeting.dialer(connection, self._hello(KNOCK, b""), peer.name)
                    await greeting.welcomed(connection)
            finally:
                connection.abort()

    async def look(self, peer: Peer) -> bytes:
        """The certificate (DER) at the peer's address, whoever that is; nothing is sent to them. b'' for none."""
        with contextlib.suppress(MpcdError):
            connection = await self.connect(peer, tls.probe_context(), _server_name(peer))
            connection.abort()
            return connection.peer_certificate
        return b""

    async def connect(self, peer: Peer, context: ssl.SSLContext, server_name: str | None = None) -> Connection:
        """TCP and TLS only."""
        host, port = split_address(peer.address)
        through = "" if self.proxy is None or self.proxy.spares(host) else f" through the proxy {self.proxy.place}"
        try:
            return await dial(host, port, context, self._config.timeouts, server_name=server_name, proxy=self.proxy)
        except ProxyRefused as error:
            raise ProxyRefused(f"{peer.name} at {peer.address} cannot be reached: {error}", error.hint) from error
        except TimeoutError:
            raise PeerUnreachable(
                f"{peer.name} at {peer.address} does not answer{through}",
                "a firewall may drop the packets, or the address may be wrong",
            ) from None
        except OSError as error:
            raise PeerUnreachable(
                f"{peer.name} at {peer.address} cannot be reached{through}: {error.strerror or error}",
                "check the address, and that mpcd runs and listens there",
            ) from error
        except UnicodeError as error:
            raise PeerUnreachable(
                f"{peer.name} at {peer.address} cannot be reached: {host!r} cannot be a host's name",
                f"correct it: `mpcctl peer add` with {peer.name}'s invite and --address",
            ) from error

    def context(self, identity: Identity, peer: Peer) -> ssl.SSLContext:
        """Raises ConfigError if the files of keys and certificates cannot be used, whatever they held before."""
        try:
            return tls.client_context(identity, peer.certificate, self._keys.ca_file)
        except OSError as error:
            files = f"{identity.file} and {identity.key_file}" if identity.key_file else str(identity.file)
            unusable = isinstance(error, ssl.SSLError)
            raise ConfigError(
                f"this daemon's certificate and key cannot be used ({files}):"
                f" {'they are damaged or do not belong together' if unusable else error.strerror}",
                "put them right, readable by the user that mpcd runs as; the next attempt reads them again",
            ) from error

    def check_invite(self, one: Invite | Peer) -> None:
        """Raises ConfigError if this side has nothing to know that peer by, Conflict if it is this side."""
        if self._keys.by_authority and authority.is_for(self._keys.certificate, one.ca_name):
            raise Conflict("this is the invite of this daemon itself", "add the invite of the other side")
        if one.ca_name and self._keys.ca_file is None:
            raise ConfigError(
                f"{one.name} is known by an authority and the name {one.ca_name!r}, but this side has no tls.ca_file",
                "set [tls] ca_file in mpcd.toml to the authority's certificate",
            )

    # One attempt.

    async def _dial_as(self, identity: Identity, peer: Peer, purpose: str, job: bytes) -> tuple[Connection, Hello]:
        """With this identity; asking for the peer's former key where it shows another than ours of it."""
        self.check_invite(peer)
        names = [_server_name(peer)]
        if peer.known_by == PIN:
            names.append(tls.label_of(peer.fingerprint))
            if peer.fingerprint in self._asked_for:
                names.reverse()
        for name in names:
            try:
                found = await self._greeted(identity, peer, purpose, job, name)
            except tls.NotPinned:
                self._asked_for.discard(peer.fingerprint)
                continue
            if name is not None and peer.known_by == PIN:
                self._asked_for.add(peer.fingerprint)
            return found
        raise inspection.explain(peer, await self.look(peer)) from None

    async def _greeted(
        self, identity: Identity, peer: Peer, purpose: str, job: bytes, server_name: str | None
    ) -> tuple[Connection, Hello]:
        try:
            connection = await self._shake_hands(identity, peer, server_name)
            try:
                _check(peer, connection)
                async with asyncio.timeout(self._config.timeouts.handshake):
                    if not purpose:
                        return connection, await greeting.heard(connection, peer.name)
                    theirs = await greeting.dialer(connection, self._hello(purpose, job), peer.name)
                    if purpose == CONTROL:
                        await greeting.welcomed(connection)
                if purpose == CHANNEL:  # the peer may be a while; its keepalives say that it is there
                    await greeting.welcomed(connection)
                    await greeting.confirm(connection)
            except BaseException:
                connection.abort()
                raise
        except tls.NotPinned:
            raise
        except UnknownPeer as error:
            raise self._not_known_there(identity, peer, error) from error
        except PeerError as error:
            if error.code == UnknownPeer.code:
                raise self._not_known_there(identity, peer, error) from error
            raise
        except TimeoutError:
            raise PeerUnreachable(
                f"{peer.name} at {peer.address} took the connection but did not finish the handshake",
                f"is the daemon at {peer.address} overloaded, or is something else listening there?",
            ) from None
        return connection, theirs

    async def _shake_hands(self, identity: Identity, peer: Peer, server_name: str | None) -> Connection:
        try:
            return await self.connect(peer, self.context(identity, peer), server_name)
        except (tls.OldTls, PeerClosed):
            # Not TLS as the peer speaks it; perhaps that of a box between, which may know nothing but TLS 1.2.
            seen = await self.look(peer)
            if seen and not inspection.is_ours(seen) and peer.known_by == PIN:
                raise inspection.explain(peer, seen) from None
            raise

    def _not_known_there(self, identity: Identity, peer: Peer, error: MpcdError) -> UnknownPeer:
        return UnknownPeer(
            f"{peer.name} does not know this daemon's certificate ({grouped(identity.fingerprint)})",
            error.hint or "send them the invite that `mpcctl id` prints and ask them to run `mpcctl peer add`",
        )

    def _check_own(self) -> None:
        ends = self._keys.expires
        if ends is not None and ends <= time.time():
            raise CertificateExpired(
                f"this daemon's certificate expired on {authority.date(ends)}", "have it renewed by your authority"
            )


def _server_name(peer: Peer) -> str | None:
    """What is asked for (SNI): a name that an authority vouches for; nothing where the certificate is pinned."""
    return peer.ca_name or None


def _check(peer: Peer, connection: Connection) -> None:
    """Raises NotPinned or WrongName unless the peer is at the other end; OpenSSL has checked what it could."""
    if peer.known_by == PIN:
        if connection.peer_fingerprint != peer.fingerprint:
            raise tls.NotPinned()
    elif not authority.is_for(connection.peer_certificate, peer.ca_name):
        found = ", ".join(authority.names(connection.peer_certificate)) or "no name"
        raise WrongName(
            f"the certificate at {peer.address} is for {found}, but {peer.name} is known by the name {peer.ca_name!r}",
            f"check the address; or ask {peer.name} for their new invite, if their certificate's name has changed",
        )
