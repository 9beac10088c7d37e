"""Places and rates for those who have not shown who they are."""

from __future__ import annotations

import pytest

from mpcd.daemon.config import Limits
from mpcd.daemon.network import doorway
from mpcd.daemon.network.doorway import Doorway, origin_of
from mpcd.daemon.network.rate import Rate


class Visitor:
    def __init__(self) -> None:
        self.dropped = False

    def abort(self) -> None:
        self.dropped = True


def door(places: int = 6, per_address: int = 3) -> Doorway:
    return Doorway(Limits(unauthenticated=places, unauthenticated_per_address=per_address))


def come(door: Doorway, origin: str, now: float = 0.0) -> Visitor | None:
    visitor = Visitor()
    return None if door.enter(visitor, origin, now) else visitor


def test_a_rate_flows_in_again_and_never_over_its_brim() -> None:
    rate = Rate(2.0, 3.0, 100.0)
    assert [rate.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert rate.wait(100.0) == pytest.approx(0.5)
    assert rate.take(100.5)
    rate.give_back(10.0)
    assert [rate.take(100.5) for _ in range(4)] == [True, True, True, False]
    assert [rate.take(1e6) for _ in range(4)] == [True, True, True, False]
    assert not rate.take(50.0), "a clock that goes back gives nothing"


def test_an_address_has_its_places_the_longest_wait_gives_way() -> None:
    d = door()
    first, *others = (come(d, "a") for _ in range(4))
    assert first is not None
    assert first.dropped
    assert [o is not None and o.dropped for o in others] == [False] * 3
    assert len(d.waiting) == 3


def test_a_newcomer_finds_a_place_when_all_are_taken() -> None:
    d = door()
    crowd = [come(d, "a") for _ in range(3)] + [come(d, "b") for _ in range(2)] + [come(d, "c")]
    peer = come(d, "p")
    assert peer is not None
    assert [bool(v and v.dropped) for v in crowd] == [True, False, False, False, False, False]
    assert len(d.waiting) == 6


def test_where_a_peer_was_places_are_kept_while_a_stranger_has_any() -> None:
    d = door()
    known = come(d, "p")
    assert known is not None
    d.leave(known, known=True)
    mine = [come(d, "p") for _ in range(3)]
    for n in range(40):
        come(d, f"stranger {n}")
    assert not any(v is None or v.dropped for v in mine)
    assert len(d.waiting) == 6


def test_only_failures_count_towards_the_rate() -> None:
    d = door()
    for _ in range(500):
        peer = come(d, "p")
        assert peer is not None
        d.leave(peer, known=True)
    allowed = 0
    while (stranger := come(d, "s")) is not None:
        d.leave(stranger, known=False)
        allowed += 1
    assert allowed == doorway.FAILED_AT_ONCE
    assert come(d, "s", 1 / doorway.FAILED_A_SECOND) is not None
    assert come(d, "other") is not None


def test_strangers_share_a_rate_and_peers_do_not() -> None:
    d = door()
    known = come(d, "p")
    assert known is not None
    d.leave(known, known=True)
    outcomes = [come(d, f"stranger {n}") for n in range(1000)]
    assert sum(v is not None for v in outcomes) <= doorway.STRANGERS_AT_ONCE
    assert come(d, "stranger x") is None
    assert come(d, "p") is not None


def test_what_is_remembered_is_bounded() -> None:
    d = door()
    for n in range(doorway.REMEMBERED + 100):
        come(d, f"{n}", float(n))
    assert len(d._failed) == doorway.REMEMBERED


def test_leaving_twice_or_after_being_dropped_is_no_harm() -> None:
    d = door()
    visitors = [come(d, "a") for _ in range(4)]
    for v in (*visitors, *visitors):
        assert v is not None
        d.leave(v, known=False)
    assert not d.waiting


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("192.0.2.7:5", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6:443", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7:5", "192.0.2.7"),
        ("fe80::1%eth0:5", "fe80::/64"),
        ("unknown address", ""),
    ],
)
def test_what_counts_as_one_address(address: str, origin: str) -> None:
    assert origin_of(address) == origin
