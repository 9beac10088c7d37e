import msgpack
import pytest

from mpcd.daemon.network import rotation
from mpcd.daemon.network.rotation import ForgedAnnouncement


@pytest.fixture
def three(make_identity):
    return make_identity("old"), make_identity("new"), make_identity("mallory")


def test_an_announcement_is_taken_by_who_pins_the_old_key(three):
    old, new, _ = three
    assert rotation.verify(rotation.announcement(old, new), old.certificate) == new.certificate


def test_both_keys_must_sign(three):
    """Neither a thief of nothing but the certificate, nor somebody who names a key that is not theirs."""
    old, new, mallory = three
    real = msgpack.unpackb(rotation.announcement(old, new))
    by_mallory = msgpack.unpackb(rotation.announcement(mallory, new))["signatures"][0]
    signature = mallory.private_key().sign(rotation.DOMAIN + real["body"])
    undomained = [identity.private_key().sign(real["body"]) for identity in (old, new)]
    for signatures in (
        [signature, real["signatures"][1]],
        [real["signatures"][0], signature],
        real["signatures"][::-1],
        [by_mallory, real["signatures"][1]],
        undomained,
        [b"", b""],
        real["signatures"][:1],
    ):
        forged = msgpack.packb({"body": real["body"], "signatures": signatures})
        with pytest.raises(ForgedAnnouncement):
            rotation.verify(forged, old.certificate)


def test_another_certificate_under_the_same_signatures(three):
    old, new, mallory = three
    real = msgpack.unpackb(rotation.announcement(old, new))
    fields = {**msgpack.unpackb(real["body"]), "certificate": mallory.certificate}
    with pytest.raises(ForgedAnnouncement):
        rotation.verify(msgpack.packb({**real, "body": msgpack.packb(fields)}), old.certificate)


def test_one_of_another_pair_or_replayed_later(three):
    old, new, mallory = three
    with pytest.raises(ForgedAnnouncement):
        rotation.verify(rotation.announcement(mallory, new), old.certificate)
    with pytest.raises(ForgedAnnouncement):
        rotation.verify(rotation.announcement(old, new), new.certificate)


@pytest.mark.parametrize(
    "value", [None, "x", b"", b"\xc1", msgpack.packb([1]), msgpack.packb({"body": 1}), b"x" * 9999]
)
def test_garbage(three, value):
    with pytest.raises(ForgedAnnouncement):
        rotation.verify(value, three[0].certificate)


def test_an_authoritys_certificate_is_not_announced(three, tmp_path):
    """It would become a trust anchor."""
    old, new, _ = three
    real = msgpack.unpackb(rotation.announcement(old, new))
    for value in (b"", b"\x30\x00", 7):
        body = msgpack.packb({**msgpack.unpackb(real["body"]), "certificate": value})
        signatures = [identity.private_key().sign(rotation.DOMAIN + body) for identity in (old, new)]
        with pytest.raises(ForgedAnnouncement):
            rotation.verify(msgpack.packb({"body": body, "signatures": signatures}), old.certificate)
