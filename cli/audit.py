"""mpcctl audit verify | show | export."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mpcd.cli import client, options, output

CHECKER = ("-m", "mpcd.daemon.audit")
_AGO = re.compile(r"([0-9]{1,6})([mhdw])")
_MINUTES = {"m": 1, "h": 60, "d": 24 * 60, "w": 7 * 24 * 60}
_PLAIN_FIELDS = ("seq", "time", "event", "prev", "hash", "who", "session", "run_digest", "run")


@click.group()
def audit() -> None:
    """Who did what with which commitments, and what was revealed: the daemon's log, hash upon hash."""


@audit.command()
@click.option(
    "--file", type=click.Path(exists=True, path_type=Path), help="A copy, or a folder of segments; no daemon."
)
@click.option("--peer-file", type=click.Path(exists=True, path_type=Path), help="With --file: the other side's log.")
@click.option("--head", metavar="SEQ:HASH", help="With --file: an entry noted earlier, which must be in it.")
@click.option("--part", is_flag=True, help="With --file: it may begin with a later entry than the first.")
@options.common
def verify(call: output.Session, file: Path | None, peer_file: Path | None, head: str | None, part: bool) -> None:
    """Find a changed, missing, moved or inserted line. Status 1 where there is one."""
    if file is None:
        if peer_file or head or part:
            raise click.UsageError("--peer-file, --head and --part go with --file")
        result = call.call("audit.verify")
    else:
        result = _check(file, peer_file, head, part)
    call.show(result, _render)
    if not result["ok"]:
        sys.exit(1)


@audit.command()
@click.option("--session", metavar="ID", help="Only of this session; the beginning of its id is enough.")
@click.option("--since", metavar="TIME", help="2026-11-23, 2026-11-23T08:00 (both UTC), or 90m, 12h, 7d, 2w ago.")
@options.common
def show(call: output.Session, session: str | None, since: str | None) -> None:
    """The log's entries, oldest first."""
    start = _since(since)
    found = []
    for line in _lines(call):
        try:
            entry = json.loads(line)
            if entry["time"] >= start and entry.get("session", "").startswith(session or ""):
                found.append(entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # torn; verify tells whether it should be
    call.show({"entries": found}, lambda result: _render_entries(result["entries"]))


@audit.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="A new file.")
@options.common
def export(call: output.Session, out: Path) -> None:
    """Copy the whole log to a file that an auditor can check."""
    size = 0
    try:
        with open(out, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            for data in _chunks(call):
                file.write(data)
                size += len(data)
    except OSError as error:
        raise client.ControlError("cannot_write", f"cannot write {out}: {error.strerror}", "", 10) from None
    result = {"file": str(out), "bytes": size, **_check(out, None, None, False)}
    call.show(result, lambda result: click.echo(f"{out}: {result['entries']} entries, {output.size(size)}"))


def _chunks(call: output.Session) -> Iterator[bytes]:
    position: int | None = 0
    while position is not None:
        answer = call.call("audit.read", position=position)
        yield answer["data"]
        position = answer["next"]


def _lines(call: output.Session) -> Iterator[bytes]:
    rest = b""
    for data in _chunks(call):
        *whole, rest = (rest + data).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _check(file: Path, peer_file: Path | None, head: str | None, part: bool) -> dict[str, Any]:
    words = [str(file), *(["--part"] if part else [])]
    for option, value in (("--peer", peer_file), ("--head", head)):
        words += [option, str(value)] if value is not None else []
    done = subprocess.run([sys.executable, *CHECKER, *words], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise click.UsageError("the log cannot be checked so")
    result: dict[str, Any] = json.loads(done.stdout)
    if "error" in result:
        raise client.ControlError("bad_input", result["error"], "", 9)
    return result


def _since(given: str | None) -> str:
    """As the log writes times."""
    if given is None:
        return ""
    if ago := _AGO.fullmatch(given):
        minutes = int(ago[1]) * _MINUTES[ago[2]]
        return (datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%S")
    try:
        return datetime.datetime.fromisoformat(given).strftime("%Y-%m-%dT%H:%M:%S")
    except ValueError:
        raise click.BadParameter(f"{given!r} is no time", param_hint="--since") from None


def _render(result: dict[str, Any]) -> None:
    _render_one("the log" if "peer" in result else "", result)
    if "peer" in result:
        _render_one("the peer's log", result["peer"])
        click.echo(f"references between the two that are right: {result['matched']}")
        for problem in result["wrong"]:
            click.echo(f"WRONG  {problem}")


def _render_one(name: str, result: dict[str, Any]) -> None:
    head, bad = result["head"], result["bad"]
    references = result.get("references")
    output.facts(
        [
            ("log", name),
            ("entries", result["entries"]),
            ("head", f"{head['seq']}:{head['hash']}" if head else None),
            (
                "peers' references",
                f"{references['matched']} noted, {references['waiting']} not yet told" if references else None,
            ),
        ]
    )
    click.echo(f"WRONG  {bad['where']}: {bad['problem']}" if bad else "every line is as it was written")


def _render_entries(entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        who = entry.get("who", {})
        words = [who.get("peer", ""), f"uid {who['operator']}" if "operator" in who else "", who.get("by", "")]
        words += [str(entry.get("session", ""))[:12]]
        words += [f"{key}={_short(value)}" for key, value in entry.items() if key not in _PLAIN_FIELDS]
        click.echo(f"{entry['seq']:>6} {entry['time'][:19]} {entry['event']:<17} {' '.join(w for w in words if w)}")


def _short(value: Any) -> str:
    return value[:16] if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) else str(value)
