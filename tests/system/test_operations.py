"""What an operator does with real daemons: doctor, bundle, reload, and what systemd hears meanwhile."""

from __future__ import annotations

import json
import re
import signal
import socket
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpcd.daemon.image import dicom, phantom
from tests.system.two_parties import HOSPITAL, VENDOR, Pair, Party, until

CHECK = {"name", "level", "text", "hint"}
PATIENT, ACCESSION, PLACE = "Quetzal^Xiomara", "ACC7741903", "Xiomara Quetzal"
UID = "1.2.826.0.1.3680043.8.498.77419035533"


@pytest.fixture(scope="module")
def two(make_pair: Callable[..., Pair]) -> Iterator[Pair]:
    made = make_pair("operations")
    yield made
    assert made.stop() == [0, 0]


def checks(answer: dict) -> dict[str, dict]:
    assert all(set(check) == CHECK for check in answer["checks"])
    return {check["name"]: check for check in answer["checks"]}


def test_doctor_of_a_healthy_pair(two: Pair) -> None:
    for party, peer in ((two.hospital, VENDOR), (two.vendor, HOSPITAL)):
        found = checks(party.ctl("doctor"))
        assert not [check for check in found.values() if check["level"] == "problem"], found
        assert f"{peer}: link" in found
        assert found["ledger"]["level"] == found["audit log"]["level"] == found["key"]["level"] == "ok"
        assert found["kernel cache"]["text"].endswith("warm")
    process = two.hospital.mpcctl("doctor", "--peer", VENDOR)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert re.search(rf"^ok +{VENDOR}: outbound +.* is reached", out, re.MULTILINE)
    assert two.hospital.ctl("doctor", "--peer", "nobody", status=4)


def test_status_ends_with_health(two: Pair) -> None:
    process = two.hospital.mpcctl("status")
    out, _ = process.communicate(timeout=60)
    lines = out.splitlines()
    assert lines[-1] == "nothing is wrong"
    assert {line.split()[1] for line in lines if line.startswith("ok ")} >= {
        "kernels",
        "peers",
        "disk",
        "ledger",
        "policy",
    }


def plant(folder: Path) -> Path:
    """X-rays with a patient's name in every place that could leak."""
    phantom.write_cohort(folder / "plain", 1, 3)
    (source,) = (folder / "plain" / "dicom").rglob("*.dcm")
    place = folder / PLACE / "dicom"
    place.mkdir(parents=True)
    import pydicom

    image = pydicom.dcmread(source)
    image.PatientName, image.PatientID, image.AccessionNumber = PATIENT, ACCESSION, ACCESSION
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = UID
    image.save_as(place / f"{PATIENT}.dcm")
    (place / "Xiomara notes.txt").write_text("not an image")
    (folder / PLACE / "labels.csv").write_text(f"SOPInstanceUID,Effusion\n{UID},1\n")
    assert dicom.read(place / f"{PATIENT}.dcm").uid == UID
    return folder / PLACE


def test_the_bundle_holds_nothing_that_was_planted(two: Pair, tmp_path: Path) -> None:
    hospital = two.hospital
    place = plant(tmp_path)
    hospital.ctl("dataset", "add", place / "dicom", "--labels", place / "labels.csv", "--name", "xiomara-cohort")
    (place / "bad.csv").write_text("Xiomara,Quetzal\n1,2\n")
    hospital.ctl("dataset", "add", place / "dicom", "--labels", place / "bad.csv", "--name", "gone", status=9)
    hospital.refused(9, "invite", "peer", "add", "mpcd1:" + "Xiomara" * 9)
    (hospital.state / "policy.toml").write_text("[[allow]]\npeer = 'quetzal-imaging'\n")
    invite = two.vendor.ctl("id")["invite"]
    pem = (hospital.state / "identity.pem").read_text()
    index = json.loads((hospital.state / "datasets" / "xiomara-cohort.json").read_text())
    secrets = [
        "xiomara", "quetzal", ACCESSION, "77419", UID, invite, invite[6:60], hospital.state.name, str(hospital.state),
        two.vendor.address, "127.0.0.1", hospital.ctl("id")["fingerprint"][:12], VENDOR,
        *(line for line in pem.splitlines() if not line.startswith("---")),
        *(value for key, value in index.items() if key in ("salt", "commitment") and isinstance(value, str)),
    ]  # fmt: skip
    assert any(secret in two.logs().lower() for secret in ("xiomara", VENDOR)), "the log itself may name things"
    for name in ("running.tar.gz", "stopped.tar.gz"):
        if name == "stopped.tar.gz":
            assert hospital.stop() == 0
        out = tmp_path / name
        answer = hospital.ctl("support-bundle", "--out", out)
        assert out.stat().st_mode & 0o777 == 0o600
        with tarfile.open(out) as archive:
            files = {Path(entry.name).name: archive.extractfile(entry).read().decode() for entry in archive}  # type: ignore[union-attr]
        assert set(answer["contents"]) == set(files)
        assert set(files) - {"status.json"} == {
            "CONTENTS.txt", "versions.json", "config.json", "doctor.json", "ledger.json", "sessions.json", "log.jsonl",
        }  # fmt: skip
        assert all(file in files["CONTENTS.txt"] for file in files if file != "CONTENTS.txt")
        for file, text in files.items():
            for secret in secrets:
                assert secret.lower() not in text.lower(), (file, secret)
        assert hospital.ctl("support-bundle", "--out", out, status=5)["error"]["code"] == "conflict"
    assert '"versions"' in files["doctor.json"]
    (hospital.state / "policy.toml").unlink()
    hospital.start()
    two.connected()


def test_doctor_without_a_daemon(two: Pair) -> None:
    hospital = two.hospital
    two.vendor.stop()
    found = checks(hospital.ctl("doctor", status=1))
    assert found[f"{VENDOR}: link"]["level"] == "problem"
    assert found[f"{VENDOR}: link"]["hint"]
    hospital.kill()
    found = checks(hospital.ctl("doctor", status=1))
    assert found["daemon"]["level"] == "problem"
    assert str(hospital.state) in found["daemon"]["text"]
    assert {name for name, check in found.items() if check["level"] == "problem"} == {"daemon"}
    two.start()
    two.connected()


class Manager:
    """systemd's end of sd_notify(3)."""

    def __init__(self, folder: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "notify"))
        self.heard: list[str] = []

    def listen(self, seconds: float) -> list[str]:
        """What comes within this time."""
        fresh: list[str] = []
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                fresh += self.socket.recv(4096).decode().splitlines()
            except TimeoutError:
                break
        self.heard += fresh
        return fresh

    def wait(self, line: str) -> None:
        until(lambda: any(line in heard for heard in self.listen(0.2)), 60, f"{line} does not come")


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Party, Manager]]:
    """A daemon under a manager with a watchdog of a second."""
    manager = Manager(tmp_path)
    party = Party(tmp_path, "watched")
    party.env |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
    party.start()
    yield party, manager
    if party.process is not None and party.process.poll() is None:
        party.process.send_signal(signal.SIGCONT)
        party.stop()
    manager.socket.close()


def events(party: Party) -> list[dict]:
    return [json.loads(line) for line in party.log.read_text().splitlines() if line.startswith("{")]


def test_what_systemd_hears(watched: tuple[Party, Manager]) -> None:
    party, manager = watched
    assert party.process is not None
    assert manager.listen(3.1).count("WATCHDOG=1") >= 3  # of six
    assert any(line.startswith("READY=1") for line in manager.heard)
    party.process.send_signal(signal.SIGSTOP)
    manager.listen(0.2)
    assert manager.listen(1.5) == [], "a daemon that does not run tells nothing: systemd restarts it"
    party.process.send_signal(signal.SIGCONT)
    manager.wait("WATCHDOG=1")
    assert party.stop() == 0
    manager.listen(0.2)
    assert "STOPPING=1" in manager.heard


def test_reload(watched: tuple[Party, Manager]) -> None:
    party, manager = watched
    assert party.process is not None
    settings = (party.state / "mpcd.toml").read_text()
    changed = settings.replace("memory_gib = 4.0", "memory_gib = 7.0").replace("threads = 1", "threads = 2")
    (party.state / "mpcd.toml").write_text(changed + '[log]\nlevel = "debug"\n')
    (party.state / "policy.toml").write_text("[[alow]]\n")
    party.process.send_signal(signal.SIGHUP)
    manager.wait("RELOADING=1")
    stamps = [line for line in manager.heard if line.startswith("MONOTONIC_USEC=")]
    assert abs(int(stamps[0].partition("=")[2]) / 1e6 - time.clock_gettime(time.CLOCK_MONOTONIC)) < 60
    until(lambda: any(e["event"] == "policy read" for e in events(party)), 30, "the reload does not end")
    told = {e["event"]: e for e in events(party) if e["part"] == "reload"}
    assert told["settings changed"]["changed"] == {"limits.memory_gib": "4.0 -> 7.0", "log.level": "info -> debug"}
    assert told["these settings change at the next start"]["waiting"] == ["limits.threads"]
    assert told["policy read"]["level"] == "error"
    assert "alow" in told["policy read"]["result"]
    (party.state / "mpcd.toml").write_text("[limits]\nmemry_gib = 1\n")
    party.process.send_signal(signal.SIGHUP)
    until(lambda: any("memry_gib" in str(e) for e in events(party)), 30, "the mistake is not told")
    assert party.ctl("doctor", status=1)
    party.running()
