"""Certificates that a site's own authority issues (``[tls] mode = "ca"``).

A peer is then known by the authority and by one name (subject alternative name: DNS name or IP address, compared
exactly, no wildcards). OpenSSL checks the chain, the dates and the purpose during the handshake; the name is compared
here, after it. Being signed is not enough: the name must be one that ``mpcctl peer add`` was given.
"""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from mpcd.daemon.config import Tls
from mpcd.daemon.errors import BadInput, ConfigError, Refused
from mpcd.daemon.files import check_secret
from mpcd.daemon.network.identity import Identity, IdentityError

WARN = 30 * 86400.0  # seconds before the end


class CertificateExpired(Refused):
    """A certificate is not valid at this time."""

    code = "certificate_expired"
    exit_status = 8


class WrongName(Refused):
    """The certificate at the other end is for another name than the peer's."""

    code = "wrong_name"
    exit_status = 8
    shared = False  # it names the peer's address


def load(tls: Tls) -> Identity:
    """This daemon's certificate and key, as the configuration names them. Raises IdentityError."""
    file, key_file = Path(tls.certificate), Path(tls.key)
    try:
        chain = x509.load_pem_x509_certificates(file.read_bytes())
        check_secret(key_file, "this daemon's private key")
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
    except OSError as error:
        raise IdentityError(f"{error.filename} cannot be read: {error.strerror}", "see [tls] in mpcd.toml") from error
    except (ValueError, TypeError) as error:
        raise IdentityError(
            f"{file} and {key_file} do not hold a certificate and its key, PEM and without a passphrase"
        ) from error
    except BadInput as error:
        raise IdentityError(error.message, error.hint) from error
    leaf = chain[0]
    if key.public_key() != leaf.public_key():
        raise IdentityError(
            f"the key in {key_file} does not belong to the first certificate in {file}",
            "the daemon's own certificate comes first in the file, those of intermediate authorities after it",
        )
    der = leaf.public_bytes(serialization.Encoding.DER)
    if not names(der):
        raise IdentityError(
            f"the certificate in {file} has no subject alternative name (DNS name or IP address)",
            "peers know this daemon by that name; a common name does not count",
        )
    missing = _missing_purposes(leaf)
    if missing:
        raise IdentityError(
            f"the certificate in {file} may not be used for {' and '.join(missing)}",
            "one daemon both dials and is dialled: ask for extended key usage serverAuth and clientAuth",
        )
    return Identity(file, der, key_file)


def _missing_purposes(leaf: x509.Certificate) -> list[str]:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return []
    wanted = {"TLS servers": ExtendedKeyUsageOID.SERVER_AUTH, "TLS clients": ExtendedKeyUsageOID.CLIENT_AUTH}
    return [what for what, purpose in wanted.items() if purpose not in usage]


def check_authorities(file: Path) -> None:
    """Raises ConfigError unless OpenSSL can use ``file``."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
    except ssl.SSLError as error:
        raise ConfigError(f"tls.ca_file: {file} holds no certificate of an authority, PEM") from error
    except OSError as error:
        raise ConfigError(f"tls.ca_file: {file} cannot be read: {error.strerror}") from error


def stamp(tls: Tls) -> tuple[object, ...]:
    """Another value when one of the files was written."""
    found: list[object] = []
    for name in (tls.ca_file, tls.certificate, tls.key):
        try:
            status = Path(name).stat()
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError:
            found.append(None)
    return tuple(found)


def names(der: bytes) -> list[str]:
    """The DNS names and IP addresses that a certificate is for, in lower case; none of one that cannot be read."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # what cryptography raises for a peer's odd certificate shares no class
        return []
    addresses = found.get_values_for_type(x509.IPAddress)
    return [name.lower() for name in found.get_values_for_type(x509.DNSName)] + [str(a) for a in addresses]


def is_for(der: bytes, ca_name: str) -> bool:
    return bool(ca_name) and ca_name.lower() in names(der)


def expires(der: bytes) -> float:
    return x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp()


def date(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).date().isoformat()
