"""Which OT extension a link speaks for."""

from __future__ import annotations

from mpcd.daemon.network.link_speed import COSTS, Speed, choose


def test_slow_links_get_few_bytes() -> None:
    for bytes_per_second in (1e6, 12.5e6):
        assert choose(Speed(bytes_per_second, 0.001)).startswith("silent")


def test_long_round_trips_get_large_iterations() -> None:
    sizes = [COSTS[choose(Speed(12.5e6, rtt))].per_round_trip for rtt in (0.0001, 0.01, 0.04, 0.2)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


def test_more_bandwidth_never_means_fewer_bytes() -> None:
    sizes = [COSTS[choose(Speed(10.0**exponent, 0.0001))].bytes for exponent in range(5, 12)]
    assert sizes == sorted(sizes)
