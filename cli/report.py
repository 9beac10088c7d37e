"""mpcctl report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mpcd.cli import options, output


@click.command()
@click.argument("id")
@click.option(
    "--clear",
    type=click.Path(exists=True, path_type=Path),
    help="An evaluation in the clear (`mpcctl model evaluate --out`), where one party may know both.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Also write the report here, as JSON.")
@options.common
def report(session: output.Session, id: str, clear: Path | None, out: Path | None) -> None:
    """AUROC per finding with 95 % intervals, what the run cost, and what exactly was run."""
    result = session.call("report", session=id, clear=None if clear is None else str(clear.resolve()))
    if out is not None:
        out.write_text(json.dumps(result["report"], indent=2) + "\n")
    session.show(result, lambda result: _render(result["report"]))


def _render(report: dict[str, Any]) -> None:
    click.echo(json.dumps(report, indent=2))
