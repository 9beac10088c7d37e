"""Which OT extension a link's speed speaks for."""

from __future__ import annotations

from mpcd.daemon.linkspeed import COSTS, choose


def test_slow_links_get_silent_ones_and_fast_ones_do_not() -> None:
    assert choose(1e6) == "silent"
    assert choose(12.5e6) == "silent"
    fast = choose(1e10)
    assert COSTS[fast][1] > COSTS["silent"][1]
    assert COSTS[fast][0] < COSTS["silent"][0]


def test_more_bandwidth_never_means_fewer_bytes() -> None:
    sizes = [COSTS[choose(10.0**exponent)][1] for exponent in range(5, 12)]
    assert sizes == sorted(sizes)
