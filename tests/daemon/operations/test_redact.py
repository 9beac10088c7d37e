"""What goes to support holds none of what was planted, and can still be read."""

import json

import pytest

from mpcd.daemon.operations.bundle import log_lines, settings
from mpcd.daemon.operations.redact import Redactor, stand_ins

KNOWN = {**stand_ins("peer", ["vendor-inc", "st-elsewhere"]), **stand_ins("model", ["chexnet"]), "hal9000": "host-1"}


@pytest.fixture
def redactor():
    return Redactor(KNOWN)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("invite mpcd1:AAbbCC_-dd== is mistyped", "AAbbCC"),
        ("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw\n-----END PRIVATE KEY-----", "MC4CAQ"),
        ("'Jane Doe' has no image", "Jane"),
        ('no column "Mass of Jane"', "Jane"),
        ("cannot read /data/Jane Doe/chest 1.dcm: permission denied", "Jane"),
        ("/srv/x", "srv"),
        ("vendor-inc at 10.1.2.3:7443 does not answer", "10.1.2.3"),
        ("vendor-inc at 10.1.2.3:7443 does not answer", "vendor"),
        ("ST-ELSEWHERE is not connected", "ELSEWHERE"),
        ("knocked from 2001:db8::7", "2001"),
        ("knocked from [fe80::1%eth0]:7443", "fe80"),
        ("gw.hospital.example:7443 refused", "hospital"),
        ("UID 1.2.826.0.1.3680043.8.498.1 is there twice", "3680043"),
        ("DOE^JANE^^^ has no label", "JANE"),
        ("patient 00481516 is unknown", "481516"),
        ("salt 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "9f86d081"),
        ("unknown certificate (7e2c 0574 29d6 ecfa 5833 6465)", "7e2c"),
        ("key QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo=", "QUJD"),
        ("file chest1.dcm is not DICOM", "chest1"),
        ("write to jane@hospital.example", "hospital"),
        ("Jane Doe was here", "Doe"),
        ("model chexnet on hal9000", "chexnet"),
        ("model chexnet on hal9000", "hal"),
    ],
)
def test_taken_out(redactor, text, secret):
    assert secret.lower() not in redactor.text(text).lower()


@pytest.mark.parametrize(
    "text",
    [
        "8 attempts in a row failed, the last: the peer closed the connection",
        "mpcd 0.1.0 (protocol 1), Python 3.11.7, OpenSSL 3.0.19, numpy 2.4.6",
        "too little disk: 3.21 GB needed and 2.15 GB kept in reserve, 1.00 GB free",
        "raise limits.memory_gib in mpcd.toml",
        "2026-11-23 12:57:04 UTC; the system says that nothing keeps it synchronised",
    ],
)
def test_left_alone(redactor, text):
    assert redactor.text(text) == text


def test_the_same_thing_keeps_its_stand_in(redactor):
    session = "3f9c0a1b2c3d4e5f60718293a4b5c6d7"
    text = redactor.text(f"session {session} of vendor-inc, session {session[:12]} of Vendor-Inc, {'e' * 32}")
    assert text == "session <id-1> of peer-1, session <id-1> of peer-1, <id-2>"


def test_lines_of_the_log(redactor):
    planted = {
        "event": "session interrupted", "level": "warning", "timestamp": "2026-11-23T01:02:03Z", "part": "sessions",
        "session": "3f9c0a1b2c3d4e5f60718293a4b5c6d7", "reason": "'Jane Doe' at /data/x", "done": 3,
        "peer": "vendor-inc", "address": "anything at all", "name": "who is this", "patient": "Jane",
        "where": ["link.py:17 dial"],
        "nested": {"Jane Doe": "10.0.0.1"},
        "exception": 'Traceback (most recent call last):\n  File "/opt/x/json/decoder.py", line 3, in raw\n'
        "    raise ValueError(jane)\nValueError: Jane Doe\n",
    }  # fmt: skip
    text = log_lines([json.dumps(planted), "Jane Doe wrote this to stderr", "[1, 2]"], redactor)
    first, last = map(json.loads, text.splitlines())
    for secret in ("jane", "doe", "10.0.0.1", "vendor", "who is", "anything", "/data", "/opt"):
        assert secret not in text.lower()
    assert (first["event"], first["done"], first["session"], first["peer"]) == (
        "session interrupted", 3, "<id-1>", "peer-1",
    )  # fmt: skip
    assert first["where"] == ["link.py:17 dial"]
    assert first["exception"].splitlines() == ["  decoder.py:3 raw", "ValueError"]
    assert last["lines"] == 2


def test_settings_show_no_free_text():
    from mpcd.daemon.config import Config

    shown = settings(Config.parse({"name": "st-elsewhere", "advertise": "gw.example:7443", "log": {"level": "debug"}}))
    assert (shown["name"], shown["advertise"], shown["metrics"]["listen"]) == ("<set>", "<set>", "<not set>")
    assert (shown["log"]["level"], shown["limits"]["memory_gib"]) == ("debug", 4.0)
