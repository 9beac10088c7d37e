"""Puts a command into the sandbox that a unit of systemd/ describes, on a machine whose init is not systemd.

    unshare --mount --ipc [--net] python sandbox.py SPEC COMMAND...

run by root; SPEC is JSON (see ``spec``). Mounts, user, capabilities, limits and the system call filter are the kernel's
own, set up here as systemd.exec(5) says; what is not in ``KNOWN`` below is only scored by systemd-analyze.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

KNOWN = (
    "User", "ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateNetwork", "PrivateIPC",
    "ProtectProc", "ProcSubset", "NoNewPrivileges", "CapabilityBoundingSet", "RestrictAddressFamilies",
    "RestrictNamespaces", "RestrictRealtime", "MemoryDenyWriteExecute", "SystemCallFilter", "SystemCallErrorNumber",
    "TasksMax", "LimitNOFILE", "LimitCORE", "UMask", "ProtectKernelTunables",
)  # fmt: skip
UID = 61987
EPERM, ENOSYS = 1, 38
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
EQUAL, NOT_EQUAL, MASKED_EQUAL = 4, 1, 7
PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP, PR_SET_MDWE = 38, 24, 65
CLONE_NEW = 0x7E020000  # CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET


class Compare(ctypes.Structure):
    """scmp_arg_cmp of libseccomp."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def settings(unit: Path) -> dict[str, list[str]]:
    """[Service], each key's values in order."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif section == "Service" and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def system_calls(filters: list[str]) -> list[str]:
    """What SystemCallFilter= lines allow, by systemd's own sets."""
    listed = subprocess.run(
        ["systemd-analyze", "--no-pager", "syscall-filter"], capture_output=True, text=True, check=True
    )
    sets: dict[str, list[str]] = {}
    name = ""
    for line in listed.stdout.splitlines():
        word = line.strip()
        if line.startswith("@"):
            name = word
            sets[name] = []
        elif line.startswith("    ") and not word.startswith("#") and name:
            sets[name].append(word)
        elif not line.startswith(" "):
            name = ""

    def expand(word: str) -> set[str]:
        return set().union(*(expand(inner) for inner in sets[word])) if word.startswith("@") else {word}

    allowed: set[str] = set(expand("@default"))
    for line in filters:
        words = set().union(*(expand(word) for word in line.lstrip("~").split()))
        allowed = allowed - words if line.startswith("~") else allowed | words
    return sorted(allowed | expand("@default"))


def spec(unit: Path, writable: list[Path], readable: list[Path]) -> dict[str, Any]:
    """``readable``: what the sandbox shows although it lies below a folder that it hides."""
    found = settings(unit)
    return {
        **{key: found[key][-1] for key in KNOWN if key in found},
        "calls": system_calls(found["SystemCallFilter"]),
        "writable": [str(path) for path in writable],
        "readable": [str(path) for path in readable],
    }


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def mounts(given: dict[str, Any]) -> None:
    """The file system as the unit shows it. /run/sandbox keeps what lies below hidden folders meanwhile."""
    aside = Path("/run/sandbox")
    kept = [*given["writable"], *given["readable"]]
    mount("--make-rprivate", "/")
    mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/run")
    for number, path in enumerate(kept):
        (aside / str(number)).mkdir(parents=True)
        mount("--bind", path, str(aside / str(number)))
    hidden = ["/home", "/root", "/run/user"] if given.get("ProtectHome") == "yes" else []
    if given.get("PrivateTmp") == "yes":
        mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp")
    for path in hidden:
        if Path(path).is_dir():
            mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", path)
    if given.get("PrivateDevices") == "yes":
        devices = ("null", "zero", "full", "random", "urandom", "tty")
        (aside / "dev").mkdir()
        mount("-t", "tmpfs", "-o", "mode=0755,nosuid", "tmpfs", str(aside / "dev"))
        for name in devices:
            (aside / "dev" / name).touch()
            mount("--bind", f"/dev/{name}", str(aside / "dev" / name))
        (aside / "dev" / "shm").mkdir(mode=0o1777)
        mount("--rbind", str(aside / "dev"), "/dev")
    if "ProtectProc" in given:
        hide = "hidepid=invisible" + (",subset=pid" if given.get("ProcSubset") == "pid" else "")
        mount("-t", "proc", "-o", hide, "proc", "/proc")
    for number, path in enumerate(kept):
        Path(path).mkdir(parents=True, exist_ok=True)
        mount("--bind", str(aside / str(number)), path)
    if given.get("ProtectSystem") == "strict":
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        private = ["/tmp"] if given.get("PrivateTmp") == "yes" else []
        for point in dict.fromkeys(["/", *points]):
            inside_proc = point.startswith("/proc/") and given.get("ProcSubset") == "pid"
            if (
                point in (*given["writable"], *private, "/proc")
                or point.startswith(("/dev", "/run/sandbox"))
                or inside_proc
            ):
                continue
            subprocess.run(["mount", "-o", "remount,bind,ro", point], check=False, stderr=subprocess.DEVNULL)
    if given.get("ProtectKernelTunables") == "yes" and Path("/proc/sys").is_dir():
        mount("--bind", "/proc/sys", "/proc/sys")
        mount("-o", "remount,bind,ro", "/proc/sys")


def drop(given: dict[str, Any], last_capability: int) -> None:
    """User, capabilities, limits."""
    libc = ctypes.CDLL(None, use_errno=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(given["LimitNOFILE"]),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (int(given["LimitCORE"]),) * 2)
    if int(given["TasksMax"]) > 100:  # the kernel counts the user's threads here: the daemon's count at mpcctl, too
        resource.setrlimit(resource.RLIMIT_NPROC, (int(given["TasksMax"]),) * 2)
    assert given["CapabilityBoundingSet"] == ""
    for capability in range(last_capability + 1):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    os.umask(int(given["UMask"], 8))
    assert given["NoNewPrivileges"] == "yes"
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    if given.get("MemoryDenyWriteExecute") == "yes":
        libc.prctl(PR_SET_MDWE, 1, 0, 0, 0)  # Linux 6.3; before that the filter alone


def load_filter(given: dict[str, Any]) -> None:
    """The system call filter, by libseccomp as systemd does it."""
    assert given["SystemCallErrorNumber"] == "EPERM"
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(ERRNO | EPERM))

    def number(name: str) -> int:
        return int(seccomp.seccomp_syscall_resolve_name(name.encode()))

    def rule(action: int, name: str, *compare: tuple[int, int, int, int]) -> None:
        array = (Compare * len(compare))(*compare)
        done = seccomp.seccomp_rule_add_array(context, ctypes.c_uint32(action), number(name), len(compare), array)
        assert done == 0, (name, done)

    special = {"socket", "clone", "clone3", "unshare", "setns", "sched_setscheduler", "personality"}
    for name in given["calls"]:
        if name not in special and number(name) >= 0:
            rule(ALLOW, name)
    calls = set(given["calls"])
    families = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}
    for family in given["RestrictAddressFamilies"].split():
        rule(ALLOW, "socket", (0, EQUAL, families[family], 0))
    assert given["RestrictNamespaces"] == "yes"
    rule(ALLOW, "clone", (0, MASKED_EQUAL, CLONE_NEW, 0))
    rule(ERRNO | ENOSYS, "clone3")  # its flags lie in memory, where no filter looks: glibc falls back to clone
    assert given["RestrictRealtime"] == "yes"
    if "sched_setscheduler" in calls:
        for policy in (0, 3, 5):  # other, batch, idle
            rule(ALLOW, "sched_setscheduler", (1, EQUAL, policy, 0))
    assert seccomp.seccomp_load(context) == 0


if __name__ == "__main__":
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    wanted = json.loads(Path(sys.argv[1]).read_text())
    mounts(wanted)
    drop(wanted, last)
    load_filter(wanted)
    os.execvp(sys.argv[2], sys.argv[2:])
