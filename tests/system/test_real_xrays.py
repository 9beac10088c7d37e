"""A trained DenseNet-121 on real radiographs, where they are: the issue's numbers, by the public commands."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mpcd.daemon.report.auroc import auroc
from tests.system.two_parties import VENDOR, Pair, Party

DATA = (Path(__file__).parents[2] / "../shared/data/cxr").resolve()
CLASSES = DATA / "model.json"
CALIBRATION, SESSION = 24, 1
GIB = 1 << 30

pytestmark = [
    pytest.mark.skipif(not DATA.is_dir(), reason="the radiographs are not here"),
    pytest.mark.timeout(3600),
]


@pytest.fixture(scope="module")
def findings() -> list[str]:
    return list(json.loads(CLASSES.read_text())["classes"])


@pytest.fixture(scope="module")
def pair(
    make_pair: Callable[..., Pair], findings: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """The model at the vendor, its scales chosen on a fifth of the radiographs; all of them at the hospital."""
    pytest.importorskip("torch")
    pair = make_pair("real")
    some = tmp_path_factory.mktemp("calibration")
    for file in sorted((DATA / "dicom").iterdir())[::5][:CALIBRATION]:
        (some / file.name).symlink_to(file)
    pair.vendor.ctl(
        "model", "add", DATA / "densenet121.safetensors", "--name", "chexnet", "--arch", "densenet121",
        "--recipe", "imagenet-224", "--calibrate", some, "--findings", ",".join(findings),
    )  # fmt: skip
    pair.hospital.ctl("dataset", "add", DATA / "dicom", "--labels", DATA / "labels.csv", "--name", "nih")
    yield pair
    assert pair.stop() == [0, 0]


def test_integer_against_float(pair: Pair, findings: list[str]) -> None:
    """On all 120: no finding's AUROC differs by more than 0.005, no logit by more than 0.05."""
    evaluation = json.loads(pair.evaluate("chexnet", DATA / "dicom").read_text())
    assert len(evaluation) == 120
    with (DATA / "labels.csv").open() as file:
        labels = {r["SOPInstanceUID"]: set(r["Finding Labels"].split("|")) for r in csv.DictReader(file)}
    kinds = {k: np.array([v[k] for v in evaluation.values()]) for k in ("float", "logits")}
    assert kinds["float"].shape == kinds["logits"].shape == (120, 15)
    assert 0 < np.abs(kinds["float"] - kinds["logits"]).max() <= 0.05
    defined = 0
    for column, finding in enumerate(findings):
        truth = [finding in labels[uid] for uid in evaluation]
        whole, clear = (auroc(kinds[k][:, column], truth).auroc for k in ("logits", "float"))
        if any(truth):
            defined += 1
            assert whole is not None
            assert clear is not None
            assert abs(whole - clear) <= 0.005, finding
        else:
            assert whole is None
    assert defined == 14
    assert np.std(kinds["logits"], axis=0).min() > 0.01, "the network says something of the images"


def test_session(pair: Pair, findings: list[str], tmp_path: Path) -> None:
    """Fifteen outputs an image, bit for bit; less than 4 GB a party; cost told before it begins."""
    estimate = pair.hospital.ctl(
        "session", "start", "--peer", VENDOR, "--model", "chexnet", "--dataset", "nih", "--images", str(SESSION),
        "--estimate",
    )["estimate"]  # fmt: skip
    assert estimate["missing"] == SESSION
    for key in ("offline_bytes", "online_bytes", "disk_bytes", "peer_disk_bytes", "memory_bytes", "seconds"):
        assert estimate[key] > 0
    session = pair.run("chexnet", "nih", SESSION)
    assert 0.5 < session["offline"]["bytes"] / estimate["offline_bytes"] < 2
    assert 0.5 < session["online"]["bytes"] / estimate["online_bytes"] < 2
    peaks = {party.name: peak(party) for party in pair.both}
    print(f"peak memory: { {name: f'{size / GIB:.2f} GiB' for name, size in peaks.items()} }, {session}")
    assert max(peaks.values()) < 4e9
    # Clear results of the images of the session only: a data set's images go in the order of their UIDs.
    with (DATA / "labels.csv").open() as file:
        names = {row["SOPInstanceUID"]: Path(row["Image Index"]).stem for row in csv.DictReader(file)}
    done = sorted(names)[:SESSION]
    for uid in done:
        (tmp_path / f"{names[uid]}.dcm").symlink_to(DATA / "dicom" / f"{names[uid]}.dcm")
    report = pair.report(session["id"], pair.evaluate("chexnet", tmp_path))
    assert report["images"] == SESSION
    assert [f["finding"] for f in report["findings"]] == findings
    covid = next(f for f in report["findings"] if f["finding"] == "Covid")
    assert (covid["auroc"], covid["positives"], covid["n"]) == (None, 0, SESSION)
    assert covid["reason"]
    assert report["largest_logit_difference"] <= 0.05
    pair.audit(session["id"], SESSION, SESSION)
    shown = pair.hospital.mpcctl("report", session["id"])
    out, _ = shown.communicate(timeout=60)
    assert shown.returncode == 0
    assert "Covid" in out


def peak(party: Party) -> int:
    """The most memory the daemon ever had, in bytes."""
    assert party.process is not None
    with open(f"/proc/{party.process.pid}/status") as file:
        (line,) = (line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
