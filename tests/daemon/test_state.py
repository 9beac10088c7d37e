"""The state folder's format: older ones are brought up, newer ones refused before anything in them is touched."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mpcd.daemon import state
from mpcd.daemon.config import Config, Listen, Paths
from mpcd.daemon.database import NewerState
from mpcd.daemon.files import CannotWrite
from mpcd.daemon.network.peers import Peers
from mpcd.daemon.service import Daemon
from mpcd.daemon.version import software_version


def version(folder: Path) -> dict:
    return json.loads((folder / state.FILE_NAME).read_text())


def test_a_new_folder(tmp_path: Path) -> None:
    state.upgrade(tmp_path)
    found = version(tmp_path)
    assert (found["format"], found["software"]) == (len(state.STEPS), software_version())
    assert [entry["software"] for entry in found["history"]] == [software_version()]
    assert stat.S_IMODE((tmp_path / state.FILE_NAME).stat().st_mode) == 0o600
    state.upgrade(tmp_path)
    assert version(tmp_path) == found, "nothing new: nothing written"


def test_each_step_once_and_the_history_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    steps = [lambda folder: ran.append((1, folder)), lambda folder: ran.append((2, folder))]
    state.run(tmp_path, steps[:1])
    monkeypatch.setattr(state, "software_version", lambda: "9.9.9")
    state.run(tmp_path, steps)
    assert ran == [(1, tmp_path), (2, tmp_path)]
    assert [(entry["software"], entry["format"]) for entry in version(tmp_path)["history"]] == [
        (software_version(), 1),
        ("9.9.9", 2),
    ]


def test_kill_in_the_middle_of_an_upgrade(tmp_path: Path) -> None:
    """The step that was cut short runs again, those before it do not."""
    code = """
import os, signal, sys
from pathlib import Path
from mpcd.daemon import state
def first(folder):
    with open(folder / "first", "a") as file: file.write("x")
def second(folder):
    (folder / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
state.run(Path(sys.argv[1]), [first, second])
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert version(tmp_path)["format"] == 1
    steps = [lambda folder: pytest.fail("again"), lambda folder: (folder / "half").rename(folder / "whole")]
    state.run(tmp_path, steps)
    assert (tmp_path / "whole").exists()
    assert (tmp_path / "first").read_text() == "x"
    assert version(tmp_path)["format"] == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "1"}', '{"format": -1}', '{"format": true}', "{"])
def test_damage_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / state.FILE_NAME).write_text(text)
    with pytest.raises(state.StateError, match=r"version\.json is damaged"):
        state.upgrade(tmp_path)


def test_a_newer_folder_is_refused_untouched(tmp_path: Path) -> None:
    """As a person meets it: mpcd's exit status and sentence."""
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / state.FILE_NAME).write_text(json.dumps({"format": 99, "software": "9.9", "history": []}))
    done = subprocess.run(
        [sys.executable, "-m", "mpcd.daemon.main", "--state", folder, "--listen", "none"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == NewerState.exit_status
    assert f"{folder} was written by a newer mpcd: its format is 99" in done.stderr
    assert "upgrade mpcd on this machine" in done.stderr
    assert "Traceback" not in done.stderr
    assert {file.name for file in folder.iterdir()} == {state.FILE_NAME, "lock", "run"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "mpcd.daemon.main", "--state", tmp_path, "--listen", "none"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == CannotWrite.exit_status
    assert f"mpcd: cannot write {tmp_path}/lock: Is a directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_newer_peers_are_not_damaged_ones(tmp_path: Path) -> None:
    (tmp_path / "peers.json").write_text('{"format": 99, "peers": "whatever"}')
    with pytest.raises(NewerState, match=r"peers\.json was written by a newer mpcd"):
        Peers(tmp_path / "peers.json")


def test_the_daemon_brings_its_folder_up(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "state", tmp_path / "run", tmp_path / "cache")
    paths.create()
    daemon = Daemon(paths, Config(name="site", listen=Listen(host="", port=0)))
    daemon.context.close()
    assert version(paths.state)["format"] == len(state.STEPS)
