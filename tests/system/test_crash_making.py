"""`offline make` crashed at a step of either side: ids burnt on both, nothing left, fresh seeds, and it works again."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import two_daemons
from tests.daemon.two_daemons import MODEL
from tests.system.two_parties import VENDOR, Pair, Party, until

CRASHING = Path(__file__).parent / "crashing.py"
UNITS = 2
CRASHES = int(os.environ.get("MPCD_CRASHES") or 5)  # make chaos: 60; every step of one batch: 600
MAKE = ("offline", "make", "--peer", VENDOR, "--model", MODEL, "--images")
# Once the data owner's ledger says ready, its units may outlive a crash: the next comparison tells the other side.
LATE = ("after ready", "before offline.ready", "after offline.ready", "before send", "after send", "before receive")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    root = tmp_path_factory.mktemp("crash-making")
    made = Pair(root)
    two_daemons.install(root)
    for party in made.both:
        party.env["NUMBA_CACHE_DIR"] = ""  # beside the sources, where other tests' kernels are
        party.program = [str(CRASHING), str(notes(party))]
    made.start()
    made.introduce()
    yield made
    for party in made.both:
        party.stop()


def notes(party: Party) -> Path:
    return party.state.with_suffix(".notes")


def noted(party: Party, kind: str) -> list[str]:
    return [line[len(kind) + 1 :] for line in notes(party).read_text().splitlines() if line.startswith(kind + " ")]


def seeds(pair: Pair) -> list[str]:
    return [seed for party in pair.both for seed in noted(party, "seed")]


def ready(party: Party) -> set[bytes]:
    return {row[0] for row in party.ledger("SELECT id FROM unit WHERE state = 'ready'")}


def agree(pair: Pair) -> None:
    """The same ready units on both sides, files of no others, every other unit burnt wherever it was begun."""
    units = ready(pair.hospital)
    assert units == ready(pair.vendor)
    for party in pair.both:
        assert {folder.name for folder in (party.state / "units").iterdir()} == {unit.hex() for unit in units}
        assert party.ledger("SELECT count(*) FROM unit WHERE state NOT IN ('ready', 'burnt')") == [(0,)]
    ours, theirs = (dict(party.ledger("SELECT id, state FROM unit")) for party in pair.both)
    assert all(ours[unit] == state for unit, state in theirs.items())
    assert all(state == "burnt" for unit, state in ours.items() if unit not in theirs)


def crash(pair: Pair, victim: Party, step: str, number: int) -> bool:
    """Whether it came to that step."""
    order = notes(victim).with_name(notes(victim).name + ".dies")
    before = ready(pair.hospital)
    order.write_text(f"{step}\n{number}")
    status, _, _ = pair.hospital.try_ctl(*MAKE, str(len(before) + UNITS))
    assert victim.process is not None
    if status == 0 and victim.process.poll() is None:
        return False
    until(lambda: victim.process.poll() is not None, 30, f"{victim.name} did not die at {step}")
    victim.start()
    pair.connected()
    pair.hospital.ctl(*MAKE, str(len(before) + 1), "--estimate")  # compares
    agree(pair)
    left = ready(pair.hospital)
    assert before <= left, "what was made before stays"
    assert len(left) in (len(before), len(before) + UNITS), "a batch is ready as a whole or not at all"
    assert left == before or step in LATE
    assert pair.hospital.ctl(*MAKE, str(len(left) + 1))["made"] == 1
    agree(pair)
    return True


def test_at_steps_of_either_side(pair: Pair) -> None:
    seed = int(os.environ.get("MPCD_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"MPCD_SEED={seed}")
    pair.hospital.ctl(*MAKE, str(UNITS))
    points = [
        (party, step, number)
        for party in pair.both
        for step, count in Counter(noted(party, "step")).items()
        for number in range(1, count + 1)
    ]
    steps = {(party.name, step) for party, step, _ in points}
    for name in ("hospital", "vendor"):
        assert {(name, f"before {step}") for step in ("begin", "writer", "put", "finish", "ready", "send")} <= steps
    # Of the rare steps, between which the ledgers differ, and of those that come often.
    rng = random.Random(seed)
    rare = [point for point in points if point[1].split()[1] in ("begin", "ready", "offline.begin", "offline.ready")]
    often = [point for point in points if point not in rare]
    chosen = rng.sample(rare, min(len(rare), CRASHES - 2))
    chosen += rng.sample(often, min(len(often), CRASHES - len(chosen)))
    crashes = sum(crash(pair, *point) for point in chosen)
    print(f"{crashes} crashes of {len(chosen)} tried; a batch has {len(points)} steps")
    assert crashes >= len(chosen) * 2 // 3, "the steps are others each time"
    found = seeds(pair)
    assert len(set(found)) == len(found), "seeds were drawn before"
    assert len(found) >= crashes
    for party in pair.both:
        assert party.ctl("offline", "status")["reuse_count"] == 0
