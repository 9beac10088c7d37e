"""Frames lost, repeated, replayed, exchanged, cut, lengthened and damaged, at every step of both phases.

The end is a refusal, or, where a message never comes and nothing follows it, a wait (which the daemon ends:
daemon/network/transport.py); never a crash, never a result that is not the oracle's.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mpcd.protocol import executor, lockstep, oracle, preprocessing
from mpcd.protocol.channel import Channel
from mpcd.protocol.randomness import Prg
from tests.protocol import tampering
from tests.protocol.ideal import SESSION, dealer
from tests.protocol.small_networks import residual
from tests.protocol.test_executor import both_phases, images, multiply
from tests.protocol.test_preprocessing import MemoryUnit, make

NETWORK, NUMBERS = residual(7)
IMAGE = images(NETWORK, 1)[0]
EXPECTED = oracle.run(NETWORK, NUMBERS, IMAGE)
ALL = bool(os.environ.get("MPCD_TAMPER_ALL"))  # offline, too
Parties = Callable[[], tuple[Any, Any]]


def online() -> tuple[Any, Any]:
    sources = dealer(7, multiply(NETWORK, NUMBERS))
    return (
        both_phases(Channel(0, SESSION), NETWORK, NUMBERS, sources[0], None),
        both_phases(Channel(1, SESSION), NETWORK, None, sources[1], IMAGE),
    )


def offline() -> tuple[Any, Any]:
    return tuple(
        preprocessing.make_units(
            Channel(party, SESSION),
            NETWORK,
            NUMBERS if party == 0 else None,
            [Prg.fresh().seed()],
            [MemoryUnit()],
            lambda done, total: None,
        )
        for party in (0, 1)
    )  # type: ignore[return-value]


PHASES = {"online": online, "offline": offline}


def steps(parties: Parties) -> Iterator[tuple[int, int, bool]]:
    """(party, number, whether it is that party's last) of every frame of an honest run."""
    for party, traffic in enumerate(lockstep.run(*parties()).traffic):
        for at in range(traffic.messages):
            yield party, at, at == traffic.messages - 1


def meddle(parties: Parties, party: int, at: int, change: tampering.Change | None, rng: random.Random) -> Any:
    both: list[Any] = list(parties())
    one = both[party]
    both[party] = tampering.swapped(one, at) if change is None else tampering.meddled(one, at, change, rng)
    return tampering.outcome(*both)


@pytest.mark.parametrize("phase", PHASES)
def test_every_step(phase: str) -> None:
    """Online every change of every frame; offline, where a run takes longer, some, drawn (all: `make fuzz`)."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    parties = PHASES[phase]
    tried: dict[str, int] = {}
    every = list(steps(parties))
    thorough = phase == "online" or ALL
    for party, at, last in every if thorough else rng.sample(every, 30):
        for change in tampering.CHANGES if thorough else rng.sample(tampering.CHANGES, 1):
            end = meddle(parties, party, at, change, rng)
            said = f"{change.__name__} frame {at} of P{party}, seed {seed}: {end}"
            allowed = {"refused"}
            if change is tampering.dropped or at == 0:
                allowed.add("waits")
            if change in (tampering.duplicated, tampering.inserted) and last:
                allowed.add("left over")  # one too many after the end: nobody reads it
            assert isinstance(end, str), said
            assert end in allowed, said
            tried[end] = tried.get(end, 0) + 1
    print(phase, tried)
    assert tried["refused"] > 15, tried  # of 30 that are drawn, 29 on average


@pytest.mark.parametrize("phase", PHASES)
def test_exchanged_frames(phase: str) -> None:
    """Two in a row, where a party sends two; where it has to read between them, the other waits for the first."""
    rng = random.Random()
    ends = [
        meddle(PHASES[phase], party, at, None, rng)
        for party, at, last in steps(PHASES[phase])
        if not last and (phase == "online" or ALL or rng.random() < 1 / 3)  # 63 of 86 are refused
    ]
    assert set(map(str, ends)) <= {"refused", "waits"}
    assert "refused" in ends


@pytest.mark.parametrize("phase", PHASES)
def test_altered_content_is_no_crash(phase: str) -> None:
    """A peer that sends other numbers than the protocol says changes the result (docs/security.md), nothing else."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    every = list(steps(PHASES[phase]))
    for party, at, _ in every if phase == "online" or ALL else rng.sample(every, 12):
        end = meddle(PHASES[phase], party, at, tampering.flipped_payload, rng)
        if not isinstance(end, str) and phase == "online":
            assert end.shape == EXPECTED.shape, f"frame {at} of P{party}, seed {seed}"


def test_units_made_beside_a_refusal_are_whole() -> None:
    """What an honest run makes after a hundred that were meddled with is right."""
    rng = random.Random()
    for party, at, _ in list(steps(offline))[:5]:
        meddle(offline, party, at, tampering.truncated, rng)
    (units, _, _) = make(NETWORK, NUMBERS, 1)

    async def infer(party: int) -> Any:
        channel = Channel(party, SESSION)
        own, image = (NUMBERS, None) if party == 0 else (None, IMAGE)
        share = await executor.infer(channel, NETWORK, own, units[party][0], image, lambda done, total: None)
        return await executor.reveal_to_data_owner(channel, NETWORK, share)

    assert np.array_equal(lockstep.run(infer(0), infer(1)).results[1], EXPECTED)
