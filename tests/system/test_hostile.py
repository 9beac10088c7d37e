"""Strangers in hundreds and a paired peer that does not behave, against daemons that have work to do meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgpack
import psutil
import pytest

from mpcd.daemon.errors import MpcdError, PeerClosed
from mpcd.daemon.main import ASIDE
from mpcd.daemon.network import greeting
from mpcd.daemon.network.transport import PREFIX
from tests.system.hostile_peer import NAME, Mallory
from tests.system.strangers import Crowd
from tests.system.two_parties import Pair, Party, until

MIB = 1 << 20
# What attackers may cost one daemon beside its work: the port's places and connections about to be dropped; buffers.
FILES, MEMORY = 64 + 128, 400 * MIB


class Watched:
    """The most that a daemon's process had open and in memory, looked at ten times a second."""

    def __init__(self, party: Party) -> None:
        assert party.process is not None
        self.process = psutil.Process(party.process.pid)
        self.files = self.memory = self.threads = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def now(self) -> tuple[int, int, int]:
        return self.process.num_fds(), self.process.memory_info().rss, self.process.num_threads()

    def __enter__(self) -> Self:
        self.before = self.now()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.1):
            files, memory, threads = self.now()
            self.files = max(self.files, files)
            self.memory = max(self.memory, memory)
            self.threads = max(self.threads, threads)


@pytest.fixture(scope="module")
def impatient(pair: Pair) -> Pair:
    """The vendor waits seconds, not half an hour, for a peer that is there and says nothing."""
    pair.vendor.stop()
    config = pair.vendor.state / "mpcd.toml"
    config.write_text(config.read_text() + "step = 4.0\n")  # its last table is [timeouts]
    pair.vendor.start()
    pair.connected()
    return pair


def test_a_flood_of_strangers(pair: Pair, cohort: Path, tmp_path: Path) -> None:
    """A peer that has to dial anew gets in, a session ends right, and nothing of the flood stays."""
    clear = pair.evaluate("small", cohort / "dicom")
    done = pair.run("small", "site", 2)  # kernels compiled and pools filled: what is there afterwards is the baseline
    pair.report(done["id"], clear)
    vendor = Watched(pair.vendor)
    with vendor:
        with Crowd(pair.vendor.port, tmp_path, mute=150, dribbling=50, garbage=60, strangers=60) as crowd:
            time.sleep(3)
            pair.hospital.kill()
            pair.hospital.start()
            pair.connected(30)
            session = pair.run("small", "site", 2)
            pair.report(session["id"], clear)
            answered = time.monotonic()
            pair.vendor.ctl("status")
            answered = time.monotonic() - answered
        files, memory, threads = vendor.before
        until(lambda: vendor.now()[0] <= files + 4, 30, f"{vendor.now()[0]} files are open, {files} were before")
        # Those that wait for the disk stay, for the next who needs one.
        until(lambda: vendor.now()[2] <= threads + ASIDE, 30, "threads are left")
    found = {
        "connections of attackers": crowd.opened,
        "files at most": vendor.files - files,
        "MiB at most": (vendor.memory - memory) // MIB,
        "MiB afterwards": (vendor.now()[1] - memory) // MIB,
    }
    print(found)
    assert crowd.opened > 500, found
    assert vendor.files - files <= FILES, found
    assert vendor.memory - memory <= MEMORY, found
    assert vendor.now()[1] - memory <= MEMORY, found
    assert answered < 10, "mpcctl has to wait"
    before_second = vendor.now()[1]
    # Once more, with nothing else to do: what the first one left in memory was all.
    with Crowd(pair.vendor.port, tmp_path, mute=150, dribbling=50, garbage=60, strangers=60):
        time.sleep(4)
    assert vendor.now()[1] - before_second <= 64 * MIB, "memory grows with every flood"
    assert "Traceback" not in pair.vendor.log.read_text()


METHODS = (
    "catalogue.list", "catalogue.get", "units.sync", "job.failed", "link.probe", "offline.begin", "offline.ready",
    "offline.request", "offline.progress", "offline.stop", "session.propose", "session.begin", "session.image",
    "session.states", "nothing", "",
)  # fmt: skip
KEYS = (
    "name", "model", "network", "ready", "job", "error", "data", "units", "extension", "session", "request", "images",
    "estimate_only", "states", "terms", "software", "image", "unit", "beside", "in_flight", "model_commitment",
)  # fmt: skip


def nonsense(rng: random.Random, depth: int = 0) -> Any:
    """Any value that msgpack has."""
    plain: list[Any] = [
        None, True, 0, -1, 1 << 63, 2**64 - 1, 1.5, float("nan"), float("inf"), "", "small", "x" * 5000, "\x1b[2J\n",
        "../../etc/passwd", b"", bytes(16), os.urandom(16), os.urandom(3000), "0" * 32, "a" * 64, [], {},
    ]  # fmt: skip
    kind = rng.randrange(4) if depth < 3 else 0
    if kind < 2:
        return rng.choice(plain)
    if kind == 2:
        return [nonsense(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {rng.choice([*KEYS, b"k", "\0"]): nonsense(rng, depth + 1) for _ in range(rng.randrange(5))}


def test_a_peer_that_calls_nonsense(impatient: Pair, tmp_path: Path) -> None:
    """Every call is answered, the link stays, no bug is met, and nothing is written for it."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    mallory = Mallory(tmp_path, impatient.vendor)

    async def main() -> None:
        async with mallory:
            model = await mallory.model("small")
            for _ in range(1500):
                params = {rng.choice(KEYS): nonsense(rng) for _ in range(rng.randrange(6))}
                if rng.random() < 0.5:
                    params |= {key: value for key, value in model.items() if rng.random() < 0.9}
                method = rng.choice(METHODS)
                answer = await mallory.call(method, params)
                assert answer != "internal", f"seed {seed}: {method} {params}"

    asyncio.run(main())
    impatient.vendor.running()
    assert "Traceback" not in impatient.vendor.log.read_text()
    impatient.vendor.ctl("peer", "remove", NAME)


def frames(seed: int) -> list[tuple[bytes, Any]]:
    """For the control link: each ends it."""
    rng = random.Random(seed)
    return [
        (b"rpc", b""),
        (b"rpc", b"\xc1"),
        (b"rpc", rng.randbytes(500)),
        (b"rpc", [1, 2]),
        (b"rpc", ["call", "1", "x", {}]),
        (b"rpc", ["call", 1, "x", []]),
        (b"rpc", ["call", 1, "x", {}, {}]),
        (b"rpc", ["result", -1]),
        (b"rpc", {"call": 1}),
        (b"rpc", b"\xdd\xff\xff\xff\xff"),  # a list of 2^32 - 1
        (b"rpc", b"\xdd\x00\x0f\x00\x00" + b"\x90" * 0xF0000),  # a million lists
        (b"rpc", b"\x91" * 100_000),  # a list in a list in a list
        (b"greeting", ["call", 1, "catalogue.list", {}]),
        (b"\x00" * 16384, ["call", 1, "catalogue.list", {}]),
    ]


def test_a_peer_that_sends_garbage_on_the_control_link(impatient: Pair, tmp_path: Path) -> None:
    mallory = Mallory(tmp_path, impatient.vendor)

    async def main() -> None:
        for header, message in frames(1):
            async with mallory:
                await mallory.send(mallory.control, header, message)
                with pytest.raises(PeerClosed):
                    await mallory.until_it_ends()
        for announced in (PREFIX.pack(3, 1 << 62), PREFIX.pack(1 << 31, 1), PREFIX.pack(0, 1), PREFIX.pack(3, 1 << 21)):
            async with mallory:
                mallory.control._encrypt(announced + b"rpc")
                with pytest.raises(PeerClosed):
                    await mallory.until_it_ends()

    asyncio.run(main())
    assert "Traceback" not in impatient.vendor.log.read_text()
    impatient.vendor.ctl("peer", "remove", NAME)


async def after_nothing(mallory: Mallory, job: bytes) -> None:
    """Opens the data connection, keeps it alive, and never speaks."""
    await mallory.channel(job)


async def after_garbage(mallory: Mallory, job: bytes) -> None:
    connection = await mallory.channel(job)
    await mallory.send(connection, os.urandom(40), os.urandom(100))


async def after_another_message(mallory: Mallory, job: bytes) -> None:
    """A well-formed header of a kind, number and shapes that no step has."""
    connection = await mallory.channel(job)
    header = msgpack.packb(["reveal", 0, [["<u8", [1 << 40]], ["<f8", [-1]]], {"seed": b"x"}])
    await mallory.send(connection, header, bytes(8))


async def after_a_lie_about_its_size(mallory: Mallory, job: bytes) -> None:
    connection = await mallory.channel(job)
    connection._encrypt(PREFIX.pack(10, 1 << 40) + bytes(10))


async def after_a_dribble(mallory: Mallory, job: bytes) -> None:
    """A frame whose bytes come one by one."""
    connection = await mallory.channel(job)

    async def dribble() -> None:
        with contextlib.suppress(MpcdError):
            connection._encrypt(PREFIX.pack(10, 33) + bytes(10))
            while True:
                connection._encrypt(b"x")
                await asyncio.sleep(0.5)

    mallory.dribbles = asyncio.create_task(dribble())  # type: ignore[attr-defined]


async def after_leaving(mallory: Mallory, job: bytes) -> None:
    (await mallory.channel(job)).abort()


async def after_keepalives(mallory: Mallory, job: bytes) -> None:
    (await mallory.channel(job))._encrypt(PREFIX.pack(0, 0) * 50_000)


ENDS = (
    after_nothing, after_garbage, after_another_message, after_a_lie_about_its_size, after_a_dribble, after_leaving,
    after_keepalives,
)  # fmt: skip


def test_a_peer_that_misbehaves_in_the_offline_phase(impatient: Pair, cohort: Path, tmp_path: Path) -> None:
    """One batch each; all are burnt in seconds with a plain reason, while another peer's session ends right."""
    vendor = impatient.vendor
    mallory = Mallory(tmp_path, vendor)
    units = {end: os.urandom(16) for end in ENDS}

    async def main() -> None:
        async with mallory:
            model = await mallory.model("small")
            for end in ENDS:
                job = os.urandom(16)
                asked = {**model, "job": job, "units": [units[end]], "extension": "softspoken4"}
                assert await mallory.call("offline.begin", asked) == {}
                await end(mallory, job)
            # Data connections that nobody asked for, as many as there may be and more.
            left = 0
            for _ in range(20):
                try:
                    await mallory.connect(greeting.CHANNEL, os.urandom(16), welcomed=False)
                except MpcdError:
                    left += 1
            session = await asyncio.to_thread(impatient.run, "small", "site", 1)
            await asyncio.to_thread(impatient.report, session["id"], await asyncio.to_thread(clear))
            await asyncio.to_thread(
                until, lambda: all(s == "burnt" for s in states().values()), 30, f"not all are burnt: {states()}"
            )

    def clear() -> Path:
        return impatient.evaluate("small", cohort / "dicom")

    def states() -> dict[str, str]:
        known = dict(vendor.ledger("SELECT id, state FROM unit"))
        return {end.__name__: str(known.get(unit)) for end, unit in units.items()}

    asyncio.run(main())
    log = vendor.log.read_text()
    assert "Traceback" not in log
    for said in ("is there, but sent no whole message", "does not decode", "flood of keepalives", "announced"):
        assert said in log, said
    vendor.ctl("peer", "remove", NAME)
    assert vendor.ctl("offline", "status")["reuse_count"] == 0
