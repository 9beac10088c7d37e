"""Without a daemon: help, exit statuses, what mpcctl imports, and where it looks for the socket."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mpcd.cli import client
from mpcd.cli.main import mpcctl
from mpcd.daemon.config import Paths

EXPECTED = {
    "id", "status", "key show", "key rotate", "key finish", "peer add", "peer list", "peer remove", "model add",
    "model list", "model show", "model evaluate", "model remove", "dataset add", "dataset list", "dataset show",
    "dataset remove", "offline make", "offline status", "model open", "dataset open", "commitment verify",
    "session start", "session list", "session show", "session watch", "session cancel", "approve", "deny", "report",
    "doctor", "support-bundle", "completion", "audit verify", "audit show", "audit export",
}  # fmt: skip


def commands(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands(command, (*above, name))
        else:
            yield (*above, name), command


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MPCD_", "XDG_"))}
    return subprocess.run(
        [Path(sys.executable).parent / "mpcctl", *words],
        env={**env, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_every_command_is_there() -> None:
    assert {" ".join(name) for name, _ in commands(mpcctl)} >= EXPECTED


@pytest.mark.parametrize(("name", "command"), [pytest.param(n, c, id=" ".join(n)) for n, c in commands(mpcctl)])
def test_help(name: tuple[str, ...], command: click.Command) -> None:
    """Says what the command does; every command has --json and --socket."""
    shown = CliRunner().invoke(mpcctl, [*name, "--help"])
    assert shown.exit_code == 0
    assert command.help
    words = " ".join(shown.output.split())
    assert " ".join(command.help.split("\n\n")[0].replace("\b", "").split()) in words
    assert "--json" in words
    assert "--socket" in words or name[0] == "bench", "a measurement needs no daemon"


def test_help_of_the_program() -> None:
    done = run("--help")
    assert done.returncode == 0
    for text in ("Exit status", "session", "approve", "dataset"):
        assert text in done.stdout
    assert run("--version").stdout.startswith("mpcctl, version ")


def test_exit_statuses_are_documented() -> None:
    """Each one that an error of the daemon has is in mpcctl --help."""
    from mpcd.cli.main import EXIT_STATUSES
    from mpcd.daemon import errors

    statuses = {e.exit_status for e in vars(errors).values() if isinstance(e, type) and hasattr(e, "exit_status")}
    documented = {int(word) for word in EXIT_STATUSES.replace(",", " ").split() if word.isdigit()}
    assert statuses - documented <= {70}
    assert documented == set(range(11))


def test_wrong_usage_is_two(tmp_path: Path) -> None:
    for words in (("nonsense",), ("peer",), ("peer", "add"), ("session", "start", "--peer", "x"), ("status", "--what")):
        assert run(*words, MPCD_STATE=str(tmp_path)).returncode == 2


def test_no_daemon_is_three(tmp_path: Path) -> None:
    done = run("status", "--json", MPCD_STATE=str(tmp_path))
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["code"] == "no_daemon"
    assert str(tmp_path / "run" / "control.sock") in done.stderr
    assert run("status", "--socket", str(tmp_path / "other"), MPCD_STATE=str(tmp_path)).returncode == 3


def test_imports_are_few() -> None:
    """Nothing but click, msgpack and the standard library on the way to an answer; rich where a table is drawn."""
    code = """
import sys
from mpcd.cli import main, output
lean = {name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names
output.table(('a',), [(1,)])
drawn = {name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names - lean
import json
json.dump([sorted(lean), sorted(drawn), sorted(n for n in sys.modules if n.startswith('mpcd.'))], sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    lean, drawn, ours = json.loads(done.stderr)
    allowed = {"mpcd", "click", "msgpack"}
    # What the interpreter's own start brings (editable installs, .pth files).
    start = "import sys, json; json.dump(sorted({n.partition('.')[0] for n in sys.modules}), sys.stdout)"
    given = json.loads(subprocess.run([sys.executable, "-c", start], capture_output=True, check=True).stdout)
    # msgpack's compiled half registers Cython's own modules.
    assert {n for n in set(lean) - set(given) - allowed if not n.startswith(("_cython", "cython"))} == set()
    assert set(drawn) <= {"rich", "pygments", "markdown_it", "mdurl", "attr"}
    assert all(name == "mpcd.cli" or name.startswith("mpcd.cli.") for name in ours)


VARIABLES = {
    "MPCD_STATE": "state", "MPCD_RUNTIME": "runtime", "XDG_RUNTIME_DIR": "xdg-runtime", "XDG_STATE_HOME": "xdg-state",
}  # fmt: skip


@pytest.mark.parametrize("given", [c for n in range(5) for c in itertools.combinations(VARIABLES, n)], ids=str)
def test_both_look_at_the_same_place(given: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in given:
        monkeypatch.setenv(name, str(tmp_path / VARIABLES[name]))
    monkeypatch.setattr(client, "SYSTEM_SOCKET", tmp_path / "none")
    assert client.socket_path(None) == Paths.find().control_socket


def test_the_service_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder may not even be looked into: a sentence says what to do."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    folder, root = tmp_path / "run", os.geteuid() == 0
    folder.mkdir(mode=0o700 if root else 0)
    monkeypatch.setattr(client, "SYSTEM_SOCKET", folder / "control.sock")
    try:
        if root:
            os.seteuid(65534)
        assert client.socket_path(None) == client.SYSTEM_SOCKET
        with pytest.raises(client.ControlError, match="Permission denied") as refused:
            client.call(client.socket_path(None), "status", {}, lambda progress: None)
        assert refused.value.exit_status == 3
        assert "sudo -u mpcd" in refused.value.hint
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)


def test_the_system_service_s_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where systemd puts it is where an administrator's mpcctl looks, who has none of its variables."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    service = Paths.find(environ={"STATE_DIRECTORY": "/var/lib/mpcd", "RUNTIME_DIRECTORY": "/run/mpcd"})
    assert service.control_socket == client.SYSTEM_SOCKET
    (tmp_path / "control.sock").touch()
    monkeypatch.setattr(client, "SYSTEM_SOCKET", tmp_path / "control.sock")
    assert client.socket_path(None) == tmp_path / "control.sock"
    assert client.socket_path("/given") == Path("/given")
