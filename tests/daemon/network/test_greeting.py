"""Which protocol version two daemons speak, and whose operator must upgrade where there is none."""

import dataclasses

import pytest

from mpcd.daemon.errors import ProtocolViolation, VersionMismatch
from mpcd.daemon.network import greeting
from mpcd.daemon.network.greeting import Hello, check_version


@pytest.fixture
def ours(monkeypatch):
    """This daemon speaks versions 3 to 5."""
    monkeypatch.setattr(greeting, "OLDEST_PROTOCOL", 3)
    monkeypatch.setattr(greeting, "PROTOCOL_VERSION", 5)


def said(oldest, newest):
    return dataclasses.asdict(Hello("peer", "x", oldest, newest, software="7.7"))


@pytest.mark.parametrize(
    ("oldest", "newest", "agreed"), [(3, 5, 5), (1, 3, 3), (5, 9, 5), (1, 9, 5), (4, 4, 4), (2, 4, 4)]
)
def test_the_highest_that_both_speak(ours, oldest, newest, agreed):
    check_version(said(oldest, newest), "peer")
    assert Hello.parse(said(oldest, newest)).agreed == agreed


def test_a_daemon_from_before_ranges_speaks_one(ours):
    fields = said(4, 4)
    del fields["newest"]
    check_version(fields, "peer")
    assert Hello.parse(fields).agreed == 4


def test_the_older_side_must_upgrade(ours):
    with pytest.raises(VersionMismatch) as caught:
        check_version(said(1, 2), "vendor")
    assert "vendor speaks protocol versions 1 to 2 (mpcd 7.7), this daemon protocol versions 3 to 5" in str(
        caught.value
    )
    assert "vendor must be upgraded" in str(caught.value)
    assert caught.value.hint == "ask vendor to upgrade mpcd, to one that speaks protocol version 3 or later"
    with pytest.raises(VersionMismatch, match=r"protocol version 8 .*: this daemon must be upgraded") as caught:
        check_version(said(8, 8), "vendor")
    assert caught.value.hint == "upgrade mpcd on this side, to one that speaks protocol version 8 or later"


@pytest.mark.parametrize("fields", [{}, {"protocol": "4"}, {"protocol": True}, {"protocol": 4, "newest": 3}])
def test_no_versions(ours, fields):
    with pytest.raises(ProtocolViolation):
        check_version(fields, "peer")
