"""The peers this daemon knows: nothing else may connect, and nothing gets in here by itself."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpcd.daemon.config import NAME, NAME_RULE, join_address, split_address
from mpcd.daemon.errors import BadInput, CertificateChanged, Conflict, NotFound
from mpcd.daemon.files import write_private
from mpcd.daemon.network.identity import Invite, check_certificate, fingerprint, grouped

FILE_NAME = "peers.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """``address`` is host:port, or empty when only the peer can dial. ``added`` is an ISO 8601 time."""

    name: str
    address: str
    certificate: bytes
    added: str

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate)

    def as_dict(self) -> dict[str, str]:
        return {
            "name": self.name,
            "address": self.address,
            "fingerprint": self.fingerprint,
            "added": self.added,
        }


class PeersError(BadInput):
    """The file with this daemon's peers cannot be used."""

    code = "peers"


class Peers:
    """The store, one JSON file. Every change is on disk before the method returns; watchers are told after that."""

    def __init__(self, file: Path, own_fingerprint: str = "") -> None:
        self._file = file
        self._own_fingerprint = own_fingerprint
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
        return next((peer for peer in self._peers.values() if peer.fingerprint == wanted), None)

    def add(self, invite: str | Invite, name: str | None = None, address: str | None = None) -> Peer:
        """Pin the peer of ``invite``. ``name`` and ``address`` override the invite's. Again: a new address.

        Raises InviteError, BadInput, Conflict, CertificateChanged.
        """
        if isinstance(invite, str):
            invite = Invite.parse(invite)
        name = invite.name if name is None else name
        if not NAME.fullmatch(name):
            raise BadInput(f"{name!r} is not allowed as a name: {NAME_RULE}")
        try:
            where = invite.address if address is None else address
            where = join_address(*split_address(where)) if where else ""
        except ValueError as error:
            raise BadInput(str(error)) from error
        if invite.fingerprint == self._own_fingerprint:
            raise Conflict("this is the invite of this daemon itself", "add the invite of the other side")
        old = self._peers.get(name)
        if old is not None and old.fingerprint != invite.fingerprint:
            raise CertificateChanged(
                f"the certificate of {name!r} changed:"
                f" pinned is {grouped(old.fingerprint)}, this invite has {grouped(invite.fingerprint)}",
                f"ask {name} by telephone whether they have a new identity; if so,"
                f" run `mpcctl peer remove {name}` and add the invite again; if it is someone else, add it by --name",
            )
        same = self.find(invite.fingerprint)
        if same is not None and same.name != name:
            raise Conflict(
                f"this certificate is already known as {same.name!r}",
                f"to rename it, run `mpcctl peer remove {same.name}` first",
            )
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        peer = Peer(name, where, invite.certificate, old.added if old else now)
        self._store({**self._peers, name: peer})
        return peer

    def remove(self, name: str) -> Peer:
        """Forget a peer: its links are closed and it is refused from now on."""
        peer = self.get(name)
        self._store({key: value for key, value in self._peers.items() if key != name})
        return peer

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
            if table["format"] != FORMAT:
                raise ValueError("unknown format")
            peers = {}
            for entry in table["peers"]:
                name, address, added = str(entry["name"]), str(entry["address"]), str(entry["added"])
                certificate = base64.b64decode(entry["certificate"], validate=True)
                check_certificate(certificate)
                if not NAME.fullmatch(name) or fingerprint(certificate) != entry["fingerprint"]:
                    raise ValueError(f"entry {name!r} contradicts itself")
                if address:
                    split_address(address)
                peers[name] = Peer(name, address, certificate, added)
        except (ValueError, KeyError, TypeError, AttributeError, BadInput) as error:
            raise PeersError(
                f"{self._file} is damaged: {error}",
                "restore it from a backup; or remove it, and add every peer's invite again",
            ) from error
        return peers
