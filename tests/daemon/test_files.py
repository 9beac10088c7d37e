import os

import pytest

from mpcd.daemon.errors import BadInput
from mpcd.daemon.files import check_secret, make_private


def test_a_secret_that_only_we_can_read(tmp_path):
    file = tmp_path / "key"
    file.write_text("secret")
    for mode in (0o600, 0o400, 0o700):
        file.chmod(mode)
        check_secret(file, "a key")
    for mode in (0o640, 0o604, 0o620, 0o602, 0o610):
        file.chmod(mode)
        with pytest.raises(BadInput, match=f"{file} holds a key and can be read by others .mode {mode:o}") as caught:
            check_secret(file, "a key", "and so on")
        assert caught.value.hint == f"run: chmod 600 {file}; and so on"


def test_a_secret_that_its_owner_gave_to_our_group(tmp_path, monkeypatch):
    """As a site's PKI and systemd's credentials have it; never for everybody, never to be written."""
    file = tmp_path / "key"
    file.write_text("secret")
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    for mode in (0o640, 0o440, 0o400):
        file.chmod(mode)
        check_secret(file, "a key")
    for mode in (0o644, 0o660, 0o641):
        file.chmod(mode)
        with pytest.raises(BadInput, match="can be read by others"):
            check_secret(file, "a key")


def test_a_folder_that_was_open_is_closed_and_said(tmp_path):
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "sub").mkdir()
    for name, mode in (("ledger.sqlite", 0o644), ("peers.json", 0o600), ("run.sh", 0o755)):
        (folder / name).write_text("")
        (folder / name).chmod(mode)
    (folder / "link").symlink_to(tmp_path)
    folder.chmod(0o755)
    found = make_private(folder)
    assert [line.split(" was open")[0] for line in found] == [
        str(folder),
        str(folder / "ledger.sqlite"),
        str(folder / "run.sh"),
    ]
    assert "mode 644" in found[1]
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.glob("*.*"))}
    assert modes == {"state": 0o700, "ledger.sqlite": 0o600, "peers.json": 0o600, "run.sh": 0o700}
    assert make_private(folder) == []
