"""A hospital and a vendor as a person has them: two daemon processes, steered by ``mpcctl --json`` and nothing else."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
HOSPITAL, VENDOR = "hospital", "vendor"

SETTINGS = """\
name = "{name}"
[limits]
threads = 1
disk_reserve_gib = {reserve}
memory_gib = {memory}
[timeouts]
retry_first = 0.05
retry_most = 0.5
"""


class Party:
    """One side: a state folder, a daemon in it, and mpcctl speaking to that daemon."""

    def __init__(self, root: Path, name: str, *, reserve: float = 0.0, memory: float = 4.0) -> None:
        self.name = name
        self.state = root / name
        self.log = root / f"{name}.log"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.program = ["-m", "mpcd.daemon.main"]
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("MPCD_", "XDG_"))},
            "MPCD_STATE": str(self.state),
            "MPCD_CACHE": str(root / "cache"),
        }
        self.state.mkdir(parents=True, exist_ok=True)
        self.configure(reserve=reserve, memory=memory)

    def configure(self, *, reserve: float = 0.0, memory: float = 4.0) -> None:
        """Counts from the next start on."""
        (self.state / "mpcd.toml").write_text(SETTINGS.format(name=self.name, reserve=reserve, memory=memory))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns once the daemon answers; its kernels may not be ready yet."""
        self.spawn()
        self.answers()

    def spawn(self) -> None:
        """Returns at once."""
        command = [sys.executable, *self.program, "--listen", self.address, "--log", "json"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self.env, stderr=log, stdout=log)

    def answers(self) -> None:
        until(lambda: self.running() and self.try_ctl("id")[0] == 0, 60, f"{self.name}'s daemon does not answer")

    def running(self) -> bool:
        """Raises when the daemon has ended by itself."""
        assert self.process is not None
        if (status := self.process.poll()) is not None:
            raise AssertionError(f"{self.name}'s daemon ended with status {status}:\n{self.log.read_text()[-4000:]}")
        return True

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def stop(self) -> int | None:
        """Its exit status; None where it does not run."""
        if self.process is None or self.process.poll() is not None:
            return None
        self.process.terminate()
        try:
            return self.process.wait(60)  # it lets images in flight end
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def mpcctl(self, *words: str | Path) -> subprocess.Popen[str]:
        """mpcctl in the background."""
        return subprocess.Popen(
            [BIN / "mpcctl", *map(str, words)],
            env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def try_ctl(self, *words: str | Path) -> tuple[int, dict[str, Any], str]:
        """Exit status, the one JSON object on stdout, and stderr."""
        process = self.mpcctl(*words, "--json")
        try:
            out, err = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{self.name}: mpcctl {' '.join(map(str, words))} does not end") from None
        return process.returncode, json.loads(out) if out else {}, err

    def ctl(self, *words: str | Path, status: int = 0) -> dict[str, Any]:
        """The JSON object; the exit status must be ``status``."""
        found, answer, err = self.try_ctl(*words)
        assert found == status, f"{self.name}: mpcctl {' '.join(map(str, words))} ended with {found}:\n{answer}\n{err}"
        return answer

    def refused(self, status: int, code: str, *words: str | Path) -> str:
        """The command must fail with this exit status and code, and the daemon stay up. The message and its hint."""
        error = self.ctl(*words, status=status)["error"]
        assert (error["code"], error["exit_status"]) == (code, status), error
        self.running()
        return f"{error['message']} {error['hint']}"

    def ledger(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows from the unit ledger, read as any program could."""
        return self._rows("ledger.sqlite", query, values)

    def records(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows from the session records."""
        return self._rows("sessions.sqlite", query, values)

    def _rows(self, file: str, query: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        database = sqlite3.connect(f"file:{self.state / file}?mode=ro", uri=True, timeout=30)
        try:
            return database.execute(query, values).fetchall()
        finally:
            database.close()


class Pair:
    """A hospital and a vendor. ``stop`` whatever happens."""

    def __init__(self, root: Path, **limits: float) -> None:
        self.root = root
        self.hospital = Party(root, HOSPITAL, **limits)
        self.vendor = Party(root, VENDOR, **limits)
        self.both = (self.hospital, self.vendor)

    def start(self) -> None:
        for party in self.both:
            party.start()

    def introduce(self) -> None:
        """Pair them; the hospital dials."""
        self.hospital.ctl("peer", "add", self.vendor.ctl("id")["invite"], "--address", self.vendor.address)
        self.vendor.ctl("peer", "add", self.hospital.ctl("id")["invite"])
        self.connected()

    def connected(self, seconds: float = 60) -> None:
        """Wait until both see each other and have their kernels (the first time they are compiled: minutes)."""
        for party in self.both:

            def ready(party: Party = party) -> bool:
                status = party.ctl("status")
                return bool(status["kernels"]["ready"]) and all(p["connected"] for p in status["peers"])

            until(ready, seconds + 900, f"{party.name} has no peer or no kernels", 0.2)

    def propose(self, model: str, dataset: str, images: int) -> str:
        """The id of a session that the vendor has not decided on."""
        began = self.hospital.ctl(
            "session", "start", "--peer", VENDOR, "--model", model, "--dataset", dataset, "--images", str(images),
            "--detach",
        )  # fmt: skip
        return str(began["session"]["id"])

    def evaluate(self, model: str, images: Path) -> Path:
        """A file with the clear results of ``images``, by the vendor."""
        out = self.root / f"{model}-clear.json"
        self.vendor.ctl("model", "evaluate", model, "--images", images, "--out", out)
        return out

    def run(self, model: str, dataset: str, images: int) -> dict[str, Any]:
        """A session to its end, approved by the vendor; the hospital's view of it."""
        id = self.propose(model, dataset, images)
        self.vendor.ctl("approve", id[:12])
        return self.watch(id)

    def watch(self, id: str) -> dict[str, Any]:
        session: dict[str, Any] = self.hospital.ctl("session", "watch", id)["session"]
        assert session["state"] == "done", session["reason"]
        return session

    def report(self, id: str, clear: Path) -> dict[str, Any]:
        """The report, bit-exact to the integer network on every image."""
        report: dict[str, Any] = self.hospital.ctl("report", id, "--clear", clear)["report"]
        exactness, images = report["exactness"], report["images"]
        assert exactness == {
            "images": images, "exact_images": images, "different": [], "largest_difference": 0, "exact": True,
        }  # fmt: skip
        assert images == report["session"]["images"]
        return report

    def audit(self, session: str, done: int, most_spent: int) -> None:
        """Both ledgers: nothing used twice, and whatever one spent for an image the other spent for that image."""
        spent = []
        for party in self.both:
            assert party.ctl("offline", "status")["reuse_count"] == 0
            twice = "SELECT unit, count(*) FROM step WHERE step IN ('spent', 'opened') GROUP BY unit, step"
            assert all(count == 1 for _, count in party.ledger(twice))
            neither = "SELECT unit FROM step WHERE step IN ('spent', 'burnt') GROUP BY unit HAVING count(*) > 1"
            assert party.ledger(neither) == []
            unspent = (
                "SELECT unit FROM step a WHERE step = 'opened' AND NOT EXISTS "
                "(SELECT 1 FROM step b WHERE b.unit = a.unit AND b.step = 'spent' AND b.number < a.number)"
            )
            assert party.ledger(unspent) == []
            rows = party.ledger("SELECT id, session, image FROM unit WHERE state = 'spent' AND session = ?", session)
            spent.append({unit: (session, image) for unit, session, image in rows})
            assert len(spent[-1]) == len(rows)
        ours, theirs = spent
        assert set(theirs) <= set(ours), "the hospital spends first"
        assert all(ours[unit] == use for unit, use in theirs.items())
        assert {image for _, image in theirs.values()} >= set(range(done))
        assert done <= len(theirs) <= len(ours) <= most_spent
        # No unit was handed to two sessions either.
        assert len({row[0] for row in self.hospital.ledger("SELECT id FROM unit WHERE state = 'spent'")}) == len(
            self.hospital.ledger("SELECT id FROM unit WHERE state = 'spent'")
        )

    def stop(self) -> list[int | None]:
        return [party.stop() for party in self.both]

    def logs(self) -> str:
        return "\n".join(f"--- {p.log} ---\n{p.log.read_text()[-20000:]}" for p in self.both if p.log.exists())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], seconds: float, otherwise: str, pause: float = 0.05) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, otherwise
        time.sleep(pause)
    return found
