"""No image data, UIDs, labels, weights, shares or keys in a log, at the other party, or on the wire.

Two daemons, with unusual things in their DICOM files, labels, models and state, through a session and a row of
failures. Then every place that is not to have them is searched for every form of them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization

from mpcd.daemon.image import dicom
from mpcd.daemon.model import artifact
from tests.system import planted
from tests.system.planted import Recorder, search
from tests.system.two_parties import VENDOR, Pair, Party, until

torch = pytest.importorskip("torch")

from tests.system import small_models  # noqa: E402 - it needs torch

MODEL, DATASET = "model-kq71", "dataset-zv38"
UID = "1.2.826.0.1.3680043.9.77341.{}"
PATIENT, PATIENT_ID, STUDY = "PLANTEDNAME^XAVERQZ", "PLANTEDID-550317", "1.2.826.0.1.3680043.9.66218.4"
FOLDER, FILE, COLUMN = "planted-ward-qx9", "planted-file-{}-jw4.dcm", "planted remark"
REMARK = "planted remark of Dr Zqx"
MODEL_FILE = "planted-weights-vb6.pt2"
PUBLIC = 400  # bytes at the beginning of a unit's file in which both sides may have the same: sizes, kinds
IMAGES, FINDINGS = 3, ("Cardiomegaly", "Effusion")


class Planted:
    """Both parties' secrets, by name."""

    def __init__(self) -> None:
        self.hospital: dict[str, planted.Secret] = {
            "the patient's name": PATIENT, "the patient's id": PATIENT_ID, "the study": STUDY, "the folder": FOLDER,
            "the data set's name": DATASET, "a label's remark": REMARK, "a label's column": COLUMN,
        }  # fmt: skip
        self.hospital |= {f"the UID of {n}": UID.format(1000 + n) for n in range(IMAGES)}
        self.hospital |= {f"the file of {n}": FILE.format(n) for n in range(IMAGES + 2)}
        self.vendor: dict[str, planted.Secret] = {"the model's file": MODEL_FILE}


@pytest.fixture(scope="module")
def secrets() -> Planted:
    return Planted()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, secrets: Planted) -> Path:
    folder = tmp_path_factory.mktemp("images") / FOLDER
    folder.mkdir()
    rng = np.random.default_rng(11)
    rows: list[list[str]] = [["SOPInstanceUID", *FINDINGS, COLUMN]]
    tags = {"PatientName": PATIENT, "PatientID": PATIENT_ID, "StudyInstanceUID": STUDY}
    for n in range(IMAGES):
        pixels = rng.integers(0, 1 << 12, (20, 20))
        uid = UID.format(1000 + n)
        dicom.write(
            folder / FILE.format(n), pixels, bits_stored=12, syntax="explicit", instance_uid=uid, tags=dict(tags)
        )
        raw = pixels.astype("<u2").tobytes()
        secrets.hospital |= {f"pixels of {n}, {name}": piece for name, piece in planted.windows(raw, 24).items()}
        rows.append([uid, str(n % 2), str((n + 1) % 2), REMARK])
    (folder / FILE.format(IMAGES)).write_bytes(b"\0" * 128 + b"DICM" + PATIENT.encode() * 9)
    (folder / FILE.format(IMAGES + 1)).write_text(f"{PATIENT} {UID.format(7)} is no DICOM")
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, secrets: Planted) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("model")
    network = small_models.small_vgg(len(FINDINGS), 1, 16)
    for name, tensor in network.state_dict().items():
        values = tensor.numpy().reshape(-1)[:4]
        secrets.vendor[f"{name} as float32"] = values.tobytes()
        secrets.vendor[f"{name} as float64"] = values.astype(np.float64).tobytes()
        secrets.vendor[f"{name} in decimals"] = str(values[1])[:9]
    recipe = small_models.write_recipe(folder / "small.toml", 16)
    return small_models.export(network, folder / MODEL_FILE, 1, 16), recipe


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Pair]:
    from tests.system.conftest import PAIRS

    pair = Pair(tmp_path_factory.mktemp("planted"))
    pytestconfig.stash.setdefault(PAIRS, []).append(pair)
    for party in pair.both:
        party.program = [*party.program, "--debug"]
    yield pair
    pair.stop()


@pytest.fixture(scope="module")
def wire(pair: Pair) -> Iterator[Recorder]:
    recorder = Recorder(pair.vendor.port)
    yield recorder
    recorder.close()


@pytest.fixture(scope="module")
def shown(pair: Pair, wire: Recorder, images: Path, model: tuple[Path, Path], secrets: Planted) -> dict[str, bytes]:
    """After a session and a row of failures: what either daemon answers about the other, by party."""
    hospital, vendor = pair.both
    pair.start()
    invite = vendor.ctl("id")["invite"]
    hospital.refused(9, "invite", "peer", "add", invite[:-9] + "AAAAAAAAA")
    hospital.ctl("peer", "add", invite, "--address", f"127.0.0.1:{wire.port}")
    vendor.ctl("peer", "add", hospital.ctl("id")["invite"])
    pair.connected()
    program, recipe = model
    # Wrong models and data sets.
    garbage = program.with_name(f"garbage-{MODEL_FILE}")
    garbage.write_bytes(b"PK" + program.read_bytes()[5000:9000])
    add = ("--name", MODEL, "--recipe", recipe, "--calibrate", images, "--findings", ",".join(FINDINGS))
    assert vendor.try_ctl("model", "add", garbage, *add)[0]
    assert vendor.try_ctl("model", "add", program, *add, "--arch", "densenet121")[0]
    vendor.ctl("model", "add", program, *add)
    bad_labels = images.parent / "labels.csv"
    bad_labels.write_text(f"nothing,{COLUMN}\n{UID.format(1000)},{REMARK}\n")
    assert hospital.try_ctl("dataset", "add", images, "--labels", bad_labels, "--name", DATASET)[0]
    hospital.ctl("dataset", "add", images, "--labels", images / "labels.csv", "--name", DATASET)
    assert hospital.try_ctl("session", "start", "--peer", VENDOR, "--model", "none", "--dataset", DATASET)[0]
    # What is in the state folders while it is unused.
    hospital.ctl("offline", "make", "--peer", VENDOR, "--model", MODEL, "--images", "1")
    _plant_state(hospital, vendor, secrets)
    # A session through a killed peer, one that fails, one denied.
    id = pair.propose(MODEL, DATASET, IMAGES)
    vendor.ctl("approve", id)
    until(lambda: hospital.ctl("session", "show", id)["session"]["attempts"] >= 1, 60, "no image begins")
    vendor.kill()
    vendor.start()
    pair.watch(id)
    for row in hospital.records("SELECT logits FROM image WHERE session = ?", id):
        scores = json.loads(row[0])
        # Fewer than eight bytes, in hex, are in some hash by chance.
        forms = {how: value for how, value in planted.integers(scores).items() if len(value) >= 8}
        secrets.hospital |= {f"scores {scores} {how}": value for how, value in forms.items()}
    file = images / FILE.format(0)
    whole = file.read_bytes()
    file.write_bytes(whole[:-40] + b"?" * 40)
    id = pair.propose(MODEL, DATASET, IMAGES)
    vendor.ctl("approve", id)
    hospital.ctl("session", "watch", id, status=1)
    file.write_bytes(whole)
    vendor.ctl("deny", pair.propose(MODEL, DATASET, 1), "--reason", "not today")
    until(lambda: not hospital.ctl("audit", "verify")["references"]["waiting"], 60, "references are missing")
    until(lambda: not vendor.ctl("audit", "verify")["references"]["waiting"], 60, "references are missing")
    answers = {party.name: _asked(party) for party in pair.both}
    assert pair.stop() == [0, 0]
    return answers


def _plant_state(hospital: Party, vendor: Party, secrets: Planted) -> None:
    """Keys, salts, integer weights and unused units: what the state folders have already."""
    for party, known in ((hospital, secrets.hospital), (vendor, secrets.vendor)):
        pem = (party.state / "identity.pem").read_bytes()
        key = serialization.load_pem_private_key(pem, None)
        raw, no = serialization.PrivateFormat.Raw, serialization.NoEncryption()
        known[f"{party.name}'s key"] = key.private_bytes(serialization.Encoding.Raw, raw, no)
        units = [f for f in (party.state / "units").rglob("*") if f.is_file()]
        assert units
        for file in units:
            data = file.read_bytes()
            if any(data[24:40]):
                known[f"the mask seed of {party.name}'s {file.parent.name}"] = data[24:40]
            pieces = planted.windows(data[PUBLIC:], 16, 6)
            known |= {f"{file.name} of {party.name}, {name}": piece for name, piece in pieces.items()}
    index = json.loads((hospital.state / "datasets" / f"{DATASET}.json").read_text())
    secrets.hospital["the data set's salt"] = bytes.fromhex(index["salt"])
    secrets.hospital["the data set's digest"] = bytes.fromhex(index["digest"])
    secrets.hospital |= {f"the hash of {e['path']}": bytes.fromhex(e["sha256"]) for e in index["entries"]}
    folder = vendor.state / "models" / MODEL
    secrets.vendor["the model's salt"] = bytes.fromhex(json.loads((folder / "model.json").read_text())["salt"])
    for op, numbers in artifact.load(folder).numbers.items():
        weight = getattr(numbers, "weight", None)
        if weight is not None:
            row = [int(v) for v in weight.reshape(-1)[:8]]
            secrets.vendor |= {f"the weights of {op} {how}": value for how, value in planted.integers(row).items()}


def _asked(party: Party) -> bytes:
    """Whatever mpcctl shows of what others told this daemon, or may be told."""
    other = "vendor" if party.name == "hospital" else "hospital"
    words = [
        ("status",), ("peer", "list"), ("session", "list"), ("offline", "status"), ("audit", "show"),
        ("audit", "verify"), ("doctor",),
    ]  # fmt: skip
    if party.name == "hospital":
        words += [("model", "list", "--peer", other), ("model", "show", MODEL, "--peer", other)]
    words += [("session", "show", s["id"]) for s in party.ctl("session", "list")["sessions"]]
    return b"\n".join(json.dumps(party.try_ctl(*each)[1]).encode() for each in words)


def test_the_search_finds_what_is_there(pair: Pair, shown: dict[str, bytes], images: Path, secrets: Planted) -> None:
    """Otherwise it would prove nothing."""
    found = search(secrets.hospital, planted.files(images))
    assert {f"the UID of 0 in {FILE.format(0)} as raw", f"the patient's name in {FILE.format(0)} as raw"} <= set(found)
    assert any(line.startswith("pixels of 0") for line in found)
    found = search(secrets.vendor, planted.files(pair.vendor.state))
    assert any(line.startswith("the weights of") for line in found)
    assert any(line.startswith("the model's salt") for line in found)
    pieces = {"text": b"xx PLANTEDNAME^XAVERQZ yy"}
    assert search({"name": PATIENT}, pieces) == ["name in text as raw", "name in text as repr", "name in text as JSON"]
    import base64

    for before in (b"", b"a", b"ab"):
        data = {"b": base64.b64encode(before + PATIENT.encode() + b"zz")}
        assert [line.partition(" as ")[2][:6] for line in search({"name": PATIENT}, data)] == ["base64", "url ba"]


def test_logs_have_none(pair: Pair, shown: dict[str, bytes], secrets: Planted) -> None:
    """Also the own ones, at the debug level, through all those failures."""
    logs = {party.log.name: party.log.read_bytes() for party in pair.both}
    assert all(b'"level": "debug"' in log or len(log) > 1000 for log in logs.values())
    assert all(b"Traceback" not in log for log in logs.values())
    assert search({**secrets.hospital, **secrets.vendor}, logs) == []


def test_the_other_party_has_none(pair: Pair, shown: dict[str, bytes], secrets: Planted) -> None:
    """Nor may it see any in what its own daemon tells."""
    hospital, vendor = pair.both
    for theirs, party in ((secrets.vendor, hospital), (secrets.hospital, vendor)):
        assert search(theirs, {**planted.files(party.state), "answers": shown[party.name]}) == []


def test_audit_logs_have_none(pair: Pair, shown: dict[str, bytes], secrets: Planted) -> None:
    for party in pair.both:
        places = planted.files(party.state / "audit")
        assert any(b'"session.over"' in data for data in places.values())
        assert search({**secrets.hospital, **secrets.vendor}, places) == []


def test_the_wire_has_none(wire: Recorder, shown: dict[str, bytes], secrets: Planted) -> None:
    assert len(wire.heard) > 100_000
    assert search({**secrets.hospital, **secrets.vendor}, {"the wire": bytes(wire.heard)}) == []


def test_the_own_state_has_what_it_must(pair: Pair, shown: dict[str, bytes], secrets: Planted) -> None:
    """docs/security.md says where. Patients, pixels, and what was taken out of labels are nowhere."""
    places = planted.files(pair.hospital.state)
    kept = {
        line.partition(" in ")[0]: line.partition(" in ")[2].partition(" as ")[0]
        for line in search(secrets.hospital, places)
    }
    never = ("the patient", "the study", "pixels", "a label's remark")
    assert [name for name in kept if name.startswith(never)] == []
    index = f"datasets/{DATASET}.json"
    for name, place in kept.items():
        if name.startswith(("the UID", "the hash", "the data set's salt", "the data set's digest")):
            assert place == index, name
        if name.endswith("'s key"):
            assert place == "identity.pem"


def test_either_log_refers_to_the_other(pair: Pair, shown: dict[str, bytes], tmp_path: Path) -> None:
    """Checked as an auditor does: copies, no daemon."""
    logs = [party.state / "audit" for party in pair.both]
    party = pair.hospital
    checked = party.ctl("audit", "verify", "--file", logs[0], "--peer-file", logs[1])
    assert checked["ok"]
    assert checked["matched"] == 10, "approved and over, twice; denied; from both sides"
    assert checked["wrong"] == []
    head = checked["head"]
    (segment,) = logs[0].glob("*.jsonl")
    copy = tmp_path / "copy.jsonl"
    data = segment.read_bytes()
    copy.write_bytes(data)
    assert party.ctl("audit", "verify", "--file", copy, "--head", f"{head['seq']}:{head['hash']}")["ok"]
    lines = data.splitlines(keepends=True)
    copy.write_bytes(b"".join(lines[:-1]))
    cut = party.ctl("audit", "verify", "--file", copy, "--head", f"{head['seq']}:{head['hash']}", status=1)
    assert (cut["ok"], cut["bad"]["line"], cut["entries"]) == (False, len(lines), len(lines) - 1)
    assert party.ctl("audit", "verify", "--file", copy)["ok"], "without the head nobody can know"
    copy.write_bytes(b"".join(lines[4:]))
    assert not party.ctl("audit", "verify", "--file", copy, status=1)["ok"]
    assert party.ctl("audit", "verify", "--file", copy, "--part")["ok"]
    changed = data.replace(b'"images":3', b'"images":2')
    copy.write_bytes(changed)
    checked = party.ctl("audit", "verify", "--file", copy, "--peer-file", logs[1], status=1)
    assert "its own hash" in checked["bad"]["problem"]


def test_the_running_daemon_s_log(pair: Pair, shown: dict[str, bytes], tmp_path: Path) -> None:
    vendor = pair.vendor
    vendor.start()
    verified = vendor.ctl("audit", "verify")
    assert set(verified) == {"ok", "entries", "segments", "head", "bad", "references", "folder"}
    assert verified["ok"]
    shown_all = vendor.ctl("audit", "show")["entries"]
    assert len(shown_all) == verified["entries"]
    assert [e["unclean"] for e in shown_all if e["event"] == "daemon.started"] == [False, True, False]
    id = next(e["session"] for e in shown_all if e["event"] == "image.revealed")
    of_one = vendor.ctl("audit", "show", "--session", id[:10])["entries"]
    assert {e["session"] for e in of_one} == {id}
    assert vendor.ctl("audit", "show", "--since", "2099-01-01")["entries"] == []
    assert vendor.ctl("audit", "show", "--since", "1h")["entries"] == shown_all
    exported = vendor.ctl("audit", "export", "--out", tmp_path / "out.jsonl")
    assert (exported["ok"], exported["head"]) == (True, verified["head"])
    assert vendor.ctl("audit", "export", "--out", tmp_path / "out.jsonl", status=10)["error"]["code"] == "cannot_write"
    assert vendor.ctl("audit", "verify", "--file", tmp_path / "out.jsonl")["ok"]
    (segment,) = (vendor.state / "audit").glob("*.jsonl")
    data = segment.read_bytes()
    assert data == (tmp_path / "out.jsonl").read_bytes()
    for words, text in ((("verify",), "every line is as it was written"), (("show",), "image.revealed")):
        out, _ = vendor.mpcctl("audit", *words).communicate(timeout=60)
        assert text in out
    segment.write_bytes(data.replace(b'"result":"done"', b'"result":"fail"'))
    bad = vendor.ctl("audit", "verify", status=1)["bad"]
    assert bad["where"] == f"{segment.name} line {bad['line']}"
    process = vendor.mpcctl("audit", "verify")
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, "WRONG" in out) == (1, True)
    segment.write_bytes(data)
    assert vendor.ctl("audit", "verify")["ok"]
    vendor.stop()
