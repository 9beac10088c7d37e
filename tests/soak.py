"""make soak: many peers, many sessions, many files, and a long time: does anything grow, starve or stop answering?

    python -m tests.soak [--peers 8] [--sessions 1000] [--files 20000] [--minutes 30] [--json] [--keep FOLDER]

1. files: a data set of so many DICOM files is scanned.
2. peers: so many hospitals' sessions at once at one vendor; how even they come along.
3. sessions: so many in one hospital's queue, of one image each.
4. minutes: sessions of all hospitals, one after the other without a pause; what every daemon holds, ever so often.

All the while somebody asks the vendor and the first hospital for their status. What is expected of it is in
docs/reliability.md; only what no machine is too slow for is asserted: right results, no reuse, nothing lost, bounds.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mpcd.cli import client
from mpcd.daemon.image import dicom
from tests.daemon import two_daemons
from tests.daemon.two_daemons import DATASET, MODEL, VENDOR
from tests.system.two_parties import Party, until

IMAGES = 60  # of the data set that sessions use
AT_ONCE = 40  # images of each session of phase 2
PATIENCE = 3600.0
SAMPLE = 5.0  # seconds between two looks at what a daemon holds
ASK = 0.1  # seconds between two questions for a status

SETTINGS = """\
name = "{name}"
[limits]
threads = 1
disk_reserve_gib = 0.0
[timeouts]
retry_first = 0.05
retry_most = 0.5
"""
ALLOW = """\
[[allow]]
peer = "{peer}"
model = "*"
max_images = 1000
budget = 100000000
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """By one daemon at one time."""

    memory: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, party: Party) -> Held:
        assert party.process is not None
        process = psutil.Process(party.process.pid)
        return cls(process.memory_info().rss, process.num_fds(), process.num_threads())


class Questions:
    """Asks one daemon for its status, again and again, and notes how long each answer takes."""

    def __init__(self, party: Party) -> None:
        self._socket = party.state / "run" / "control.sock"
        self.seconds: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(ASK):
            began = time.monotonic()
            client.call(self._socket, "status", {}, lambda progress: None)
            self.seconds.append(time.monotonic() - began)

    def stop(self) -> dict[str, float]:
        self._stop.set()
        self._thread.join()
        milliseconds = sorted(1000 * s for s in self.seconds) or [0.0]
        return {
            "asked": len(self.seconds),
            "median_ms": round(statistics.median(milliseconds), 1),
            "p99_ms": round(milliseconds[int(0.99 * (len(milliseconds) - 1))], 1),
            "most_ms": round(milliseconds[-1], 1),
        }


class Soak:
    """One vendor and its hospitals."""

    def __init__(self, root: Path, peers: int, say: Callable[[str], None]) -> None:
        self._root = root
        self._say = say
        self.found: dict[str, Any] = {}
        two_daemons.install(root, IMAGES)
        self._expected = two_daemons.expected(root)
        self.vendor = Party(root, VENDOR)
        self.hospitals = [Party(root, f"hospital-{i + 1}") for i in range(peers)]
        self._parties = [self.vendor, *self.hospitals]
        for hospital in self.hospitals:
            shutil.copytree(root / two_daemons.HOSPITAL / "datasets", hospital.state / "datasets")
        for party in self._parties:
            (party.state / "mpcd.toml").write_text(SETTINGS.format(name=party.name))
            party.env["NUMBA_CACHE_DIR"] = ""  # beside the sources, where other tests' kernels are
        allowed = "\n".join(ALLOW.format(peer=hospital.name) for hospital in self.hospitals)
        (self.vendor.state / "policy.toml").write_text(allowed)

    def run(self, files: int, sessions: int, minutes: float) -> dict[str, Any]:
        """What was found. Raises AssertionError when something was not as it must be."""
        began = time.monotonic()
        try:
            for party in self._parties:
                party.start()
            invite = self.vendor.ctl("id")["invite"]
            for hospital in self.hospitals:
                hospital.ctl("peer", "add", invite, "--address", self.vendor.address)
                self.vendor.ctl("peer", "add", hospital.ctl("id")["invite"])
            for party in self._parties:
                until(lambda party=party: self._ready(party), 900, f"{party.name} has no peer or no kernels", 0.2)
            self._files(files)
            self._peers()
            self._sessions(sessions)
            self._minutes(minutes)
            self._account()
            assert [party.stop() for party in self._parties] == [0] * len(self._parties)
            for party in self._parties:
                assert "Traceback" not in party.log.read_text(), f"{party.log} has a traceback"
        except BaseException:
            for party in self._parties:
                if party.log.exists():
                    self._say(f"--- {party.log} ---\n{party.log.read_text()[-5000:]}")
            raise
        finally:
            for party in self._parties:
                if party.process is not None and party.process.poll() is None:
                    party.process.kill()
                    party.process.wait()
        self.found["seconds"] = round(time.monotonic() - began, 1)
        return self.found

    def _ready(self, party: Party) -> bool:
        status = party.ctl("status")
        return bool(status["kernels"]["ready"]) and all(p["connected"] for p in status["peers"])

    # 1

    def _files(self, count: int) -> None:
        self._say(f"a data set of {count} files")
        hospital = self.hospitals[0]
        folder = self._root / "many"
        folder.mkdir()
        pixels = np.random.default_rng(7).integers(0, 256, (count, 8, 8))
        with (self._root / "many.csv").open("w") as labels:
            labels.write("SOPInstanceUID,finding\n")
            for i in range(count):
                uid = f"1.2.4.{i + 1}"
                dicom.write(folder / f"{i}.dcm", pixels[i], bits_stored=8, syntax="explicit", instance_uid=uid)
                labels.write(f"{uid},{i % 2}\n")
        before = Held.of(hospital)
        began = time.monotonic()
        with self._asked() as asked, _most_memory(hospital) as most:
            added = hospital.ctl("dataset", "add", folder, "--labels", self._root / "many.csv", "--name", "many")
        assert added["dataset"]["images"] == added["dataset"]["labelled"] == count
        self.found["files"] = {
            "files": count,
            "seconds": round(time.monotonic() - began, 1),
            "worker_peak_bytes": most[0],
            "daemon_growth_bytes": Held.of(hospital).memory - before.memory,
            "status": asked,
        }

    # 2

    def _peers(self) -> None:
        self._say(f"{len(self.hospitals)} sessions at once")
        began = time.monotonic()
        with self._asked() as asked, _most_memory(self.vendor) as most:
            ids = [self._start(hospital, AT_ONCE) for hospital in self.hospitals]
            shares: list[int] = []
            while not all(self._done(h, id) == AT_ONCE for h, id in zip(self.hospitals, ids, strict=True)):
                done = [self._done(h, id) for h, id in zip(self.hospitals, ids, strict=True)]
                if not shares and max(done) >= AT_ONCE // 2:
                    shares = done
                assert time.monotonic() < began + PATIENCE, f"images done: {done}"
                time.sleep(0.05)
        for hospital, id in zip(self.hospitals, ids, strict=True):
            self._over(hospital, id)
        self.found["peers"] = {
            "peers": len(self.hospitals),
            "images": AT_ONCE * len(self.hospitals),
            "seconds": round(time.monotonic() - began, 1),
            "vendor_peak_bytes": most[0],
            # Images of each hospital when the first had half of its own.
            "shares": shares,
            "status": asked,
        }

    # 3

    def _sessions(self, count: int) -> None:
        self._say(f"{count} sessions in a queue")
        hospital = self.hospitals[0]
        hospital.ctl("offline", "make", "--peer", VENDOR, "--model", MODEL, "--images", str(count))
        before = {party.name: Held.of(party) for party in (hospital, self.vendor)}
        began = time.monotonic()
        with self._asked() as asked, _most_memory(hospital) as most:
            ids = [self._start(hospital, 1) for _ in range(count)]
            waiting = sum(self._done(hospital, id) == 0 for id in ids)
            queued = time.monotonic() - began
            end = time.monotonic() + PATIENCE
            while hospital.records("SELECT count(*) FROM session WHERE state <> 'done'")[0][0]:
                assert time.monotonic() < end, "the queue does not come to its end"
                time.sleep(0.5)
        for id in ids:
            self._over(hospital, id)
        self.found["sessions"] = {
            "sessions": count,
            "queueing_seconds": round(queued, 1),
            "waiting_when_all_were_queued": waiting,
            "seconds": round(time.monotonic() - began, 1),
            "hospital_peak_bytes": most[0],
            "growth_bytes": {
                party.name: Held.of(party).memory - before[party.name].memory for party in (hospital, self.vendor)
            },
            "status": asked,
        }

    # 4

    def _minutes(self, minutes: float) -> None:
        self._say(f"{minutes:g} minutes of sessions")
        end = time.monotonic() + 60 * minutes
        held: dict[str, list[Held]] = {party.name: [] for party in self._parties}
        running: dict[str, str] = {}
        counts = itertools.count(1)
        next_look = 0.0
        with self._asked() as asked:
            while time.monotonic() < end or running:
                for hospital in self.hospitals:
                    id = running.get(hospital.name)
                    if id is not None and self._state(hospital, id) in ("done", "failed", "cancelled"):
                        self._over(hospital, id)
                        del running[hospital.name]
                    if hospital.name not in running and time.monotonic() < end:
                        running[hospital.name] = self._start(hospital, 1 + next(counts) % 5)
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + SAMPLE
                    for party in self._parties:
                        party.running()
                        held[party.name].append(Held.of(party))
                time.sleep(0.05)
        self.found["minutes"] = {
            "minutes": minutes,
            "sessions": next(counts) - 1,
            "daemons": {name: _growth(samples) for name, samples in held.items()},
            "status": asked,
        }

    def _account(self) -> None:
        """Nothing was used twice; whatever the vendor spent, its hospital spent for the same image."""
        spent = {unit: (session, image) for hospital in self.hospitals for unit, session, image in _spent(hospital)}
        theirs = {unit: (session, image) for unit, session, image in _spent(self.vendor)}
        assert all(spent.get(unit) == use for unit, use in theirs.items())
        self.found["units_spent"] = len(theirs)
        self.found["reuse_count"] = sum(p.ctl("offline", "status")["reuse_count"] for p in self._parties)
        assert self.found["reuse_count"] == 0

    # Sessions

    def _start(self, hospital: Party, images: int) -> str:
        wanted = {"peer": VENDOR, "model": MODEL, "dataset": DATASET, "images": images}
        began = client.call(hospital.state / "run" / "control.sock", "session.start", wanted, lambda progress: None)
        return str(began["session"]["id"])

    def _state(self, hospital: Party, id: str) -> str:
        return str(hospital.records("SELECT state FROM session WHERE id = ?", id)[0][0])

    def _done(self, hospital: Party, id: str) -> int:
        return int(hospital.records("SELECT count(*) FROM image WHERE session = ?", id)[0][0])

    def _over(self, hospital: Party, id: str) -> None:
        """Done, with the integer network's results."""
        until(lambda: self._state(hospital, id) not in ("online", "offline"), 60, f"{id} does not end")
        (state, reason) = hospital.records("SELECT state, reason FROM session WHERE id = ?", id)[0]
        assert state == "done", f"{id} of {hospital.name} is {state}: {reason}"
        for number, logits in hospital.records("SELECT number, logits FROM image WHERE session = ?", id):
            assert json.loads(logits) == self._expected[number]

    @contextlib.contextmanager
    def _asked(self) -> Iterator[dict[str, Any]]:
        """Meanwhile both sides are asked for their status; filled at the end."""
        answers: dict[str, Any] = {}
        asking = {party.name: Questions(party) for party in (self.vendor, self.hospitals[0])}
        try:
            yield answers
        finally:
            answers.update({name: questions.stop() for name, questions in asking.items()})


@contextlib.contextmanager
def _most_memory(party: Party) -> Iterator[list[int]]:
    """The most that the daemon and its workers held together, in bytes; looked at ten times a second."""
    assert party.process is not None
    process, most, stop = psutil.Process(party.process.pid), [0], threading.Event()

    def look() -> None:
        while not stop.wait(0.1):
            held = process.memory_info().rss
            for child in process.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    held += child.memory_info().rss
            most[0] = max(most[0], held)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


def _growth(samples: list[Held]) -> dict[str, Any]:
    """From the second quarter of the time, when everything has been used once, to the last."""
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter] or samples, samples[-quarter:]

    def middle(part: list[Held], name: str) -> float:
        return statistics.median(getattr(held, name) for held in part)

    return {
        "memory_bytes": middle(late, "memory"),
        **{f"{n}_growth": middle(late, n) - middle(early, n) for n in ("memory", "descriptors", "threads")},
    }


def _spent(party: Party) -> list[tuple[Any, ...]]:
    return party.ledger("SELECT id, session, image FROM unit WHERE state = 'spent'")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.split("\n\n")[0])
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--json", action="store_true", help="what was found as one JSON object on stdout")
    parser.add_argument("--keep", type=Path, help="put the daemons' folders here, and leave them")
    options = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="mpcd-soak-") as scratch:
        soak = Soak(options.keep or Path(scratch), options.peers, say)
        found = soak.run(options.files, options.sessions, options.minutes)
    print(json.dumps(found, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
