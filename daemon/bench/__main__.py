"""``python -m mpcd.daemon.bench SUBJECT``: JSON on stdout, progress on stderr.

Starts both parties; or, with ``--party``, only one, which finds the other at an address (two machines or network
namespaces; ``--folder`` must then be one folder with the same content at both, made by the first).
Numba and BLAS read their environment when first imported, so a party imports them last.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpcd.daemon.bench.options import SUBJECTS, Options
from mpcd.daemon.config import Paths, split_address
from mpcd.daemon.control.server import UsageError
from mpcd.daemon.errors import MpcdError

THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mpcd.daemon.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=(*SUBJECTS, "all"))
    parser.add_argument("--party", type=int, choices=(0, 1), help="only this one: 0 model owner, 1 data owner")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="where party 0 listens")
    parser.add_argument("--connect", metavar="HOST:PORT", help="where party 1 finds it")
    parser.add_argument("--folder", type=Path, help="for identities, units and the ledger")
    parser.add_argument("--pin", type=_numbers, help="each party's core, such as 0,1")
    parser.add_argument("--threads", type=int, default=1, help="of each party's kernels (default 1)")
    parser.add_argument("--link", type=_link, metavar="MBIT,MS", help="imitate a link of this rate and round trip")
    for field in dataclasses.fields(Options):
        flag = "--" + field.name.replace("_", "-")
        if field.name == "check":
            parser.add_argument("--no-check", dest="check", action="store_false")
        elif isinstance(field.default, tuple):
            parser.add_argument(flag, type=_names, default=())
        elif field.name != "what":
            parser.add_argument(flag, type=type(field.default), default=field.default)
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _link(text: str) -> tuple[float, float]:
    megabits, round_trip = (float(part) for part in text.split(","))
    if megabits <= 0 or round_trip < 0:
        raise ValueError(text)
    return megabits, round_trip


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def main() -> int:
    arguments = _parser().parse_args()
    try:
        if arguments.party is not None:
            _one_party(arguments)
        else:
            subjects = SUBJECTS if arguments.what == "all" else (arguments.what,)
            found = [_both_parties(subject, sys.argv[1:], arguments) for subject in subjects]
            json.dump(found[0] if arguments.what != "all" else {"format": 1, "results": found}, sys.stdout, indent=1)
            print()
    except MpcdError as error:
        print(f"mpcd bench: {error.message}" + (f"\n    {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    return 0


def _one_party(arguments: argparse.Namespace) -> None:
    fields = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(Options)}
    options = Options(**fields)
    address = arguments.connect if arguments.party else arguments.listen
    if not address or arguments.folder is None:
        raise UsageError("one party alone needs --folder and, party 1, --connect")
    try:
        host, port = (address[:-2], 0) if address.endswith(":0") else split_address(address)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if arguments.pin:
        os.sched_setaffinity(0, {arguments.pin[arguments.party % len(arguments.pin)]})
    os.environ.update(dict.fromkeys(THREADS, str(arguments.threads)))
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Paths.find().cache / "numba"))
    os.umask(0o077)
    from mpcd.daemon.bench import run

    run.main(arguments.party, options, host, port, arguments.folder)


def _both_parties(subject: str, given: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Two processes, as ``given`` but for the subject; the data owner's output. Raises MpcdError when one fails."""
    with (
        tempfile.TemporaryDirectory(prefix="mpcd-bench-", dir=arguments.folder) as own,
        contextlib.ExitStack() as stack,
    ):
        words = [subject if word == "all" else word for word in given]
        command = [sys.executable, "-m", "mpcd.daemon.bench", *words, "--folder", own]
        processes: list[subprocess.Popen[str]] = []
        try:
            processes.append(_start([*command, "--party", "0", "--listen", "127.0.0.1:0"]))
            host, _, port = _line(processes[0]).partition(" ")
            if port and arguments.link:
                host, port = stack.enter_context(_relay(host, port, *arguments.link))
            if port:
                processes.append(_start([*command, "--party", "1", "--connect", f"{host}:{port}"]))
                printed, _ = processes[1].communicate()
            statuses = [process.wait() for process in processes]
        finally:
            for process in processes:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        if failed := [status for status in statuses if status]:
            error = MpcdError("a party failed; its reason is above")
            error.exit_status = failed[0] if failed[0] > 0 else 1
            raise error
        result: dict[str, Any] = json.loads(printed)
        result["link"] = dict(zip(("megabits", "round_trip_ms"), arguments.link or (None, None), strict=True))
        return result


@contextlib.contextmanager
def _relay(host: str, port: str, megabits: float, round_trip: float) -> Iterator[tuple[str, str]]:
    """Where to dial instead."""
    command = [sys.executable, "-m", "mpcd.daemon.bench.relay", host, port, str(megabits), str(round_trip)]
    with _start(command) as process:
        try:
            host, _, port = _line(process).partition(" ")
            yield host, port
        finally:
            process.terminate()


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


if __name__ == "__main__":
    sys.exit(main())
