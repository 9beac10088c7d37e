"""Announcements of a new key: nonsense, and nonsense that the pinned key did sign."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgpack
from cryptography.x509 import load_der_x509_certificate
from hypothesis import strategies as st

from mpcd.daemon.network import rotation
from mpcd.daemon.network.identity import Identity
from tests.fuzz.harness import Target, changed


class Announcements(Target):
    def __init__(self, folder: Path) -> None:
        for name in ("old", "new"):
            (folder / name).mkdir()
        self._old, self._new = (Identity.load_or_create(folder / name, "alpha") for name in ("old", "new"))
        self._keys = [identity.private_key() for identity in (self._old, self._new)]
        self._body = {"old": self._old.fingerprint, "certificate": self._new.certificate, "time": 1}

    def seeds(self) -> Sequence[bytes]:
        return [b"\0" + rotation.announcement(self._old, self._new), b"\1" + msgpack.packb(self._body)]

    def structured(self) -> st.SearchStrategy[bytes]:
        outer = msgpack.unpackb(rotation.announcement(self._old, self._new))
        return st.one_of(
            changed(outer).map(lambda fields: b"\0" + msgpack.packb(fields)),
            changed(self._body).map(lambda fields: b"\1" + msgpack.packb(fields)),
        )

    def one(self, data: bytes) -> None:
        if not data:
            return
        announced = self._signed(data[1:]) if data[0] % 2 else data[1:]
        try:
            found = rotation.verify(announced, self._old.certificate)
        except rotation.ForgedAnnouncement as error:
            str(error)
            return
        # Not always byte for byte: DER around the signed part can be written in more than one way.
        assert load_der_x509_certificate(found).public_key() == self._keys[1].public_key()

    def _signed(self, body: bytes) -> bytes:
        signatures = [key.sign(rotation.DOMAIN + body) for key in self._keys]
        announced: bytes = msgpack.packb({"body": body, "signatures": signatures})
        return announced


def make(folder: Path) -> Target:
    return Announcements(folder)
