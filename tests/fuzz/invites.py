"""Invites: pasted from anywhere; some with a right checksum over nonsense, as only a program makes them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgpack
from hypothesis import strategies as st

from mpcd.daemon.network import identity
from mpcd.daemon.network.identity import Identity, Invite, InviteError
from tests.fuzz.harness import Target, changed


def summed(body: bytes) -> bytes:
    check = hashlib.sha256(body).digest()[: identity.CHECKSUM_BYTES]
    return identity.PREFIX.encode() + base64.urlsafe_b64encode(body + check).rstrip(b"=")


class Invites(Target):
    def __init__(self, folder: Path) -> None:
        self._invite = Identity.load_or_create(folder, "alpha").invite("alpha", "alpha.example:7443")
        self._fields = {"name": "alpha", "address": "[::1]:7443", "certificate": self._invite.certificate}

    def seeds(self) -> Sequence[bytes]:
        return [b"\0" + str(self._invite).encode(), b"\1" + msgpack.packb(self._fields), b"\0mpcd1:", b"\1\x80"]

    def structured(self) -> st.SearchStrategy[bytes]:
        return changed(self._fields).map(lambda fields: b"\1" + msgpack.packb(fields))

    def one(self, data: bytes) -> None:
        if not data:
            return
        text = summed(data[1:]) if data[0] % 2 else data[1:]
        try:
            found = Invite.parse(text.decode("utf-8", "replace"))
        except InviteError as error:
            str(error)
            return
        assert Invite.parse(str(found)) == found


def make(folder: Path) -> Target:
    return Invites(folder)
