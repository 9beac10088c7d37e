"""What can be told without the daemon: ``python -m mpcd.daemon.operations.doctor``; mpcctl runs it when none answers.

One JSON object on stdout: ``{"checks": [...]}``, or with ``--bundle`` ``{"files": {...}}``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from mpcd.daemon import log
from mpcd.daemon.config import Config, Paths, join_address
from mpcd.daemon.errors import MpcdError
from mpcd.daemon.operations.checks import Check, ok, problem

SYSTEM = {"state": Path("/var/lib/mpcd"), "runtime": Path("/run/mpcd"), "cache": Path("/var/cache/mpcd")}


def main() -> None:
    parser = argparse.ArgumentParser(prog="mpcd.daemon.operations.doctor")
    parser.add_argument("--socket", type=Path, help="where mpcctl looked for the daemon")
    parser.add_argument("--bundle", action="store_true")
    given = parser.parse_args()
    log.configure()
    paths = find_paths(given.socket)
    os.environ.setdefault("NUMBA_CACHE_DIR", str(paths.cache / "numba"))
    if given.bundle:
        from mpcd.daemon.operations import bundle

        json.dump({"files": bundle.offline(paths)}, sys.stdout)
    else:
        json.dump({"checks": [check.as_dict() for check in offline(paths)]}, sys.stdout)


def find_paths(control_socket: Path | None = None) -> Paths:
    """The folders of the daemon that was looked for: the environment's, else the system service's, else this user's."""
    if control_socket is not None and control_socket.parent.name == "run":  # STATE/run/control.sock
        return Paths.find(control_socket.parent.parent)
    named = any(os.environ.get(name) for name in ("MPCD_STATE", "STATE_DIRECTORY"))
    if not named and SYSTEM["state"].is_dir() and not Paths.find().state.is_dir():
        return Paths(**SYSTEM)
    return Paths.find()


def offline(paths: Paths) -> Iterator[Check]:
    """Everything that files and this machine tell, beginning with that no daemon answers."""
    # Numba reads NUMBA_CACHE_DIR when it is imported.
    from mpcd.daemon.operations import folder, machine

    yield daemon(paths)
    config = Config.default()
    with contextlib.suppress(MpcdError):  # one of the checks tells
        config = Config.load(paths.config)
    yield port(config)
    yield from machine.checks(paths, config)
    yield from folder.checks(paths, config)


def daemon(paths: Paths) -> Check:
    start = "systemctl start mpcd, or run mpcd; its log says why it ended: journalctl -u mpcd"
    if not paths.state.exists():
        return problem("daemon", f"no daemon answers, and there is no state folder {paths.state}", start)
    if (holder := lock_holder(paths.state / "lock")) is not None:
        return problem(
            "daemon",
            f"process {holder} has the state folder {paths.state}, but does not answer at {paths.control_socket}",
            "run mpcctl as its user, name its socket with --socket, or wait: it may be starting or ending",
        )
    return problem("daemon", f"no daemon runs on {paths.state}", start)


def lock_holder(file: Path) -> int | None:
    """The process that holds the daemon's lock; only looked for, not tried: a daemon that starts must get it."""
    try:
        inode = file.stat().st_ino
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
            return int(words[4])
    return None


def port(config: Config) -> Check:
    """Whether the daemon could have its port now."""
    host, number = config.listen.host, config.listen.port
    if not host or not number:
        return ok("port", "none, or any free one")
    at = join_address(host, number)
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, number))
    except OSError as error:
        return problem(
            "port", f"{at} cannot be had: {error.strerror}", "choose another listen.port, or stop what has it"
        )
    return ok("port", f"{at} is free")


if __name__ == "__main__":
    main()
