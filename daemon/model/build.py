"""From a vendor's file to a compiled model on disk. What ``mpcctl model add`` runs in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpcd.daemon.image import recipe as recipes
from mpcd.daemon.model import artifact, floats
from mpcd.daemon.model.artifact import Artifact
from mpcd.daemon.model.calibrate import TARGET, Choice, Image, choose, integer_logits
from mpcd.daemon.model.load import load
from mpcd.daemon.model.nodes import Floats, ModelError
from mpcd.daemon.model.rewrite import rewrite
from mpcd.daemon.report.auroc import auroc

Progress = Callable[[str, int, int], None]
Labels = Sequence[Sequence[bool | None]]

MEASURED = 16  # calibration images on which float and integer are compared, where there are no labels


def compile_model(
    *,
    name: str,
    source_path: Path,
    arch: str | None,
    recipe_toml: str,
    calibration: Iterable[Image],
    findings: Sequence[str] | None,
    out_dir: Path,
    progress: Progress = lambda stage, done, total: None,
    labels: Labels | None = None,
    rings: Sequence[tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """Compile ``source_path`` (a state dict of ``arch``, or a .pt2 program) and write the artifact into ``out_dir``.

    ``calibration``: preprocessed images, float32 of the recipe's shape. ``labels``: per image and finding True, False
    or None, for the AUROC's cost. ``rings``: (k, f) to try, in order of preference. Returns the report.
    Raises ModelError, RecipeError.
    """
    recipe = recipes.parse(recipe_toml, "the recipe")
    progress("reading the model", 0, 1)
    graph = load(source_path, arch, recipe.shape, None if findings is None else len(findings))
    outputs = graph.nodes[-1].shape[0]
    names = tuple(findings) if findings is not None else tuple(f"output-{i + 1}" for i in range(outputs))
    if len(set(names)) != len(names):
        raise ModelError("two findings have the same name")
    images = list(calibration)
    if not images:
        raise ModelError("there are no calibration images", "name a folder with a few dozen typical radiographs")
    if labels is not None and [len(row) for row in labels] != [len(names)] * len(images):
        raise ModelError("the labels do not match the calibration images and findings")
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress("ranges", done, len(images))

    small = rewrite(graph)
    seen, logits = floats.ranges(small, images, tick)
    # The recipe bounds every image, not only those seen here.
    ends = [(end - m) / s for end in (recipe.low, recipe.high) for m, s in zip(recipe.mean, recipe.std, strict=True)]
    seen[0].low[:], seen[0].high[:] = min(*seen[0].low, *ends), max(*seen[0].high, *ends)
    options: dict[str, Any] = {} if rings is None else {"rings": rings}
    choice = choose(
        small, seen, images, logits, name=name, findings=names,
        progress=lambda at, total: progress("choosing the ring", at, total), **options,
    )  # fmt: skip
    measured = len(images) if labels is not None else min(MEASURED, len(images))
    network, numbers = choice.compiled.network, choice.compiled.numbers
    integer = np.zeros((measured, outputs))
    for i in range(measured):
        integer[i] = integer_logits(network, numbers, images[i])
        progress("float against integer", i + 1, measured)
    report = _report(name, arch, choice, logits[:measured], integer, names, labels)
    report.update(
        recipe={"name": recipe.name, "digest": recipe.digest},
        network_digest=network.digest,
        calibration_images=len(images),
        torch=torch.__version__,
    )
    artifact.save(out_dir, Artifact(network, numbers, recipe, report))
    floats.save(graph, out_dir / artifact.FLOAT)
    return report


def _report(
    name: str,
    arch: str | None,
    choice: Choice,
    logits: Floats,
    integer: Floats,
    findings: tuple[str, ...],
    labels: Labels | None,
) -> dict[str, Any]:
    difference = np.abs(integer - logits)
    worst = float(difference.max())
    report: dict[str, Any] = {
        "name": name,
        "arch": arch,
        "findings": list(findings),
        "bits": choice.bits,
        "fraction": choice.fraction,
        "wide_bits": choice.bits + choice.fraction,
        "rings_tried": [
            {"bits": k, "fraction": f, "logit_difference": worst} for (k, f), worst in choice.tried.items()
        ],
        "measured_images": len(integer),
        "logit_difference": {"largest": worst, "mean": float(difference.mean()), "target": TARGET},
        "operations": len(choice.compiled.network.ops),
        "layers": choice.compiled.layers,
        "auroc": None,
        "warnings": [],
    }
    if worst > TARGET:
        report["warnings"].append(
            f"integer and float logits differ by up to {worst:.3g}, more than the {TARGET} aimed at: "
            "the model's layers differ much in size, or there are too few calibration images"
        )
    if labels is not None:
        report["auroc"] = [
            {"finding": finding, **_auroc_cost(logits[:, i], integer[:, i], [row[i] for row in labels])}
            for i, finding in enumerate(findings)
        ]
    return report


def _auroc_cost(logits: Floats, integer: Floats, known: list[bool | None]) -> dict[str, Any]:
    used = [i for i, value in enumerate(known) if value is not None]
    if not used:
        return {"n": 0, "positives": 0, "float": None, "integer": None, "difference": None}
    truth = [bool(known[i]) for i in used]
    clear, whole = auroc(logits[used], truth), auroc(integer[used], truth)
    both = clear.auroc is not None and whole.auroc is not None
    return {
        "n": clear.n,
        "positives": clear.positives,
        "float": clear.auroc,
        "integer": whole.auroc,
        "difference": (whole.auroc or 0.0) - (clear.auroc or 0.0) if both else None,
    }
