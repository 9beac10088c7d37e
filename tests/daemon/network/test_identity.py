import base64
import hashlib
import random

import msgpack
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from mpcd.daemon.errors import InviteError
from mpcd.daemon.network.identity import Identity, IdentityError, Invite, grouped


@pytest.fixture
def identity(tmp_path):
    return Identity.load_or_create(tmp_path, "site-a")


def test_created_once_and_private(identity, tmp_path):
    assert identity.file.stat().st_mode & 0o777 == 0o600
    assert Identity.load_or_create(tmp_path, "other-name") == identity
    assert [file.name for file in tmp_path.iterdir()] == ["identity.pem"]


def test_certificate_is_ed25519_vouches_for_nobody_and_never_expires(identity):
    certificate = x509.load_der_x509_certificate(identity.certificate)
    assert isinstance(certificate.public_key(), Ed25519PublicKey)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.not_valid_before_utc.year == 1970
    assert certificate.not_valid_after_utc.year == 9999


def test_fingerprint_is_the_hash_of_the_certificate_in_groups(identity):
    assert identity.fingerprint == hashlib.sha256(identity.certificate).hexdigest()
    groups = grouped(identity.fingerprint).split()
    assert len(groups) == 16
    assert "".join(groups) == identity.fingerprint


def test_two_identities_share_nothing(tmp_path):
    (tmp_path / "b").mkdir()
    a, b = Identity.load_or_create(tmp_path, "same"), Identity.load_or_create(tmp_path / "b", "same")
    assert a.fingerprint != b.fingerprint
    assert (
        x509.load_der_x509_certificate(a.certificate).subject != x509.load_der_x509_certificate(b.certificate).subject
    )


def test_readable_key_file_is_refused(identity):
    identity.file.chmod(0o640)
    with pytest.raises(IdentityError, match="can be read by others") as caught:
        Identity.load(identity.file)
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\n"])
def test_damaged_file_is_refused_and_left_alone(identity, content):
    identity.file.write_bytes(content)
    with pytest.raises(IdentityError, match="does not hold a key"):
        Identity.load_or_create(identity.file.parent, "site-a")
    assert identity.file.read_bytes() == content


def test_key_of_another_certificate_is_refused(identity, tmp_path):
    (tmp_path / "b").mkdir()
    other = Identity.load_or_create(tmp_path / "b", "b").file.read_bytes()
    own = identity.file.read_bytes()
    cut = own.index(b"-----BEGIN CERTIFICATE")
    identity.file.write_bytes(own[:cut] + other[other.index(b"-----BEGIN CERTIFICATE") :])
    with pytest.raises(IdentityError, match="do not belong together"):
        Identity.load(identity.file)


@pytest.mark.parametrize("address", ["", "vendor.example:7443", "[2001:db8::1]:99"])
def test_invite_round_trip_even_through_a_mail_program(identity, address):
    invite = identity.invite("site-a", address)
    text = str(invite)
    assert Invite.parse(text) == invite
    assert Invite.parse("  " + text[:60] + "\r\n " + text[60:] + " \n") == invite
    assert invite.fingerprint == identity.fingerprint


def test_every_mistyped_character_is_noticed(identity):
    text = str(identity.invite("site-a"))
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for place in random.sample(range(6, len(text) - 1), 60):
        wrong = random.choice(alphabet.replace(text[place], ""))
        with pytest.raises(InviteError):
            Invite.parse(text[:place] + wrong + text[place + 1 :])


@pytest.mark.parametrize("damage", [lambda t: t[:-1], lambda t: t[:-40], lambda t: t[:7], lambda t: t + "AAAA"])
def test_cut_or_lengthened_invite_is_refused_in_plain_words(identity, damage):
    with pytest.raises(InviteError, match="this invite") as caught:
        Invite.parse(damage(str(identity.invite("site-a"))))
    assert "copy the whole invite" in caught.value.hint


@pytest.mark.parametrize("text", ["", "hello", "mpcd2:AAAA", "MPCD1:AAAA"])
def test_not_an_invite(text):
    with pytest.raises(InviteError, match="not an invite"):
        Invite.parse(text)


def test_invite_with_other_characters_or_endless():
    with pytest.raises(InviteError, match="characters"):
        Invite.parse("mpcd1:AAAA+/==!")
    with pytest.raises(InviteError, match="too long"):
        Invite.parse("mpcd1:" + "A" * 100_000)


def test_a_certificate_of_an_unknown_kind_of_key(identity):
    """OpenSSL knows the form and not the key: another error than for what is no certificate."""
    ed25519 = bytes.fromhex("06032b6570")
    der = identity.certificate.replace(ed25519, bytes.fromhex("0603217065"))
    assert der != identity.certificate
    data = msgpack.packb({"name": "a", "address": "", "certificate": der})
    data += hashlib.sha256(data).digest()[:6]
    with pytest.raises(InviteError, match="not one that mpcd makes"):
        Invite.parse("mpcd1:" + base64.urlsafe_b64encode(data).rstrip(b"=").decode())


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"name": "A b", "address": "", "certificate": b""},
        {"name": "a", "address": 5, "certificate": b""},
        {"name": "a", "address": "x:y", "certificate": b""},
        {"name": "a", "address": "", "certificate": "text"},
        {"name": "a", "address": "", "certificate": b"not DER"},
    ],
)
def test_well_summed_nonsense_is_refused(body):
    data = msgpack.packb(body)
    data += hashlib.sha256(data).digest()[:6]
    with pytest.raises(InviteError):
        Invite.parse("mpcd1:" + base64.urlsafe_b64encode(data).rstrip(b"=").decode())
