"""What work will take, and refusing what does not fit before it begins."""

from __future__ import annotations

import dataclasses

import psutil

from mpcd.daemon.errors import NotEnough
from mpcd.daemon.sessions.records import Records
from mpcd.protocol import preprocessing
from mpcd.protocol.channel import DATA_OWNER
from mpcd.protocol.network import Network
from mpcd.protocol.ot.correlate import Extension

BATCH = 16  # images whose matrix triples share ciphertexts

# Correlated OTs a second with two processors, both parties on one machine: a guess until this peer was measured.
GUESS = {"offline": 20_000_000.0, "online": 60_000_000.0}
GIB = 1 << 30


@dataclasses.dataclass(frozen=True, slots=True)
class JobEstimate:
    """``offline_*``, disk and ``seconds``: for the missing units; ``online_*``: for all images."""

    images: int
    extension: Extension
    ready: int
    missing: int
    cots: int
    offline_bytes: int
    online_bytes: int
    disk_bytes: int
    peer_disk_bytes: int
    memory_bytes: int
    seconds: float
    online_seconds: float
    disk_free_bytes: int
    measured: bool

    def in_words(self) -> str:
        return (
            f"{self.missing} of {self.images} units to make: about {max(1, round(self.seconds / 60))} min,"
            f" {size(self.offline_bytes)} over the link ({self.extension}), {size(self.disk_bytes)} of disk"
        )


def size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def offline_phase(extension: Extension) -> str:
    """Under what name the offline phase's measured speed is kept."""
    return f"offline {extension}"


def estimate(
    network: Network,
    party: int,
    images: int,
    ready: int,
    free: int,
    records: Records,
    peer: str,
    extension: Extension,
) -> JobEstimate:
    """For ``images`` images of which ``ready`` units exist. ``peer``: fingerprint, whose measured speed counts."""
    missing = max(0, images - ready)
    offline = preprocessing.estimate(network, missing, BATCH, extension)
    online = preprocessing.estimate(network, images, BATCH)
    offline_rate, online_rate = records.rate(peer, offline_phase(extension)), records.rate(peer, "online")
    disk = (offline.disk_bytes_model_owner, offline.disk_bytes_data_owner)
    return JobEstimate(
        images=images,
        extension=extension,
        ready=ready,
        missing=missing,
        cots=offline.cots,
        offline_bytes=offline.offline_bytes,
        online_bytes=online.online_bytes,
        disk_bytes=disk[party],
        peer_disk_bytes=disk[1 - party],
        memory_bytes=online.memory_bytes,
        seconds=offline.cots / (offline_rate or GUESS["offline"]),
        online_seconds=online.cots / (online_rate or GUESS["online"]),
        disk_free_bytes=free,
        measured=offline_rate is not None,
    )


def disk_bytes(network: Network, party: int, images: int) -> int:
    found = preprocessing.estimate(network, images, BATCH)
    return found.disk_bytes_data_owner if party == DATA_OWNER else found.disk_bytes_model_owner


def check_disk(needed: int, free: int, reserve_gib: float) -> None:
    """Raise NotEnough when writing ``needed`` bytes would leave less than the reserve."""
    reserve = int(reserve_gib * GIB)
    if needed + reserve > free:
        text = f"too little disk: {size(needed)} needed and {size(reserve)} kept in reserve, {size(free)} free"
        hint = "free some space, ask for fewer images, or lower limits.disk_reserve_gib"
        raise NotEnough(text, hint, peer_text=text)


def images_in_flight(wanted: int, network: Network, limit_gib: float) -> int:
    """As many of ``wanted`` images at the same time as memory allows; one in any case, check_memory refuses that."""
    room = min(int(limit_gib * GIB), _available_memory())
    return max((n for n in range(1, wanted + 1) if preprocessing.memory_bytes(network, n) <= room), default=1)


def check_memory(needed: int, limit_gib: float) -> None:
    """Raise NotEnough when ``needed`` bytes are more than allowed, or than this machine has left."""
    limit = int(limit_gib * GIB)
    if needed > limit:
        text = f"too little memory allowed: {size(needed)} needed, limits.memory_gib allows {size(limit)}"
        raise NotEnough(text, "raise limits.memory_gib in mpcd.toml", peer_text=text)
    available = _available_memory()
    if needed > available:
        text = f"too little memory: {size(needed)} needed, {size(available)} available"
        raise NotEnough(text, "close other programs, or use a machine with more memory", peer_text=text)


def _available_memory() -> int:
    """What this process holds already (kernels, buffers it will use again) counts as available to it."""
    return int(psutil.virtual_memory().available + psutil.Process().memory_info().rss)
