"""A session from proposal to report, by mpcctl --json alone."""

from __future__ import annotations

import csv
import json
import math
import stat
from pathlib import Path

import pytest

from tests.system.two_parties import VENDOR, Pair

FINDINGS = ["Cardiomegaly", "Effusion", "Mass"]


@pytest.fixture(scope="module")
def session(pair: Pair) -> dict:
    """Two images with units made ahead, two more within the session."""
    made = pair.hospital.ctl("offline", "make", "--peer", VENDOR, "--model", "small", "--images", "2")
    assert (made["made"], made["ready"]) == (2, 2)
    assert made["bytes"] > 0
    return pair.run("small", "site", 4)


@pytest.fixture(scope="module")
def clear(pair: Pair, cohort: Path) -> Path:
    return pair.evaluate("small", cohort / "dicom")


def test_the_data_owner_s_view(pair: Pair, session: dict) -> None:
    assert (session["role"], session["state"], session["done"], session["attempts"]) == ("data-owner", "done", 4, 4)
    assert (session["peer"], session["model"], session["dataset"]) == ("vendor", "small", "site")
    assert session["approved_by"] == "operator"
    assert session["created"] <= session["started"] <= session["finished"]
    for phase in ("offline", "online"):
        assert session[phase]["seconds"] > 0
        assert session[phase]["bytes"] > 0
    offered = pair.hospital.ctl("model", "list", "--peer", "vendor")["models"][0]
    assert offered["commitment"] == session["model_commitment"]
    assert offered["network_digest"] == session["network_digest"]
    assert pair.hospital.ctl("dataset", "show", "site")["dataset"]["commitment"] == session["dataset_commitment"]


def test_both_sides_agree_and_the_vendor_learns_no_score(pair: Pair, session: dict) -> None:
    theirs = pair.vendor.ctl("session", "show", session["id"])["session"]
    assert (theirs["role"], theirs["state"], theirs["done"], theirs["attempts"]) == ("model-owner", "done", 4, 4)
    same = (
        "id", "model", "images", "reveal", "model_commitment", "dataset_commitment", "network_digest", "recipe_digest",
    )  # fmt: skip
    assert {key: theirs[key] for key in same} == {key: session[key] for key in same}
    assert theirs["dataset"] is None, "what the hospital calls its data is its own business"
    assert (theirs["software"], theirs["peer_software"]) == (session["peer_software"], session["software"])
    assert pair.vendor.records("SELECT count(*) FROM image WHERE logits IS NOT NULL") == [(0,)]
    assert pair.hospital.records("SELECT count(*) FROM image WHERE logits IS NOT NULL") == [(4,)]
    refusal = pair.vendor.refused(5, "conflict", "report", session["id"])
    assert "hospital" in refusal


def test_report(pair: Pair, session: dict, clear: Path, cohort: Path) -> None:
    report = pair.report(session["id"], clear)
    assert report["images"] == 4
    assert [f["finding"] for f in report["findings"]] == FINDINGS
    with (cohort / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    evaluation = json.loads(clear.read_text())
    for column, finding in enumerate(report["findings"]):
        truth = {row["SOPInstanceUID"]: row[finding["finding"]] == "1" for row in rows}
        assert (finding["n"], finding["positives"]) == (4, sum(truth.values()))
        scores = {uid: evaluation[uid]["integer"][column] for uid in truth}
        pairs = [(scores[p], scores[n]) for p in truth if truth[p] for n in truth if not truth[n]]
        auroc = sum((p > n) + (p == n) / 2 for p, n in pairs) / len(pairs)
        assert math.isclose(finding["auroc"], auroc)
        low, high = finding["interval"] or (0.0, 1.0)
        assert 0 <= low <= auroc <= high <= 1
        shown = finding["clear"]
        assert shown["secure"]["auroc"] == shown["integer"]["auroc"] == finding["auroc"]
        assert shown["secure_integer"]["difference"] == 0
        worst = max(abs(v["logits"][column] - v["float"][column]) for v in evaluation.values())
        assert math.isclose(shown["largest_difference"], worst, rel_tol=1e-9, abs_tol=1e-12)
    assert 0 < report["largest_logit_difference"] < 0.05
    # The units made ahead count as well.
    assert report["phases"]["offline"]["bytes"] > session["offline"]["bytes"] > 0
    assert report["phases"]["online"] == session["online"]
    assert report["commitments"] == {"model": session["model_commitment"], "dataset": session["dataset_commitment"]}
    assert report["digests"]["recipe"] == session["recipe_digest"]
    assert [(a["party"], a["by"]) for a in report["approvals"]] == [("hospital", "operator"), ("vendor", "operator")]
    assert session["created"] <= session["approved"] <= session["started"]


def test_exactness_can_fail(pair: Pair, session: dict, clear: Path, tmp_path: Path) -> None:
    """One integer that is off by one is seen."""
    evaluation = json.loads(clear.read_text())
    uid = sorted(evaluation)[1]
    evaluation[uid]["integer"][2] += 1
    (tmp_path / "off.json").write_text(json.dumps(evaluation))
    exactness = pair.hospital.ctl("report", session["id"], "--clear", tmp_path / "off.json")["report"]["exactness"]
    assert not exactness["exact"]
    assert (exactness["different"], exactness["exact_images"], exactness["largest_difference"]) == ([uid], 3, 1)


def test_the_report_without_clear_results_and_on_paper(pair: Pair, session: dict, tmp_path: Path) -> None:
    report = pair.hospital.ctl("report", session["id"][:8], "--out", tmp_path / "report.json")["report"]
    assert report["exactness"] is None
    assert json.loads((tmp_path / "report.json").read_text()) == report
    shown = pair.hospital.mpcctl("report", session["id"])
    out, _ = shown.communicate(timeout=60)
    assert shown.returncode == 0
    for text in (*FINDINGS, session["model_commitment"], "95 % interval"):
        assert text in out


def test_ledgers(pair: Pair, session: dict) -> None:
    pair.audit(session["id"], done=4, most_spent=4)
    for party in pair.both:
        (units,) = party.ctl("offline", "status", "--model", "small")["units"]
        assert {k: units[k] for k in ("ready", "making", "spent", "burnt", "disk_bytes")} == {
            "ready": 0, "making": 0, "spent": 4, "burnt": 0, "disk_bytes": 0,
        }  # fmt: skip
        assert list((party.state / "units").iterdir()) == [], "what was used is gone from the disk"


def test_secrets_are_private(pair: Pair, session: dict) -> None:
    for party in pair.both:
        assert stat.S_IMODE((party.state / "run" / "control.sock").stat().st_mode) == 0o600
        for file in (f for f in party.state.rglob("*") if f.is_file() and f.name != "mpcd.toml"):
            assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, f"{file} can be read by others"
