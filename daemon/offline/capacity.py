"""What work will take, and refusing what does not fit before it begins."""

from __future__ import annotations

import dataclasses
from typing import Literal

import psutil

from mpcd.daemon.errors import NotEnough
from mpcd.daemon.sessions.records import Records
from mpcd.protocol import preprocessing
from mpcd.protocol.network import Network
from mpcd.protocol.ot.correlate import Extension

Store = Literal["expanded", "compact"]

BATCH = 16  # images whose matrix triples share ciphertexts

# Correlated OTs a second with two processors, both parties on one machine: a guess until this peer was measured.
GUESS = {"offline": 20_000_000.0, "online": 60_000_000.0}
GIB = 1 << 30


@dataclasses.dataclass(frozen=True, slots=True)
class JobEstimate:
    """``offline_*``, disk and ``seconds``: for the missing units; ``online_*``: for all images.

    ``store``: how units are kept here. ``disk_bytes``: so kept; the peer's as if it did the same. ``image_disk_bytes``:
    of one unit, for either way.
    """

    images: int
    extension: Extension
    ready: int
    missing: int
    cots: int
    offline_bytes: int
    online_bytes: int
    store: Store
    disk_bytes: int
    peer_disk_bytes: int
    image_disk_bytes: dict[Store, int]
    peer_image_disk_bytes: dict[Store, int]
    memory_bytes: int
    seconds: float
    online_seconds: float
    disk_free_bytes: int
    measured: bool

    def seen_by_peer(self, store: Store, free: int) -> JobEstimate:
        """The same job at the other party, which keeps its units as ``store`` says."""
        return dataclasses.replace(
            self,
            store=store,
            disk_bytes=self.missing * self.peer_image_disk_bytes[store],
            peer_disk_bytes=self.disk_bytes,
            image_disk_bytes=self.peer_image_disk_bytes,
            peer_image_disk_bytes=self.image_disk_bytes,
            disk_free_bytes=free,
        )

    def in_words(self) -> str:
        return (
            f"{self.missing} of {self.images} units to make: about {max(1, round(self.seconds / 60))} min,"
            f" {size(self.offline_bytes)} over the link ({self.extension}), {size(self.disk_bytes)} of disk"
            f" ({self.store}; an image: {size(self.image_disk_bytes['expanded'])} expanded,"
            f" {size(self.image_disk_bytes['compact'])} compact)"
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
    store: Store,
) -> JobEstimate:
    """For ``images`` images of which ``ready`` units exist. ``peer``: its id, whose measured speed counts."""
    missing = max(0, images - ready)
    offline = preprocessing.estimate(network, missing, BATCH, extension)
    online = preprocessing.estimate(network, images, BATCH)
    offline_rate, online_rate = records.rate(peer, offline_phase(extension)), records.rate(peer, "online")
    disk = _disk(offline)[store]
    one = _disk(preprocessing.estimate(network, 1, BATCH, extension))
    return JobEstimate(
        images=images,
        extension=extension,
        ready=ready,
        missing=missing,
        cots=offline.cots,
        offline_bytes=offline.offline_bytes,
        online_bytes=online.online_bytes,
        store=store,
        disk_bytes=disk[party],
        peer_disk_bytes=disk[1 - party],
        image_disk_bytes={way: both[party] for way, both in one.items()},
        peer_image_disk_bytes={way: both[1 - party] for way, both in one.items()},
        memory_bytes=online.memory_bytes,
        seconds=offline.cots / (offline_rate or GUESS["offline"]),
        online_seconds=online.cots / (online_rate or GUESS["online"]),
        disk_free_bytes=free,
        measured=offline_rate is not None,
    )


def disk_bytes(network: Network, party: int, images: int, extension: Extension, store: Store) -> int:
    return _disk(preprocessing.estimate(network, images, BATCH, extension))[store][party]


def _disk(found: preprocessing.Estimate) -> dict[Store, tuple[int, int]]:
    """P0's and P1's bytes for either way of keeping units."""
    return {
        "expanded": (found.disk_bytes_model_owner, found.disk_bytes_data_owner),
        "compact": (found.compact_disk_bytes_model_owner, found.compact_disk_bytes_data_owner),
    }


def store_for(wanted: str, extension: Extension) -> Store:
    """How units made with ``extension`` are kept: compact only where there are seeds."""
    return "compact" if wanted == "compact" and extension.startswith("silent") else "expanded"


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
