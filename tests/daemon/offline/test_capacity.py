"""Estimates add up; what does not fit is refused with both numbers."""

import pytest

from mpcd.daemon.errors import NotEnough
from mpcd.daemon.offline import capacity
from mpcd.daemon.sessions.records import Records
from mpcd.protocol import preprocessing
from tests.protocol.small_networks import residual

NETWORK, _ = residual(1)
PEER = "f" * 64


@pytest.fixture
def records(tmp_path):
    records = Records(tmp_path / "sessions.sqlite")
    yield records
    records.close()


def test_only_what_is_missing_is_made(records):
    some = capacity.estimate(NETWORK, 1, 5, 2, 10**9, records, PEER, "iknp", "expanded")
    assert (some.images, some.ready, some.missing, some.measured) == (5, 2, 3, False)
    all_ready = capacity.estimate(NETWORK, 1, 5, 7, 10**9, records, PEER, "iknp", "expanded")
    assert (all_ready.missing, all_ready.offline_bytes, all_ready.disk_bytes, all_ready.seconds) == (0, 0, 0, 0)
    assert all_ready.online_bytes == some.online_bytes > 0
    mirrored = capacity.estimate(NETWORK, 0, 5, 2, 10**9, records, PEER, "iknp", "expanded")
    assert (mirrored.disk_bytes, mirrored.peer_disk_bytes) == (some.peer_disk_bytes, some.disk_bytes)
    assert capacity.disk_bytes(NETWORK, 1, 3, "iknp", "expanded") == some.disk_bytes


def test_either_way_of_keeping_units(records):
    made = {
        way: capacity.estimate(NETWORK, 1, 3, 0, 10**9, records, PEER, "silent17", way)
        for way in ("expanded", "compact")
    }
    for way, estimate in made.items():
        assert estimate.disk_bytes == pytest.approx(3 * estimate.image_disk_bytes[way], rel=0.01)
        assert estimate.disk_bytes == capacity.disk_bytes(NETWORK, 1, 3, "silent17", way)
        assert f"({way};" in estimate.in_words()
    assert made["expanded"].image_disk_bytes == made["compact"].image_disk_bytes
    there = made["expanded"].seen_by_peer("compact", 7)
    assert (there.store, there.disk_free_bytes) == ("compact", 7)
    assert there.disk_bytes == 3 * made["compact"].peer_image_disk_bytes["compact"]
    assert there.peer_disk_bytes == made["expanded"].disk_bytes


def test_compact_only_where_there_are_seeds():
    assert capacity.store_for("compact", "silent") == "compact"
    assert capacity.store_for("compact", "iknp") == capacity.store_for("expanded", "silent") == "expanded"


def test_measured_speed(records):
    guess = capacity.estimate(NETWORK, 1, 5, 0, 10**9, records, PEER, "iknp", "expanded")
    records.learn_rate(PEER, capacity.offline_phase("iknp"), capacity.GUESS["offline"] / 10)
    slower = capacity.estimate(NETWORK, 1, 5, 0, 10**9, records, PEER, "iknp", "expanded")
    assert slower.seconds == pytest.approx(10 * guess.seconds)
    assert slower.measured
    assert "5 of 5 units to make" in slower.in_words()


def test_disk():
    capacity.check_disk(10**9, 10**9, 0.0)
    with pytest.raises(NotEnough, match=r"1\.00 GB needed.*0\.50 GB free"):
        capacity.check_disk(10**9, 5 * 10**8, 0.0)
    with pytest.raises(NotEnough, match="reserve"):
        capacity.check_disk(1, 10**9, 1.0)


def test_images_in_flight_that_memory_allows():
    def gib(images):
        return (preprocessing.memory_bytes(NETWORK, images) + 0.5) / capacity.GIB

    assert preprocessing.memory_bytes(NETWORK) == preprocessing.estimate(NETWORK, 1, 1).memory_bytes
    assert capacity.images_in_flight(4, NETWORK, gib(8)) == 4
    assert capacity.images_in_flight(4, NETWORK, gib(3)) == 3
    assert capacity.images_in_flight(4, NETWORK, gib(1)) == 1
    assert capacity.images_in_flight(4, NETWORK, 0.5) == 1, "whether one is possible is check_memory's to say"


def test_memory():
    capacity.check_memory(10**6, 1.0)
    with pytest.raises(NotEnough, match=r"5\.00 GB needed.*memory_gib"):
        capacity.check_memory(5 * 10**9, 4.0)
    with pytest.raises(NotEnough, match="available"):
        capacity.check_memory(10**15, 4096.0 * 1000)
