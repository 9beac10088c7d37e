"""A site's own authority, for tests: real certificates by `cryptography`."""

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PEM = serialization.Encoding.PEM
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def _name(text):
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Klinik"), x509.NameAttribute(NameOID.COMMON_NAME, text)]
    )


def days(count):
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=count)


class Authority:
    """``file`` is its certificate, PEM. ``parent``: the one it is certified by, else by itself."""

    def __init__(self, folder, name="Klinik Root CA", parent=None):
        self.folder, self.name, self.parent = folder, name, parent
        folder.mkdir(parents=True, exist_ok=True)
        self.key = ec.generate_private_key(ec.SECP256R1())
        signer = parent or self
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(signer.name))
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(days(-400))
            .not_valid_after(days(4000))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(signer.key, hashes.SHA256())
        )
        self.file = folder / "ca.pem"
        self.file.write_bytes(self.certificate.public_bytes(PEM))

    def issue(self, *names, since=-1.0, until=365.0, usages=BOTH, folder=None, common_name="mpcd"):
        """``[tls]`` settings of a daemon in CA mode with a certificate for these names; days from now."""
        folder = folder or self.folder / (names[0] if names else "nameless").replace(":", "_")
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .issuer_name(_name(self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(days(since))
            .not_valid_after(days(until))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general(name) for name in names]), critical=False
            )
        leaf = builder.sign(self.key, hashes.SHA256())
        chain, above = leaf.public_bytes(PEM), self
        while above.parent is not None:
            chain += above.certificate.public_bytes(PEM)
            above = above.parent
        (folder / "certificate.pem").write_bytes(chain)
        (folder / "key.pem").write_bytes(
            key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        (folder / "key.pem").chmod(0o600)
        return {
            "mode": "ca",
            "ca_file": str(above.file),
            "certificate": str(folder / "certificate.pem"),
            "key": str(folder / "key.pem"),
        }


def _general(name):
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
