"""mpcctl commitment verify; and what `model open` and `dataset open` share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from mpcd.cli import options, output


@click.group()
def commitment() -> None:
    """What an auditor checks: that a party ran what it had committed to."""


@commitment.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--commitment", "expected", help="The commitment of the session or report that it must open.")
@click.option(
    "--path",
    type=click.Path(exists=True, path_type=Path),
    help="Also compare with this: the folder of DICOM files, or of the compiled model.",
)
@options.common
def verify(call: output.Session, file: Path, expected: str | None, path: Path | None) -> None:
    """Check FILE, which `mpcctl model open` or `mpcctl dataset open` wrote. Status 9 where it does not fit."""
    result = call.call(
        "commitment.verify",
        file=str(file.resolve()),
        expected=expected,
        path=None if path is None else str(path.resolve()),
    )

    def render(result: dict[str, Any]) -> None:
        found = result["verified"]
        output.facts(
            [
                ("opens", f"the commitment to {found['what']} {found['name']}"),
                ("commitment", found["commitment"]),
                ("images", found["images"]),
                *((f"{name} digest", digest) for name, digest in found["parts"].items() if name != "salt"),
                ("compared", found["path"] and f"{found['path']} holds what was committed to"),
            ]
        )

    call.show(result, render)


def write_opening(call: output.Session, method: str, name: str, out: Path) -> None:
    """For an auditor's eyes: mode 0600, and no file is replaced."""
    opening = call.call(method, name=name)["opening"]
    try:
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise click.ClickException(f"cannot write {out}: {error.strerror}") from error
    with open(fd, "w") as file:
        file.write(json.dumps(opening, indent=1) + "\n")
    result = {"out": str(out), "what": opening["what"], "name": name, "commitment": opening["commitment"]}

    def render(result: dict[str, Any]) -> None:
        click.echo(f"{out} opens {opening['commitment']}")
        click.echo("Give it to the auditor only: with it, guesses about what is inside can be confirmed.", err=True)

    call.show(result, render)
