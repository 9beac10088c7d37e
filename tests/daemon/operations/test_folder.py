"""What the doctor finds in a state folder, healthy and not."""

import datetime
import json
import os
import shutil
import sqlite3

import pytest

from mpcd.daemon.audit.journal import Journal
from mpcd.daemon.config import Config, Paths
from mpcd.daemon.network.identity import FILE_NAME, Identity
from mpcd.daemon.offline.ledger import Ledger, Stock
from mpcd.daemon.operations import folder
from mpcd.daemon.operations.checks import OK, PROBLEM, WARNING
from mpcd.daemon.sessions.records import Records

STOCK = Stock("p" * 64, "m" * 64, "n" * 64)
UNITS = [bytes([n]) * 16 for n in range(1, 5)]


@pytest.fixture
def paths(tmp_path):
    """A folder with an identity, four units (two ready, one spent, one burnt) and no session."""
    found = Paths(tmp_path / "state", tmp_path / "run", tmp_path / "cache")
    found.create()
    Identity.load_or_create(found.state, "hospital")
    ledger = Ledger(found.state / folder.LEDGER)
    ledger.begin(STOCK, bytes(16), UNITS)
    ledger.ready(UNITS[:3], 5_000_000)
    ledger.burn(UNITS[3:], "no reason")
    ledger.spend(UNITS[0], "s" * 32, 0).open()
    ledger.close()
    Records(found.state / folder.RECORDS).close()
    return found


def look(paths, **limits):
    table = {"name": "hospital", "limits": {"disk_reserve_gib": 0.0, **limits}}
    return {check.name: check for check in folder.checks(paths, Config.parse(table))}


def test_healthy(paths):
    found = look(paths)
    assert {check.level for check in found.values()} == {OK}, found
    assert all(not check.hint for check in found.values())
    assert found["ledger"].text == "0 making, 2 ready, 1 spent, 1 burnt; used twice: 0"


def test_nothing_there_yet(tmp_path):
    paths = Paths(tmp_path / "state", tmp_path / "run", tmp_path / "cache")
    assert [check.level for check in look(paths).values()] == [PROBLEM]
    paths.create()
    found = look(paths)
    assert {name for name, check in found.items() if check.level != OK} == {"key"}


def test_nothing_is_written(paths):
    before = {file: file.stat().st_mtime_ns for file in paths.state.rglob("*")}
    look(paths)
    assert {file: file.stat().st_mtime_ns for file in paths.state.rglob("*")} == before


def test_others_may_read(paths):
    (paths.state / FILE_NAME).chmod(0o644)
    (paths.state / folder.LEDGER).chmod(0o640)
    found = look(paths)
    assert found["state folder"].level == found["key"].level == PROBLEM
    assert FILE_NAME in found["state folder"].text
    assert folder.LEDGER in found["state folder"].text
    assert "chmod" in found["state folder"].hint


@pytest.mark.parametrize("damage", [b"not a database at all" * 100, b"SQLite format 3\0" + bytes(4096)])
def test_damaged_ledger(paths, damage):
    (paths.state / folder.LEDGER).write_bytes(damage)
    found = look(paths)["ledger"]
    assert (found.level, "backup" in found.hint) == (PROBLEM, True)


def test_a_page_torn_out(paths):
    file = paths.state / folder.LEDGER
    with sqlite3.connect(file) as db:
        size = db.execute("PRAGMA page_size").fetchone()[0]
        root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'step'").fetchone()[0]
    db.close()
    with open(file, "r+b") as out:
        out.seek((root - 1) * size)
        out.write(os.urandom(size))
    assert look(paths)["ledger"].level == PROBLEM


def test_a_unit_used_twice(paths):
    """As only a program without our schema could do it."""
    with sqlite3.connect(paths.state / folder.LEDGER) as db:
        db.execute("INSERT INTO step (unit, step, at) VALUES (?, 'opened', 0)", (UNITS[0],))
    db.close()
    found = look(paths)["ledger"]
    assert (found.level, "used twice: 1" in found.text) == (PROBLEM, True)
    ledger = Ledger(paths.state / folder.LEDGER)
    assert ledger.reuse_count() == 1
    ledger.close()


def test_an_audit_log_with_a_changed_line(paths):
    log = Journal(paths.state / folder.AUDIT)
    for name in ("one", "two", "three"):
        log.append(name, {"who": "me"})
    log.close()
    assert look(paths)["audit log"].text == "3 entries, each in its place"
    (file,) = (paths.state / folder.AUDIT).glob("*.jsonl")
    file.write_bytes(file.read_bytes().replace(b'"two"', b'"six"'))
    found = look(paths)["audit log"]
    assert (found.level, "line 2" in found.text) == (PROBLEM, True)


def test_policy(paths):
    (paths.state / "policy.toml").write_text("[[alow]]\n")
    found = look(paths)["policy"]
    assert (found.level, "alow" in found.text) == (PROBLEM, True)


def test_configuration(paths):
    (paths.state / "mpcd.toml").write_text("[limits]\nmemory_gib = 'much'\n")
    found = look(paths)["configuration"]
    assert (found.level, "memory_gib" in found.text) == (PROBLEM, True)


def test_disk(paths):
    free = shutil.disk_usage(paths.state).free
    assert look(paths, disk_reserve_gib=min(4096.0, free / 2**30 + 100))["disk"].level == PROBLEM


def test_disk_that_running_sessions_will_need(paths, monkeypatch):
    terms = json.dumps({"model_commitment": STOCK.model, "images": 40})
    with sqlite3.connect(paths.state / folder.RECORDS) as db:
        db.execute(
            "INSERT INTO session (id, role, peer, state, terms, own, created) VALUES (?, 'data-owner', 'vendor',"
            " 'approved', ?, '{}', 0)",
            ("a" * 32, terms),
        )
        db.execute("INSERT INTO image VALUES (?, 0, NULL, 0)", ("a" * 32,))
    db.close()
    assert folder.planned(paths) == folder.Planned(40 - 1 - 2, 16 * 5_000_000)
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 79_000_000))
    found = look(paths)["disk"]
    assert (found.level, "37 units" in found.text) == (WARNING, True)


@pytest.mark.parametrize(("days", "level"), [(400, OK), (10, WARNING), (-1, PROBLEM)])
def test_certificates_that_end(paths, days, level):
    end = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)).timestamp()
    config = Config.parse({"name": "hospital"})
    found = folder.certificates(paths, config, {"vendor": end, "other": None})
    assert (found.level, "vendor" in found.text, bool(found.hint)) == (level, True, level != OK)
