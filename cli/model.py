"""mpcctl model add | list | show | evaluate | remove."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mpcd.cli import options, output
from mpcd.cli.commitment import write_opening

EXISTING = click.Path(exists=True, path_type=Path)


@click.group()
def model() -> None:
    """Models to validate (the model owner's side)."""


@model.command()
@click.argument("path", type=EXISTING)
@click.option("--name", help="Default: the file's name without its ending.")
@click.option("--arch", help="densenet121, resnet18, ...: needed for a state dict, not for a .pt2 program.")
@click.option("--recipe", required=True, help="Image preprocessing: imagenet-224, xrv-224, or a TOML file.")
@click.option("--calibrate", required=True, type=EXISTING, help="Folder of DICOM images that scales are chosen on.")
@click.option("--labels", type=EXISTING, help="Their labels (CSV): the AUROC cost of integers is shown too.")
@click.option("--findings", help="The outputs' names, comma-separated, in order.")
@options.common
def add(
    session: output.Session,
    path: Path,
    name: str | None,
    arch: str | None,
    recipe: str,
    calibrate: Path,
    labels: Path | None,
    findings: str | None,
) -> None:
    """Compile the model at PATH (.safetensors, .pt, .pt2) to an integer network and keep it for sessions."""
    result = session.call(
        "model.add",
        name=name or path.stem,
        path=str(path.resolve()),
        arch=arch,
        recipe=str(Path(recipe).resolve()) if recipe.endswith(".toml") else recipe,
        calibrate=str(calibrate.resolve()),
        labels=None if labels is None else str(labels.resolve()),
        findings=[f.strip() for f in findings.split(",")] if findings else None,
    )
    session.show(result, lambda result: _render_model(result["model"], result["report"], None))


@model.command("list")
@click.option("--peer", help="What this peer offers, instead of ours.")
@options.common
def list_models(session: output.Session, peer: str | None) -> None:
    """Our models, or a peer's."""

    def render(result: dict[str, Any]) -> None:
        output.table(
            ("name", "findings", "input", "ring", "operations", "comparisons", "commitment"),
            [
                (
                    m["name"],
                    len(m["findings"]),
                    "x".join(str(n) for n in m["input_shape"]),
                    f"2^{m['ring']['wide']}",
                    m["operations"],
                    m["comparisons"],
                    output.short(m["commitment"]),
                )
                for m in result["models"]
            ],
            "no models",
        )

    session.show(session.call("model.list", peer=peer), render)


@model.command()
@click.argument("name")
@click.option("--peer", help="A model this peer offers.")
@options.common
def show(session: output.Session, name: str, peer: str | None) -> None:
    """A model's recipe, rings, costs an image and, if it is ours, each layer's range, width and headroom."""
    result = session.call("model.show", name=name, peer=peer)
    session.show(result, lambda result: _render_model(result["model"], result["report"], result["estimate"]))


@model.command()
@click.argument("name")
@click.option("--images", "dataset_path", required=True, type=EXISTING, help="A folder of DICOM.")
@click.option("--labels", type=EXISTING, help="Their labels (CSV).")
@click.option("--out", type=click.Path(path_type=Path), help="Write the evaluation here, for `mpcctl report --clear`.")
@options.common
def evaluate(session: output.Session, name: str, dataset_path: Path, labels: Path | None, out: Path | None) -> None:
    """Run our model in the clear, in floats and in integers, on our own images."""
    result = session.call(
        "model.evaluate",
        name=name,
        dataset_path=str(dataset_path.resolve()),
        labels=None if labels is None else str(labels.resolve()),
    )
    if out is not None:
        out.write_text(json.dumps(result["evaluation"], indent=1) + "\n")

    def render(result: dict[str, Any]) -> None:
        click.echo(f"evaluated; {'written to ' + str(out) if out else 'see --out or --json for the numbers'}")

    session.show(result, render)


@model.command()
@click.argument("name")
@options.common
def remove(session: output.Session, name: str) -> None:
    """Forget a model and the correlations made for it."""
    session.show(session.call("model.remove", name=name), lambda r: click.echo(f"removed {r['model']['name']}"))


@model.command("open")
@click.argument("name")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new file.")
@options.common
def open_commitment(session: output.Session, name: str, out: Path) -> None:
    """Write what opens a model's commitment, for an auditor: salt, and digests of the parts. Never sent to a peer."""
    write_opening(session, "model.open", name, out)


def _render_model(shown: dict[str, Any], report: dict[str, Any] | None, estimate: dict[str, Any] | None) -> None:
    ring = shown["ring"]
    output.facts(
        [
            ("name", shown["name"]),
            ("findings", ", ".join(shown["findings"])),
            ("input", "x".join(str(n) for n in shown["input_shape"])),
            ("ring", f"{ring['activation']} bits an activation, {ring['fraction']} truncated, 2^{ring['wide']} in all"),
            ("comparisons", f"{shown['comparisons']:,} an image"),
            ("commitment", shown["commitment"]),
            ("network digest", shown["network_digest"]),
            ("recipe digest", shown["recipe_digest"]),
        ]
    )
    if estimate is not None:
        click.echo(
            f"\nan image costs {output.size(estimate['offline_bytes'])} offline and "
            f"{output.size(estimate['online_bytes'])} online, and until it is used "
            f"{output.size(estimate['disk_bytes'])} of disk here and {output.size(estimate['peer_disk_bytes'])} there"
        )
        click.echo(
            f"answers tell weights apart with a distance of at most 2^-{estimate['flooding_bits_image']:.1f} an image"
            f" (2^-{estimate['flooding_bits_coefficient']:.1f} a coefficient)"
        )
    if report is None:
        return
    layers = report.get("layers", [])
    if layers:
        keys = [key for key, value in layers[0].items() if not isinstance(value, (list, dict))]
        output.table(keys, [[_cell(layer.get(key)) for key in keys] for layer in layers])
    output.facts((key, _cell(value)) for key, value in report.items() if not isinstance(value, (list, dict)))


def _cell(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
