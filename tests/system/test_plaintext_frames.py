"""What the daemons say under TLS: recorded where it is encrypted, and searched for what no message may carry."""

from __future__ import annotations

import asyncio
import csv
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
from cryptography.hazmat.primitives import serialization

from mpcd.daemon.errors import PeerError
from mpcd.daemon.image import dicom
from mpcd.daemon.network.transport import Connection
from mpcd.daemon.offline.store import UnitStore
from mpcd.daemon.service import Daemon
from mpcd.protocol.randomness import Prg
from tests.daemon.two_daemons import MODEL, VENDOR, Client, daemons
from tests.protocol.small_networks import residual
from tests.system import planted

DATASET, FOLDER, FILE = "frames-set-hq4", "frames-ward-kx2", "frames-file-{}-zz7.dcm"
UID, PATIENT, REMARK = "1.2.826.0.1.3680043.9.55113.{}", "FRAMESNAME^QUORVIN", "frames remark of Dr Vqx"
IMAGES = 3


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> dict[int, bytearray]:
    """Plaintext by connection, as it is encrypted."""
    heard: dict[int, bytearray] = defaultdict(bytearray)
    kept: list[Connection] = []  # so that no other gets its id
    encrypt = Connection._encrypt

    def record(self: Connection, data: bytes | memoryview) -> None:
        kept.append(self)
        heard[id(self)] += bytes(data)
        encrypt(self, data)

    monkeypatch.setattr(Connection, "_encrypt", record)
    return heard


@pytest.fixture
def seeds(monkeypatch: pytest.MonkeyPatch) -> dict[str, planted.Secret]:
    """Every secret seed that either daemon draws: of generators, and of the units' masks."""
    drawn: dict[str, planted.Secret] = {}
    writer = UnitStore.writer

    def record_generator(cls: type[Prg]) -> Prg:
        seed = os.urandom(16)
        drawn[f"a generator's seed {len(drawn)}"] = seed
        return cls(seed)

    def record_unit(self: UnitStore, unit: bytes, party: int, seed: bytes, *rest: Any, **more: Any) -> Any:
        drawn[f"the seed of unit {unit.hex()} of party {party}"] = bytes(seed)
        return writer(self, unit, party, seed, *rest, **more)

    monkeypatch.setattr(Prg, "fresh", classmethod(record_generator))
    monkeypatch.setattr(UnitStore, "writer", record_unit)
    return drawn


def write_images(folder: Path) -> dict[str, planted.Secret]:
    folder.mkdir()
    rng = np.random.default_rng(3)
    rows = [["SOPInstanceUID", "finding 0", "finding 1", "remark"]]
    secrets: dict[str, planted.Secret] = {
        "the patient": PATIENT, "the folder": FOLDER, "the data set": DATASET, "the remark": REMARK,
    }  # fmt: skip
    for n in range(IMAGES):
        uid, name, pixels = UID.format(n), FILE.format(n), rng.integers(0, 256, (8, 8))
        tags = {"PatientName": PATIENT}
        dicom.write(folder / name, pixels, bits_stored=8, syntax="explicit", instance_uid=uid, tags=tags)
        rows.append([uid, str(n % 2), str((n + 1) % 2), REMARK])
        secrets |= {
            f"the UID of {n}": uid,
            f"the file of {n}": name,
            f"pixels of {n}": pixels.astype(np.uint8).tobytes(),
        }
        secrets |= {f"pixels of {n}, {how}": v for how, v in planted.integers(pixels[3]).items() if len(v) > 15}
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return secrets


def keys(daemon: Daemon) -> planted.Secret:
    pem = (daemon.context.paths.state / "identity.pem").read_bytes()
    key = serialization.load_pem_private_key(pem, None)
    no = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.Raw, serialization.PrivateFormat.Raw, no)


async def run(vendor: Daemon, hospital: Daemon, folder: Path) -> dict[str, planted.Secret]:
    """A session to its end, and failures; the scores, by name."""
    ours, theirs = Client(vendor.context.paths.control_socket), Client(hospital.context.paths.control_socket)

    async def session(decide: Callable[[str], Awaitable[Any]]) -> str:
        asked = await theirs.call("session.start", peer=VENDOR, model=MODEL, dataset=DATASET)
        await decide(asked["session"]["id"])
        async with asyncio.timeout(300):
            while not hospital.context.records.get(asked["session"]["id"]).over:
                await asyncio.sleep(0.05)
        return str(asked["session"]["id"])

    def approve(id: str) -> Awaitable[Any]:
        return ours.call("session.approve", session=id)

    def deny(id: str) -> Awaitable[Any]:
        return ours.call("session.deny", session=id, reason="no")

    await theirs.call("dataset.add", name=DATASET, path=str(folder), labels=str(folder / "labels.csv"))
    done = hospital.context.records.get(await session(approve))
    assert done.state == "done"
    await session(deny)
    with pytest.raises(PeerError):
        await theirs.call("session.start", peer=VENDOR, model="none", dataset=DATASET)
    file = folder / FILE.format(1)
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))
    failed = hospital.context.records.get(await session(approve))
    assert failed.state == "failed"
    assert FILE.format(1) in failed.reason, "the own operator is told which file"
    (folder / FILE.format(2)).unlink()
    failed = hospital.context.records.get(await session(approve))
    assert failed.state == "failed"
    await asyncio.sleep(0.5)  # what is told of them
    scores = {}
    for number, row in hospital.context.records.results(done.id).items():
        assert row is not None
        scores |= {f"scores of {number}, {how}": v for how, v in planted.integers(row).items() if len(v) >= 8}
    return scores


def test_no_message_carries_a_secret(
    said: dict[int, bytearray], seeds: dict[str, planted.Secret], tmp_path: Path
) -> None:
    images = tmp_path / FOLDER
    secrets = write_images(images)

    async def main() -> None:
        async with daemons(tmp_path) as (vendor, hospital):
            secrets.update({f"the key of {d.context.config.name}": keys(d) for d in (vendor, hospital)})
            secrets.update(await run(vendor, hospital, images))
            dataset = hospital.context.library.dataset(DATASET)
            secrets["the salt"], secrets["the digest"] = dataset.salt, bytes.fromhex(dataset.digest)

    uvloop.run(main())
    _, numbers = residual(3)
    for op, private in numbers.items():
        if (weight := getattr(private, "weight", None)) is not None:
            row = weight.reshape(-1)[:8]
            secrets.update({f"weights of {op}, {how}": v for how, v in planted.integers(row).items() if len(v) > 15})
            bias = private.bias.reshape(-1)[:4]
            secrets.update({f"biases of {op}, {how}": v for how, v in planted.integers(bias).items() if len(v) > 15})
    assert any(name.startswith("weights") for name in secrets)
    assert len(seeds) > 10
    frames = {f"connection {number}": bytes(data) for number, data in enumerate(said.values())}
    everything = b"".join(frames.values())
    for word in (b"session.propose", b"session.image", b"session.states", b"audit.references"):
        assert word in everything, "the recording is whole"
    assert planted.search(secrets, frames) == []
    assert planted.search(seeds, frames) == []
