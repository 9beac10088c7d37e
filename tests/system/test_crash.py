"""kill -9 of either daemon: the run ends with the same bits, and no unit is used twice."""

from __future__ import annotations

import functools
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.conftest import IMAGES, add_small
from tests.system.two_parties import HOSPITAL, VENDOR, Pair, Party, until

MOST_SESSIONS = 8
MANY = 200  # units that take some seconds to make
IN_FLIGHT = 8  # images that one kill may cost at most


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


def phase_of(pair: Pair, session: str) -> str:
    if making(pair.hospital):
        return "offline"
    return "online" if computing(pair.hospital, session) else "between"


def meets(pair: Pair, session: str, phase: str) -> bool:
    """The moment to kill at, or that there will be none."""
    return phase_of(pair, session) == phase or over(pair.hospital, session)


def disturb(
    pair: Pair, session: str, wanted: list[tuple[str, Party]], spans: dict[str, float], rng: random.Random
) -> int:
    """Kill until the session is over or everything wanted has happened. Returns the number of kills."""
    kills = 0
    while wanted:
        phase, victim = wanted[0]
        met = functools.partial(meets, pair, session, phase)
        until(met, 240, f"no {phase} phase", 0.01)
        time.sleep(rng.uniform(0, spans[phase] / 2))
        if over(pair.hospital, session):
            break
        during = phase_of(pair, session)
        victim.kill()
        kills += 1
        print(f"killed {victim.name} {during}")
        victim.start()
        if (during, victim) in wanted:
            wanted.remove((during, victim))
        else:
            wanted.append(wanted.pop(0))
    return kills


def test_killed_again_and_again(pair: Pair, cohort: Path, rng: random.Random) -> None:
    """Each daemon in each phase, over as many sessions as it takes to meet the moments."""
    undisturbed = pair.run("small", "site", IMAGES)
    spans = {"offline": undisturbed["offline"]["seconds"], "online": undisturbed["online"]["seconds"] / IMAGES}
    clear = pair.evaluate("small", cohort / "dicom")
    wanted = [(phase, party) for phase in ("offline", "online") for party in pair.both]
    for _ in range(MOST_SESSIONS):
        session = pair.propose("small", "site", IMAGES)
        pair.vendor.ctl("approve", session)
        kills = disturb(pair, session, wanted, spans, rng)
        done = pair.watch(session)
        until(lambda session=session: over(pair.vendor, session), 30, "the vendor does not know that it is done")
        assert (done["done"], done["images"]) == (IMAGES, IMAGES)
        assert results(pair.hospital, session) == results(pair.hospital, undisturbed["id"])
        assert len(results(pair.hospital, session)) == IMAGES
        pair.report(session, clear)
        pair.audit(session, IMAGES, most_spent=IMAGES + kills * IN_FLIGHT)
        if not wanted:
            break
    assert not wanted, "these moments were never met"
    pair.audit(undisturbed["id"], IMAGES, most_spent=IMAGES)
    for party in pair.both:
        assert party.ledger("SELECT count(*) FROM unit WHERE state = 'burnt'")[0][0] >= 1, "half-made units burn"
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
    command = pair.hospital.mpcctl(*make, str(ready + MANY), "--json")
    until(lambda: making(pair.hospital), 60, "no offline phase", 0.01)
    time.sleep(rng.uniform(0, 0.5))
    victim.kill()
    _, err = command.communicate(timeout=120)
    assert command.returncode == (3 if who == HOSPITAL else 7), err
    victim.start()
    pair.connected()
    # Whole batches of before stay; the rest can simply be asked for again.
    left = len(pair.hospital.ledger("SELECT id FROM unit WHERE state = 'ready'"))
    assert left >= ready
    again = pair.hospital.ctl(*make, str(left + 3))
    stocks = [party.ledger("SELECT id FROM unit WHERE state = 'ready' ORDER BY id") for party in pair.both]
    assert stocks[0] == stocks[1]
    assert len(stocks[0]) == again["ready"] == left + 3
    assert again["made"] >= 3
