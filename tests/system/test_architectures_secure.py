"""Other networks through the same path, bit for bit: a ResNet-18 from a state dict, a VGG-like one from a .pt2 file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.two_parties import Pair

pytest.importorskip("torch")
pytest.importorskip("safetensors")

from tests.system import small_models


@pytest.fixture(scope="module")
def pair(make_pair: Callable[..., Pair], cohort: Path) -> Pair:
    pair = make_pair("architectures")
    pair.hospital.ctl("dataset", "add", cohort / "dicom", "--labels", cohort / "labels.csv", "--name", "site")
    return pair


def exact_on(pair: Pair, model: str, cohort: Path, images: int) -> dict:
    session = pair.run(model, "site", images)
    report = pair.report(session["id"], pair.evaluate(model, cohort / "dicom"))
    pair.audit(session["id"], images, images)
    return report


def test_resnet18(pair: Pair, cohort: Path, tmp_path: Path) -> None:
    weights = small_models.save_weights(small_models.resnet18(2, 64), tmp_path / "resnet.safetensors")
    recipe = small_models.write_recipe(tmp_path / "r64.toml", 64, 3)
    added = pair.vendor.ctl(
        "model", "add", weights, "--arch", "resnet18", "--recipe", recipe, "--calibrate", cohort / "dicom",
        "--findings", "Cardiomegaly,Mass",
    )  # fmt: skip
    assert added["model"]["input_shape"] == [3, 64, 64]
    assert added["report"]["arch"] == "resnet18"
    report = exact_on(pair, "resnet", cohort, 1)
    assert [f["finding"] for f in report["findings"]] == ["Cardiomegaly", "Mass"]


def test_vgg(pair: Pair, cohort: Path, tmp_path: Path) -> None:
    program = small_models.export(small_models.small_vgg(4, 3, 48), tmp_path / "vgg.pt2", 3, 48)
    recipe = small_models.write_recipe(tmp_path / "v48.toml", 48, 3)
    added = pair.vendor.ctl("model", "add", program, "--recipe", recipe, "--calibrate", cohort / "dicom")
    assert added["model"]["findings"] == ["output-1", "output-2", "output-3", "output-4"]
    report = exact_on(pair, "vgg", cohort, 2)
    assert {f["auroc"] for f in report["findings"]} == {None}, "the labels know none of these findings"
    assert all(f["reason"] for f in report["findings"])
