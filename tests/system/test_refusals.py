"""What bad input gets: an error that names the thing and the way out, an exit status, and a daemon that stays up."""

from __future__ import annotations

import contextlib
import csv
import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.two_parties import HOSPITAL, VENDOR, Pair, Party, until

START = ("session", "start", "--peer", VENDOR, "--model", "small", "--dataset", "site", "--detach")
MAKE = ("offline", "make", "--peer", VENDOR, "--model", "small", "--images")


@pytest.fixture(autouse=True)
def _nothing_is_broken_afterwards(pair: Pair) -> Iterator[None]:
    """Whatever a test did: both daemons run, and the offline phase between them works."""
    yield
    pair.connected()
    assert pair.hospital.ctl(*MAKE, "1")["ready"] >= 1


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Callable[[str], Party]]:
    """A third daemon, of whatever name."""
    parties = []

    def start(name: str) -> Party:
        parties.append(Party(tmp_path, name))
        parties[-1].start()
        return parties[-1]

    yield start
    for party in parties:
        party.stop()


# Peers


def test_an_unknown_peer(pair: Pair, stranger: Callable[[str], Party]) -> None:
    """It knows us, we do not know it: no connection, a word to both operators, and nothing can be asked."""
    mallory = stranger("mallory")
    mallory.ctl("peer", "add", pair.vendor.ctl("id")["invite"], "--address", pair.vendor.address)
    until(lambda: mallory.ctl("peer", "list")["peers"][0]["error"], 30, "the stranger is not told")
    (seen,) = mallory.ctl("peer", "list")["peers"]
    assert not seen["connected"]
    assert "does not know" in seen["error"]
    assert "mpcctl peer add" in seen["hint"]
    message = mallory.refused(7, "peer_unreachable", "model", "list", "--peer", VENDOR)
    assert "does not know" in message
    assert any("does not know" in warning for warning in mallory.ctl("status")["warnings"])
    out, _ = mallory.mpcctl("peer", "list").communicate(timeout=60)
    assert "mpcctl peer add" in out

    def warned() -> bool:
        return any("mallory" in warning for warning in pair.vendor.ctl("status")["warnings"])

    until(warned, 30, "the vendor's operator is not told who knocked")
    assert [p["name"] for p in pair.vendor.ctl("peer", "list")["peers"]] == [HOSPITAL]


def test_a_changed_certificate(pair: Pair, stranger: Callable[[str], Party]) -> None:
    """Another certificate under a pinned name: refused when its invite is added, and when it answers at the address."""
    impostor = stranger(VENDOR)
    theirs = impostor.ctl("id")
    message = pair.hospital.refused(8, "certificate_changed", "peer", "add", theirs["invite"])
    assert "mpcctl peer remove vendor" in message
    assert "telephone" in message
    pair.hospital.ctl("peer", "add", pair.vendor.ctl("id")["invite"], "--address", impostor.address)

    def refused() -> bool:
        (peer,) = pair.hospital.ctl("peer", "list")["peers"]
        return "changed" in (peer["error"] or "")

    pair.vendor.kill()  # the link that is up would be kept: the address counts from the next dial on
    until(refused, 30, "the impostor is not recognised")
    (peer,) = pair.hospital.ctl("peer", "list")["peers"]
    assert not peer["connected"]
    assert theirs["fingerprint"][:4] in peer["error"]
    assert "changed" in pair.hospital.refused(7, "peer_unreachable", *START)
    pair.vendor.start()
    pair.hospital.ctl("peer", "add", pair.vendor.ctl("id")["invite"], "--address", pair.vendor.address)


def test_bad_invites_and_names(pair: Pair) -> None:
    invite = pair.vendor.ctl("id")["invite"]
    assert "mpcd1:" in pair.hospital.refused(9, "invite", "peer", "add", invite[:-9])
    pair.hospital.refused(9, "invite", "peer", "add", "hello")
    pair.hospital.refused(9, "bad_input", "peer", "add", invite, "--address", "https://vendor")
    pair.hospital.refused(5, "conflict", "peer", "add", pair.hospital.ctl("id")["invite"])
    pair.hospital.refused(4, "not_found", "peer", "remove", "nobody")


def test_a_peer_that_is_away(pair: Pair) -> None:
    pair.vendor.kill()
    until(lambda: not pair.hospital.ctl("peer", "list")["peers"][0]["connected"], 30, "still connected")
    assert VENDOR in pair.hospital.refused(7, "peer_unreachable", *START)
    pair.hospital.refused(7, "peer_unreachable", *MAKE, "1")
    pair.vendor.start()


# Sessions


def test_not_approved(pair: Pair) -> None:
    """Nothing is made, nothing is computed, until the vendor says so; only the vendor can."""
    spent = pair.hospital.ledger("SELECT count(*) FROM unit WHERE state <> 'ready'")
    id = pair.propose("small", "site", 2)
    time.sleep(1.5)
    for party in pair.both:
        assert party.ctl("session", "show", id)["session"]["state"] == "proposed"
    assert pair.hospital.ledger("SELECT count(*) FROM unit WHERE state <> 'ready'") == spent
    assert "model owner" in pair.hospital.refused(5, "conflict", "approve", id)
    pair.hospital.refused(5, "conflict", "report", id)
    assert pair.hospital.ctl("session", "cancel", id)["session"]["state"] == "cancelled"
    until(
        lambda: pair.vendor.ctl("session", "show", id)["session"]["state"] == "cancelled", 30, "the vendor is not told"
    )
    pair.vendor.refused(5, "conflict", "approve", id)


def test_denied(pair: Pair) -> None:
    """Exit status 6, with the vendor's reason."""
    id = pair.propose("small", "site", 1)
    watching = pair.hospital.mpcctl("session", "watch", id, "--json")
    assert pair.vendor.ctl("deny", id[:10], "--reason", "not this quarter")["session"]["state"] == "denied"
    out, _ = watching.communicate(timeout=60)
    assert watching.returncode == 6
    assert "not this quarter" in out
    assert pair.hospital.ctl("session", "watch", id, status=6)["session"]["state"] == "denied"
    pair.vendor.refused(5, "conflict", "approve", id)
    assert pair.hospital.ledger("SELECT 1 FROM unit WHERE session = ?", id) == []


def test_a_recipe_changed_behind_an_approval(pair: Pair) -> None:
    """The run fails before an image is touched; both digests are named."""
    id = pair.propose("small", "site", 1)
    pair.hospital.kill()  # so that it cannot begin between the approval and the change
    pair.vendor.ctl("approve", id)
    before = pair.vendor.ctl("session", "show", id)["session"]["recipe_digest"]
    recipe = pair.vendor.state / "models" / "small" / "recipe.toml"
    kept = recipe.read_text()
    pair.vendor.stop()
    recipe.write_text(kept.replace("0.25", "0.5"))
    pair.vendor.start()
    changed = pair.vendor.ctl("model", "show", "small")["model"]["recipe_digest"]
    assert changed != before
    pair.hospital.start()
    ended = pair.hospital.ctl("session", "watch", id, status=1)["session"]
    assert ended["state"] == "failed"
    assert before in ended["reason"]
    assert changed in ended["reason"]
    assert ended["attempts"] == 0
    pair.vendor.stop()
    recipe.write_text(kept)
    pair.vendor.start()


def test_what_is_not_there(pair: Pair) -> None:
    for name, words in (
        ("nothing", ("model", "show", "nothing")),
        ("nothing", ("model", "show", "nothing", "--peer", VENDOR)),
        ("nobody", ("model", "list", "--peer", "nobody")),
        ("elsewhere", ("dataset", "show", "elsewhere")),
        ("0123abcd", ("session", "show", "0123abcd")),
        ("nobody", ("offline", "make", "--peer", "nobody", "--model", "small", "--images", "1")),
        ("other", ("session", "start", "--peer", VENDOR, "--model", "other", "--dataset", "site")),
        ("other", ("session", "start", "--peer", VENDOR, "--model", "small", "--dataset", "other")),
    ):
        assert name in pair.hospital.refused(4, "not_found", *words)
    assert "4" in pair.hospital.refused(9, "bad_input", *START, "--images", "5")
    for wrong in (
        ("session", "start", "--peer", VENDOR),
        ("offline", "make", "--peer", VENDOR, "--model", "small", "--images", "0"),
        ("session", "start", "--peer", VENDOR, "--model", "small", "--dataset", "site", "--reveal", "weights"),
        ("nonsense",),
    ):
        assert pair.hospital.try_ctl(*wrong)[0] == 2


# Models


def add(pair: Pair, path: Path, recipe: Path | str, images: Path, *more: str) -> tuple[str, ...]:
    return ("model", "add", str(path), "--recipe", str(recipe), "--calibrate", str(images), *more)


def test_models_that_cannot_be_compiled(
    pair: Pair, cohort: Path, small_model: tuple[Path, Path], tmp_path: Path
) -> None:
    import torch
    from torch import nn

    from tests.system import small_models

    path, recipe = small_model
    dicom = cohort / "dicom"
    gelu = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, 2))
    odd = small_models.export(gelu.eval(), tmp_path / "odd.pt2", 1, 32)
    message = pair.vendor.refused(9, "model", *add(pair, odd, recipe, dicom))
    assert "gelu" in message.lower()
    assert "ReLU" in message, "what would be supported instead"
    big = small_models.write_recipe(tmp_path / "big.toml", 48)
    message = pair.vendor.refused(9, "model", *add(pair, path, big, dicom, "--name", "big"))
    assert "32" in message
    assert "48" in message
    message = pair.vendor.refused(9, "model", *add(pair, path, recipe, dicom, "--name", "x", "--findings", "A,B"))
    assert "3 outputs" in message
    weights = small_models.save_weights(small_models.small_densenet(3), tmp_path / "weights.safetensors")
    assert "--arch" in pair.vendor.refused(9, "model", *add(pair, weights, recipe, dicom))
    message = pair.vendor.refused(9, "model", *add(pair, weights, recipe, dicom, "--arch", "transformer"))
    assert "densenet121" in message
    torch.save(gelu, tmp_path / "pickle.pt")
    pair.vendor.refused(9, "model", *add(pair, tmp_path / "pickle.pt", recipe, dicom, "--arch", "resnet18"))
    (tmp_path / "junk.pt2").write_bytes(b"junk" * 100)
    pair.vendor.refused(9, "model", *add(pair, tmp_path / "junk.pt2", recipe, dicom))
    message = pair.vendor.refused(9, "recipe", *add(pair, path, "imagenet-225", dicom, "--name", "x"))
    assert "imagenet-224" in message
    (tmp_path / "empty").mkdir()
    message = pair.vendor.refused(9, "bad_input", *add(pair, path, recipe, tmp_path / "empty", "--name", "x"))
    assert str(tmp_path / "empty") in message
    pair.vendor.refused(5, "conflict", *add(pair, path, recipe, dicom, "--name", "small"))
    assert [m["name"] for m in pair.vendor.ctl("model", "list")["models"]] == ["small"], "nothing half-added"
    assert list((pair.vendor.state / "scratch").iterdir()) == []


# Data sets


def add_data(images: Path, labels: Path, name: str) -> tuple[str, ...]:
    return ("dataset", "add", str(images), "--labels", str(labels), "--name", name)


def test_labels_that_match_nothing(pair: Pair, cohort: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("SOPInstanceUID,Mass\n1.2.3,1\n1.2.4,0\n")
    message = pair.hospital.refused(9, "labels", *add_data(cohort / "dicom", labels, "unmatched"))
    assert "match none of the 4 images" in message
    assert "1.2.3" in message, "an example of what the labels name"
    labels.write_text("SOPInstanceUID,Age\n1.2.3,61\n")
    assert str(labels) in pair.hospital.refused(9, "labels", *add_data(cohort / "dicom", labels, "no-findings"))
    assert pair.hospital.try_ctl(*add_data(cohort / "dicom", tmp_path / "missing.csv", "x"))[0] == 2
    assert [d["name"] for d in pair.hospital.ctl("dataset", "list")["datasets"]] == ["site"]


def test_folders_without_images(pair: Pair, cohort: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    message = pair.hospital.refused(9, "dataset", *add_data(folder, cohort / "labels.csv", "photos"))
    assert f"{folder}: none of 0 files" in message
    (folder / "holiday.jpg").write_bytes(b"\xff\xd8\xff\xe0 not one")
    message = pair.hospital.refused(9, "dataset", *add_data(folder, cohort / "labels.csv", "photos"))
    assert "none of 1 files" in message
    pair.hospital.refused(9, "dataset", *add_data(cohort / "labels.csv", cohort / "labels.csv", "file"))
    pair.hospital.refused(5, "conflict", *add_data(cohort / "dicom", cohort / "labels.csv", "site"))
    pair.hospital.refused(9, "bad_input", *add_data(cohort / "dicom", cohort / "labels.csv", "Site A"))


def test_damaged_files_are_counted_and_named(pair: Pair, cohort: Path, tmp_path: Path) -> None:
    """And the session runs on the others; a finding of one class only is undefined, not a crash."""
    folder = tmp_path / "mixed"
    shutil.copytree(cohort / "dicom", folder)
    first, second, *_ = sorted(folder.iterdir())
    first.write_bytes(first.read_bytes()[:3000])
    (folder / "notes.txt").write_text("read me")
    shutil.copy(second, folder / "second-copy.dcm")
    with (cohort / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["File Name", "Cardiomegaly", "Effusion", "Mass"])
        for number, row in enumerate(rows):
            writer.writerow([row["File Name"], 1, number % 2, ""])
        writer.writerow(["elsewhere.dcm", 1, 1, ""])
    added = pair.hospital.ctl(*add_data(folder, tmp_path / "labels.csv", "mixed"))["dataset"]
    assert (added["files"], added["images"], added["unmatched_labels"]) == (6, 3, 2)
    assert sum(added["skipped"].values()) == 3
    shown = pair.hospital.ctl("dataset", "show", "mixed")["skipped_files"]
    assert {entry["file"] for entry in shown} >= {first.name, "notes.txt"}
    assert all(entry["reason"] for entry in shown)
    session = pair.run("small", "mixed", 3)
    report = pair.report(session["id"], pair.evaluate("small", folder))
    one_class, normal, unknown = report["findings"]
    assert (one_class["n"], one_class["positives"], one_class["auroc"]) == (3, 3, None)
    assert one_class["reason"]
    assert (normal["n"], normal["positives"]) == (3, 2), "the second, third and fourth: 1, 0, 1"
    assert normal["auroc"] is not None
    assert (unknown["n"], unknown["auroc"]) == (0, None)
    assert unknown["reason"]
    out, _ = pair.hospital.mpcctl("report", session["id"]).communicate(timeout=60)
    assert "undefined" in out


def test_an_image_that_changes_between_index_and_run(pair: Pair, cohort: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changing"
    shutil.copytree(cohort / "dicom", folder)
    pair.hospital.ctl(*add_data(folder, cohort / "labels.csv", "changing"))
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes() + b"\0\0")
    id = pair.propose("small", "changing", 1)
    pair.vendor.ctl("approve", id)
    ended = pair.hospital.ctl("session", "watch", id, status=1)["session"]
    assert ended["state"] == "failed"
    assert "changed" in ended["reason"]
    assert str(folder) in ended["reason"]


# Room


def test_too_little_memory_and_disk_are_refused_before_the_start(pair: Pair) -> None:
    units = {party: len(list((party.state / "units").iterdir())) for party in pair.both}
    for party, settings, what in (
        (pair.hospital, {"memory": 0.5}, "memory"),
        (pair.hospital, {"reserve": 4096.0}, "disk"),
        (pair.vendor, {"reserve": 4096.0}, "disk"),
    ):
        party.stop()
        party.configure(**settings)
        party.start()
        pair.connected()
        message = pair.hospital.refused(10, "not_enough", *MAKE, "50")
        assert f"too little {what}" in message
        assert message.count("GB") + message.count("MB") >= 2, "what is needed and what there is"
        if party is pair.hospital:
            pair.hospital.refused(10, "not_enough", *START)
            party.stop()
            party.configure()
            party.start()
    pair.vendor.stop()
    pair.vendor.configure()
    pair.vendor.start()
    pair.connected()
    assert {party: len(list((party.state / "units").iterdir())) for party in pair.both} == units


@pytest.fixture
def small_disk(pair: Pair) -> Iterator[Path]:
    """The hospital's units on a file system of their own, a few MB."""
    units = pair.hospital.state / "units"
    pair.hospital.stop()
    shutil.rmtree(units)
    units.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "mpcd-test", str(units)]
    mounted = shutil.which("mount") and subprocess.run(options, capture_output=True, check=False).returncode == 0
    pair.hospital.start()
    pair.connected()
    if not mounted:
        pytest.skip("mounting a small file system is not possible here")
    yield units
    pair.hospital.stop()
    subprocess.run(["umount", str(units)], check=True)
    pair.hospital.start()


def test_a_full_disk(pair: Pair, small_disk: Path) -> None:
    """Full in the middle of a batch: exit status 10, the batch is burnt, the daemon goes on once there is room."""
    making = pair.hospital.mpcctl(*MAKE, "3", "--json")
    until(lambda: any(small_disk.glob("*/pads.bin")), 60, "no batch is being made", 0.01)
    with open(small_disk / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(1 << 16))
    out, err = making.communicate(timeout=120)
    assert making.returncode == 10, out + err
    assert "the disk is full" in out
    pair.hospital.running()
    unfinished = "SELECT count(*) FROM unit WHERE state = 'making'"
    for party in pair.both:  # the vendor hears of it a moment later
        until(lambda party=party: party.ledger(unfinished) == [(0,)], 30, f"{party.name} has not burnt the batch")
    assert [f.name for f in small_disk.iterdir()] == ["ballast"], "nothing half-made is left"
    (small_disk / "ballast").unlink()
    assert pair.hospital.ctl(*MAKE, "2")["ready"] == 2


def test_the_daemon_itself(pair: Pair, tmp_path: Path) -> None:
    """A second daemon on the same state, a port that is taken, a bad setting, no daemon."""

    def start(state: Path, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            [shutil.which("mpcd", path=str(Path(sys.executable).parent)), "--state", state, *words],
            env=pair.hospital.env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr

    status, err = start(pair.hospital.state)
    assert status == 5
    assert f"another daemon uses {pair.hospital.state}" in err
    status, err = start(tmp_path / "new", "--listen", pair.hospital.address)
    assert status == 9
    assert os.strerror(errno.EADDRINUSE).lower() in err.lower()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "mpcd.toml").write_text("[limits]\nmemory_gb = 3\n")
    status, err = start(tmp_path / "bad")
    assert status == 9
    assert "did you mean limits.memory_gib?" in err
    code, answer, err = Party(tmp_path, "nobody").try_ctl("status")
    assert code == 3
    assert answer["error"]["code"] == "no_daemon"
    assert "start it" in err


def test_nothing_was_used_twice(pair: Pair) -> None:
    for party in pair.both:
        assert party.ctl("offline", "status")["reuse_count"] == 0
        assert "Traceback" not in party.log.read_text()
