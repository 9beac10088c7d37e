"""make chaos: two daemons over TLS, many small sessions, and whatever may happen to a process or a link, at random.

    python -m tests.chaos [--kills 200] [--seed N] [--json] [--keep FOLDER]

Daemons are killed (-9, one or both), told to end, stopped for a while; the link between them is cut, held up, refused,
garbled; the clocks jump. After every session: its results are those of the integer network, bit for bit, and of an
undisturbed run; both ledgers agree, nothing was used twice. At the end: every unit is accounted for. A seed repeats
what is done; at which byte it happens also depends on the machine.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.daemon import two_daemons
from tests.daemon.two_daemons import DATASET, MODEL
from tests.system.faults import Relay, WallClock
from tests.system.two_parties import VENDOR, Pair, Party, free_port, until

IMAGES = 12
MOST_FAULTS = 6  # of one session: the model owner serves a session's image a few times, not for ever
AHEAD = 0.25  # of the sessions have units made beforehand
PATIENCE = 180.0  # seconds from the last fault to the end of a session on both sides

SETTINGS = """\
name = "{name}"
[limits]
threads = 1
disk_reserve_gib = 0.0
[timeouts]
keepalive = 0.5
silence = 3.0
retry_first = 0.05
retry_most = 0.5
"""
KILLS = ("kill hospital", "kill vendor", "kill both")
OTHERS = ("terminate", "stop", "cut", "hold", "refuse", "garble", "jump")
MOMENTS = ("any", "making", "made", "computing", "starting")


@dataclasses.dataclass
class Tally:
    """What happened. ``units``: the state at the hospital and at the vendor of every unit that was ever begun."""

    seed: int
    kills: int = 0
    faults: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    moments: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    sessions: int = 0
    images: int = 0
    different: int = 0
    reused: int = 0
    unaccounted: int = 0
    most_per_fault: int = 0
    slowest_end: float = 0.0
    units: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "faults": dict(self.faults), "moments": dict(self.moments)}


class Chaos:
    """Two daemons, the link between them, and what is done to them."""

    def __init__(self, root: Path, seed: int, say: Callable[[str], None]) -> None:
        self.tally = Tally(seed)
        self._rng = random.Random(seed)
        self._say = say
        self.pair = Pair(root)
        two_daemons.install(root, IMAGES)
        self._expected = two_daemons.expected(root)
        self._clocks: dict[str, WallClock] = {}
        for party in self.pair.both:
            (party.state / "mpcd.toml").write_text(SETTINGS.format(name=party.name))
            party.env["NUMBA_CACHE_DIR"] = ""  # beside the sources, where other tests' kernels are
            if WallClock.possible:
                self._clocks[party.name] = clock = WallClock(root, party.name)
                party.env.update(clock.env)
        self.relay = Relay(free_port(), self.pair.vendor.port)

    def run(self, kills: int) -> Tally:
        began = time.monotonic()
        pair, tally = self.pair, self.tally
        try:
            pair.start()
            pair.hospital.ctl(
                "peer", "add", pair.vendor.ctl("id")["invite"], "--address", f"127.0.0.1:{self.relay.port}"
            )
            pair.vendor.ctl("peer", "add", pair.hospital.ctl("id")["invite"])
            self._session(0)  # undisturbed
            while tally.kills < kills:
                self._session(kills - tally.kills)
            self._account()
            assert pair.stop() == [0, 0]
            for party in pair.both:
                said = party.log.read_text()
                at = said.find("Traceback")
                assert at < 0, f"{party.log} has a traceback: {said[max(0, at - 1000) : at + 4000]}"
        except BaseException:
            self._say(f"failed with --seed {tally.seed} after {tally.kills} kills\n{pair.logs()}")
            raise
        finally:
            for party in pair.both:
                if party.process is not None and party.process.poll() is None:
                    party.process.kill()
                    party.process.wait()
            self.relay.close()
            tally.seconds = round(time.monotonic() - began, 1)
        return tally

    # One session

    def _session(self, kills: int) -> None:
        """With faults until ``kills`` kills or as many faults as one session bears."""
        pair, rng, tally = self.pair, self._rng, self.tally
        pair.connected()
        left = rng.randint(2, MOST_FAULTS) if kills else 0
        before = tally.kills
        lost = self._lost()
        faults = 0
        if kills and rng.random() < AHEAD:
            faults += self._make_ahead()
        session = pair.propose(MODEL, DATASET, IMAGES)
        if left and rng.random() < 0.2:
            self._fault(session)
            faults += 1
            pair.connected()
        pair.vendor.ctl("approve", session)
        while faults < left and tally.kills - before < kills and not self._over(pair.hospital, session):
            self._fault(session)
            faults += 1
        self._end(session)
        tally.sessions += 1
        tally.images += IMAGES
        if faults:
            tally.most_per_fault = max(tally.most_per_fault, -(-(self._lost() - lost) // faults))
        self._say(f"session {tally.sessions}: {faults} faults, {tally.kills} kills so far")

    def _end(self, session: str) -> None:
        """Done on both sides within a bounded time, with the right bits."""
        began = time.monotonic()
        for party in self.pair.both:
            until(lambda party=party: self._over(party, session), PATIENCE, f"{session} does not end at {party.name}")
        self.tally.slowest_end = max(self.tally.slowest_end, round(time.monotonic() - began, 1))
        found = dict(self.pair.hospital.records("SELECT number, logits FROM image WHERE session = ?", session))
        results = {number: json.loads(logits) for number, logits in found.items()}
        self.tally.different += sum(results.get(number) != logits for number, logits in self._expected.items())
        assert results == self._expected
        for party in self.pair.both:
            self.tally.reused += party.ctl("offline", "status")["reuse_count"]
        self.pair.audit(session, IMAGES, most_spent=1 << 30)

    def _make_ahead(self) -> int:
        """Units made by command, which a fault may end: how many faults."""
        make = ("offline", "make", "--peer", VENDOR, "--model", MODEL, "--images", str(self._rng.randint(1, 40)))
        maker = self._rng.choice((self.pair.hospital.mpcctl, None))
        if maker is None:
            command = self.pair.vendor.mpcctl(*(word if word != VENDOR else "hospital" for word in make))
        else:
            command = maker(*make)
        self._fault("")
        try:
            command.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            command.kill()
            command.communicate()
            raise AssertionError("offline make does not end") from None
        self.pair.connected()
        return 1

    def _over(self, party: Party, session: str) -> bool:
        party.running()
        (state, reason) = party.records("SELECT state, reason FROM session WHERE id = ?", session)[0]
        assert state not in ("failed", "cancelled", "denied"), f"at {party.name}: {state}, {reason}"
        return bool(state == "done")

    # Faults

    def _fault(self, session: str) -> None:
        """One, at a random moment; when this returns, both daemons answer again."""
        rng, tally = self._rng, self.tally
        kind = rng.choice(KILLS[:2]) if rng.random() < 0.6 else rng.choice((*KILLS, *OTHERS))
        victim = rng.choice(self.pair.both)
        moment = rng.choice(MOMENTS)
        delay = rng.uniform(0, 0.3)
        if moment == "starting":  # again, before it has come up
            self._kill(victim)
            victim.spawn()
            delay *= 3
        elif moment != "any":
            self._wait_for(moment, session)
        time.sleep(delay)
        tally.moments[moment] += 1
        tally.faults[kind] += 1
        self._do(kind, victim)

    def _wait_for(self, moment: str, session: str) -> None:
        """For a while: there may be no such moment any more."""
        hospital, vendor = self.pair.both

        def come() -> bool:
            if moment == "making":
                return bool(hospital.ledger("SELECT 1 FROM unit WHERE state = 'making' LIMIT 1"))
            if moment == "made":  # between the two ledgers' steps
                ours, theirs = (
                    {row[0] for row in party.ledger("SELECT id FROM unit WHERE state = 'ready'")}
                    for party in (hospital, vendor)
                )
                return ours != theirs
            query = "SELECT count(*) FROM unit WHERE opened = 1 AND session = ?"
            opened = vendor.ledger(query, session)[0][0]
            done = hospital.records("SELECT count(*) FROM image WHERE session = ?", session)[0][0]
            return bool(opened > done)

        end = time.monotonic() + 2
        while not come() and time.monotonic() < end and not (session and self._over(hospital, session)):
            time.sleep(0.003)

    def _do(self, kind: str, victim: Party) -> None:
        rng, both = self._rng, self.pair.both
        match kind:
            case "kill hospital" | "kill vendor":
                victim = both[kind == "kill vendor"]
                self._kill(victim)
                time.sleep(rng.choice((0.0, rng.uniform(0, 1.0))))
                victim.spawn()
            case "kill both":  # a power cut of the machine
                for party in both:
                    self._kill(party)
                for party in rng.sample(both, 2):
                    party.spawn()
            case "terminate":
                victim.answers()
                assert victim.stop() == 0
                victim.spawn()
            case "stop":
                assert victim.process is not None
                victim.process.send_signal(signal.SIGSTOP)
                time.sleep(rng.choice((0.2, 1.0, 4.5)))  # the last one: longer than silence is borne
                victim.process.send_signal(signal.SIGCONT)
            case "cut":
                for _ in range(rng.randint(1, 4)):
                    self.relay.cut()
                    time.sleep(rng.uniform(0, 0.3))
            case "hold":
                self.relay.hold(True)
                time.sleep(rng.choice((0.2, 1.0, 4.5)))
                self.relay.hold(False)
            case "refuse":
                self.relay.refuse(True)
                self.relay.cut()
                time.sleep(rng.uniform(0, 1.5))
                self.relay.refuse(False)
            case "garble":
                self.relay.garble()
            case "jump" if self._clocks:
                self._clocks[victim.name].jump(rng.choice((-1, 1)) * rng.choice((1, 60, 3600, 86400)))
                time.sleep(rng.uniform(0, 0.5))
        for party in both:
            party.answers()

    def _kill(self, victim: Party) -> None:
        victim.running()
        victim.kill()
        self.tally.kills += 1

    # Units

    def _lost(self) -> int:
        """Units of the hospital's ledger that were spent for an image again, or burnt."""
        query = "SELECT count(*) - count(DISTINCT session || image) FROM unit WHERE state IN ('spent', 'burnt')"
        return int(self.pair.hospital.ledger(query)[0][0])

    def _account(self) -> None:
        """After one more comparison both have the same, and whatever was begun came to a known end."""
        pair = self.pair
        pair.vendor.kill()  # what waits for the hospital's word there would wait for minutes
        pair.vendor.start()
        pair.connected()
        pair.hospital.ctl("offline", "make", "--peer", VENDOR, "--model", MODEL, "--images", "1")
        ours, theirs = (dict(party.ledger("SELECT id, state FROM unit")) for party in pair.both)
        uses = [dict(party.ledger("SELECT id, session || image FROM unit WHERE opened")) for party in pair.both]
        assert set(theirs) <= set(ours), "the hospital draws the ids"
        units = collections.Counter(f"{state}, {theirs.get(unit, 'never begun')}" for unit, state in ours.items())
        self.tally.units = dict(units.most_common())
        known = ("ready, ready", "spent, spent", "spent, burnt", "burnt, burnt", "burnt, never begun")
        self.tally.unaccounted = sum(count for ends, count in units.items() if ends not in known)
        assert self.tally.unaccounted == 0, units
        assert len({*uses[0].values()}) == len({*uses[1].values()}) == self.tally.images
        for party in pair.both:
            names = {row[0].hex() for row in party.ledger("SELECT id FROM unit WHERE state = 'ready'")}
            assert {folder.name for folder in (party.state / "units").iterdir()} == names


def run(root: Path, kills: int, seed: int, say: Callable[[str], None] = print) -> Tally:
    """Raises AssertionError when anything was not as it must be."""
    return Chaos(root, seed, say).run(kills)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--json", action="store_true", help="the summary as one JSON object on stdout")
    parser.add_argument("--keep", type=Path, help="put the daemons' folders here, and leave them")
    options = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    say(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="mpcd-chaos-") as scratch:
        tally = run(options.keep or Path(scratch), options.kills, options.seed, say)
    if options.json:
        print(json.dumps(tally.as_dict()))
        return
    for name, value in tally.as_dict().items():
        print(
            f"{name:>16}  {value if not isinstance(value, dict) else ', '.join(f'{k}: {v}' for k, v in value.items())}"
        )


if __name__ == "__main__":
    main()
