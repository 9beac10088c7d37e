"""The report's content and its refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mpcd.daemon.report.report import ReportError, build

FINDINGS = ("Cardiomegaly", "Mass", "Covid")
SECURE = {
    "1.1": [4096, -100, 5],
    "1.2": [-4096, 300, 6],
    "1.3": [2048, 200, 7],
    "1.4": [-2048, -50, 8],
    "1.5": [0, 0, 0],
}
LABELS: dict[str, dict[str, bool | None]] = {
    "1.1": {"Cardiomegaly": True, "Mass": False, "Covid": False},
    "1.2": {"Cardiomegaly": False, "Mass": True, "Covid": False},
    "1.3": {"Cardiomegaly": True, "Mass": None, "Covid": False},
    "1.4": {"Cardiomegaly": False, "Covid": False},
}


def report(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "session": {"id": "s1", "reveal": "scores"},
        "findings": FINDINGS,
        "secure": SECURE,
        "output_scale": 4096.0,
        "labels": LABELS,
        "phases": {"offline": {"seconds": 1.5, "bytes": 10}},
        "commitments": {"model": "aa", "dataset": "bb"},
        "digests": {"recipe": "cc", "network": "dd", "software": "ee"},
        "approvals": [{"party": "vendor", "by": "policy"}],
    }
    arguments.update(changes)
    out = build(**arguments)
    assert json.loads(json.dumps(out, allow_nan=False)) == out
    return out


def clear() -> dict[str, dict[str, list[float]]]:
    return {
        uid: {"integer": list(row), "float": [v / 4096 + 0.001 * (i + 1) for i, v in enumerate(row)]}
        for uid, row in SECURE.items()
    }


def test_per_finding() -> None:
    out = report()
    heart, mass, covid = out["findings"]
    assert (heart["n"], heart["positives"], heart["auroc"], heart["reason"]) == (4, 2, 1.0, None)
    assert (mass["n"], mass["positives"], mass["auroc"], mass["interval"]) == (2, 1, 1.0, None)
    assert (covid["n"], covid["auroc"], covid["reason"]) == (4, None, "all 4 images are negative")
    assert out["images"] == 5
    assert out["exactness"] is None
    assert out["largest_logit_difference"] is None
    assert heart["clear"] is None


def test_keys_are_stable() -> None:
    out = report(clear=clear())
    assert list(out) == [
        "format", "confidence", "method", "session", "images", "findings", "exactness", "largest_logit_difference",
        "phases", "commitments", "digests", "approvals",
    ]  # fmt: skip
    assert set(out["findings"][0]) == {"finding", "n", "positives", "auroc", "interval", "reason", "withheld", "clear"}
    assert set(out["findings"][0]["clear"]) == {
        "n", "positives", "secure", "integer", "float", "secure_integer", "secure_float", "largest_difference",
    }  # fmt: skip
    assert out["session"] == {"id": "s1", "reveal": "scores"}
    assert out["approvals"] == [{"party": "vendor", "by": "policy"}]
    assert out["phases"]["offline"] == {"seconds": 1.5, "bytes": 10}


def test_exact_beside_clear() -> None:
    out = report(clear=clear())
    assert out["exactness"] == {
        "images": 5,
        "exact_images": 5,
        "different": [],
        "largest_difference": 0,
        "exact": True,
    }
    assert out["largest_logit_difference"] == pytest.approx(0.003)
    heart = out["findings"][0]["clear"]
    assert heart["secure_integer"]["p"] == 1.0
    assert heart["largest_difference"] == pytest.approx(0.001)


def test_one_bit_off_is_seen() -> None:
    other = clear()
    other["1.3"]["integer"][1] += 1
    out = report(clear=other)
    assert out["exactness"]["exact"] is False
    assert out["exactness"]["different"] == ["1.3"]
    assert (out["exactness"]["exact_images"], out["exactness"]["largest_difference"]) == (4, 1)


def test_clear_results_of_some_images_only() -> None:
    some = {uid: row for uid, row in clear().items() if uid in ("1.1", "1.2")} | {"9.9": {"integer": [0, 0, 0]}}
    out = report(clear=some)
    assert out["exactness"]["images"] == 2
    assert out["findings"][0]["n"] == 4
    assert out["findings"][0]["clear"]["n"] == 2
    assert out["findings"][0]["clear"]["secure"]["auroc"] == 1.0


def test_only_float_results() -> None:
    out = report(clear={uid: {"float": row["float"]} for uid, row in clear().items()})
    assert out["exactness"] is None
    assert out["findings"][0]["clear"]["integer"] is None
    assert out["findings"][0]["clear"]["secure_integer"] is None
    assert out["findings"][0]["clear"]["secure_float"]["difference"] == 0.0


def test_no_images_at_all() -> None:
    out = report(secure={})
    assert out["images"] == 0
    assert out["findings"][0]["reason"] == "no image has a known label"


def test_input_is_not_changed() -> None:
    session = {"id": "s1"}
    report(session=session)["session"]["id"] = "other"
    assert session == {"id": "s1"}


@pytest.mark.parametrize(
    "changes",
    [
        {"secure": {"1.1": [1, 2]}},
        {"secure": {"1.1": [1, 2, 0.5]}},
        {"secure": {"1.1": [1, 2, float("nan")]}},
        {"secure": {"1.1": [1, 2, 1 << 60]}},
        {"secure": {"1.1": ["a", "b", "c"]}},
        {"output_scale": 0.0},
        {"output_scale": float("inf")},
        {"clear": {"1.1": {"float": [1.0, 2.0, float("inf")]}}},
        {"clear": {"1.1": {"integer": [1.0, 2.0]}}},
        {"clear": {"1.1": [1, 2, 3]}},
    ],
)
def test_refusals(changes: dict[str, Any]) -> None:
    with pytest.raises(ReportError):
        report(**changes)


@pytest.mark.parametrize("least", [(2, 0), (0, 2), (2, 2)])
def test_small_classes_are_withheld(least: tuple[int, int]) -> None:
    """Mass has one image with it and one without; nothing of it is told, with or without clear outputs."""
    for given in (None, clear()):
        heart, mass, covid = report(least=least, clear=given)["findings"]
        assert not heart["withheld"]
        assert heart == report(clear=given)["findings"][0]
        assert mass == {
            "finding": "Mass", "n": None, "positives": None, "auroc": None, "interval": None, "clear": None,
            "withheld": True, "reason": f"withheld: fewer than {least[0]} images with it or {least[1]} without",
        }  # fmt: skip
        assert covid["withheld"] is bool(least[0])
