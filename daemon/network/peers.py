"""The peers this daemon knows: nothing else may connect, and nothing gets in here by itself."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpcd.daemon.config import NAME, NAME_RULE, join_address, split_address
from mpcd.daemon.database import NewerState
from mpcd.daemon.errors import BadInput, CertificateChanged, Conflict, NotFound
from mpcd.daemon.files import write_private
from mpcd.daemon.network.authority import is_for
from mpcd.daemon.network.identity import Invite, check_certificate, fingerprint, grouped

FILE_NAME = "peers.json"
FORMAT = 2  # 1 had neither id nor ca_name: a peer's id was its fingerprint
PIN, CA = "pin", "ca"
FORMER = 100  # fingerprints that are kept of a peer that announces many keys


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """``address`` is host:port, or empty when only the peer can dial. ``added`` is an ISO 8601 time.

    It is known by its pinned ``certificate``; or, where that is empty, by ``ca_name`` in a certificate of an authority.
    ``id``: 64 hexadecimal digits that stay when its key changes; units, and what else is kept of a peer, name it so.
    ``former``: fingerprints that it had before it announced the present one, for records of then; they open nothing.
    """

    name: str
    address: str
    certificate: bytes
    added: str
    id: str
    ca_name: str = ""
    former: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Of the pinned certificate; '' for none."""
        return fingerprint(self.certificate) if self.certificate else ""

    @property
    def known_by(self) -> str:
        return PIN if self.certificate else CA


class PeersError(BadInput):
    """The file with this daemon's peers cannot be used."""

    code = "peers"


class Peers:
    """The store, one JSON file. Every change is on disk before the method returns; watchers are told after that."""

    def __init__(self, file: Path, own_fingerprint: str = "") -> None:
        self._file = file
        self.own_fingerprint = own_fingerprint
        self._lock = threading.Lock()
        self._watchers: list[Callable[[], None]] = []
        self._peers = self._load()

    def list(self) -> tuple[Peer, ...]:
        return tuple(sorted(self._peers.values(), key=lambda peer: peer.name))

    def get(self, name: str) -> Peer:
        try:
            return self._peers[name]
        except KeyError:
            known = ", ".join(sorted(self._peers)) or "none yet"
            raise NotFound(f"there is no peer named {name!r}", f"known peers: {known}") from None

    def find(self, wanted: str) -> Peer | None:
        """The peer whose certificate has this fingerprint."""
        return next((peer for peer in self._peers.values() if peer.certificate and peer.fingerprint == wanted), None)

    def find_certified(self, certificate: bytes) -> Peer | None:
        """The peer that this certificate (DER), which an authority of ours issued, is for."""
        return next((p for p in self._peers.values() if p.known_by == CA and is_for(certificate, p.ca_name)), None)

    def add(self, invite: str | Invite, name: str | None = None, address: str | None = None) -> Peer:
        """Know the peer of ``invite``. ``name`` and ``address`` override the invite's. Again: a new address.

        Raises InviteError, BadInput, Conflict, CertificateChanged.
        """
        if isinstance(invite, str):
            invite = Invite.parse(invite)
        name = invite.name if name is None else name
        if not NAME.fullmatch(name):
            raise BadInput(f"{name!r} is not allowed as a name: {NAME_RULE}")
        try:
            where = invite.address if address is None else address
            if where:
                host, port = split_address(where)
                host.encode("idna")  # as dialling does
                where = join_address(host, port)
        except UnicodeError as error:
            raise BadInput(f"{where!r} is not an address: {host!r} cannot be a host's name") from error
        except ValueError as error:
            raise BadInput(str(error)) from error
        if invite.certificate and invite.fingerprint == self.own_fingerprint:
            raise Conflict("this is the invite of this daemon itself", "add the invite of the other side")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        peer = Peer(name, where, invite.certificate, now, _id_of(invite), invite.ca_name.lower())
        with self._lock:
            old = self._peers.get(name)
            if old is not None:
                _check_same(old, peer)
                peer = dataclasses.replace(peer, added=old.added, id=old.id, former=old.former)
            same = self.find(peer.fingerprint) if peer.certificate else self._named(peer.ca_name)
            if same is not None and same.name != name:
                raise Conflict(
                    f"this certificate is already known as {same.name!r}",
                    f"to rename it, run `mpcctl peer remove {same.name}` first",
                )
            others = [other for other in self._peers.values() if other.name != name]
            before = next((other for other in others if peer.fingerprint in other.former), None)
            if before is not None:
                raise Conflict(
                    f"this is an old invite of {before.name!r}, whose key has changed since", "ask for the new invite"
                )
            self._store({**self._peers, name: peer})
        return peer

    def change_key(self, name: str, certificate: bytes) -> Peer:
        """Pin another certificate of the same peer, which it has proven to be its own (rotation.py)."""
        with self._lock:
            peer = self.get(name)
            new = fingerprint(certificate)
            same = self.find(new)
            if new == self.own_fingerprint or (same is not None and same.name != name):
                raise Conflict("the announced certificate belongs to somebody else")
            peer = dataclasses.replace(peer, certificate=certificate, former=(*peer.former, peer.fingerprint)[-FORMER:])
            self._store({**self._peers, name: peer})
        return peer

    def remove(self, name: str) -> Peer:
        """Forget a peer: its links are closed and it is refused from now on."""
        with self._lock:
            peer = self.get(name)
            self._store({key: value for key, value in self._peers.items() if key != name})
        return peer

    def _named(self, ca_name: str) -> Peer | None:
        return next((peer for peer in self._peers.values() if peer.known_by == CA and peer.ca_name == ca_name), None)

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call ``watcher`` after every change; returns what ends that."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def _store(self, peers: dict[str, Peer]) -> None:
        entries = [
            {
                "name": peer.name,
                "address": peer.address,
                "certificate": base64.b64encode(peer.certificate).decode(),
                "fingerprint": peer.fingerprint,
                "added": peer.added,
                "id": peer.id,
                "ca_name": peer.ca_name,
                "former": list(peer.former),
            }
            for peer in peers.values()
        ]
        text = json.dumps({"format": FORMAT, "peers": entries}, indent=2) + "\n"
        write_private(self._file, text.encode())
        self._peers = peers
        for watcher in tuple(self._watchers):
            watcher()

    def _load(self) -> dict[str, Peer]:
        try:
            text = self._file.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise PeersError(f"{self._file} cannot be read: {error.strerror}") from error
        try:
            table: Any = json.loads(text)
            if type(table["format"]) is int and table["format"] > FORMAT:
                raise NewerState.of(self._file, table["format"], FORMAT)
            if table["format"] not in (1, FORMAT):
                raise ValueError("unknown format")
            peers = {}
            for entry in table["peers"]:
                name, address, added = str(entry["name"]), str(entry["address"]), str(entry["added"])
                certificate = base64.b64decode(entry["certificate"], validate=True)
                id, ca_name = str(entry.get("id", entry["fingerprint"])), str(entry.get("ca_name", ""))
                if certificate:
                    check_certificate(certificate)
                peer = Peer(name, address, certificate, added, id, ca_name, tuple(map(str, entry.get("former", ()))))
                if not NAME.fullmatch(name) or peer.fingerprint != entry["fingerprint"] or not (certificate or ca_name):
                    raise ValueError(f"entry {name!r} contradicts itself")
                if address:
                    split_address(address)
                peers[name] = peer
        except (ValueError, KeyError, TypeError, AttributeError, BadInput) as error:
            raise PeersError(
                f"{self._file} is damaged: {error}",
                "restore it from a backup; or remove it, and add every peer's invite again",
            ) from error
        return peers


def _id_of(invite: Invite) -> str:
    return invite.fingerprint or hashlib.sha256(b"mpcd peer by name\0" + invite.ca_name.lower().encode()).hexdigest()


def _check_same(old: Peer, new: Peer) -> None:
    """Raises CertificateChanged unless ``new`` is known as ``old`` is."""
    if (old.certificate, old.ca_name) == (new.certificate, new.ca_name):
        return
    first = f"remove {old.name}` and add the invite again"
    if old.known_by == new.known_by == PIN:
        raise CertificateChanged(
            f"the certificate of {old.name!r} changed:"
            f" pinned is {grouped(old.fingerprint)}, this invite has {grouped(new.fingerprint)}",
            f"ask {old.name} by telephone whether they have a new identity; if so,"
            f" run `mpcctl peer {first}; if it is someone else, add it by --name",
        )
    raise CertificateChanged(
        f"{old.name!r} is known by {_how(old)}, this invite is for {_how(new)}",
        f"ask {old.name} whether they changed that; if so, run `mpcctl peer {first}",
    )


def _how(peer: Peer) -> str:
    return "its pinned certificate" if peer.certificate else f"the name {peer.ca_name!r} and an authority"
