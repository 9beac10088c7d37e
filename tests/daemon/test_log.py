import json

import numpy as np
import pytest
import structlog

from mpcd.daemon import log


@pytest.fixture(autouse=True)
def restore():
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
