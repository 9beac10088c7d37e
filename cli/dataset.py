"""mpcctl dataset add | list | show | remove."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mpcd.cli import options, output
from mpcd.cli.commitment import write_opening

EXISTING = click.Path(exists=True, path_type=Path)


@click.group()
def dataset() -> None:
    """Images with labels (the data owner's side). They stay where they are."""


@dataset.command()
@click.argument("path", type=EXISTING)
@click.option("--labels", required=True, type=EXISTING, help="CSV: a column per finding, or `Finding Labels`.")
@click.option("--name", help="Default: the folder's name.")
@options.common
def add(session: output.Session, path: Path, labels: Path, name: str | None) -> None:
    """Index the DICOM files below PATH: found, decodable, labelled, used, and why not."""
    result = session.call(
        "dataset.add", name=name or path.resolve().name, path=str(path.resolve()), labels=str(labels.resolve())
    )
    session.show(result, lambda result: _render(result["dataset"]))


@dataset.command("list")
@options.common
def list_datasets(session: output.Session) -> None:
    """Our data sets."""

    def render(result: dict[str, Any]) -> None:
        output.table(
            ("name", "files", "images", "labelled", "commitment", "path"),
            [
                (d["name"], d["files"], d["images"], d["labelled"], output.short(d["commitment"]), d["path"])
                for d in result["datasets"]
            ],
            "no data sets; `mpcctl dataset add FOLDER --labels labels.csv` adds one",
        )

    session.show(session.call("dataset.list"), render)


@dataset.command()
@click.argument("name")
@options.common
def show(session: output.Session, name: str) -> None:
    """A data set's counts, findings, and the files that were left out, with reasons."""

    def render(result: dict[str, Any]) -> None:
        _render(result["dataset"])
        output.table(
            ("left out", "why"), [(f["file"], f["reason"]) for f in result["skipped_files"]], "no file was left out"
        )

    session.show(session.call("dataset.show", name=name), render)


@dataset.command()
@click.argument("name")
@options.common
def remove(session: output.Session, name: str) -> None:
    """Forget a data set. Its files are not touched."""
    session.show(session.call("dataset.remove", name=name), lambda r: click.echo(f"removed {r['dataset']['name']}"))


@dataset.command("open")
@click.argument("name")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new file.")
@options.common
def open_commitment(session: output.Session, name: str, out: Path) -> None:
    """Write what opens a data set's commitment, for an auditor: salt, UIDs, digests, labels. Never sent to a peer."""
    write_opening(session, "dataset.open", name, out)


def _render(shown: dict[str, Any]) -> None:
    output.facts(
        [
            ("name", shown["name"]),
            ("files", shown["files"]),
            ("usable images", shown["images"]),
            ("with labels", shown["labelled"]),
            ("labels without image", shown["unmatched_labels"]),
            ("commitment", shown["commitment"]),
        ]
    )
    for reason, count in shown["skipped"].items():
        click.echo(f"left out: {count} ({reason})")
    output.table(
        ("finding", "n", "positive"),
        [(name, counts["n"], counts["positives"]) for name, counts in shown["findings"].items()],
    )
