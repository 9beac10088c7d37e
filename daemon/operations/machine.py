"""What can be told of this machine and this installation, daemon or not."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import pwd
import resource
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import numba
import psutil

from mpcd.daemon import warm
from mpcd.daemon.config import Config, Paths
from mpcd.daemon.offline.capacity import GIB, size
from mpcd.daemon.operations.checks import Check, ok, problem, warning
from mpcd.daemon.version import PROTOCOL_VERSION, software_digest, software_version
from mpcd.kernels import cpu

LIBRARIES = ("numpy", "numba", "llvmlite", "scipy", "cryptography", "pydicom", "uvloop")
THREAD_VARIABLES = ("NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
OLDEST_TIME = 1735689600.0  # 2025-01-01: no clock that is right shows less
FEW_FILES = 1024
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_CGROUPS = Path("/sys/fs/cgroup")


def checks(paths: Paths, config: Config) -> Iterator[Check]:
    yield versions()
    yield clock()
    yield memory(config)
    yield processor()
    yield blas_threads(config)
    yield numba_cache(paths)


def versions() -> Check:
    found = [f"mpcd {software_version()} (protocol {PROTOCOL_VERSION}, {software_digest()[:12]})"]
    found += [f"Python {platform.python_version()}", ssl.OPENSSL_VERSION.partition("  ")[0]]
    found += [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES]
    return ok("versions", ", ".join(found))


def clock() -> Check:
    """Nothing in the protocol needs it; the log, the records and certificates of a CA do."""
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    mend = "set it, and let it be kept: timedatectl set-ntp true"
    if now < OLDEST_TIME:
        return problem("clock", f"{shown} cannot be", mend)
    if _unsynchronised():
        return warning("clock", f"{shown}; the system says that nothing keeps it synchronised", mend)
    return ok("clock", shown)


def _unsynchronised() -> bool:
    """What adjtimex(2) says; a sandbox may forbid asking, then nothing is known and nothing is said."""
    libc = ctypes.CDLL(None, use_errno=True)
    asked = ctypes.create_string_buffer(256)  # struct timex with modes = 0: only look
    return bool(libc.adjtimex(asked) == _TIME_ERROR)


def memory(config: Config) -> Check:
    available, limit = psutil.virtual_memory().available, _cgroup_limit()
    text = f"{size(available)} available of {size(psutil.virtual_memory().total)}"
    if limit is not None:
        available = min(available, limit)
        text += f", this service may have {size(limit)} more"
    wanted = int(config.limits.memory_gib * GIB)
    if available < wanted:
        return warning(
            "memory",
            f"{text}; limits.memory_gib allows a session {size(wanted)}",
            "close other programs, give the machine more, or lower limits.memory_gib",
        )
    return ok("memory", text)


def _cgroup_limit() -> int | None:
    """Bytes that the control group of this process (systemd's MemoryMax) still allows; None: no limit."""
    try:
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        most = (_CGROUPS / group / "memory.max").read_text().strip()
        used = int((_CGROUPS / group / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if most == "max" else max(0, int(most) - used)


def processor() -> Check:
    available = cpu.features()
    telling = [name for name in ("aes", "vaes", "gfni", "avx2", "avx512f", "avx512ifma") if name in available]
    cores = len(os.sched_getaffinity(0))
    text = f"{cores} of {os.cpu_count()} cores; {', '.join(telling) or 'no vector instructions'}; AES by {cpu.AES_PATH}"
    if cpu.AES_PATH == "portable":
        return warning(
            "processor",
            text + ": many times slower",
            "use a machine with AES instructions; in a virtual machine, let the host's processor show through",
        )
    return ok("processor", text)


def blas_threads(config: Config) -> Check:
    cores = len(os.sched_getaffinity(0))
    given = {name: os.environ[name] for name in THREAD_VARIABLES if os.environ.get(name, "").isdigit()}
    text = ", ".join(f"{name}={value}" for name, value in given.items()) or "as many as there are cores"
    text += f"; kernels in {config.limits.threads or os.cpu_count()} threads, Numba {numba.get_num_threads()}"
    if any(int(value) > cores for value in given.values()):
        return warning(
            "threads",
            f"{text}, on {cores} cores: they are in each other's way",
            "unset these variables, or set limits.threads in mpcd.toml to the number of cores",
        )
    return ok("threads", text)


def numba_cache(paths: Paths) -> Check:
    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or paths.cache / "numba")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        return problem(
            "kernel cache",
            f"{folder} cannot be written: kernels are compiled anew at every start, which takes minutes",
            f"give the folder to the user {_user()}, or set NUMBA_CACHE_DIR to one of its own",
        )
    mark = warm.mark(folder)
    if mark is None or not mark.exists():
        return warning(
            "kernel cache",
            f"{folder} does not hold this version's kernels yet",
            "nothing to do: the daemon compiles them at its start, once, in some minutes; mpcctl status shows how far",
        )
    return ok("kernel cache", f"{folder}, warm")


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def systemd() -> Check | None:
    """Facts of the unit under which this process runs; None when systemd did not start it."""
    if not os.environ.get("INVOCATION_ID") or not os.environ.get("NOTIFY_SOCKET"):
        return None
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    watchdog = int(os.environ.get("WATCHDOG_USEC", "0") or 0) / 1e6
    limit = _cgroup_limit()
    facts = [
        f"watchdog every {watchdog:g} s" if watchdog else "no watchdog",
        f"{files} open files",
        "no memory limit" if limit is None else f"{size(limit)} of memory left",
        f"state in {os.environ.get('STATE_DIRECTORY', '-')}",
    ]
    text = ", ".join(facts)
    if not watchdog:
        return warning("systemd", text, "take WatchdogSec= from the shipped mpcd.service")
    if files < FEW_FILES:
        return warning("systemd", text, f"set LimitNOFILE={FEW_FILES} or more in the unit")
    return ok("systemd", text)
