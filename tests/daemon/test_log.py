import contextlib
import json
import os
import sys

import numpy as np
import pytest
import structlog

from mpcd.daemon import log
from mpcd.daemon.image.dataset import ImageChanged
from mpcd.daemon.image.dicom import NotDicom


@pytest.fixture(autouse=True)
def restore(monkeypatch):
    monkeypatch.setattr(log, "_repeats", log.Repeats())
    yield
    structlog.reset_defaults()


def test_json_lines_on_stderr_without_secrets_or_bulk(capsys):
    log.configure(as_json=True)
    log.get("test").info(
        "made",
        seed=b"\1" * 16,
        weights=[1, 2],
        payload=b"\xff" * 1000,
        array=np.arange(1000),
        nested={"share": "x", "peer": "vendor", "deep": [b"abc"]},
        labels=12,
        text="y" * 5000,
        error=ValueError("plain"),
    )
    out, err = capsys.readouterr()
    assert out == ""
    entry = json.loads(err)
    assert entry["seed"] == entry["weights"] == entry["nested"]["share"] == "<not logged>"
    assert entry["payload"] == "<1000 bytes>"
    assert entry["array"] == "<array (1000,)>"
    assert entry["nested"]["peer"] == "vendor"
    assert entry["nested"]["deep"] == ["<3 bytes>"]
    assert entry["labels"] == 12
    assert len(entry["text"]) < 2100
    assert (entry["error"], entry["event"], entry["level"], entry["part"]) == ("plain", "made", "info", "test")


@pytest.mark.parametrize("as_json", [True, False])
def test_tracebacks_do_not_show_local_variables(capsys, as_json):
    log.configure(as_json=as_json)

    def fails():
        hidden = "the-secret-value"
        raise RuntimeError("visible" if hidden else "")

    try:
        fails()
    except RuntimeError:
        log.get("test").exception("failed")
    err = capsys.readouterr().err
    assert "RuntimeError: visible" in err.replace("\\n", "\n")
    assert '"the-secret-value"' not in err.replace('hidden = "the-secret-value"', "")


def test_of_some_errors_only_the_kind(capsys):
    log.configure(as_json=True)
    for error in (ImageChanged("/ward/doe-john.dcm: has changed"), NotDicom("doe-john.dcm", "UID 1.2.3")):
        log.get("test").warning("failed", reason=error)
    err = capsys.readouterr().err
    assert "doe-john" not in err
    assert "An image is no longer the one that was added. (image_changed)" in err
    assert "The file has no DICOM header. (dicom)" in err


def test_levels(capsys):
    log.configure(as_json=True, level="warning")
    log.get("test").info("quiet")
    log.get("test").warning("loud")
    assert "quiet" not in (err := capsys.readouterr().err)
    assert "loud" in err


def test_a_logger_that_was_asked_for_early_follows_the_configuration(capsys):
    early = log.get("early")
    log.configure(as_json=True)

    def fails():
        hidden = "x" * 3 + "-local"
        raise RuntimeError("visible" if hidden else "")

    try:
        fails()
    except RuntimeError:
        early.exception("failed")
    entry = json.loads(capsys.readouterr().err)
    assert (entry["event"], entry["part"]) == ("failed", "early")
    assert "xxx-local" not in entry["exception"]


def test_lines_that_repeat_themselves_are_counted_instead(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(log, "_repeats", log.Repeats(lambda: now[0]))
    log.configure(as_json=True)

    def flood(lines):
        for number in range(lines):
            log.get("link").warning("refused", code="unknown_peer", number=number)

    def lines(event):
        found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        return [entry for entry in found if entry["event"] == event]

    flood(log.BURST + 90)
    log.get("link").warning("refused", code="another")
    assert len(lines("refused")) == log.BURST + 1
    log.tell_left_out()
    assert lines("lines left out") == [], "the window is not over"
    now[0] += log.WINDOW
    flood(3)
    again = lines("refused")
    assert [entry.get("left_out_before") for entry in again] == [90, None, None]
    flood(log.BURST)
    now[0] += log.WINDOW
    capsys.readouterr()
    log.tell_left_out()
    (summary,) = lines("lines left out")
    assert (summary["like"], summary["lines"]) == ("refused", 3)


def test_the_number_of_kinds_that_are_watched_is_bounded(capsys):
    log.configure(as_json=True)
    for number in range(2000):
        log.get("link").warning(f"event {number}")
    assert len(log._repeats._seen) <= 500
    assert len(capsys.readouterr().err.splitlines()) == 2000


@pytest.mark.parametrize("as_json", [True, False])
def test_the_last_lines_stay_in_memory(capsys, as_json):
    log.configure(as_json=as_json)
    log.get("test").info("kept", seed=b"12345", number=7)
    try:
        raise RuntimeError("visible")
    except RuntimeError:
        log.get("test").exception("failed")
    kept, failed = map(json.loads, log.last_lines()[-2:])
    assert (kept["event"], kept["seed"], kept["number"]) == ("kept", "<not logged>", 7)
    assert failed["exception"].endswith("RuntimeError: visible")
    assert "visible" in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [True, False])
def test_a_log_that_cannot_be_written_is_nobodys_error(monkeypatch, as_json):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        log.configure(as_json=as_json)
        log.get("test").error("nowhere to go")
        with contextlib.suppress(OSError):  # what is left in its buffer
            full.close()
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        log.configure(as_json=as_json)
        log.get("test").error("nobody to hear")
        with contextlib.suppress(OSError):
            gone.close()
    kept = [json.loads(line)["event"] for line in log.last_lines()[-2:]]
    assert kept == ["nowhere to go", "nobody to hear"]


def test_a_listener_hears_repeats_too(capsys):
    log.configure(as_json=True)
    heard = []
    stop = log.listen(heard.append)
    for _ in range(30):
        log.get("test").warning("again")
    stop()
    log.get("test").warning("unheard")
    assert len(heard) == 30
    assert heard[0]["level"] == "warning"
