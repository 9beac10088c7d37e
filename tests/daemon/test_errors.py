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


def test_codes_are_unique():
    assert len({cls.code for cls in CLASSES}) == len(CLASSES)


def test_a_peers_error_keeps_the_peers_code():
    error = PeerError("busy", "come back later", "in an hour", 6)
    assert (error.code, str(error), error.hint) == ("busy", "come back later", "in an hour")
    assert PeerError.code == "error"
