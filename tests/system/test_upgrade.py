"""One side is upgraded before the other: compatible versions work together, others say whose operator must do what.

The other version is this code with the constants of daemon/version.py set otherwise before anything reads them.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mpcd.daemon.version import OLDEST_PROTOCOL, PROTOCOL_VERSION
from tests.daemon.two_daemons import DATASET, HOSPITAL, MODEL, VENDOR, expected, install
from tests.system.two_parties import Pair, Party, until

FORMATS = Path(__file__).parent.parent / "daemon" / "formats"
NOW = (OLDEST_PROTOCOL, PROTOCOL_VERSION)
NEXT = (PROTOCOL_VERSION, PROTOCOL_VERSION + 1)  # still speaks this one
AFTER_NEXT = (PROTOCOL_VERSION + 1, PROTOCOL_VERSION + 2)  # does not any more


def becomes(party: Party, versions: tuple[int, int], software: str) -> None:
    """From the next start on."""
    party.program = [
        "-c",
        f"""
import mpcd.daemon.version as version
version.OLDEST_PROTOCOL, version.PROTOCOL_VERSION = {versions}
version.software_version = lambda: {software!r}
from mpcd.daemon.warm import Kernels
async def as_they_are_used(self):
    self.ready.set()
Kernels.run = as_they_are_used  # compiled ones only: these daemons start often
from mpcd.daemon.main import main
main()
""",
    ]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[], Pair]]:
    pairs = []

    def make() -> Pair:
        install(tmp_path, 2)
        pairs.append(Pair(tmp_path))
        for party in pairs[0].both:
            becomes(party, NOW, "0.1.0")
        return pairs[0]

    yield make
    for pair in pairs:
        pair.stop()
        assert "Traceback" not in pair.logs()


def results(pair: Pair, session: str) -> dict[int, list[int]]:
    rows = pair.hospital.records("SELECT number, logits FROM image WHERE session = ?", session)
    return {number: json.loads(logits) for number, logits in rows}


def test_one_side_after_the_other(make: Callable[[], Pair]) -> None:
    """The vendor is upgraded first; then, with a session agreed and units made, the hospital: nothing is lost."""
    pair = make()
    becomes(pair.vendor, NEXT, "0.2.0")
    pair.start()
    pair.introduce()
    assert pair.hospital.ctl("offline", "make", "--peer", VENDOR, "--model", MODEL, "--images", "2")["made"] == 2
    session = pair.propose(MODEL, DATASET, 2)
    assert terms(pair.hospital, session)["protocol"] == PROTOCOL_VERSION

    assert pair.hospital.stop() == 0
    becomes(pair.hospital, NEXT, "0.2.0")
    pair.hospital.start()
    pair.connected()
    pair.vendor.ctl("approve", session[:12])
    assert pair.watch(session)["done"] == 2
    assert results(pair, session) == expected(pair.root)
    pair.audit(session, 2, 2)
    again = pair.propose(MODEL, DATASET, 1)
    assert terms(pair.vendor, again)["protocol"] == PROTOCOL_VERSION + 1, "the highest that both speak now"


def terms(party: Party, session: str) -> dict:
    ((found,),) = party.records("SELECT terms FROM session WHERE id = ?", session)
    return json.loads(found)


def test_too_far_apart(make: Callable[[], Pair]) -> None:
    """Each operator reads whose side must be upgraded, and to what; then the two find each other by themselves."""
    pair = make()
    becomes(pair.vendor, AFTER_NEXT, "0.9.0")
    pair.start()
    pair.hospital.ctl("peer", "add", pair.vendor.ctl("id")["invite"], "--address", pair.vendor.address)
    pair.vendor.ctl("peer", "add", pair.hospital.ctl("id")["invite"])

    def told() -> dict:
        (peer,) = pair.hospital.ctl("peer", "list")["peers"]
        assert not peer["connected"]
        return peer if peer["error"] and "protocol" in peer["error"] else {}

    peer = until(told, 30, "the hospital is not told")
    assert "this daemon must be upgraded" in peer["error"]
    assert "(mpcd 0.9.0)" in peer["error"]
    assert f"protocol version {AFTER_NEXT[0]} or later" in json.dumps(peer)
    theirs = f"{HOSPITAL} must be upgraded"
    until(lambda: theirs in pair.vendor.log.read_text(), 30, "the vendor is not told")

    assert pair.hospital.stop() == 0
    becomes(pair.hospital, AFTER_NEXT, "0.9.0")
    pair.hospital.start()
    pair.connected()


def test_a_state_folder_of_the_first_format(make: Callable[[], Pair]) -> None:
    """With the databases as the first commits made them, and no version.json: upgraded at the start, and used."""
    pair = make()
    for party in pair.both:
        old = {"ledger.sqlite": "ledger-34c6f4b.sql", "sessions.sqlite": "records-d6edf13.sql"}
        for name, schema in old.items():
            with closing(sqlite3.connect(party.state / name)) as db:
                db.executescript((FORMATS / schema).read_text())
    pair.start()
    pair.introduce()
    session = pair.run(MODEL, DATASET, 1)
    assert session["done"] == 1
    for party in pair.both:
        assert json.loads((party.state / "version.json").read_text())["format"] == 1
        for name in ("ledger.sqlite", "sessions.sqlite"):
            assert (party.state / f"{name}.format-0").is_file()
    assert pair.stop() == [0, 0]

    # Going back, as docs/install.md says: the copies in the databases' place, the units' folder removed.
    for party in pair.both:
        for name in ("ledger.sqlite", "sessions.sqlite"):
            for end in ("", "-wal", "-shm"):
                (party.state / (name + end)).unlink(missing_ok=True)
            shutil.copy(party.state / f"{name}.format-0", party.state / name)
        shutil.rmtree(party.state / "units")
    pair.start()
    pair.connected()
    assert pair.run(MODEL, DATASET, 1)["done"] == 1


def test_a_state_folder_of_a_newer_mpcd_is_refused(make: Callable[[], Pair]) -> None:
    pair = make()
    pair.hospital.start()
    assert pair.hospital.stop() == 0
    with closing(sqlite3.connect(pair.hospital.state / "ledger.sqlite")) as db:
        db.execute("PRAGMA user_version = 99")
    pair.hospital.spawn()
    assert pair.hospital.process is not None
    assert pair.hospital.process.wait(60) == 9
    said = pair.hospital.log.read_text()
    assert "ledger.sqlite was written by a newer mpcd: its format is 99" in said
    assert "upgrade mpcd on this machine" in said
