"""``python -m mpcd.daemon.audit FILE``: check a copy of a log, without a daemon. One JSON object on stdout.

What ``mpcctl audit verify --file`` runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpcd.daemon.audit import chain, journal


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mpcd.daemon.audit", description="Check a copy of an audit log.")
    parser.add_argument("log", type=Path, help="A file that mpcctl audit export wrote, or a folder of segments.")
    parser.add_argument("--head", help="SEQ:HASH of an entry that must be in it, noted elsewhere.")
    parser.add_argument("--peer", type=Path, help="The other side's log.")
    parser.add_argument("--part", action="store_true", help="It may begin with a later entry than the first.")
    given = parser.parse_args()
    kept = {}
    if given.head:
        seq, _, digest = given.head.partition(":")
        if not seq.isdigit() or len(digest) != 64:
            parser.error("--head is SEQ:HASH")
        kept = {int(seq): digest}
    try:
        result = check(given.log, kept, given.part)
        if given.peer is not None:
            theirs = check(given.peer, {}, given.part)
            right, wrong = chain.match(_entries(given.log), _entries(given.peer))
            result |= {"peer": theirs, "matched": right, "wrong": wrong}
            result["ok"] = result["ok"] and theirs["ok"] and not wrong
    except OSError as error:
        result = {"error": f"{error.filename}: {error.strerror}"}
    json.dump(result, sys.stdout)


def check(log: Path, kept: dict[int, str], part: bool) -> dict[str, Any]:
    files = _files(log)
    verdict = chain.verify(_read(files), kept, part)
    bad = verdict.bad
    return {
        "ok": bad is None,
        "entries": verdict.entries,
        "segments": len(files),
        "head": None if verdict.last is None else {"seq": verdict.last.seq, "hash": verdict.last.hash},
        "bad": None if bad is None else {"line": bad.line, "where": journal.where(files, bad), "problem": bad.problem},
    }


def _files(log: Path) -> list[Path]:
    return journal.segments(log) if log.is_dir() else [log]


def _read(files: list[Path]) -> Iterator[bytes]:
    for file in files:
        with file.open("rb") as opened:
            while data := opened.read(journal.CHUNK):
                yield data


def _entries(log: Path) -> list[chain.Entry]:
    lines = chain.lines_of(_read(_files(log)))
    return [entry for line, ended in lines if ended and (entry := chain.opened(line)) is not None]


if __name__ == "__main__":
    main()
