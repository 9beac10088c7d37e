"""kill -9 of either daemon: the run ends with the same bits, and no unit is used twice."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.conftest import IMAGES, add_small
from tests.system.two_parties import HOSPITAL, VENDOR, Pair, Party, until

MORE_KILLS = 3


@pytest.fixture(scope="module")
def pair(make_pair: Callable[..., Pair], cohort: Path, small_model: tuple[Path, Path]) -> Iterator[Pair]:
    made = make_pair("crash")
    add_small(made, cohort, small_model)
    yield made
    assert made.stop() == [0, 0]


@pytest.fixture
def rng() -> random.Random:
    """MPCD_SEED repeats a run; the moments also depend on the machine."""
    seed = int(os.environ.get("MPCD_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"MPCD_SEED={seed}")
    return random.Random(seed)


def results(hospital: Party, session: str) -> dict[int, bytes]:
    return dict(hospital.records("SELECT number, logits FROM image WHERE session = ?", session))


def making(party: Party) -> bool:
    return bool(party.ledger("SELECT 1 FROM unit WHERE state = 'making' LIMIT 1"))


def computing(party: Party, session: str) -> bool:
    """A unit is opened whose image is not in the records yet."""
    (opened,) = party.ledger("SELECT count(*) FROM unit WHERE session = ? AND opened = 1", session)[0]
    attempts = party.records("SELECT attempts FROM session WHERE id = ?", session)[0][0]
    done = party.records("SELECT count(*) FROM image WHERE session = ?", session)[0][0]
    return bool(opened > done and attempts > done)


def over(party: Party, session: str) -> bool:
    state = party.records("SELECT state FROM session WHERE id = ?", session)[0][0]
    assert state != "failed", party.records("SELECT reason FROM session WHERE id = ?", session)
    return state == "done"


def test_killed_again_and_again(pair: Pair, cohort: Path, rng: random.Random) -> None:
    """Each daemon once in each phase, and then either at any moment."""
    undisturbed = pair.run("small", "site", IMAGES)
    offline, online = (undisturbed[p]["seconds"] for p in ("offline", "online"))
    session = pair.propose("small", "site", IMAGES)
    pair.vendor.ctl("approve", session)
    plan = [("offline", pair.hospital), ("offline", pair.vendor), ("online", pair.hospital), ("online", pair.vendor)]
    plan += [("any", rng.choice(pair.both)) for _ in range(MORE_KILLS)]
    killed = []
    for phase, victim in plan:
        if phase == "offline":
            until(lambda: making(pair.hospital), 120, "no offline phase", 0.01)
            time.sleep(rng.uniform(0, offline / 2))
        elif phase == "online":
            until(lambda: computing(pair.hospital, session), 240, "no online phase", 0.01)
            time.sleep(rng.uniform(0, online / IMAGES / 2))
        else:
            time.sleep(rng.uniform(0, 2 * online))
        during = "offline" if making(pair.hospital) else "online" if computing(pair.hospital, session) else "between"
        victim.kill()
        killed.append((victim.name, during))
        victim.start()
        if over(pair.hospital, session):
            break
    print(f"killed: {killed}")
    done = pair.watch(session)
    until(lambda: over(pair.vendor, session), 30, "the vendor does not know that the session is done")
    assert {during for _, during in killed} >= {"offline", "online"}
    assert {name for name, _ in killed} == {HOSPITAL, VENDOR}
    assert (done["done"], done["images"]) == (IMAGES, IMAGES)
    assert results(pair.hospital, session) == results(pair.hospital, undisturbed["id"])
    assert len(results(pair.hospital, session)) == IMAGES
    pair.report(session, pair.evaluate("small", cohort / "dicom"))
    pair.audit(session, IMAGES, most_spent=IMAGES + len(killed))
    pair.audit(undisturbed["id"], IMAGES, most_spent=IMAGES)
    for party in pair.both:
        assert party.ledger("SELECT count(*) FROM unit WHERE state = 'burnt'")[0][0] >= IMAGES, "half-made units burn"
        assert not making(party)
        # On the disk is exactly what the ledger calls ready.
        names = {row[0].hex() for row in party.ledger("SELECT id FROM unit WHERE state = 'ready'")}
        assert {folder.name for folder in (party.state / "units").iterdir()} == names
        assert "Traceback" not in party.log.read_text(), party.log.read_text()


@pytest.mark.parametrize("who", [HOSPITAL, VENDOR])
def test_units_made_ahead(pair: Pair, rng: random.Random, who: str) -> None:
    """The command that waits is told; what was ready before stays ready; the command can simply be given again."""
    pair.connected()
    make = ("offline", "make", "--peer", VENDOR, "--model", "small", "--images")
    ready = pair.hospital.ctl(*make, "1")["ready"]
    victim = {party.name: party for party in pair.both}[who]
    command = pair.hospital.mpcctl(*make, str(ready + 3), "--json")
    until(lambda: making(pair.hospital), 60, "no offline phase", 0.01)
    time.sleep(rng.uniform(0, 0.5))
    victim.kill()
    _, err = command.communicate(timeout=120)
    assert command.returncode == (3 if who == HOSPITAL else 7), err
    victim.start()
    pair.connected()
    again = pair.hospital.ctl(*make, str(ready + 3))
    assert (again["made"], again["ready"]) == (3, ready + 3)
    stocks = [party.ledger("SELECT id FROM unit WHERE state = 'ready' ORDER BY id") for party in pair.both]
    assert stocks[0] == stocks[1]
    assert len(stocks[0]) == ready + 3
