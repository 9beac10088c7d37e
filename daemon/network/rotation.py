"""A peer's new key, said by its old one.

An announcement is a msgpack map: the old certificate's fingerprint, the new certificate, a time, and two signatures
over these, one by each key. The old key's says that the owner of the pinned identity means it, the new key's that
whoever announces has that key and does not merely name somebody else's. It is taken only on a connection that the old
identity authenticated (daemon/network/announcing.py).
"""

from __future__ import annotations

import time

import msgpack
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from mpcd.daemon.errors import InviteError, Refused
from mpcd.daemon.network.identity import MAX_CERTIFICATE, Identity, check_certificate, fingerprint

METHOD = "key.rotated"
DOMAIN = b"mpcd key rotation 1\0"
MAX_ANNOUNCEMENT = MAX_CERTIFICATE + 1024


class ForgedAnnouncement(Refused):
    """The announcement of a new key is not signed by the key that is pinned and by the new one."""

    code = "forged_announcement"
    exit_status = 8


def announcement(old: Identity, new: Identity) -> bytes:
    body: bytes = msgpack.packb({"old": old.fingerprint, "certificate": new.certificate, "time": int(time.time())})
    signed = DOMAIN + body
    signatures = [identity.private_key().sign(signed) for identity in (old, new)]
    announced: bytes = msgpack.packb({"body": body, "signatures": signatures})
    return announced


def verify(announced: object, pinned: bytes) -> bytes:
    """The new certificate, DER, if the owner of the ``pinned`` one (DER) announced it. Raises ForgedAnnouncement."""
    try:
        if not isinstance(announced, bytes) or len(announced) > MAX_ANNOUNCEMENT:
            raise ValueError("size")
        outer = msgpack.unpackb(announced)
        body, (by_old, by_new) = outer["body"], outer["signatures"]
        fields = msgpack.unpackb(body)
        certificate = fields["certificate"]
        check_certificate(certificate)
        if fields["old"] != fingerprint(pinned):
            raise ValueError("of another key")
        for der, signature in ((pinned, by_old), (certificate, by_new)):
            key = x509.load_der_x509_certificate(der).public_key()
            assert isinstance(key, Ed25519PublicKey)
            key.verify(signature, DOMAIN + body)
    except (ValueError, KeyError, TypeError, InvalidSignature, InviteError, msgpack.UnpackException) as error:
        raise ForgedAnnouncement() from error
    return bytes(certificate)
