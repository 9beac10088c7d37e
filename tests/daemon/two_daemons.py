"""A vendor and a hospital: two real daemons on loopback, a small network, a few 8-pixel radiographs."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from mpcd.daemon import log
from mpcd.daemon.config import Config, Limits, Listen, Metrics, Online, Paths, Timeouts
from mpcd.daemon.errors import PeerError
from mpcd.daemon.image import dataset, dicom, preprocess
from mpcd.daemon.image import recipe as recipes
from mpcd.daemon.library import Library
from mpcd.daemon.model import artifact
from mpcd.daemon.network.identity import Identity
from mpcd.daemon.network.peers import Peers
from mpcd.daemon.offline.ledger import Ledger
from mpcd.daemon.service import Daemon
from mpcd.daemon.sessions.records import Records
from mpcd.protocol import oracle
from tests.protocol.small_networks import residual

RECIPE = recipes.parse("""
format = 1
name = "tiny-8"
[pixels]
range = "stored_bits"
low = -1.0
high = 1.0
[geometry]
crop = "centre"
size = 8
interpolation = "nearest"
[channels]
count = 3
mean = [0.0, 0.1, 0.2]
std = [1.0, 1.1, 1.2]
[files]
multi_frame = "skip"
""")
MODEL, DATASET, IMAGES = "tiny", "site", 6
VENDOR, HOSPITAL = "vendor", "hospital"
AT_ONCE = Timeouts(retry_first=0.05, retry_most=0.2, keepalive=0.5, silence=5.0)
LIMITS = Limits(disk_reserve_gib=0.0)


class Client:
    """The control API's other end."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self.progress: list[dict[str, Any]] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result; PeerError with the code of an error."""
        reader, writer = await asyncio.open_unix_connection(self._socket)
        try:
            body = msgpack.packb({"id": 7, "method": method, "params": params})
            writer.write(struct.pack("<I", len(body)) + body)
            while True:
                (size,) = struct.unpack("<I", await reader.readexactly(4))
                answer = msgpack.unpackb(await reader.readexactly(size))
                assert answer["id"] == 7
                if "progress" in answer:
                    assert set(answer["progress"]) == {"stage", "done", "total", "text", "eta_seconds"}
                    self.progress.append(answer["progress"])
                elif "error" in answer:
                    raise PeerError(**answer["error"])
                else:
                    return dict(answer["result"])
        finally:
            writer.close()


def config(
    name: str, port: int = 0, in_flight: str | int = "auto", metrics: Metrics | None = None, **limits: Any
) -> Config:
    listen = Listen(host="127.0.0.1", port=port) if name == VENDOR else Listen(host="", port=0)
    return Config(
        name=name,
        listen=listen,
        limits=Limits(**{"disk_reserve_gib": 0.0, **limits}),
        online=Online(in_flight),
        timeouts=AT_ONCE,
        metrics=metrics or Metrics(),
    )


def write_images(folder: Path, count: int = IMAGES) -> None:
    """``folder/dicom`` and ``folder/labels.csv``."""
    (folder / "dicom").mkdir(parents=True)
    rng = np.random.default_rng(5)
    rows = [["SOPInstanceUID", "finding 0", "finding 1"]]
    for i in range(count):
        uid = f"1.2.3.{i + 1}"
        x = rng.integers(0, 256, (8, 8))
        dicom.write(folder / "dicom" / f"{i}.dcm", x, bits_stored=8, syntax="explicit", instance_uid=uid)
        rows.append([uid, str(i % 2), str(int(i % 3 == 0))])
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


def paths(root: Path, name: str) -> Paths:
    found = Paths(root / name, root / name / "run", root / name / "cache")
    found.create()
    return found


def install(root: Path, images: int = IMAGES) -> None:
    """Before the daemons start: a model at the vendor, a data set at the hospital."""
    network, numbers = residual(3)
    library = Library(paths(root, VENDOR).state)
    scratch = library.scratch_folder()
    artifact.save(scratch, artifact.Artifact(network, numbers, RECIPE, {"layers": []}))
    library.add_model(MODEL, scratch)
    write_images(root / "images", images)
    library = Library(paths(root, HOSPITAL).state)
    index = library.scratch_folder() / "index.json"
    dataset.scan(root / "images" / "dicom", root / "images" / "labels.csv").save(index)
    library.add_dataset(DATASET, index)


def expected(root: Path) -> dict[int, list[int]]:
    """What the oracle says of every image."""
    network, numbers = residual(3)
    found = Library(root / HOSPITAL).dataset(DATASET)
    results = {}
    for number, entry in enumerate(found.entries):
        image, _ = preprocess.quantise(
            found.load_image(entry, RECIPE), network.input_scale, network.values[network.ops[0].output].bits
        )
        results[number] = [int(x) for x in oracle.run(network, numbers, image).reshape(-1)]
    return results


def pair(vendor: Peers, hospital: Peers, ours: Identity, theirs: Identity, port: int) -> None:
    """``ours`` the vendor's identity; the hospital dials."""
    hospital.add(ours.invite(VENDOR, f"127.0.0.1:{port}"))
    vendor.add(theirs.invite(HOSPITAL))


@contextlib.asynccontextmanager
async def daemons(root: Path, images: int = IMAGES, **settings: Any) -> AsyncIterator[tuple[Daemon, Daemon]]:
    """Vendor and hospital in this process, paired and connected. ``settings``: of each, limits and in_flight."""
    log.configure(as_json=True)
    install(root, images)
    vendor = Daemon(paths(root, VENDOR), config(VENDOR, **settings.get("vendor", {})))
    hospital = Daemon(paths(root, HOSPITAL), config(HOSPITAL, **settings.get("hospital", {})))
    await vendor.start(warm=False)
    await hospital.start(warm=False)
    try:
        pair(
            vendor.context.peers,
            hospital.context.peers,
            vendor.context.identity,
            hospital.context.identity,
            vendor.net.port,
        )
        async with asyncio.timeout(10):
            while not (hospital.net.connected(VENDOR) and vendor.net.connected(HOSPITAL)):
                await asyncio.sleep(0.02)
        yield vendor, hospital
    finally:
        await hospital.stop()
        await vendor.stop()


class Process:
    """A daemon as a process, to be killed."""

    def __init__(self, root: Path, name: str, port: int, in_flight: int) -> None:
        self._root, self._name, self._port = root, name, port
        self.paths = paths(root, name)
        reserve = "[limits]\ndisk_reserve_gib = 0.0\n[timeouts]\nretry_first = 0.05\nretry_most = 0.2\n"
        online = f"[online]\nin_flight = {in_flight}\n"
        (self.paths.state / "mpcd.toml").write_text(f'name = "{name}"\n{reserve}{online}')
        self.client = Client(self.paths.control_socket)
        self.start()

    def start(self) -> None:
        listen = f"127.0.0.1:{self._port}" if self._name == VENDOR else "none"
        self._log = open(self._root / f"{self._name}.log", "ab")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mpcd.daemon.main", "--state", str(self.paths.state), "--listen", listen],
            stderr=self._log,
            # Empty: beside the sources, where the other tests' kernels are.
            env={"NUMBA_CACHE_DIR": "", **os.environ, "MPCD_CACHE": str(self._root / "cache")},
        )

    def kill(self, how: int = signal.SIGKILL) -> int:
        self._process.send_signal(how)
        status = self._process.wait(60)
        self._log.close()
        return status

    async def answers(self, seconds: float = 60) -> dict[str, Any]:
        """Its status, as soon as it has one."""
        end = time.monotonic() + seconds
        while True:
            try:
                return await self.client.call("status")
            except (OSError, asyncio.IncompleteReadError):
                assert self._process.poll() is None, (self._root / f"{self._name}.log").read_text()
                assert time.monotonic() < end, "the daemon does not answer"
                await asyncio.sleep(0.05)


def audit(root: Path) -> tuple[list[Any], list[Any]]:
    """Both ledgers after a run: nothing twice, and every use agreed. The uses at vendor and hospital."""
    found = []
    for name in (VENDOR, HOSPITAL):
        ledger = Ledger(root / name / "ledger.sqlite")
        assert ledger.reuse_count() == 0
        uses = ledger.uses()
        assert len({use.unit for use in uses}) == len(uses)
        found.append(uses)
        ledger.close()
    ours, theirs = ({use.unit: (use.session, use.image) for use in uses} for uses in found)
    # The hospital spends first: whatever the vendor spent, it spent for the same image.
    assert set(ours) <= set(theirs)
    assert all(theirs[unit] == use for unit, use in ours.items())
    return found[0], found[1]


def results(root: Path, session: str) -> dict[int, list[int] | None]:
    records = Records(root / HOSPITAL / "sessions.sqlite")
    found = records.results(session)
    records.close()
    return found
