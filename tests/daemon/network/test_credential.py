"""The key as a credential of the service manager (systemd's LoadCredential)."""

import os

import pytest

from mpcd.daemon.errors import Conflict
from mpcd.daemon.network.identity import Identity, IdentityError
from mpcd.daemon.network.keys import Keys


@pytest.fixture
def credentials(tmp_path, monkeypatch):
    folder = tmp_path / "credentials"
    folder.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    return folder


@pytest.fixture
def state(tmp_path):
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def test_a_credential_is_the_identity(credentials, state, tmp_path):
    (tmp_path / "made").mkdir()
    made = Identity.load_or_create(tmp_path / "made", "site")
    (credentials / "identity.pem").write_bytes(made.file.read_bytes())
    os.chmod(credentials / "identity.pem", 0o440)  # systemd lets the service's user read by an ACL
    keys = Keys.open(state, "site")
    assert keys.fingerprint == made.fingerprint
    assert keys.current.file == credentials / "identity.pem"
    assert list(state.iterdir()) == [], "no key on the disk"
    with pytest.raises(Conflict, match="comes from the service manager"):
        keys.rotate("site", [])


def test_without_that_credential_the_state_folder_s(credentials, state):
    (credentials / "other").write_text("x")
    assert Keys.open(state, "site").current.file == state / "identity.pem"


def test_a_credential_that_is_none(credentials, state):
    (credentials / "identity.pem").write_text("nothing")
    with pytest.raises(IdentityError, match="does not hold a key and a certificate"):
        Keys.open(state, "site")
    assert list(state.iterdir()) == []
