"""Data sets: the scan's counts and reasons, the index, the commitment, and files that change later."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest

from mpcd.daemon.image import dataset, dicom, labels, phantom, recipe
from mpcd.daemon.image.dataset import DatasetError, ImageChanged

CXR = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "cxr"
RECIPE = recipe.load("imagenet-224")
SALT = bytes(32)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    phantom.write_cohort(folder, 8, 5)
    return folder


def small(folder: Path, name: str, uid: str, **options: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(0).integers(0, 256, (8, 8))
    dicom.write(folder / name, x, bits_stored=8, syntax="explicit", instance_uid=uid, **options)  # type: ignore[arg-type]
    return folder / name


def table(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def test_a_clean_cohort(cohort: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = dataset.scan(cohort / "dicom", cohort / "labels.csv", lambda done, total: seen.append((done, total)))
    assert seen == [(i, 8) for i in range(1, 9)]
    summary = found.summary()
    assert (summary["files"], summary["decodable"], summary["images"], summary["skipped"]) == (8, 8, 8, {})
    assert summary["findings"] == {name: {"n": 8, "positives": 3} for name in phantom.FINDINGS}
    assert json.loads(json.dumps(summary)) == summary
    assert [e.uid for e in found.entries] == sorted(e.uid for e in found.entries)
    image = found.load_image(found.entries[0], RECIPE)
    assert (image.shape, image.dtype) == ((3, 224, 224), np.float32)


def test_every_reason_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    small(folder / "deep", "good.dcm", "1.2.1")
    small(folder, "zz-again.dcm", "1.2.1")
    small(folder, "unlabelled", "1.2.3")
    small(folder, "unknown", "1.2.4")
    small(folder, "frames", "1.2.5", tags={"NumberOfFrames": 2})
    small(folder, "colour", "1.2.6", tags={"PhotometricInterpretation": "RGB"})
    small(folder, "cut", "1.2.7").write_bytes(small(folder, "cut", "1.2.7").read_bytes()[:-9])
    (folder / "notes.txt").write_text("not an image")
    (folder / "text.dcm").write_text("not an image either")
    (folder / "dangling").symlink_to(tmp_path / "nowhere")
    csv = table(folder, "SOPInstanceUID,Mass\n1.2.1,1\n1.2.4,-1\n1.2.99,0\n1.2.98,0\n")
    found = dataset.scan(folder, csv)
    assert found.summary() == {
        "files": 9,
        "decodable": 4,
        "images": 1,
        "labelled": 1,
        "skipped": {
            "duplicate": 1,
            "multi-frame": 1,
            "not-dicom": 2,
            "undecodable": 1,
            "unlabelled": 2,
            "unsupported-photometric-interpretation": 1,
        },
        "unmatched_labels": 2,
        "joined_by": {"uid": 2},
        "ignored_columns": [],
        "findings": {"Mass": {"n": 1, "positives": 1}},
        "commitment": found.commitment,
    }
    assert found.entries[0].path == "deep/good.dcm"
    assert found.unmatched == ("1.2.99", "1.2.98")
    details = {s.path: s.detail for s in found.skipped}
    assert "deep/good.dcm" in details["zz-again.dcm"]
    assert details["unknown"] == "every finding is unknown"
    found.check_recipe(RECIPE)
    strict = recipe.parse(RECIPE.to_toml().replace('"skip"', '"refuse"'))
    with pytest.raises(DatasetError, match="1 multi-frame files, such as frames"):
        found.check_recipe(strict)


def test_without_labels(cohort: Path) -> None:
    found = dataset.scan(cohort / "dicom", None)
    assert (len(found.entries), found.labels_file, found.findings) == (8, "", ())
    assert (found.summary()["images"], found.summary()["labelled"]) == (8, 0)
    assert found.labels_for(["Mass"])[found.entries[0].uid] == {"Mass": None}
    assert found.load_image(found.entries[0], RECIPE).shape == (3, 224, 224)


def test_nothing_usable(tmp_path: Path) -> None:
    csv = table(tmp_path, "SOPInstanceUID,Mass\n1.2.1,1\n")
    with pytest.raises(DatasetError, match="is not a folder"):
        dataset.scan(tmp_path / "none", csv)
    folder = tmp_path / "images"
    folder.mkdir()
    with pytest.raises(DatasetError, match="none of 0 files"):
        dataset.scan(folder, csv)
    (folder / "a.txt").write_text("x")
    with pytest.raises(DatasetError, match=r"none of 1 files is a usable image \(1 not-dicom\)"):
        dataset.scan(folder, csv)
    small(folder, "b", "1.2.2")
    with pytest.raises(labels.LabelError, match="match none"):
        dataset.scan(folder, csv)
    with pytest.raises(DatasetError, match="no image has a known label"):
        dataset.scan(folder, table(tmp_path, "SOPInstanceUID,Mass\n1.2.2,\n1.2.3,1\n"))


def test_progress_can_stop_the_scan(cohort: Path) -> None:
    class Stop(Exception):
        pass

    def progress(done: int, total: int) -> None:
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        dataset.scan(cohort / "dicom", cohort / "labels.csv", progress)


def test_index_is_private_and_comes_back(cohort: Path, tmp_path: Path) -> None:
    found = dataset.scan(cohort / "dicom", cohort / "labels.csv")
    path = tmp_path / "index.json"
    found.save(path)
    found.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert dataset.load(path) == found
    assert [p.name for p in tmp_path.iterdir()] == ["index.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(format=99),
        lambda d: d.pop("salt"),
        lambda d: d.update(salt="zz"),
        lambda d: d["entries"][0].update(sha256="00"),
        lambda d: d["entries"][0]["labels"].clear(),
        lambda d: d["entries"].pop(),
        lambda d: d["entries"][0].update(more=1),
        lambda d: d.update(entries=[7]),
        lambda d: d.clear(),
    ],
)
def test_damaged_index_is_refused(cohort: Path, tmp_path: Path, damage: object) -> None:
    path = tmp_path / "index.json"
    dataset.scan(cohort / "dicom", cohort / "labels.csv").save(path)
    document = json.loads(path.read_text())
    damage(document)  # type: ignore[operator]
    path.write_text(json.dumps(document))
    with pytest.raises(DatasetError, match=r"index\.json"):
        dataset.load(path)


@pytest.mark.parametrize("text", ["", "[]", "7", "{", '{"format": 1}', "\ud800".encode("utf-8", "surrogatepass")])
def test_other_files_are_no_index(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "index.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError):
        dataset.load(path)
    with pytest.raises(DatasetError, match="cannot be read"):
        dataset.load(tmp_path / "none.json")


def test_commitment_hides_and_binds(cohort: Path, tmp_path: Path) -> None:
    def scan(csv: Path, salt: bytes | None = SALT) -> dataset.Dataset:
        return dataset.scan(cohort / "dicom", csv, salt=salt)

    one = scan(cohort / "labels.csv")
    assert one.commitment == scan(cohort / "labels.csv").commitment
    assert one.commitment != one.digest
    salted = [scan(cohort / "labels.csv", None) for _ in range(2)]
    assert len({one.commitment, *(d.commitment for d in salted)}) == 3
    assert {d.digest for d in salted} == {one.digest}
    assert all(len(d.salt) == 32 for d in salted)
    rows = (cohort / "labels.csv").read_text().splitlines()
    flipped = rows[1][:-1] + ("0" if rows[1].endswith("1") else "1")
    assert scan(table(tmp_path, "\n".join([rows[0], flipped, *rows[2:]]))).commitment != one.commitment
    assert scan(table(tmp_path, "\n".join(rows[:-1]))).commitment != one.commitment
    assert scan(table(tmp_path, "\n".join([rows[0], *reversed(rows[1:])]))).commitment == one.commitment


def test_changed_or_missing_image_is_refused(tmp_path: Path) -> None:
    phantom.write_cohort(tmp_path, 2, 1)
    found = dataset.scan(tmp_path / "dicom", tmp_path / "labels.csv")
    path = tmp_path / "dicom" / found.entries[0].path
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ImageChanged, match="has changed since"):
        found.load_image(found.entries[0], RECIPE)
    path.write_bytes(data)
    found.load_image(found.entries[0], RECIPE)
    path.unlink()
    with pytest.raises(ImageChanged, match="was there when"):
        found.load_image(found.entries[0], RECIPE)


def test_labels_by_the_models_names(tmp_path: Path) -> None:
    small(tmp_path, "a.dcm", "1.2.1")
    names = ("pleural thickening", "EDEMA", "Covid")
    columns = dataset.scan(tmp_path, table(tmp_path, "File,Pleural_Thickening,Edema\na,1,\nb,0,1\n"))
    assert columns.labels_for(names) == {"1.2.1": {"pleural thickening": True, "EDEMA": None, "Covid": None}}
    assert columns.missing_findings(names) == ("Covid",)
    listed = dataset.scan(tmp_path, table(tmp_path, "File,Finding Labels\na,Pleural_Thickening\nb,Edema\n"))
    assert listed.labels_for(names) == {"1.2.1": {"pleural thickening": True, "EDEMA": False, "Covid": False}}


@pytest.mark.skipif(not CXR.is_dir(), reason="the real radiographs are not here")
def test_real_radiographs() -> None:
    found = dataset.scan(CXR / "dicom", CXR / "labels.csv")
    summary = found.summary()
    assert (summary["files"], summary["images"], summary["skipped"]) == (120, 120, {})
    assert (summary["unmatched_labels"], summary["joined_by"], len(found.findings)) == (0, {"uid": 120}, 14)
    assert found.missing_findings(["Mass", "Covid"]) == ("Covid",)
