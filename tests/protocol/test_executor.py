"""The online phase over the ideal dealer: whole networks, bit for bit against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpcd.protocol import executor, lockstep, oracle, preprocessing
from mpcd.protocol.channel import Channel
from mpcd.protocol.network import Linear, LinearNumbers, Network, PrivateNumbers
from tests.protocol.ideal import SESSION, dealer
from tests.protocol.small_networks import dense, many_thresholds, residual

NETWORKS = [dense, many_thresholds, residual]
Make = Callable[[int], tuple[Network, PrivateNumbers]]


def multiply(network: Network, numbers: PrivateNumbers) -> Callable[[int, np.ndarray], np.ndarray]:
    """W r for the dealer, through the oracle's convolution on residues (exact mod 2^64)."""

    def product(index: int, r: np.ndarray) -> np.ndarray:
        op, own = network.ops[index], numbers[index]
        assert isinstance(op, Linear)
        assert isinstance(own, LinearNumbers)
        return oracle.convolve(r.astype(np.int64), own.weight, op).astype(np.uint64)

    return product


async def both_phases(channel: Channel, network: Network, numbers: Any, source: Any, image: Any) -> Any:
    share = await executor.infer(channel, network, numbers, source, image, lambda done, total: None)
    return await executor.reveal_to_data_owner(channel, network, share)


def images(network: Network, count: int) -> list[np.ndarray]:
    """Random ones, and the extremes of the input's ring."""
    rng = np.random.default_rng()
    value = network.values[0]
    half = 1 << (value.bits - 1)
    drawn = [rng.integers(-half, half, value.shape) for _ in range(count)]
    return [*drawn, np.full(value.shape, half - 1), np.full(value.shape, -half), np.zeros(value.shape, np.int64)]


@pytest.mark.parametrize("make", NETWORKS)
def test_equals_the_oracle(make: Make) -> None:
    for seed in range(3):
        network, numbers = make(seed)
        for image in images(network, 2):
            sources = dealer(seed, multiply(network, numbers))
            run = lockstep.run(
                both_phases(Channel(0, SESSION), network, numbers, sources[0], None),
                both_phases(Channel(1, SESSION), network, None, sources[1], image),
            )
            assert run.results[0] is None
            assert np.array_equal(run.results[1], oracle.run(network, numbers, image))
            assert sources[0].taken == sources[1].taken == preprocessing.plan(network)


@pytest.mark.parametrize("make", NETWORKS)
def test_traffic_is_as_estimated(make: Make) -> None:
    """Within the rounding to whole words, message by message."""
    network, numbers = make(0)
    sources = dealer(0, multiply(network, numbers))
    run = lockstep.run(
        both_phases(Channel(0, SESSION), network, numbers, sources[0], None),
        both_phases(Channel(1, SESSION), network, None, sources[1], images(network, 0)[0]),
    )
    moved = sum(t.payload_bytes for t in run.traffic)
    bits = sum(preprocessing.online_bits(need) for need in preprocessing.plan(network))
    rounding = 16 * sum(t.messages for t in run.traffic)
    assert abs(moved - bits / 8) <= 0.1 * moved + rounding


def test_each_party_brings_its_own() -> None:
    network, numbers = dense(0)
    image = np.zeros(network.values[0].shape, np.int64)
    for party, own, picture in ((0, None, None), (0, numbers, image), (1, numbers, image), (1, None, None)):
        run = executor.infer(Channel(party, SESSION), network, own, dealer(0)[party], picture, lambda d, t: None)
        with pytest.raises(ValueError, match="brings"):
            run.send(None)


def test_an_image_of_another_shape_is_refused() -> None:
    network, _ = dense(0)
    run = executor.infer(
        Channel(1, SESSION), network, None, dealer(0)[1], np.zeros((1, 5, 5), np.int64), lambda d, t: None
    )
    with pytest.raises(ValueError, match="shape"):
        run.send(None)
