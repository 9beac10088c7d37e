"""Who is there instead of the peer: a peer with another key, or a box that opens TLS to look inside.

A daemon's own certificate is signed by itself with Ed25519. A box that inspects TLS presents one that it made on the
way, issued by the site's or the maker's authority.
"""

from __future__ import annotations

from cryptography import x509

from mpcd.daemon.errors import CertificateChanged, InviteError
from mpcd.daemon.network.identity import check_certificate, fingerprint, grouped
from mpcd.daemon.network.peers import PIN, Peer


class TlsInspected(CertificateChanged):
    """A TLS-inspecting proxy seems to sit between the two daemons."""

    code = "tls_inspected"


class NotVouchedFor(CertificateChanged):
    """The certificate at the other end is of no authority that this daemon trusts."""

    code = "unknown_authority"


def is_ours(der: bytes) -> bool:
    """Whether a daemon in pinned mode could have made this certificate."""
    try:
        check_certificate(der)
    except InviteError:
        return False
    return True


def issuer(der: bytes) -> str:
    """Who signed it, as printable text."""
    try:
        name = x509.load_der_x509_certificate(der).issuer.rfc4514_string()
    except Exception:  # what cryptography raises for an odd certificate shares no class
        return "nobody known"
    return "".join(c if c.isprintable() else " " for c in name[:200]) or "nobody named"


def explain(peer: Peer, seen: bytes) -> CertificateChanged:
    """The error for ``seen`` (DER; b'' for unknown) at the address of the peer, whose certificate it is not."""
    if seen and not is_ours(seen):
        return _inspected(peer, seen) if peer.known_by == PIN else _not_vouched_for(peer, seen)
    presents = grouped(fingerprint(seen)) if seen else "another certificate"
    if peer.known_by != PIN:
        return NotVouchedFor(
            f"the daemon at {peer.address} presents a certificate that no authority issued ({presents}),"
            f" but {peer.name} is known by an authority and the name {peer.ca_name!r}",
            f"ask {peer.name} for their new invite: their daemon may run in pinned mode now",
        )
    return CertificateChanged(
        f"the certificate of {peer.name!r} changed: pinned is {grouped(peer.fingerprint)},"
        f" the daemon at {peer.address} presents {presents}",
        f"ask {peer.name} by telephone whether they have a new identity; if so, run"
        f" `mpcctl peer remove {peer.name}` and add their new invite; if not, somebody sits between you",
    )


def _inspected(peer: Peer, seen: bytes) -> TlsInspected:
    return TlsInspected(
        f"a TLS-inspecting proxy seems to sit between this daemon and {peer.name}: the certificate at {peer.address}"
        f" was issued by '{issuer(seen)}', not by {peer.name}; nothing was sent",
        f"ask IT to exempt {peer.address} from TLS inspection, so that the connection reaches {peer.name} unopened; or,"
        f" if {peer.name} has a certificate of that authority now, ask for their new invite",
    )


def _not_vouched_for(peer: Peer, seen: bytes) -> NotVouchedFor:
    return NotVouchedFor(
        f"the certificate at {peer.address} was issued by '{issuer(seen)}', which is no authority in this side's"
        f" tls.ca_file; {peer.name} is known by an authority and the name {peer.ca_name!r}",
        f"compare tls.ca_file with {peer.name}'s authority; if it is right, a TLS-inspecting proxy may sit in between:"
        f" ask IT to exempt {peer.address} from TLS inspection",
    )
