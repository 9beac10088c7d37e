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
    run = report["session"]
    click.echo(f"model {run['model']} of {run['peer']} on data set {run['dataset']}: {report['images']} images")
    output.table(
        ("finding", "n", "positive", "AUROC", "95 % interval"),
        [
            (
                f["finding"],
                *(("-", "-", "-") if f["withheld"] else (f["n"], f["positives"], _number(f["auroc"]))),
                _interval(f),
            )
            for f in report["findings"]
        ],
    )
    if any(f["clear"] for f in report["findings"]):
        _render_clear(report)
    output.facts(
        [(f"{phase} phase", _phase(cost, report["images"])) for phase, cost in report["phases"].items()]
        + [(f"{what} commitment", value) for what, value in report["commitments"].items()]
        + [(f"{what} digest", value) for what, value in report["digests"].items()]
        + [("approved", f"by {a['by']} for the {a['party']}, {output.moment(a['at'])}") for a in report["approvals"]]
    )


def _render_clear(report: dict[str, Any]) -> None:
    """Secure beside integer beside float, where both are known."""
    click.echo("the same images in the clear:")
    output.table(
        (
            "finding",
            "secure",
            "integer",
            "float",
            "secure - integer",
            "secure - float",
            "p",
            "largest logit difference",
        ),
        [
            (
                f["finding"],
                *(_number((clear[kind] or {}).get("auroc")) for kind in ("secure", "integer", "float")),
                *(_number((clear[pair] or {}).get("difference")) for pair in ("secure_integer", "secure_float")),
                _number((clear["secure_float"] or {}).get("p")),
                _number(clear["largest_difference"], 6),
            )
            for f in report["findings"]
            if (clear := f["clear"])
        ],
    )
    exactness = report["exactness"]
    if exactness is not None:
        verdict = "bit-exact to the integer network" if exactness["exact"] else "NOT bit-exact"
        click.echo(f"outputs: {verdict} ({exactness['exact_images']} of {exactness['images']} images)\n")


def _number(value: float | None, digits: int = 4) -> str:
    return "undefined" if value is None else f"{value:.{digits}f}"


def _interval(finding: dict[str, Any]) -> str:
    if finding["interval"] is None:
        return finding["reason"] or "undefined"
    low, high = finding["interval"]
    return f"{low:.4f} to {high:.4f}"


def _phase(cost: dict[str, Any], images: int) -> str:
    each = ""
    if images:
        each = f" ({output.duration(cost['seconds'] / images)} and {output.size(cost['bytes'] / images)} an image)"
    return f"{output.duration(cost['seconds'])}, {output.size(cost['bytes'])}{each}"
