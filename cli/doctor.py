"""mpcctl doctor, mpcctl support-bundle: also where no daemon answers; then a program of the daemon's package looks."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import click

from mpcd.cli import client, options, output

OFFLINE = ("-m", "mpcd.daemon.operations.doctor")
MARKS = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command()
@click.option("--peer", help="Look at this peer only; default: all.")
@options.common
def doctor(session: output.Session, peer: str | None) -> None:
    """What is wrong with this daemon, its machine and its network, and how to mend it.

    Exit status 1 if there is a problem, 0 if there are only warnings.
    """
    try:
        result = session.call("doctor", peer=peer)
    except client.ControlError as error:
        if error.code != "no_daemon":
            raise
        result = _offline(session)
        result["worst"] = "problem"
    session.show(result, lambda result: render(result["checks"]))
    if result["worst"] == "problem":
        sys.exit(1)


def render(checks: list[dict[str, Any]]) -> None:
    """A line each; what is wrong with its way out below it."""
    width = max((len(check["name"]) for check in checks), default=0)
    for check in checks:
        mark = click.style(MARKS[check["level"]], fg=COLOURS[check["level"]])
        click.echo(f"{mark}  {check['name']:<{width}}  {check['text']}")
        if check["hint"]:
            click.echo(f"{'':9}{'':{width}}  {check['hint']}")


@click.command("support-bundle")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The archive to write: FILE.tar.gz.")
@options.common
def support_bundle(session: output.Session, out: Path) -> None:
    """Versions, settings, doctor, counts and the last log lines, for support; names and addresses taken out.

    No images, labels, scores, weights, keys or invites. Look into it before you send it.
    """
    try:
        files = session.call("support.bundle")["files"]
    except client.ControlError as error:
        if error.code != "no_daemon":
            raise
        files = _offline(session, "--bundle")["files"]
    try:
        _write(out, files)
    except FileExistsError:
        raise client.ControlError("conflict", f"{out} exists already", "choose another --out", 5) from None
    except OSError as error:
        raise client.ControlError("cannot_write", f"cannot write {out}: {error.strerror}", "", 10) from None

    def show(result: dict[str, Any]) -> None:
        click.echo(f"{result['file']} holds:")
        for name, size in result["contents"].items():
            click.echo(f"  {name}  {output.size(size)}")
        click.echo("Read it before you send it: names and addresses are taken out, CONTENTS.txt says what is left.")

    sizes = {name: len(text.encode()) for name, text in files.items()}
    session.show({"file": str(out.absolute()), "contents": sizes}, show)


def _write(out: Path, files: dict[str, str]) -> None:
    """Readable by this user only."""
    with open(out, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:  # noqa: SIM117
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, text in files.items():
                data = text.encode()
                entry = tarfile.TarInfo(f"mpcd-support/{name}")
                entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
                archive.addfile(entry, io.BytesIO(data))


def _offline(session: output.Session, *words: str) -> dict[str, Any]:
    """What files and this machine tell."""
    command = [sys.executable, *OFFLINE, "--socket", str(session.socket), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise client.ControlError("internal", "the doctor's program failed", "its reason is above", 70)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
