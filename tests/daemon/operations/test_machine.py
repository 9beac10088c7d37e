"""What the doctor says of the machine, also of one that is not as it should be; and where it looks without a daemon."""

import fcntl
import os
import socket
import time
from pathlib import Path

import pytest

from mpcd.daemon import warm
from mpcd.daemon.config import Config, Paths
from mpcd.daemon.operations import doctor, machine
from mpcd.daemon.operations.checks import OK, PROBLEM, WARNING
from mpcd.kernels import cpu

CONFIG = Config.parse({"name": "x", "limits": {"memory_gib": 0.5}})


@pytest.fixture
def paths(tmp_path):
    found = Paths(tmp_path / "state", tmp_path / "state" / "run", tmp_path / "cache")
    found.create()
    return found


def test_versions_name_what_matters():
    found = machine.versions()
    assert found.level == OK
    for name in ("mpcd 0", "protocol", "Python 3", "OpenSSL", "numpy", "numba", "cryptography"):
        assert name in found.text


def test_clock(monkeypatch):
    assert machine.clock().level in (OK, WARNING)
    monkeypatch.setattr(machine, "_unsynchronised", lambda: True)
    assert machine.clock().level == WARNING
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    found = machine.clock()
    assert (found.level, "1970" in found.text) == (PROBLEM, True)


def test_memory(monkeypatch):
    assert machine.memory(CONFIG).level == OK
    assert machine.memory(Config.parse({"name": "x", "limits": {"memory_gib": 4096}})).level == WARNING
    monkeypatch.setattr(machine, "_cgroup_limit", lambda: 1000)
    found = machine.memory(CONFIG)
    assert (found.level, "this service may have" in found.text) == (WARNING, True)


def test_the_limit_of_a_control_group(monkeypatch, tmp_path):
    group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
    (tmp_path / group).mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    assert machine._cgroup_limit() is None, "no such files"
    for most, used, left in (("max", "5", None), ("1000", "400", 600), ("1000", "2000", 0)):
        (tmp_path / group / "memory.max").write_text(most + "\n")
        (tmp_path / group / "memory.current").write_text(used + "\n")
        assert machine._cgroup_limit() == left


def test_processor(monkeypatch):
    assert cpu.AES_PATH in machine.processor().text
    monkeypatch.setattr(cpu, "AES_PATH", "portable")
    assert machine.processor().level == WARNING


def test_threads(monkeypatch):
    for name in machine.THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")
    assert machine.blas_threads(CONFIG).level == OK
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "4000")
    found = machine.blas_threads(CONFIG)
    assert (found.level, "OPENBLAS_NUM_THREADS=4000" in found.text) == (WARNING, True)


def test_kernel_cache(paths, monkeypatch, tmp_path):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    assert machine.numba_cache(paths).level == WARNING
    done = warm.mark(paths.cache / "numba")
    done.parent.mkdir()
    done.touch()
    assert machine.numba_cache(paths).level == OK
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "elsewhere" / "deep"))
    assert machine.numba_cache(paths).level == WARNING, "it can be made"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert machine.numba_cache(paths).level == PROBLEM


def test_systemd(monkeypatch):
    monkeypatch.delenv("INVOCATION_ID", raising=False)
    assert machine.systemd() is None
    for name, value in (("INVOCATION_ID", "x"), ("NOTIFY_SOCKET", "/x"), ("WATCHDOG_USEC", "120000000")):
        monkeypatch.setenv(name, value)
    found = machine.systemd()
    assert "watchdog every 120 s" in found.text
    monkeypatch.delenv("WATCHDOG_USEC")
    assert machine.systemd().level == WARNING


def test_where_it_looks(monkeypatch, tmp_path):
    for name in ("MPCD_STATE", "STATE_DIRECTORY", "MPCD_RUNTIME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert doctor.find_paths(tmp_path / "s" / "run" / "control.sock").state == tmp_path / "s"
    assert doctor.find_paths(tmp_path / "other.sock").state == tmp_path / ".local/state/mpcd"
    system = {"state": tmp_path / "lib", "runtime": tmp_path / "run", "cache": tmp_path / "cache"}
    monkeypatch.setattr(doctor, "SYSTEM", system)
    (tmp_path / "lib").mkdir()
    assert doctor.find_paths() == Paths(**system)
    monkeypatch.setenv("MPCD_STATE", str(tmp_path / "mine"))
    assert doctor.find_paths().state == tmp_path / "mine"


def test_a_daemon_that_holds_the_folder_but_does_not_answer(paths):
    assert "no daemon runs" in doctor.daemon(paths).text
    with open(paths.state / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert f"process {os.getpid()}" in doctor.daemon(paths).text
    assert "no daemon runs" in doctor.daemon(paths).text


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        listen = {"name": "x", "listen": {"host": "127.0.0.1", "port": number}}
        assert doctor.port(Config.parse(listen)).level == PROBLEM
    assert doctor.port(Config.parse(listen)).level == OK
    assert doctor.port(Config.parse({"name": "x", "listen": {"port": 0}})).level == OK
