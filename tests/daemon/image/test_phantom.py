"""Phantoms: deterministic, readable, and showing their findings."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from mpcd.daemon.image import dicom, phantom

NONE = dict.fromkeys(phantom.FINDINGS, False)


def test_same_seed_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        phantom.write_cohort(tmp_path / name, 3, 7)
    phantom.write_cohort(tmp_path / "c", 3, 8)
    files = {name: [p.read_bytes() for p in sorted((tmp_path / name / "dicom").iterdir())] for name in ("a", "b", "c")}
    assert files["a"] == files["b"]
    assert not set(files["a"]) & set(files["c"])
    assert (tmp_path / "a" / "labels.csv").read_bytes() == (tmp_path / "b" / "labels.csv").read_bytes()


def test_every_variant_reads_back_to_its_drawing(tmp_path: Path) -> None:
    count = len(phantom.VARIANTS)
    phantom.write_cohort(tmp_path, count, 2)
    known = phantom.labels(count, 2)
    names = set()
    for index, (_, photometric, bits, modality) in enumerate(phantom.VARIANTS):
        image = dicom.read(tmp_path / "dicom" / f"phantom-{index:04d}.dcm")
        assert (image.photometric, image.bits_stored, image.modality) == (photometric, bits, modality)
        drawn = np.rint(phantom.draw(2, index, known[index]) * ((1 << bits) - 1)) / ((1 << bits) - 1)
        assert np.allclose(image.pixels, drawn, atol=1e-12)
        names.add(image.transfer_syntax)
    assert len(names) == 6
    rows = list(csv.DictReader((tmp_path / "labels.csv").open()))
    assert [{f: row[f] == "1" for f in phantom.FINDINGS} for row in rows] == known


@pytest.mark.parametrize("images", [2, 3, 4, 8, 25])
def test_both_classes_of_every_finding(images: int) -> None:
    known = phantom.labels(images, 3)
    for finding in phantom.FINDINGS:
        positives = sum(row[finding] for row in known)
        assert 0 < positives < images
        assert abs(positives - phantom.PREVALENCE * images) <= 1


def test_one_image() -> None:
    assert phantom.labels(1, 0) == [NONE]


@pytest.mark.parametrize("finding", phantom.FINDINGS)
def test_a_finding_makes_the_chest_whiter(finding: str) -> None:
    for index in range(6):
        healthy, ill = (phantom.draw(1, index, NONE | {finding: value}) for value in (False, True))
        assert healthy.shape == ill.shape
        assert healthy.min() >= 0
        assert ill.max() <= 1
        assert ill.mean() - healthy.mean() > 0.003
        # The same noise on both: nothing but the finding differs.
        assert (np.abs(ill - healthy) > 0.01).mean() < 0.4


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert phantom.main([str(tmp_path), "--images", "2", "--seed", "4"]) == 0
    assert "2 of 2" in capsys.readouterr().err
    assert len(list((tmp_path / "dicom").iterdir())) == 2
    with pytest.raises(SystemExit):
        phantom.main([str(tmp_path), "--images", "0"])
