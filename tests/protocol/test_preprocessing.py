"""Both phases with real correlations: homomorphic matrix triples and IKNP, then inference, bit for bit."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest

from mpcd.protocol import executor, lockstep, oracle, preprocessing
from mpcd.protocol.channel import Channel
from mpcd.protocol.correlations import CorrelationError, MatrixNeed, Need
from mpcd.protocol.network import Network
from mpcd.protocol.randomness import Prg
from tests.protocol.ideal import SESSION
from tests.protocol.small_networks import dense, many_thresholds, residual


class MemoryUnit:
    """A unit in memory: two rows, as the sink's contract has them, handed out once."""

    def __init__(self) -> None:
        self.matrices: deque[tuple[Need, Any]] = deque()
        self.others: deque[tuple[Need, Any]] = deque()

    def _row(self, need: Need) -> deque[tuple[Need, Any]]:
        return self.matrices if isinstance(need, MatrixNeed) else self.others

    def put(self, need: Need, correlation: Any) -> None:
        self._row(need).append((need, correlation))

    def take(self, need: Need) -> Any:
        kept, correlation = self._row(need).popleft()
        if kept != need:
            raise CorrelationError(f"next is {kept}, not {need}")
        return correlation


def make(network: Network, numbers: Any, count: int) -> tuple[list[list[MemoryUnit]], lockstep.Run, list[Any]]:
    units = [[MemoryUnit() for _ in range(count)] for _ in (0, 1)]
    steps: list[list[Any]] = [[], []]
    parties = [
        preprocessing.make_units(
            Channel(party, SESSION),
            network,
            numbers if party == 0 else None,
            [Prg.fresh().seed() for _ in range(count)],
            units[party],
            lambda done, total, mine=steps[party]: mine.append((done, total)),
        )
        for party in (0, 1)
    ]
    return units, lockstep.run(parties[0], parties[1]), steps


@pytest.mark.parametrize("build", [dense, many_thresholds, residual])
def test_both_phases_equal_the_oracle(build: Any) -> None:
    network, numbers = build(7)
    count = 2
    units, _, steps = make(network, numbers, count)
    for mine in steps:
        assert mine[-1][0] == mine[-1][1]
        assert mine == sorted(mine)
    rng = np.random.default_rng()
    for image_units in zip(*units, strict=True):
        value = network.values[0]
        image = rng.integers(-(1 << (value.bits - 1)), 1 << (value.bits - 1), value.shape)

        async def online(party: int, image: Any, unit: MemoryUnit) -> Any:
            channel = Channel(party, SESSION)
            own = numbers if party == 0 else None
            share = await executor.infer(channel, network, own, unit, image, lambda done, total: None)
            return await executor.reveal_to_data_owner(channel, network, share)

        run = lockstep.run(online(0, None, image_units[0]), online(1, image, image_units[1]))
        assert np.array_equal(run.results[1], oracle.run(network, numbers, image))
        assert not any(unit.matrices or unit.others for unit in image_units)


def test_the_estimate_is_the_traffic() -> None:
    network, numbers = dense(1)
    _, run, _ = make(network, numbers, 3)
    estimate = preprocessing.estimate(network, 3, 3)
    moved = sum(t.payload_bytes for t in run.traffic)
    set_up = 200_000  # base OTs and keys, which the estimate leaves out
    assert estimate.offline_bytes <= moved <= estimate.offline_bytes + set_up
    assert estimate.cots == 3 * sum(preprocessing._cots(need) for need in preprocessing.plan(network))


def test_a_seed_serves_one_unit() -> None:
    network, numbers = dense(1)
    run = preprocessing.make_units(
        Channel(0, SESSION), network, numbers, [bytes(16)] * 2, [MemoryUnit(), MemoryUnit()], lambda d, t: None
    )
    with pytest.raises(ValueError, match="seed"):
        run.send(None)
