import inspect

import pytest

from mpcd.daemon import errors
from mpcd.daemon.errors import MpcdError, PeerError

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, MpcdError) and c is not PeerError]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_has_a_message_a_code_and_an_exit_status_that_is_documented(cls):
    error = cls()
    assert error.message.endswith(".")
    assert error.code.replace("_", "").islower()
    assert error.exit_status in {1, 4, 5, 6, 7, 8, 9, 10, 70}
    assert error.as_dict() == {
        "code": error.code,
        "message": error.message,
        "hint": "",
        "exit_status": error.exit_status,
    }


@pytest.mark.parametrize("cls", CLASSES)
def test_what_the_peer_is_told(cls):
    error = cls("/srv/pacs/DOE^JANE.dcm cannot be read", "look there")
    told = error.for_peer()
    assert (told["code"], told["exit_status"]) == (error.code, error.exit_status)
    if cls.shared:
        assert told == error.as_dict()
        assert issubclass(cls, (errors.Refused, errors.ProtocolViolation))
    else:
        assert (told["message"], told["hint"]) == (cls().message, "")
        assert cls("/srv/x", peer_text="the disk is full").for_peer()["message"] == "the disk is full"


def test_the_peer_is_not_told_what_a_bug_or_a_third_party_said():
    for error in (ValueError("DOE^JANE"), KeyError("DOE^JANE"), OSError(2, "no", "/srv/DOE^JANE")):
        told = errors.for_peer(error)
        assert (told["code"], told["hint"]) == ("internal", "")
        assert "JANE" not in told["message"]
    told = errors.for_peer(PeerError("bad_input", "at worker: DOE^JANE", "DOE^JANE", 9))
    assert (told["code"], told["exit_status"]) == ("bad_input", 9)
    assert "JANE" not in str(told)


def test_codes_are_unique():
    assert len({cls.code for cls in CLASSES}) == len(CLASSES)


def test_a_peers_error_keeps_the_peers_code():
    error = PeerError("busy", "come back later", "in an hour", 6)
    assert (error.code, str(error), error.hint) == ("busy", "come back later", "in an hour")
    assert PeerError.code == "error"
