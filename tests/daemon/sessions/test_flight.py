"""Images in flight: how many a link asks for; progress that only grows; time that is counted once."""

import dataclasses

import pytest

from mpcd.daemon.control.jobs import Job
from mpcd.daemon.network.link_speed import Speed
from mpcd.daemon.sessions import flight
from mpcd.daemon.sessions.flight import Flight, choose
from mpcd.protocol import preprocessing
from tests.protocol.small_networks import residual

NETWORK, _ = residual(1)
# DenseNet-121's figures.
LARGE = dataclasses.replace(preprocessing.estimate(NETWORK, 1, 1), online_bytes=466_000_000)
NEEDS, SECONDS = 3082, 3.1
A, B, C = (bytes([i]) * 16 for i in range(3))


@pytest.mark.parametrize(
    ("rate", "round_trip", "want"),
    [(1e9, 0, 2), (1e9, 1e-4, 2), (125e6, 1e-3, 3), (12.5e6, 0.01, 3), (12.5e6, 0.04, 8), (125e6, 0.2, flight.MOST)],
)
def test_long_round_trips_ask_for_more(rate, round_trip, want):
    assert choose(Speed(rate, round_trip), LARGE, NEEDS, SECONDS) == want


def test_a_small_network_on_a_fast_link():
    assert choose(Speed(1e9, 3e-4), preprocessing.estimate(NETWORK, 1, 1), 20, 0.001) == 2


def test_progress_only_grows_also_when_an_image_is_lost():
    job = Job()
    ours = Flight(job, 2, 10)
    for each in (A, B, C):
        ours.begin(each)
    assert ours.jobs == [A, B, C]
    seen = []

    def shown():
        seen.append(job.progress.done)
        return job.progress.text

    ours.progress(A, 1, 2)
    assert shown() == "images 3 to 5 of 10"
    assert seen == [2500]
    ours.landed(A)
    ours.progress(B, 1, 4)
    assert shown() == "images 4 to 5 of 10"
    ours.lost(B)
    ours.progress(C, 1, 10)
    assert shown() == "image 4 of 10"
    assert seen == [2500, 3250, 3250]
    ours.landed(C)
    ours.begin(A)
    ours.progress(A, 1, 2)
    assert shown() == "image 5 of 10"
    assert seen[-1] == 4500
    assert job.progress.total == 10_000


def test_time_with_several_in_flight_is_counted_once(monkeypatch):
    now = 100.0
    monkeypatch.setattr(flight.time, "monotonic", lambda: now)
    ours = Flight(Job(), 0, 4)
    ours.begin(A)
    now = 101.0
    ours.begin(B)
    now = 105.0
    assert ours.landed(A) == 5.0
    now = 106.0
    assert ours.landed(B) == 1.0
    now = 200.0
    ours.begin(C)
    now = 203.0
    assert ours.landed(C) == 3.0
