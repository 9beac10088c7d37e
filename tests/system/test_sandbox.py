"""A session between two daemons in the sandbox of their unit, steered by mpcctl in the night unit's stricter one.

Same kind of user, no capabilities, read-only file system, hidden folders, limits and system call filter, by the kernel
itself; see sandbox.py for what of the units this covers. Needs root; skipped where the machine does not allow it.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.two_daemons import DATASET, HOSPITAL, MODEL, VENDOR, expected, install
from tests.system import sandbox
from tests.system.two_parties import BIN, Pair, Party

ROOT = Path(__file__).parent.parent.parent
UNITS = ROOT / "systemd"


def cannot() -> str:
    """Why this machine cannot put a process into the units' sandbox; empty where it can."""
    if os.getuid() != 0:
        return "only root can set up mounts and change the user"
    if any(shutil.which(word) is None for word in ("unshare", "mount", "systemd-analyze")):
        return "unshare, mount or systemd-analyze is missing"
    if ctypes.util.find_library("seccomp") is None and not Path("/lib/x86_64-linux-gnu/libseccomp.so.2").exists():
        return "libseccomp is missing"
    tried = subprocess.run(
        ["unshare", "--mount", "--ipc", "--net", "sh", "-c", "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"no mounts here: {tried.stderr.strip()}" if tried.returncode else ""


pytestmark = pytest.mark.skipif(bool(cannot()), reason=f"the sandbox cannot be set up: {cannot()}")


class Box:
    """Commands in a unit's sandbox."""

    def __init__(self, root: Path, unit: str, writable: list[Path], readable: list[Path]) -> None:
        given = sandbox.spec(UNITS / unit, writable, [Path(sys.base_prefix), Path(sys.prefix), ROOT, *readable])
        self._file = root / f"{len(list(root.glob('*.json')))}.json"
        self._file.write_text(json.dumps(given))
        self._net = ["--net"] if given.get("PrivateNetwork") == "yes" else []

    def words(self, *command: object) -> list[str]:
        words = ["unshare", "--mount", "--ipc", *self._net, sys.executable, sandbox.__file__, self._file, *command]
        return [str(word) for word in words]

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.words(*command), capture_output=True, text=True, timeout=120, check=False)


class Boxed(Party):
    """The daemon and mpcctl each in the sandbox of their unit."""

    def __init__(self, root: Path, name: str) -> None:
        super().__init__(root, name)
        del self.env["MPCD_CACHE"]
        self.env.pop("NUMBA_CACHE_DIR", None)
        self.env |= {"CACHE_DIRECTORY": str(root / "cache"), "HOME": str(self.state)}
        self._daemon = Box(self.state.parent, "mpcd.service", [self.state, root / "cache"], [root / "images"])
        self._steer = Box(self.state.parent, "mpcd-offline.service", [], [self.state])

    def spawn(self) -> None:
        command = [sys.executable, *self.program, "--listen", self.address, "--log", "json"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._daemon.words(*command), env=self.env, stderr=log, stdout=log)

    def mpcctl(self, *words: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._steer.words(BIN / "mpcctl", *words),
            env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    root = tmp_path_factory.mktemp("sandbox")
    install(root, 2)
    compiled = os.environ.get("NUMBA_CACHE_DIR")
    if compiled and Path(compiled).is_dir():
        shutil.copytree(compiled, root / "cache" / "numba")
    (root / "cache").mkdir(exist_ok=True)
    pair = Pair(root)
    pair.hospital, pair.vendor = Boxed(root, HOSPITAL), Boxed(root, VENDOR)
    pair.both = (pair.hospital, pair.vendor)
    shutil.rmtree(root / "units", ignore_errors=True)
    for folder in (pair.hospital.state, pair.vendor.state, root / "cache"):
        for path in (folder, *folder.rglob("*")):
            os.chown(path, sandbox.UID, sandbox.UID)
    try:
        pair.start()
        pair.introduce()
        yield pair
    finally:
        pair.stop()


def test_what_the_daemon_s_sandbox_holds_back(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", sandbox.UID, sandbox.UID)
    box = Box(tmp_path, "mpcd.service", [tmp_path / "state"], [])
    private = f"/tmp/{os.urandom(8).hex()}"
    code = f"""
import os, resource, socket
from pathlib import Path
def held(what, *args):
    try:
        what(*args)
    except OSError as error:
        return error.errno
    return 0
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    return ctypes.get_errno() if getattr(libc, name)(*args) < 0 else 0
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
assert os.getuid() == {sandbox.UID}
assert {{status[f"Cap{{kind}}"].strip() for kind in ("Prm", "Eff", "Bnd", "Amb", "Inh")}} == {{"0" * 16}}
assert status["NoNewPrivs"].strip() == "1" and status["Seccomp"].strip() == "2"
Path({str(tmp_path / "state" / "mine")!r}).write_text("x")
assert Path("/proc/meminfo").read_text(), "psutil reads it"
for place in ({str(ROOT)!r}, "/etc", "/usr", "/run", "/dev", "/home"):
    assert held((Path(place) / "x").write_text, "x") in (13, 30), place
Path({private!r}).write_text("private")
assert not Path("/root/.bashrc").exists() and not list(Path("/home").iterdir())
assert held(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW) == 1
assert held(socket.socket, socket.AF_PACKET, socket.SOCK_RAW) == 1
socket.socket(socket.AF_INET6).close()
assert call("unshare", 0x10000000) == 1 and call("mount", b"x", b"/mnt", b"tmpfs", 0, None) == 1
assert call("ptrace", 0, 0, 0, 0) == 1 and call("swapoff", b"/x") == 1
assert held(os.chown, {private!r}, 0, 0) == 1
assert held(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)) == 1
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
assert not any(entry.isdigit() and int(entry) != os.getpid() for entry in os.listdir("/proc")), "others' processes"
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == 8192
"""
    done = box.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert {file.name for file in (tmp_path / "state").iterdir()} == {"mine"}
    assert not Path(private).exists(), "its /tmp is its own"


def test_what_mpcctl_s_sandbox_holds_back(tmp_path: Path) -> None:
    box = Box(tmp_path, "mpcd-offline.service", [], [])
    code = """
import mmap, os, socket
for family in (socket.AF_INET, socket.AF_INET6):
    try:
        socket.socket(family)
    except PermissionError:
        pass
    else:
        raise AssertionError("it has no business in the network")
assert not os.path.exists("/proc/meminfo")
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
except PermissionError:
    pass
else:
    raise AssertionError("writable and executable memory")
"""
    done = box.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


def test_a_session_in_the_sandbox(pair: Pair) -> None:
    made = pair.hospital.ctl("offline", "make", "--idle", "--peer", VENDOR, "--model", MODEL, "--images", "1")
    assert made["made"] == 1
    session = pair.run(MODEL, DATASET, 2)
    assert session["done"] == 2
    for party in pair.both:
        assert party.process is not None
        status = dict(line.split(":", 1) for line in Path(f"/proc/{party.process.pid}/status").read_text().splitlines())
        assert status["Uid"].split() == [str(sandbox.UID)] * 4
        assert status["CapBnd"].strip() == "0" * 16
        assert status["Seccomp"].strip() == "2"
    rows = pair.hospital.records("SELECT number, logits FROM image WHERE session = ?", session["id"])
    assert {number: json.loads(logits) for number, logits in rows} == expected(pair.root)
    for party in pair.both:
        log = party.log.read_text()
        assert "Traceback" not in log
        assert "Operation not permitted" not in log
