"""Which identity this daemon shows to whom, and how it changes.

Pinned mode: the key in the state folder. ``rotate`` puts a new one in its place and keeps the old one
(identity-previous.pem) as long as a peer has not heard of the new one (rotation.json), at most until a stated time.

    1. identity-previous.pem    a copy of the old one
    2. rotation.json            names both, and who has to hear of it
    3. identity.pem             becomes the new one

Each step is one file, written whole or not at all. A crash before step 3 leaves the old identity, and the next start
removes what the first steps left; a crash after it leaves the new one and all that is needed to announce it. At the
end rotation.json goes first, then the old key: what is left without rotation.json is removed at the next start.

A service manager may keep the key instead (systemd's LoadCredential=identity.pem:...): it is then read from
$CREDENTIALS_DIRECTORY, whose access rights are the service manager's business, and is not on the state folder's disk.

identity-former.json keeps the fingerprints of all former keys, for records of then (an approval names both parties).

CA mode: the site's PKI makes and renews key and certificate; the files are read again when they change.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mpcd.daemon import log
from mpcd.daemon.config import Tls
from mpcd.daemon.errors import BadInput, Conflict
from mpcd.daemon.files import write_private
from mpcd.daemon.network import authority, rotation
from mpcd.daemon.network.identity import FILE_NAME, Identity, IdentityError, Invite, generate, grouped

PREVIOUS_FILE = "identity-previous.pem"
ROTATION_FILE = "rotation.json"
FORMER_FILE = "identity-former.json"
FORMAT = 1
KEEP_DAYS = 30
DAY = 86400.0

_log = log.get("keys")


@dataclasses.dataclass(frozen=True, slots=True)
class Rotation:
    """``pending``: ids of the peers that have not heard of the new key. Times are Unix seconds."""

    previous: str
    current: str
    started: float
    until: float
    pending: tuple[str, ...]


class Keys:
    """``current`` is the identity that counts; ``previous`` is kept for the announcement, else None."""

    def __init__(self, current: Identity, state: Path | None = None, tls: Tls | None = None) -> None:
        self.current = current
        self.previous: Identity | None = None
        self.rotation: Rotation | None = None
        self.former: tuple[str, ...] = ()  # fingerprints
        self.changes = 0  # so often, what is shown changed
        self.ca_file = Path(tls.ca_file) if tls and tls.ca_file else None
        self._lock = threading.RLock()  # changes are made in threads: they wait for the disk
        self._state = state
        self._tls = tls
        self._read = authority.stamp(tls) if tls and tls.mode == "ca" else ()

    @classmethod
    def open(cls, state: Path, name: str, tls: Tls | None = None) -> Keys:
        """Raises IdentityError, ConfigError."""
        if tls is not None and tls.ca_file:
            authority.check_authorities(Path(tls.ca_file))
        if tls is not None and tls.mode == "ca":
            return cls(authority.load(tls), None, tls)
        credential = _credential()
        if credential is not None:
            return cls(credential, None, tls)
        keys = cls(Identity.load_or_create(state, name), state, tls)
        keys._take_up()
        return keys

    # What is asked of them.

    @property
    def by_authority(self) -> bool:
        """Whether an authority issued the certificate."""
        return self._tls is not None and self._tls.mode == "ca"

    @property
    def fingerprint(self) -> str:
        return self.current.fingerprint

    @property
    def certificate(self) -> bytes:
        return self.current.certificate

    @property
    def expires(self) -> float | None:
        """When the certificate ends; None for never."""
        return authority.expires(self.current.certificate) if self.by_authority else None

    def invite(self, name: str, address: str = "") -> Invite:
        if not self.by_authority:
            return self.current.invite(name, address)
        return Invite(name, address, b"", authority.names(self.current.certificate)[0])

    def to_show(self, peer: str) -> tuple[Identity, ...]:
        """What to show to the peer of this id when dialling it: the one it should know first, then the other."""
        if self.rotation is None or self.previous is None:
            return (self.current,)
        pair = (self.previous, self.current)
        return pair if peer in self.rotation.pending else pair[::-1]

    def known_to(self, peer: str) -> bool:
        """Whether the peer of this id has heard of the present key, as far as we know."""
        return self.rotation is None or peer not in self.rotation.pending

    def refresh(self) -> None:
        """CA mode: read the files again if they changed."""
        if not self.by_authority or self._tls is None:
            return
        stamp = authority.stamp(self._tls)
        if stamp == self._read:
            return
        self._read = stamp
        try:
            if self.ca_file is not None:
                authority.check_authorities(self.ca_file)
            self.current = authority.load(self._tls)
        except BadInput as error:
            _log.error("the new certificate is not used, the old one stays", reason=str(error), hint=error.hint)
            return
        self.changes += 1
        _log.info("a new certificate", fingerprint=self.fingerprint)

    # Rotation.

    def rotate(self, name: str, peers: Iterable[str], keep: float = KEEP_DAYS * DAY) -> Rotation:
        """A new key and certificate from now on; ``peers`` (ids) have to hear of it within ``keep`` seconds."""
        if self._state is None and not self.by_authority:
            raise Conflict(
                f"this daemon's key comes from the service manager ({self.current.file})",
                "give it another one there, restart, and pair anew with every peer (docs/install.md)",
            )
        if self.by_authority or self._state is None:
            raise Conflict(
                "this daemon's key and certificate come from the site's own authority (tls.mode = 'ca')",
                "renew them there; mpcd reads the files again by itself",
            )
        with self._lock:
            if self.rotation is not None:
                raise Conflict(
                    "peers have still to hear of the last new key",
                    "`mpcctl key show` says which; `mpcctl key finish` gives the old key up at once, and those peers"
                    " then need a new invite",
                )
            old, now = self.current, time.time()
            pem = generate(name)
            new = Identity.of_pem(old.file, pem)
            former = tuple(dict.fromkeys((*self.former, old.fingerprint)))
            write_private(self._state / FORMER_FILE, (json.dumps(former) + "\n").encode())
            write_private(self._state / PREVIOUS_FILE, old.file.read_bytes())
            begun = Rotation(old.fingerprint, new.fingerprint, now, now + keep, tuple(peers))
            self._store(begun)
            write_private(old.file, pem)
            self.current, self.former = new, former
            self.changes += 1
            self.previous = dataclasses.replace(old, file=self._state / PREVIOUS_FILE)
            self.rotation = begun
            _log.info("a new key", fingerprint=grouped(new.fingerprint), previous=grouped(old.fingerprint))
            if not begun.pending:
                self.finish()
            return begun

    def announcement(self) -> bytes | None:
        """What to tell a peer that knows the previous key."""
        previous = self.previous
        return None if previous is None else rotation.announcement(previous, self.current)

    def acknowledge(self, peer: str) -> None:
        """This peer knows the new key. The old one goes when all do."""
        with self._lock:
            if self.rotation is None or peer not in self.rotation.pending:
                return
            left = dataclasses.replace(self.rotation, pending=tuple(p for p in self.rotation.pending if p != peer))
            if left.pending:
                self._store(left)
                self.rotation = left
            else:
                self.finish()

    def tidy(self, peers: Iterable[str]) -> None:
        """Give the old key up once its time is over, or when nobody is left who has to hear of the new one."""
        with self._lock:
            if self.rotation is None:
                return
            known = set(peers)
            for gone in [peer for peer in self.rotation.pending if peer not in known]:
                self.acknowledge(gone)
            if self.rotation is not None and time.time() >= self.rotation.until:
                _log.warning("the old key's time is over", never_heard=len(self.rotation.pending))
                self.finish()

    def finish(self) -> None:
        """Give the old key up."""
        with self._lock:
            if self._state is not None:
                (self._state / ROTATION_FILE).unlink(missing_ok=True)
                (self._state / PREVIOUS_FILE).unlink(missing_ok=True)
            if self.rotation is not None:
                _log.info("the old key is gone", fingerprint=grouped(self.rotation.previous))
            self.rotation = self.previous = None
            self.changes += 1

    def _take_up(self) -> None:
        """After a start: go on with a rotation that was committed, sweep one that was not."""
        assert self._state is not None
        for name in (FILE_NAME, FORMER_FILE, PREVIOUS_FILE, ROTATION_FILE):
            for scratch in self._state.glob(f".{name}.*"):  # half written by a daemon that was killed
                scratch.unlink()
        self.former = self._load_former()
        found = self._load()
        if found is None or found.current != self.current.fingerprint:
            self.finish()
            return
        previous = Identity.load(self._state / PREVIOUS_FILE)
        if previous.fingerprint != found.previous:
            raise IdentityError(f"{previous.file} does not hold the key that {ROTATION_FILE} names", _MEND)
        self.previous, self.rotation = previous, found

    def _load_former(self) -> tuple[str, ...]:
        assert self._state is not None
        try:
            found = json.loads((self._state / FORMER_FILE).read_bytes())
            return tuple(str(one) for one in found if one != self.fingerprint)
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError) as error:
            raise IdentityError(f"{self._state / FORMER_FILE} cannot be used: {error}", "remove it") from error

    def _load(self) -> Rotation | None:
        assert self._state is not None
        file = self._state / ROTATION_FILE
        try:
            table: Any = json.loads(file.read_bytes())
            if table.pop("format") != FORMAT:
                raise ValueError("unknown format")
            return Rotation(**{**table, "pending": tuple(map(str, table["pending"]))})
        except FileNotFoundError:
            return None
        except OSError as error:
            raise IdentityError(f"{file} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IdentityError(f"{file} is damaged: {error}", _MEND) from error

    def _store(self, found: Rotation) -> None:
        assert self._state is not None
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(found)}, indent=2) + "\n"
        write_private(self._state / ROTATION_FILE, text.encode())


_MEND = (
    f"{FILE_NAME} holds the key that counts; without {ROTATION_FILE} and {PREVIOUS_FILE} the daemon starts, and peers"
    " that have not heard of it need a new invite"
)


def _credential() -> Identity | None:
    """The identity that the service manager hands over, where it does. Raises IdentityError."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    file = Path(folder or "/") / FILE_NAME
    if not folder or not file.exists():
        return None
    try:
        return Identity.of_pem(file, file.read_bytes(), "it holds what identity.pem of a state folder holds")
    except OSError as error:
        raise IdentityError(f"{file} cannot be read: {error.strerror}") from error
