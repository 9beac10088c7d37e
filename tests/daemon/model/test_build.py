"""From a file to an artifact, its report, and the evaluation beside a secure run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mpcd.daemon.image import recipe as recipes
from mpcd.daemon.image.preprocess import quantise
from mpcd.daemon.model import artifact
from mpcd.daemon.model.build import compile_model
from mpcd.daemon.model.evaluate import evaluate
from mpcd.daemon.model.nodes import ModelError
from mpcd.protocol import oracle

RECIPE = dataclasses.replace(recipes.load("imagenet-224"), name="small", size=32)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return exported(tmp_path, 1.0)


@pytest.fixture
def demanding(tmp_path: Path) -> Path:
    """The same with logits so large that a small ring shows."""
    return exported(tmp_path, 100.0)


def exported(folder: Path, gain: float) -> Path:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[-1].weight.mul_(gain)
    path = folder / "model.pt2"
    torch.export.save(torch.export.export(model, (torch.zeros(1, *RECIPE.shape),)), path)
    return path


@pytest.fixture
def images() -> list[Any]:
    mean, std = (np.array(v)[:, None, None] for v in (RECIPE.mean, RECIPE.std))
    grey = np.random.default_rng(0).uniform(size=(12, 1, 32, 32))
    return list(((grey - mean) / std).astype(np.float32))


def test_compile_and_evaluate(tmp_path: Path, source: Path, images: list[Any]) -> None:
    heard: list[tuple[str, int, int]] = []
    labels = [[i % 2 == 0, None] for i in range(8)]
    report = compile_model(
        name="m", source_path=source, arch=None, recipe_toml=RECIPE.to_toml(), calibration=iter(images[:8]),
        findings=["A", "B"], out_dir=tmp_path / "out", progress=lambda *step: heard.append(step), labels=labels,
    )  # fmt: skip
    assert json.loads((tmp_path / "out/report.json").read_text()) == report
    assert report["wide_bits"] == report["bits"] + report["fraction"]
    assert report["logit_difference"]["largest"] <= 0.01
    assert report["auroc"][0]["n"] == 8
    assert abs(report["auroc"][0]["difference"]) <= 0.1
    assert report["auroc"][1] == {
        "finding": "B", "n": 0, "positives": 0, "float": None, "integer": None, "difference": None,
    }  # fmt: skip
    assert {stage for stage, _, _ in heard} == {
        "reading the model", "ranges", "choosing the ring", "float against integer",
    }  # fmt: skip
    assert all(0 <= done <= total for _, done, total in heard)
    assert {f.stat().st_mode & 0o777 for f in (tmp_path / "out").iterdir()} == {0o600}

    made = artifact.load(tmp_path / "out")
    assert made.recipe == RECIPE
    assert made.network.findings == ("A", "B")
    evaluation = evaluate(tmp_path / "out", [(f"1.2.{i}", image) for i, image in enumerate(images[8:])])
    assert json.loads(json.dumps(evaluation)) == evaluation
    for i, image in enumerate(images[8:]):
        row = evaluation[f"1.2.{i}"]
        pixels, saturated = quantise(image, made.network.input_scale, 48)
        assert saturated == 0
        assert row["integer"] == oracle.run(made.network, made.numbers, pixels).tolist()
        assert row["logits"] == [v / made.network.output_scale for v in row["integer"]]
        assert np.abs(np.array(row["float"]) - row["logits"]).max() < 0.01


def test_every_image_of_the_recipe_fits_the_input(tmp_path: Path, source: Path, images: list[Any]) -> None:
    """Calibrated on dim images only; white ones still have two bits of headroom."""
    dim = [image * 0.01 for image in images]
    compile_model(
        name="m", source_path=source, arch=None, recipe_toml=RECIPE.to_toml(), calibration=dim, findings=None,
        out_dir=tmp_path / "out",
    )  # fmt: skip
    made = artifact.load(tmp_path / "out")
    bits = made.report["bits"]
    assert made.network.findings == ("output-1", "output-2")
    brightest = max((1 - m) / s for m, s in zip(RECIPE.mean, RECIPE.std, strict=True))
    assert brightest * made.network.input_scale <= 2 ** (bits - 3)


def test_a_ring_too_small_is_reported(tmp_path: Path, demanding: Path, images: list[Any]) -> None:
    report = compile_model(
        name="m", source_path=demanding, arch=None, recipe_toml=RECIPE.to_toml(), calibration=images,
        findings=["A", "B"], out_dir=tmp_path / "out", rings=[(9, 8)],
    )  # fmt: skip
    assert (report["bits"], report["fraction"]) == (9, 8)
    assert "more than the 0.01 aimed at" in report["warnings"][0]


def test_the_best_ring_is_kept_when_none_is_good_enough(tmp_path: Path, demanding: Path, images: list[Any]) -> None:
    report = compile_model(
        name="m", source_path=demanding, arch=None, recipe_toml=RECIPE.to_toml(), calibration=images,
        findings=["A", "B"], out_dir=tmp_path / "out", rings=[(9, 4), (7, 8), (9, 9), (5, 8)],
    )  # fmt: skip
    tried = {(r["bits"], r["fraction"]): r["logit_difference"] for r in report["rings_tried"]}
    assert list(tried) == [(7, 8), (9, 9), (5, 8)]  # (9, 4) cannot hold the mean of 169 pixels
    assert min(tried.values()) > 0.01
    assert (report["bits"], report["fraction"]) == min(tried, key=lambda ring: tried[ring])


def test_no_ring_at_all(tmp_path: Path, source: Path, images: list[Any]) -> None:
    with pytest.raises(ModelError, match="169 pixels"):
        compile_model(
            name="m", source_path=source, arch=None, recipe_toml=RECIPE.to_toml(), calibration=images,
            findings=["A", "B"], out_dir=tmp_path / "out", rings=[(9, 4)],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calibration": []}, "no calibration images"),
        ({"calibration": [np.zeros((1, 32, 32), np.float32)]}, "an image is"),
        ({"calibration": [np.full((3, 32, 32), np.nan, np.float32)]}, "not finite"),
        ({"findings": ["A"]}, "2 outputs, but 1 findings"),
        ({"findings": ["A", "A"]}, "same name"),
        ({"labels": [[True, True]]}, "labels do not match"),
        ({"recipe_toml": recipes.load("imagenet-224").to_toml()}, "takes images of"),
    ],
)
def test_refusals(tmp_path: Path, source: Path, images: list[Any], change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "name": "m", "source_path": source, "arch": None, "recipe_toml": RECIPE.to_toml(),
        "calibration": images, "findings": ["A", "B"], "out_dir": tmp_path / "out",
    }  # fmt: skip
    with pytest.raises(ModelError, match=message):
        compile_model(**{**arguments, **change})
    assert not (tmp_path / "out").exists()
