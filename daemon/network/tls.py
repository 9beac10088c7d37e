"""TLS 1.3 with both certificates pinned.

Every peer's self-signed certificate is a trust anchor, so OpenSSL refuses strangers during the handshake; the exact
fingerprint is checked after it, on both ends. The acceptor does not insist on a certificate, it insists on a known one:
a dialer that was refused may knock, without a certificate, to be told why and to be logged (daemon/network/link.py).
No session tickets: every connection proves both keys afresh, and a removed peer has nothing to resume.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable

from mpcd.daemon.errors import LinkError, PeerClosed, ProtocolViolation, UnknownPeer
from mpcd.daemon.network.identity import Identity, fingerprint

# What OpenSSL's peer says when our certificate is not one of its anchors. The last: an anchor of the same subject.
_NOT_KNOWN_THERE = ("ALERT_UNKNOWN_CA", "ALERT_BAD_CERTIFICATE", "ALERT_CERTIFICATE_UNKNOWN", "ALERT_DECRYPT_ERROR")
_NOT_TLS = (
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "HTTPS_PROXY_REQUEST",
    "RECORD_LAYER_FAILURE",
    "PACKET_LENGTH_TOO_LONG",
)
_OLD_TLS = ("UNSUPPORTED_PROTOCOL", "ALERT_PROTOCOL_VERSION", "VERSION_TOO_LOW", "NO_PROTOCOLS_AVAILABLE")


class NotPinned(UnknownPeer):
    """The certificate at the other end is not a pinned one."""


def _context(protocol: int, trusted: Iterable[bytes]) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    context.check_hostname = False  # a name proves nothing here; the fingerprint does
    anchors = b"".join(trusted)
    if anchors:
        context.load_verify_locations(cadata=anchors)
    return context


def server_context(identity: Identity, trusted: Iterable[bytes]) -> ssl.SSLContext:
    """For accepting: ``trusted`` are the DER certificates of all peers."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, trusted)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0
    context.load_cert_chain(identity.file)
    return context


def client_context(identity: Identity, peer: bytes) -> ssl.SSLContext:
    """For dialling the one peer whose DER certificate this is."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, [peer])
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(identity.file)
    return context


def knock_context(peer: bytes) -> ssl.SSLContext:
    """For dialling that peer without showing a certificate."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, [peer])
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def probe_context() -> ssl.SSLContext:
    """For learning which certificate is at an address. Whoever is there is not trusted with anything."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, [])
    context.verify_mode = ssl.CERT_NONE
    return context


def peer_fingerprint(tls: ssl.SSLObject) -> str:
    """The other end's fingerprint after the handshake; '' if it showed no certificate."""
    certificate = tls.getpeercert(binary_form=True)
    return fingerprint(certificate) if certificate else ""


def explain(error: ssl.SSLError) -> Exception:
    """The error of ours that says in plain words what OpenSSL met."""
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return NotPinned()
    if any(part in reason for part in _NOT_KNOWN_THERE):
        return UnknownPeer(
            "the peer does not know this daemon's certificate",
            "send them the invite that `mpcctl id` prints and ask them to run `mpcctl peer add`",
        )
    if any(part in reason for part in _OLD_TLS):
        return ProtocolViolation(
            "the other end does not speak TLS 1.3", "is there an mpcd, or a proxy, at that address?"
        )
    if any(part in reason for part in _NOT_TLS):
        return ProtocolViolation("the other end does not speak TLS", "is there an mpcd, or a proxy, at that address?")
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return PeerClosed()
    # Also what a forged or damaged record gives (DECRYPTION_FAILED_OR_BAD_RECORD_MAC).
    return LinkError(f"TLS broke: {reason.replace('_', ' ').lower() or error}")
