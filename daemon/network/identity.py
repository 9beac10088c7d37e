"""Who this daemon is: an Ed25519 key, its self-signed certificate, and the invite that carries it to a peer.

The certificate is pinned by the SHA-256 of its DER bytes. It never expires: a pin is valid until it is removed, so
that neither side's clock can break the link. It says CA:FALSE, so a pinned peer cannot vouch for another.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import datetime
import hashlib
import os
import re
from pathlib import Path
from typing import Self

import msgpack
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mpcd.daemon.config import NAME, join_address, split_address
from mpcd.daemon.errors import BadInput, InviteError
from mpcd.daemon.files import check_secret, write_private

FILE_NAME = "identity.pem"
PREFIX = "mpcd1:"
CHECKSUM_BYTES = 6
CA_NAME = re.compile(r"[A-Za-z0-9:]([A-Za-z0-9.:_-]{0,251}[A-Za-z0-9])?")  # a DNS name or an IP address
MAX_CERTIFICATE = 4096
NO_START = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
NO_END = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)  # RFC 5280, 4.1.2.5: no expiration


def fingerprint(certificate: bytes) -> str:
    """64 hexadecimal digits: SHA-256 of a DER certificate."""
    return hashlib.sha256(certificate).hexdigest()


def grouped(hexadecimal: str) -> str:
    """A fingerprint as people compare it: groups of four digits."""
    return " ".join(hexadecimal[i : i + 4] for i in range(0, len(hexadecimal), 4))


class IdentityError(BadInput):
    """The file with this daemon's key and certificate cannot be used."""

    code = "identity"


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """``file`` holds the certificate, PEM, and the private key too unless ``key_file`` does."""

    file: Path
    certificate: bytes
    key_file: Path | None = None

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate)

    @classmethod
    def load_or_create(cls, state: Path, name: str) -> Self:
        """The identity in the state folder; a new one, with ``name`` in its certificate, on the first start."""
        file = state / FILE_NAME
        if not file.exists():
            with contextlib.suppress(FileExistsError):  # another process of ours was faster; its identity counts
                write_private(file, generate(name), replace=False)
        return cls.load(file)

    @classmethod
    def load(cls, file: Path) -> Self:
        hint = "restore it from a backup; or remove it, and pair anew with every peer"
        try:
            pem = file.read_bytes()
            check_secret(file, "this daemon's private key", "then `mpcctl key rotate`, if others may have read it")
        except OSError as error:
            raise IdentityError(f"{file} cannot be read: {error.strerror}", hint) from error
        except BadInput as error:
            raise IdentityError(error.message, error.hint) from error
        return cls.of_pem(file, pem, hint)

    @classmethod
    def of_pem(cls, file: Path, pem: bytes, hint: str = "") -> Self:
        """The identity whose key and certificate ``pem`` holds and ``file`` is to hold."""
        try:
            key = serialization.load_pem_private_key(pem, None)
            certificate = x509.load_pem_x509_certificate(pem)
        except (ValueError, TypeError) as error:
            raise IdentityError(f"{file} does not hold a key and a certificate", hint) from error
        if not isinstance(key, Ed25519PrivateKey) or key.public_key() != certificate.public_key():
            raise IdentityError(f"the key and the certificate in {file} do not belong together", hint)
        return cls(file, certificate.public_bytes(serialization.Encoding.DER))

    def invite(self, name: str, address: str = "") -> Invite:
        return Invite(name, address, self.certificate)

    def private_key(self) -> Ed25519PrivateKey:
        """Read anew each time; not kept in memory."""
        key = serialization.load_pem_private_key(self.file.read_bytes(), None)
        assert isinstance(key, Ed25519PrivateKey)
        return key


def generate(name: str) -> bytes:
    """A new key and its self-signed certificate, PEM."""
    key = Ed25519PrivateKey.generate()
    # A subject of its own for every certificate: OpenSSL looks trust anchors up by subject.
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, os.urandom(16).hex()),
        ]
    )
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NO_START)
        .not_valid_after(NO_END)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .sign(key, None)
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private + certificate.public_bytes(pem)


@dataclasses.dataclass(frozen=True, slots=True)
class Invite:
    """What a peer needs to know this daemon: its name, where to dial it ('' for nowhere), its certificate (DER).

    A certificate that an authority issued is renewed now and then: then the name in it, ``ca_name``, is there instead.
    """

    name: str
    address: str
    certificate: bytes
    ca_name: str = ""

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate) if self.certificate else ""

    def __str__(self) -> str:
        fields = {"name": self.name, "address": self.address, "certificate": self.certificate}
        if self.ca_name:
            fields["ca_name"] = self.ca_name
        body: bytes = msgpack.packb(fields)
        checksum = hashlib.sha256(body).digest()[:CHECKSUM_BYTES]
        return PREFIX + base64.urlsafe_b64encode(body + checksum).rstrip(b"=").decode()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The invite in ``text``; white space, as mail programs add it, does not matter. Raises InviteError."""
        again = "copy the whole invite again, from 'mpcd1:' to its end"
        compact = "".join(text.split())
        if not compact.startswith(PREFIX):
            raise InviteError(f"this is not an invite: an invite begins with {PREFIX!r}", "get one by: mpcctl id")
        if len(compact) > 2 * MAX_CERTIFICATE:
            raise InviteError("this invite is too long to be one", again)
        encoded = compact[len(PREFIX) :]
        try:
            data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise InviteError("this invite contains characters that no invite has, or misses some", again) from error
        body, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
        if hashlib.sha256(body).digest()[:CHECKSUM_BYTES] != checksum:
            raise InviteError("this invite is mistyped or cut short: its checksum is wrong", again)
        newer = "the peer may run a newer mpcd: compare `mpcctl status` on both sides"
        try:
            fields = msgpack.unpackb(body)
            name, address, certificate = fields["name"], fields["address"], fields["certificate"]
            ca_name = fields.get("ca_name", "")
        except Exception as error:
            raise InviteError("this invite does not hold a name, an address and a certificate", newer) from error
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InviteError("the name in this invite is not allowed", newer)
        if not isinstance(address, str):
            raise InviteError("the address in this invite is not a string", newer)
        if address:
            try:
                address = join_address(*split_address(address))
            except ValueError as error:
                raise InviteError(f"the address in this invite cannot be used: {error}", newer) from error
        if not isinstance(certificate, bytes):
            raise InviteError("the certificate in this invite is not bytes", newer)
        if certificate or not ca_name:
            check_certificate(certificate)
            return cls(name, address, certificate)
        if not isinstance(ca_name, str) or not CA_NAME.fullmatch(ca_name):
            raise InviteError("the certificate's name in this invite is not allowed", newer)
        return cls(name, address, b"", ca_name)


def check_certificate(der: bytes) -> None:
    """Raises InviteError unless ``der`` is an Ed25519 certificate signed by its own key that can sign no other."""
    try:
        if len(der) > MAX_CERTIFICATE:
            raise ValueError("too long")
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("not an Ed25519 key")
        key.verify(certificate.signature, certificate.tbs_certificate_bytes)
        # It becomes a trust anchor, also of connections of peers that are known by an authority and a name.
        if certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise ValueError("an authority's")
    except Exception as error:
        # Also UnsupportedAlgorithm, DuplicateExtension, InvalidVersion and others that share no class of their own.
        raise InviteError("the certificate in this invite is not one that mpcd makes") from error
