"""TLS 1.3 with both certificates known beforehand: pinned, or by an authority and a name (authority.py).

Every peer's self-signed certificate is a trust anchor, so OpenSSL refuses strangers during the handshake; the exact
fingerprint is checked after it, on both ends. The acceptor does not insist on a certificate, it insists on a known one:
a dialer that was refused may knock, without a certificate, to be told why and to be logged (acceptor.py).
No session tickets: every connection proves both keys afresh, and a removed peer has nothing to resume.

While a daemon's old key is kept for the announcement of its new one (keys.py), a dialer that knows only the old one can
ask for it: it names ``label_of`` that certificate as the server's name.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterable
from pathlib import Path

from mpcd.daemon.errors import LinkError, PeerClosed, ProtocolViolation, UnknownPeer
from mpcd.daemon.network.authority import CertificateExpired
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
_EXPIRED, _NOT_YET, _PURPOSE = 10, 9, 26  # X509_V_ERR_CERT_HAS_EXPIRED, _CERT_NOT_YET_VALID, _INVALID_PURPOSE
_OLD_TLS = ("UNSUPPORTED_PROTOCOL", "ALERT_PROTOCOL_VERSION", "VERSION_TOO_LOW", "NO_PROTOCOLS_AVAILABLE")


class NotPinned(UnknownPeer):
    """The certificate at the other end is not a pinned one."""


class OldTls(ProtocolViolation):
    """The other end does not speak TLS 1.3."""


class _Context(ssl.SSLContext):
    """``shows``: the fingerprint of the certificate that this end shows; '' for none."""

    shows = ""


def _context(
    protocol: int, trusted: Iterable[bytes], identity: Identity | None = None, authorities: Path | None = None
) -> _Context:
    context = _Context(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    context.check_hostname = False  # the fingerprint decides, or the name that the operator gave (authority.py)
    anchors = b"".join(trusted)
    if anchors:
        context.load_verify_locations(cadata=anchors)
    if authorities is not None:
        context.load_verify_locations(cafile=authorities)
    if identity is not None:
        context.load_cert_chain(identity.file, identity.key_file)
        context.shows = identity.fingerprint
    return context


def server_context(
    identity: Identity,
    trusted: Iterable[bytes],
    authorities: Path | None = None,
    previous: Identity | None = None,
) -> ssl.SSLContext:
    """For accepting: ``trusted`` are the DER certificates of all pinned peers, ``authorities`` a file of certificates.

    ``previous``: an identity that is shown to who asks for it.
    """
    trusted = tuple(trusted)
    context = _context(ssl.PROTOCOL_TLS_SERVER, trusted, identity, authorities)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0
    if previous is not None:
        old, label = server_context(previous, trusted, authorities), label_of(previous.fingerprint)

        def choose(tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            if name == label:
                tls.context = old

        context.sni_callback = choose
    return context


def client_context(identity: Identity, peer: bytes, authorities: Path | None = None) -> ssl.SSLContext:
    """For dialling the one peer whose DER certificate this is; b'' for one whom ``authorities`` vouch for."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, [peer] if peer else [], identity, authorities if not peer else None)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def knock_context(peer: bytes, authorities: Path | None = None) -> ssl.SSLContext:
    """For dialling that peer without showing a certificate."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, [peer] if peer else [], None, authorities if not peer else None)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def probe_context() -> ssl.SSLContext:
    """For learning which certificate is at an address. Whoever is there is not trusted with anything."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, [])
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # a box that inspects TLS may not speak 1.3
    context.verify_mode = ssl.CERT_NONE
    return context


def label_of(shown: str) -> str:
    """By which a dialer asks for the certificate of this fingerprint; an onlooker learns no fingerprint from it."""
    return hashlib.sha256(b"mpcd server name 1\0" + shown.encode()).hexdigest()[:32] + ".mpcd.invalid"


def shown_fingerprint(tls: ssl.SSLObject) -> str:
    """Of the certificate that this end showed, or would have; '' for none."""
    context = tls.context
    return context.shows if isinstance(context, _Context) else ""


def peer_certificate(tls: ssl.SSLObject) -> bytes:
    """The other end's, DER, after the handshake; b'' if it showed none."""
    return tls.getpeercert(binary_form=True) or b""


def peer_fingerprint(tls: ssl.SSLObject) -> str:
    """The other end's fingerprint after the handshake; '' if it showed no certificate."""
    certificate = peer_certificate(tls)
    return fingerprint(certificate) if certificate else ""


def explain(error: ssl.SSLError, established: bool = False) -> Exception:
    """The error of ours that says in plain words what OpenSSL met.

    ``established``: after the handshake, when the other end has shown that it speaks TLS 1.3, whatever comes now.
    """
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _refused(error.verify_code)
    if "ALERT_CERTIFICATE_EXPIRED" in reason:
        return CertificateExpired(
            "the peer says that this daemon's certificate has expired or is not valid yet",
            "have it renewed; if it is valid, compare both sides' clocks",
        )
    if any(part in reason for part in _NOT_KNOWN_THERE):
        return UnknownPeer(
            "the peer does not know this daemon's certificate",
            "send them the invite that `mpcctl id` prints and ask them to run `mpcctl peer add`",
        )
    if not established and any(part in reason for part in _OLD_TLS):
        return OldTls("the other end does not speak TLS 1.3", "is there an mpcd, or a proxy, at that address?")
    if not established and any(part in reason for part in _NOT_TLS):
        return ProtocolViolation("the other end does not speak TLS", "is there an mpcd, or a proxy, at that address?")
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return PeerClosed()
    # Also what a forged or damaged record gives (DECRYPTION_FAILED_OR_BAD_RECORD_MAC).
    return LinkError(f"TLS broke: {reason.replace('_', ' ').lower() or error}")


def _refused(code: int) -> UnknownPeer | CertificateExpired:
    """Why OpenSSL refused a certificate."""
    if code == _EXPIRED:
        return CertificateExpired("the peer's certificate has expired", "ask the peer to have it renewed")
    if code == _NOT_YET:
        return CertificateExpired("the peer's certificate is not valid yet", "compare both sides' clocks")
    if code == _PURPOSE:
        return UnknownPeer(
            "the peer's certificate may not be used for this end of a connection",
            "it needs extended key usage serverAuth and clientAuth: ask the peer to have it issued anew",
        )
    return NotPinned()
