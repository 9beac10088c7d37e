"""What two daemons say first on every connection, right after the TLS handshake.

1. Acceptor: who I am and which protocol version I speak. It speaks first, so that a dialer that is refused during the
   handshake has sent nothing yet and TCP delivers the alert that says so.
2. Dialer: the same, and what this connection is for: the control link, a job's data, or a knock (a dialer whose
   certificate was refused, now without one, says which fingerprint the acceptor's operator would have to expect).
3. Acceptor: welcome, or the error. For a job's data, only once the job has asked for it there.
4. Dialer, for a job's data: still here. It may have given up while it waited for step 3.

The maps may grow fields. ``protocol`` (the oldest version that the speaker speaks) and ``newest`` stay where they are
in all versions, so that two daemons find the highest that both speak, or tell whose operator must upgrade. A daemon
that says no ``newest`` speaks that one version only.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Self

import msgpack

from mpcd.daemon.config import NAME
from mpcd.daemon.errors import MpcdError, PeerError, ProtocolViolation, VersionMismatch
from mpcd.daemon.network.transport import Connection
from mpcd.daemon.version import OLDEST_PROTOCOL, PROTOCOL_VERSION, software_digest, software_version
from mpcd.protocol.wire import Frame

HEADER = b"greeting"
LIMIT = 8 * 1024
CONTROL, CHANNEL, KNOCK = "control", "channel", "knock"
JOB_BYTES = 16
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True, slots=True)
class Hello:
    """``instance`` tells one run of a daemon from the next. ``job`` for a channel, ``fingerprint`` for a knock."""

    name: str
    instance: str
    protocol: int = OLDEST_PROTOCOL
    newest: int = PROTOCOL_VERSION
    software: str = dataclasses.field(default_factory=software_version)
    digest: str = dataclasses.field(default_factory=software_digest)
    purpose: str = CONTROL
    job: bytes = b""
    fingerprint: str = ""

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Self:
        """Raises ProtocolViolation; fields of later versions are passed over."""
        known: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            kind = {"protocol": int, "newest": int, "job": bytes}.get(field.name, str)
            value: Any = fields.get(field.name, fields.get("protocol") if field.name == "newest" else None)
            if type(value) is not kind or (kind is not int and len(fields[field.name]) > 64):
                raise ProtocolViolation(f"the peer's greeting has no usable {field.name!r}")
            known[field.name] = value
        hello = cls(**known)
        if hello.purpose not in (CONTROL, CHANNEL, KNOCK) or not NAME.fullmatch(hello.name):
            raise ProtocolViolation("the peer's greeting is malformed")
        if (hello.purpose == CHANNEL) != (len(hello.job) == JOB_BYTES) or (
            hello.purpose == KNOCK and not _HEX.fullmatch(hello.fingerprint)
        ):
            raise ProtocolViolation("the peer's greeting is malformed")
        if not hello.software.isprintable() or not hello.instance.isprintable() or not hello.digest.isprintable():
            raise ProtocolViolation("the peer's greeting is malformed")
        return hello

    @property
    def agreed(self) -> int:
        """The protocol version that we and this peer speak to each other."""
        return min(self.newest, PROTOCOL_VERSION)


HelloFor = Callable[[str, bytes], Hello]  # what to say of ourselves on a connection for a purpose and a job


def check_version(fields: dict[str, Any], peer: str) -> None:
    """Raises VersionMismatch that says who must upgrade to what, unless there is a version that both speak."""
    oldest, newest = fields.get("protocol"), fields.get("newest", fields.get("protocol"))
    if type(oldest) is not int or type(newest) is not int or newest < oldest:
        raise ProtocolViolation("the peer's greeting has no protocol version")
    if oldest <= PROTOCOL_VERSION and newest >= OLDEST_PROTOCOL:
        return
    if newest < OLDEST_PROTOCOL:
        older, whose, needed = peer, f"ask {peer} to upgrade mpcd", OLDEST_PROTOCOL
    else:
        older, whose, needed = "this daemon", "upgrade mpcd on this side", oldest
    software = printable(fields.get("software"), 40)
    raise VersionMismatch(
        f"{peer} speaks {_versions(oldest, newest)}{f' (mpcd {software})' if software else ''}, this daemon"
        f" {_versions(OLDEST_PROTOCOL, PROTOCOL_VERSION)} (mpcd {software_version()}): {older} must be upgraded",
        f"{whose}, to one that speaks protocol version {needed} or later",
    )


def _versions(oldest: int, newest: int) -> str:
    return f"protocol version {newest}" if oldest == newest else f"protocol versions {oldest} to {newest}"


def error_from(fields: Any) -> PeerError:
    """The peer's error, made safe to show: it may be of any length and hold terminal control sequences."""
    fields = fields if isinstance(fields, dict) else {}
    code, status = fields.get("code"), fields.get("exit_status")
    if not isinstance(code, str) or not re.fullmatch(r"[a-z0-9_]{1,64}", code):
        code = "error"
    if type(status) is not int or not 1 <= status <= 125:
        status = PeerError.exit_status
    message = printable(fields.get("message"), 2000) or "the peer gave no reason"
    return PeerError(code, message, printable(fields.get("hint"), 2000), status)


def printable(value: Any, most: int) -> str:
    """A peer's text, made safe for a terminal; '' for what is no text."""
    return "".join(c if c.isprintable() else " " for c in value[:most]) if isinstance(value, str) else ""


async def _send(connection: Connection, fields: dict[str, Any]) -> None:
    await connection.send_frame(Frame(HEADER, (memoryview(msgpack.packb(fields)),)))


async def _recv(connection: Connection) -> dict[str, Any]:
    header, payload = await connection.recv_frame(LIMIT)
    try:
        fields = msgpack.unpackb(payload)
    except Exception as error:
        raise ProtocolViolation("the peer's greeting does not decode") from error
    if header != HEADER or not isinstance(fields, dict):
        raise ProtocolViolation("the peer did not begin with a greeting")
    return fields


async def _first(connection: Connection) -> dict[str, Any]:
    """Step 1 at the dialer."""
    fields = await _recv(connection)
    if fields.get("welcome") is False:  # a certificate that TLS let pass, but that is no peer's there
        raise error_from(fields.get("error"))
    return fields


async def heard(connection: Connection, peer: str) -> Hello:
    """Step 1 alone: the acceptor knows us and speaks a version that we speak."""
    fields = await _first(connection)
    check_version(fields, peer)
    return Hello.parse(fields)


async def dialer(connection: Connection, mine: Hello, peer: str) -> Hello:
    """Steps 1 and 2. Raises VersionMismatch after telling the peer our version as well."""
    fields = await _first(connection)
    await _send(connection, dataclasses.asdict(mine))
    check_version(fields, peer)
    return Hello.parse(fields)


async def welcomed(connection: Connection) -> None:
    """Step 3 at the dialer. Raises the peer's error as PeerError."""
    fields = await _recv(connection)
    if fields.get("welcome") is not True:
        raise error_from(fields.get("error"))


async def acceptor(connection: Connection, mine: Hello, peer: str) -> Hello:
    """Steps 1 and 2; the caller goes on with ``welcome`` or ``refuse``. A stranger learns our version, no more."""
    known = dataclasses.asdict(mine) if connection.peer_fingerprint else {
        **dataclasses.asdict(mine), "name": "mpcd", "software": "", "digest": "", "instance": ""
    }  # fmt: skip
    await _send(connection, known)
    fields = await _recv(connection)
    check_version(fields, peer)
    return Hello.parse(fields)


async def welcome(connection: Connection) -> None:
    await _send(connection, {"welcome": True})


async def confirm(connection: Connection) -> None:
    """Step 4 at the dialer."""
    await _send(connection, {"here": True})


async def confirmed(connection: Connection) -> None:
    """Step 4 at the acceptor."""
    if (await _recv(connection)).get("here") is not True:
        raise ProtocolViolation("the peer did not confirm the data connection")


async def refuse(connection: Connection, error: MpcdError) -> None:
    await _send(connection, {"welcome": False, "error": error.for_peer()})


def hello_of(shown: str, name: str, instance: str, purpose: str, job: bytes = b"") -> Hello:
    """``shown``: our certificate's fingerprint."""
    return Hello(name, instance, purpose=purpose, job=job, fingerprint=shown if purpose == KNOCK else "")
