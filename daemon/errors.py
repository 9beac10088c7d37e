"""Errors a person may see: what is wrong with which thing, the way out, a stable code, and an exit status.

An error's docstring is its message where the raiser has nothing more exact to say. Exit statuses:

    0 done                    5 in the way of something that exists, or in the wrong state
    1 another error           6 refused by the other side or by policy
    2 wrong usage             7 the peer cannot be reached, or the link broke
    3 the daemon is not there 8 the peer does not speak as agreed (version, frame, certificate)
    4 no such thing           9 unusable input (configuration, invite, image, labels, model)
                             10 too little disk, memory or other resource

70 is a bug in mpcd. Codes and statuses are part of the interface: scripts depend on them.
"""

from __future__ import annotations

from typing import Any


class MpcdError(Exception):
    """Something went wrong."""

    code = "error"
    exit_status = 1
    shared = False  # whether message and hint, of whatever instance, hold nothing that is not the peer's business
    private = False  # whether the message may name files or patients: people see it, a log gets the docstring

    def __init__(self, message: str = "", hint: str = "", peer_text: str = "") -> None:
        """``peer_text``: what the peer is told instead of the class's docstring."""
        self.message = message or _docstring(self)
        self.hint = hint
        self.peer_text = peer_text
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    def as_dict(self) -> dict[str, Any]:
        """How the error travels over the control API."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "exit_status": self.exit_status,
        }

    def for_peer(self) -> dict[str, Any]:
        """How the error travels to the peer: a message may name files, patients or data sets, so it stays here."""
        text = self.message if self.shared else self.peer_text or _docstring(self)
        return {**self.as_dict(), "message": text, "hint": self.hint if self.shared else ""}


def for_peer(error: BaseException) -> dict[str, Any]:
    """What the peer is told of any failure here; the reason itself belongs into our log."""
    if not isinstance(error, MpcdError):
        error = InternalError(peer_text="the other side's daemon met a bug; its log has more")
    return error.for_peer()


def for_log(error: BaseException) -> str:
    """What a log may hold of any failure here."""
    if isinstance(error, MpcdError) and error.private:
        return f"{_docstring(error)} ({error.code})"
    return str(error) or type(error).__name__


def _docstring(error: MpcdError) -> str:
    return " ".join((type(error).__doc__ or "").split())


class NotFound(MpcdError):
    """There is no such thing."""

    code = "not_found"
    exit_status = 4


class Conflict(MpcdError):
    """Something of that name exists already, or is in a state that does not allow this."""

    code = "conflict"
    exit_status = 5


class Refused(MpcdError):
    """The other side, or a policy, does not allow this."""

    code = "refused"
    exit_status = 6
    shared = True  # a refusal is worded for the one who is refused


class BadInput(MpcdError):
    """The input cannot be used."""

    code = "bad_input"
    exit_status = 9


class ConfigError(BadInput):
    """The configuration is not valid."""

    code = "config"


class InviteError(BadInput):
    """This is not a complete invite."""

    code = "invite"


class NotEnough(MpcdError):
    """There is too little disk, memory or another resource for this."""

    code = "not_enough"
    exit_status = 10


class InternalError(MpcdError):
    """mpcd met a condition that it should have made impossible."""

    code = "internal"
    exit_status = 70


class LinkError(MpcdError):
    """The link to the peer failed."""

    code = "link"
    exit_status = 7


class PeerUnreachable(LinkError):
    """The peer is not connected."""

    code = "peer_unreachable"


class PeerClosed(LinkError):
    """The peer closed the connection."""

    code = "peer_closed"


class PeerSilent(LinkError):
    """The peer stopped answering."""

    code = "peer_silent"


class ProtocolViolation(MpcdError):
    """The peer sent something that this step does not allow."""

    code = "protocol_violation"
    exit_status = 8
    shared = True  # it quotes nothing but what the peer sent or both have


class FrameTooLarge(ProtocolViolation):
    """The peer announced more bytes than this step allows."""

    code = "frame_too_large"


class PeerDeviated(ProtocolViolation):
    """The peer deviated from the protocol: a check of what it sent failed. No honest daemon's does."""

    code = "peer_deviated"


class VersionMismatch(ProtocolViolation):
    """The two daemons do not speak the same protocol version."""

    code = "version_mismatch"


class Mismatch(ProtocolViolation):
    """The two sides do not agree."""

    code = "mismatch"

    @classmethod
    def of(cls, what: str, ours: object, theirs: object) -> Mismatch:
        return cls(
            f"{what}: here {ours}, at the peer {theirs}",
            "both sides must mean the same model, recipe and version; start a new session once they do",
        )


class UnknownPeer(Refused):
    """The certificate at the other end belongs to no peer of this daemon."""

    code = "unknown_peer"
    exit_status = 8


class CertificateChanged(Refused):
    """The certificate at the other end is not the one that was pinned for this peer."""

    code = "certificate_changed"
    exit_status = 8
    shared = False  # it names the peer's address


class PeerError(MpcdError):
    """The peer answered a call with an error: its code and message, as it sent them."""

    def __init__(self, code: str, message: str, hint: str = "", exit_status: int = 6) -> None:
        super().__init__(message, hint)
        self.code = code
        self.exit_status = exit_status

    def for_peer(self) -> dict[str, Any]:
        """Its text may be a third party's, or that of a worker of ours."""
        return {**super().for_peer(), "message": f"it met an error of the kind {self.code!r}"}
