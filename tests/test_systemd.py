"""The units: systemd itself reads them, and what they say fits the daemon."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mpcd.daemon.config import Config, Paths

UNITS = Path(__file__).parent.parent / "systemd"
ADD_UP = ("Environment=", "SystemCallFilter=")
NAMES = ("mpcd.service", "mpcd-offline.service", "mpcd-offline.timer")


def parse(name: str) -> configparser.ConfigParser:
    """Keys that occur twice in a unit are an error here, but for those that systemd adds up."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(
        "\n".join(line for line in (UNITS / name).read_text().splitlines() if not line.startswith(ADD_UP))
    )
    return parser


def test_these_units() -> None:
    assert {file.name for file in UNITS.iterdir() if file.suffix in (".service", ".timer")} == set(NAMES)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units with programs that exist on this machine."""
    program = shutil.which("true")
    assert program is not None
    for name in NAMES:
        text = (UNITS / name).read_text()
        for binary in ("/opt/mpcd/bin/mpcd", "/opt/mpcd/bin/mpcctl"):
            text = text.replace(f"ExecStart={binary} ", f"ExecStart={program} ")
            text = text.replace(f"ExecStart={binary}\n", f"ExecStart={program}\n")
        (tmp_path / name).write_text(text)
    return tmp_path


def verify(*files: Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *map(str, files)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_systemd_accepts_them(installed: Path) -> None:
    done = verify(*(installed / name for name in NAMES))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_wrong_key_would_be_seen(installed: Path) -> None:
    unit = installed / "mpcd.service"
    unit.write_text(unit.read_text().replace("Type=notify", "Typo=notify"))
    assert "Typo" in verify(unit).stderr


def test_the_daemon_s_unit() -> None:
    service = parse("mpcd.service")["Service"]
    assert service["Type"] == "notify", "the daemon says when it is ready (daemon/notify.py)"
    assert service["User"] == "mpcd"
    for directory in ("StateDirectory", "RuntimeDirectory", "CacheDirectory"):
        assert service[directory] == "mpcd"
    assert service["StateDirectoryMode"] == "0700"
    assert service["UMask"] == "0077"
    assert service["Restart"] == "on-failure"
    assert service["LimitCORE"] == "0"
    assert "Environment=NUMBA_CACHE_DIR=%C/mpcd/numba" in (UNITS / "mpcd.service").read_text()
    cache = Paths.find(environ={"HOME": "/", "CACHE_DIRECTORY": "/var/cache/mpcd"}).cache
    assert str(cache / "numba") == "/var/cache/mpcd/numba", "what %C/mpcd/numba is"
    assert "MemoryDenyWriteExecute" not in service, "Numba compiles at run time"


@pytest.mark.parametrize(("name", "most"), [("mpcd.service", 13), ("mpcd-offline.service", 3)])
def test_the_score(name: str, most: int) -> None:
    """`systemd-analyze security`, in tenths: 1.3 of 10 at most for the daemon, whose open points the unit explains."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={most}", UNITS / name],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, "\n".join(line for line in done.stdout.splitlines() if "✗" in line or "→" in line)
    assert "Overall exposure level" in done.stdout


def test_resource_limits() -> None:
    for name in ("mpcd.service", "mpcd-offline.service"):
        service = parse(name)["Service"]
        assert {"MemoryMax", "TasksMax", "LimitNOFILE"} <= set(service)
        assert service["LimitCORE"] == "0", "a core dump would hold shares and weights"
    service = parse("mpcd.service")["Service"]
    assert {"CPUWeight", "IOWeight"} <= set(service)
    assert service["MemorySwapMax"] == "0", "shares and weights do not go to swap"


def test_the_configuration_that_is_installed(tmp_path: Path) -> None:
    """As it is, and with what it suggests."""
    text = (UNITS / "mpcd.toml").read_text()
    assert Config.parse(tomllib.loads(text), "as installed") == Config.default()
    either_or = "# enabled = false"  # goes with no address of its own
    lines = (line.removeprefix("# ") for line in text.splitlines() if " = " in line or line.startswith("["))
    lines = (line for line in lines if not line.startswith(either_or.removeprefix("# ")))
    suggested = Config.parse(tomllib.loads("\n".join(lines)), "as suggested")
    assert suggested == Config(name="hospital", advertise="vendor.example:7443")
    dials_only = Config.parse(tomllib.loads("[listen]\n" + either_or.removeprefix("# ")), "as suggested")
    assert either_or in text
    assert not dials_only.listen.enabled


def test_the_night_s_units() -> None:
    service = parse("mpcd-offline.service")
    assert service["Service"]["Type"] == "oneshot"
    assert service["Service"]["User"] == "mpcd"
    assert service["Unit"]["Requires"] == "mpcd.service"
    assert service["Service"]["TimeoutStartSec"] == "infinity"
    assert service["Service"]["IOSchedulingClass"] == service["Service"]["CPUSchedulingPolicy"] == "idle"
    words = service["Service"]["ExecStart"].split()
    assert "--idle" in words, "the work is the daemon's: it is told to do it at idle priority"
    assert words[0] == "/opt/mpcd/bin/mpcctl"
    values = {"${MPCD_PEER}": "vendor", "${MPCD_MODEL}": "chexnet", "${MPCD_IMAGES}": "100"}
    command = [values.get(word, word) for word in words[1:]]
    # mpcctl understands it: the daemon is what is missing, not an option.
    mpcctl = Path(sys.executable).parent / "mpcctl"
    done = subprocess.run([mpcctl, *command, "--socket", "/nonexistent"], capture_output=True, timeout=60, check=False)
    assert done.returncode == 3
    timer = parse("mpcd-offline.timer")
    assert timer["Timer"]["OnCalendar"]
    assert timer["Timer"]["Persistent"] == "yes"
    assert timer["Install"]["WantedBy"] == "timers.target"
