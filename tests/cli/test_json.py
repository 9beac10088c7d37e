"""``--json`` of every command against real daemons: exactly these keys, as in docs/control-api.md."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.system.two_parties import BIN, VENDOR, Pair

PEER = {
    "name", "fingerprint", "known_by", "ca_name", "expires", "knows_key", "address", "added", "connected", "error",
    "hint", "attempts", "retry",
}  # fmt: skip
KEY = {"mode", "fingerprint", "expires", "rotation"}
MODEL = {
    "name", "peer", "commitment", "network_digest", "recipe_digest", "findings", "input_shape", "ring", "operations",
    "comparisons", "added",
}  # fmt: skip
COST = {"offline_bytes", "online_bytes", "disk_bytes", "peer_disk_bytes", "cots", "memory_bytes"}
FLOODING = {"flooding_bits_coefficient", "flooding_bits_image"}
ESTIMATE = COST | {
    "extension",
    "store",
    "image_disk_bytes",
    "peer_image_disk_bytes",
    "ready",
    "missing",
    "images",
    "seconds",
    "online_seconds",
    "disk_free_bytes",
    "measured",
}
DATASET = {
    "name", "path", "labels", "commitment", "files", "decodable", "images", "labelled", "findings", "skipped",
    "unmatched_labels", "joined_by", "ignored_columns", "added",
}  # fmt: skip
STOCK = {"peer", "model", "commitment", "ready", "making", "spent", "burnt", "disk_bytes"}
SESSION = {
    "id",
    "role",
    "peer",
    "model",
    "dataset",
    "reveal",
    "images",
    "done",
    "attempts",
    "units_ready",
    "state",
    "reason",
    "model_commitment",
    "dataset_commitment",
    "network_digest",
    "recipe_digest",
    "ring",
    "software",
    "peer_software",
    "created",
    "approved_by",
    "approved",
    "started",
    "finished",
    "offline",
    "online",
    "expires",
    "approval",
}
APPROVAL = {"digest", "data_owner", "model_owner", "data_owner_software", "model_owner_software"}  # fmt: skip
STATUS = {
    "version", "protocol_version", "software", "name", "fingerprint", "listen", "state_dir", "started", "threads",
    "memory_available_bytes", "disk_free_bytes", "key", "kernels", "peers", "units", "sessions", "jobs", "health",
    "warnings",
}  # fmt: skip
REPORT = {
    "format", "confidence", "method", "session", "images", "findings", "exactness", "largest_logit_difference",
    "phases", "commitments", "digests", "approvals",
}  # fmt: skip
FINDING = {"finding", "n", "positives", "auroc", "interval", "reason", "withheld", "clear"}


def keys(value: dict) -> set[str]:
    return set(value)


@pytest.fixture(scope="module")
def done(pair: Pair) -> dict:
    return pair.run("small", "site", 2)


def test_identity_and_status(pair: Pair, done: dict) -> None:
    assert keys(pair.vendor.ctl("id")) == {"name", "fingerprint", "address", "invite", "key"}
    assert keys(pair.vendor.ctl("key", "show")["key"]) == KEY
    status = pair.hospital.ctl("status")
    assert keys(status) == STATUS
    assert keys(status["kernels"]) == {"ready", "done", "total"}
    assert keys(status["peers"][0]) == PEER
    assert keys(status["units"][0]) == STOCK


def test_a_new_key(pair: Pair, done: dict) -> None:
    before = pair.vendor.ctl("key", "show")["key"]["fingerprint"]
    rotated = pair.vendor.ctl("key", "rotate", "--keep-days", "3")
    assert keys(rotated) == {"key"}
    assert keys(rotated["key"]) == KEY
    assert rotated["key"]["fingerprint"] != before
    assert rotated["key"]["rotation"] is None, "the hospital is connected and has heard"
    (vendor,) = (p for p in pair.hospital.ctl("peer", "list")["peers"] if p["name"] == VENDOR)
    assert vendor["fingerprint"] == rotated["key"]["fingerprint"]
    assert pair.vendor.ctl("key", "finish", "--yes") == rotated


def test_peers(pair: Pair) -> None:
    invite = pair.vendor.ctl("id")["invite"]
    added = pair.hospital.ctl("peer", "add", invite, "--address", pair.vendor.address)
    assert keys(added) == {"peer"}
    assert keys(added["peer"]) == PEER
    assert keys(pair.hospital.ctl("peer", "list")) == {"peers"}
    measured = pair.hospital.ctl("bench", "link", "--peer", VENDOR)
    assert keys(measured) == {
        "peer", "sent_bytes_per_second", "received_bytes_per_second", "round_trip_seconds", "extension"
    }  # fmt: skip
    assert min(measured["sent_bytes_per_second"], measured["received_bytes_per_second"]) > 1e6
    assert 0 < measured["round_trip_seconds"] < 5


def test_models(pair: Pair, cohort: Path, tmp_path: Path) -> None:
    for peer in ((), ("--peer", VENDOR)):
        party = pair.hospital if peer else pair.vendor
        listed = party.ctl("model", "list", *peer)
        assert keys(listed) == {"models"}
        assert keys(listed["models"][0]) == MODEL
        shown = party.ctl("model", "show", "small", *peer)
        assert keys(shown) == {"model", "recipe", "report", "estimate"}
        assert keys(shown["estimate"]) == COST | FLOODING
        assert (shown["report"] is None) == bool(peer), "what calibration saw is the vendor's alone"
        assert keys(shown["model"]["ring"]) == {"activation", "fraction", "wide"}
    layer = pair.vendor.ctl("model", "show", "small")["report"]["layers"][0]
    assert any("headroom" in key for key in layer)
    evaluated = pair.vendor.ctl("model", "evaluate", "small", "--images", cohort / "dicom")
    assert keys(evaluated) == {"evaluation"}
    assert {frozenset(v) for v in evaluated["evaluation"].values()} == {frozenset({"float", "integer", "logits"})}


def test_add_and_remove(pair: Pair, cohort: Path, small_model: tuple[Path, Path]) -> None:
    program, recipe = small_model
    added = pair.vendor.ctl(
        "model", "add", program, "--name", "other", "--recipe", recipe, "--calibrate", cohort / "dicom",
        "--labels", cohort / "labels.csv",
    )  # fmt: skip
    assert keys(added) == {"model", "report"}
    assert added["model"]["findings"] == ["Cardiomegaly", "Effusion", "Mass"], "the labels' names, in their order"
    assert {frozenset(a) for a in added["report"]["auroc"]} == {
        frozenset({"finding", "n", "positives", "float", "integer", "difference"})
    }
    assert keys(pair.vendor.ctl("model", "remove", "other")) == {"model"}
    data = ("dataset", "add", cohort / "dicom", "--labels", cohort / "labels.csv", "--name", "other")
    added = pair.hospital.ctl(*data)
    assert keys(added) == {"dataset"}
    assert keys(added["dataset"]) == DATASET
    assert keys(pair.hospital.ctl("dataset", "remove", "other")) == {"dataset"}


def test_data_sets(pair: Pair) -> None:
    listed = pair.hospital.ctl("dataset", "list")
    assert keys(listed) == {"datasets"}
    assert keys(listed["datasets"][0]) == DATASET
    shown = pair.hospital.ctl("dataset", "show", "site")
    assert keys(shown) == {"dataset", "skipped_files"}
    assert keys(shown["dataset"]["findings"]["Mass"]) == {"n", "positives"}


def test_commitments(pair: Pair, cohort: Path, tmp_path: Path) -> None:
    """Opened by its owner, checked by whoever gets the file."""
    for party, kind, name, path in (
        (pair.vendor, "model", "small", None),
        (pair.hospital, "dataset", "site", cohort / "dicom"),
    ):
        file = tmp_path / f"{kind}.json"
        opened = party.ctl(kind, "open", name, "--out", file)
        assert keys(opened) == {"out", "what", "name", "commitment"}
        assert file.stat().st_mode & 0o777 == 0o600
        assert party.mpcctl(kind, "open", name, "--out", file).wait(60) != 0, "no file is replaced"
        verify = ("commitment", "verify", file, "--commitment", opened["commitment"])
        verified = party.ctl(*verify, *(() if path is None else ("--path", path)))["verified"]
        assert keys(verified) == {"what", "name", "commitment", "parts", "images", "path"}
        assert (verified["name"], verified["commitment"]) == (name, opened["commitment"])
        wrong = party.mpcctl("commitment", "verify", file, "--commitment", "0" * 64)
        assert "opens" in wrong.communicate(timeout=60)[1]
        assert wrong.returncode == 9


def test_offline(pair: Pair) -> None:
    """From either side."""
    for party in pair.both:
        peer = VENDOR if party is pair.hospital else "hospital"
        make = ("offline", "make", "--peer", peer, "--model", "small", "--images", "1")
        estimated = party.ctl(*make, "--estimate")
        assert keys(estimated) == {"estimate"}
        assert keys(estimated["estimate"]) == ESTIMATE
        made = party.ctl(*make)
        assert keys(made) == {"estimate", "made", "ready", "seconds", "bytes"}
        assert made["ready"] == 1
        status = party.ctl("offline", "status", "--peer", peer)
        assert keys(status) == {"units", "jobs", "reuse_count"}
        assert keys(status["units"][0]) == STOCK


def test_sessions(pair: Pair, done: dict) -> None:
    assert keys(done) == SESSION
    assert keys(done["approval"]) == APPROVAL
    assert keys(done["online"]) == {"seconds", "bytes"}
    start = ("session", "start", "--peer", VENDOR, "--model", "small", "--dataset", "site")
    assert keys(pair.hospital.ctl(*start, "--estimate")) == {"estimate"}
    proposed = pair.hospital.ctl(*start, "--detach")
    assert keys(proposed) == {"session", "estimate"}
    assert keys(proposed["estimate"]) == ESTIMATE
    id = proposed["session"]["id"]
    for party in pair.both:
        listed = party.ctl("session", "list")
        assert keys(listed) == {"sessions"}
        assert {frozenset(s) for s in listed["sessions"]} == {frozenset(SESSION)}
        assert keys(party.ctl("session", "show", id)) == {"session"}
    assert keys(pair.vendor.ctl("deny", id)["session"]) == SESSION
    id = pair.propose("small", "site", 1)
    assert keys(pair.vendor.ctl("approve", id)["session"]) == SESSION
    assert keys(pair.hospital.ctl("session", "watch", id)["session"]) == SESSION
    id = pair.propose("small", "site", 1)
    assert keys(pair.hospital.ctl("session", "cancel", id)["session"]) == SESSION


def test_approving_on_a_terminal_shows_and_asks(pair: Pair) -> None:
    """Everything that is bound, before anything is; "no" leaves the session as it was."""
    id = pair.propose("small", "site", 1)
    shown = pair.vendor.ctl("session", "show", id)["session"]
    for answer, status, state in (("n", 130, "proposed"), ("y", 0, "approved")):
        ours, theirs = os.openpty()
        os.write(ours, f"{answer}\n".encode())
        done = subprocess.run(
            [BIN / "mpcctl", "approve", id],
            env=pair.vendor.env,
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=60,
        )
        os.close(theirs)
        os.close(ours)
        assert done.returncode == status, done.stderr
        assert "Approve exactly this?" in done.stdout
        for bound in (*shown["approval"].values(), shown["dataset_commitment"], shown["model_commitment"]):
            assert bound[:16] in done.stdout
        if state == "proposed":
            assert pair.vendor.ctl("session", "show", id)["session"]["state"] == state
    assert pair.hospital.ctl("session", "watch", id)["session"]["state"] == "done"


def test_report(pair: Pair, done: dict, cohort: Path) -> None:
    clear = pair.evaluate("small", cohort / "dicom")
    report = pair.hospital.ctl("report", done["id"], "--clear", clear)
    assert keys(report) == {"report"}
    assert keys(report["report"]) == REPORT
    assert keys(report["report"]["findings"][0]) == FINDING
    assert keys(report["report"]["digests"]) == {"recipe", "network", "software", "peer_software"}


def test_doctor_and_bundle(pair: Pair, tmp_path: Path) -> None:
    answer = pair.vendor.ctl("doctor")
    assert keys(answer) == {"checks", "worst"}
    assert {frozenset(check) for check in answer["checks"]} == {frozenset({"name", "level", "text", "hint"})}
    bundle = pair.vendor.ctl("support-bundle", "--out", tmp_path / "bundle.tar.gz")
    assert keys(bundle) == {"file", "contents"}
    assert keys(pair.vendor.ctl("completion", "bash")) == {"script"}


def test_errors(pair: Pair) -> None:
    """One object on stdout also then; the sentence and the way out on stderr."""
    process = pair.hospital.mpcctl("dataset", "show", "nowhere", "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 4
    error = json.loads(out)["error"]
    assert keys(error) == {"code", "message", "hint", "exit_status"}
    assert err.splitlines() == [f"mpcctl: {error['message']}", f"    {error['hint']}"]


def test_progress_is_not_data(pair: Pair, cohort: Path) -> None:
    process = pair.vendor.mpcctl("model", "evaluate", "small", "--images", cohort / "dicom", "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    json.loads(out)
    assert "evaluate" in err


def test_for_people(pair: Pair, done: dict, cohort: Path) -> None:
    """Every command that shows something also shows it without --json."""
    for party, words, shown in (
        (pair.vendor, ("id",), "Invite"),
        (pair.hospital, ("status",), "nothing is wrong"),
        (pair.hospital, ("peer", "list"), VENDOR),
        (pair.vendor, ("model", "list"), "small"),
        (pair.vendor, ("model", "show", "small"), "headroom"),
        (pair.hospital, ("model", "show", "small", "--peer", VENDOR), "an image costs"),
        (pair.hospital, ("dataset", "list"), "site"),
        (pair.hospital, ("dataset", "show", "site"), "Effusion"),
        (pair.hospital, ("offline", "status"), "used twice: 0"),
        (pair.hospital, ("session", "list"), done["id"][:12]),
        (pair.hospital, ("session", "show", done["id"]), done["model_commitment"]),
        (pair.hospital, ("report", done["id"]), "AUROC"),
        (pair.vendor, ("model", "evaluate", "small", "--images", str(cohort / "dicom")), ""),
    ):
        process = party.mpcctl(*words)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert shown in out, words
        assert not out.startswith("{")
