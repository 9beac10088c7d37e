"""Linear layers online, over ideal and over real triples."""

from __future__ import annotations

import numpy as np
import pytest

from mpcd.protocol import linear, lockstep, matrix_triple
from mpcd.protocol import network as ir
from mpcd.protocol.channel import Channel
from mpcd.protocol.correlations import CorrelationError, MatrixClient, MatrixNeed, MatrixServer
from mpcd.protocol.randomness import Prg
from tests.protocol.ideal import SESSION, dealer, opened, share, words
from tests.protocol.one_layer import OP, Layer, l1

LAYERS = [
    Layer((1, 1, 1), 1),
    Layer((40, 1, 1), 17),
    Layer((3, 7, 5), 4),
    Layer((3, 7, 5), 2, stride=(2, 2)),
    Layer((4, 9, 8), 6, (3, 3), (2, 2), (1, 1), groups=2),
    Layer((2, 13, 13), 3, (7, 7), (2, 2), (3, 3)),
]


def play(layer: Layer, bits: int, numbers: ir.LinearNumbers, bound: int, x0, x1, sources):
    network = layer.network(bits, bound)
    run = lockstep.run(
        linear.linear_server(Channel(0, SESSION), sources[0], network, OP, numbers, x0),
        linear.linear_client(Channel(1, SESSION), sources[1], network, OP, x1),
    )
    return network, run


def expected(layer: Layer, numbers: ir.LinearNumbers, x: np.ndarray, bits: int) -> np.ndarray:
    y = layer.apply(numbers.weight, x) + numbers.bias.astype(np.uint64)
    return y & np.uint64((1 << bits) - 1)


def check(layer: Layer, bits: int, weight: np.ndarray, bias: np.ndarray, x0: np.ndarray, x1: np.ndarray) -> None:
    numbers = ir.LinearNumbers(weight, bias)
    sources = dealer(1, lambda op, r: layer.apply(weight, r))
    network, run = play(layer, bits, numbers, l1(weight), x0, x1, sources)
    assert sources[0].taken == sources[1].taken == linear.needs(network, OP)
    np.testing.assert_array_equal(opened(run.results, bits), expected(layer, numbers, x0 + x1, bits))
    assert all(y.shape == network.values[1].shape for y in run.results)
    assert run.traffic[0].payload_bytes == 0
    assert run.traffic[1].payload_bytes == words(bits * x0.size)
    assert run.flows == 1


@pytest.mark.parametrize("bits", [2, 33, 44, 48])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_random(layer, bits):
    rng = np.random.default_rng()
    weight = rng.integers(-5000, 5001, layer.weight_shape)
    x = rng.integers(0, 2**bits - 1, layer.shape, np.uint64, endpoint=True)
    out = layer.network(bits, 1).values[1].shape
    for shape in (out, (out[0], 1, 1)):  # a map, and a number per channel
        bias = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape)
        check(layer, bits, weight, bias, *share(x, bits, rng))


@pytest.mark.parametrize("bits", [17, 33, 44])
@pytest.mark.parametrize("log_l1", [20, 30, 50])
def test_extremes(bits, log_l1):
    """Weights, bias and inputs as large as they get, all pushing the same way, and the extreme sharings of them."""
    layer = Layer((4, 6, 6), 3, (3, 3), padding=(1, 1))
    weight = np.full(layer.weight_shape, (1 << log_l1) // 36)
    weight[1] *= -1
    weight[2] = 0
    weight[2, 0, 0, 0] = -(1 << log_l1)
    top, half = 2**bits - 1, 2 ** (bits - 1)
    for value in (0, half - 1, half, top):
        for x0 in (0, half, top):
            first = np.full(layer.shape, x0, np.uint64)
            second = np.full(layer.shape, (value - x0) & top, np.uint64)
            for bias in (half - 1, -half):
                check(layer, bits, weight, np.full((3, 1, 1), bias), first, second)


def test_with_real_triples():
    layer, bits = Layer((3, 9, 9), 4, (3, 3), (2, 2), (1, 1)), 33
    rng = np.random.default_rng()
    numbers = ir.LinearNumbers(rng.integers(-500, 501, layer.weight_shape), rng.integers(-(2**32), 2**32, (4, 5, 5)))
    bound = l1(numbers.weight)
    network = layer.network(bits, bound)
    prg = Prg.fresh()
    s = [prg.seed() for _ in range(2)]
    ends = Channel(0, SESSION), Channel(1, SESSION)

    async def server() -> None:
        keys = await matrix_triple.server_keys(ends[0], network, 2)
        await matrix_triple.server_triples(ends[0], keys, network, OP, numbers, s)

    async def client() -> list[tuple[np.ndarray, np.ndarray]]:
        keys = await matrix_triple.client_keys(ends[1], network, 2)
        return await matrix_triple.client_triples(ends[1], keys, network, OP, 2)

    class Stored:
        def __init__(self, triple: MatrixServer | MatrixClient) -> None:
            self.triple = triple

        def take(self, need: MatrixNeed) -> MatrixServer | MatrixClient:
            assert (need,) == linear.needs(network, OP)
            return self.triple

    (need,) = linear.needs(network, OP)
    for i, made in enumerate(lockstep.run(server(), client()).results[1]):
        triples = (
            MatrixServer(matrix_triple.mask(s[i], OP, need.output_shape, bits)),
            MatrixClient(*made),
        )
        x = rng.integers(0, 2**bits - 1, layer.shape, np.uint64, endpoint=True)
        _, run = play(layer, bits, numbers, bound, *share(x, bits, rng), tuple(map(Stored, triples)))
        np.testing.assert_array_equal(opened(run.results, bits), expected(layer, numbers, x, bits))


def test_takes_nothing_but_its_need():
    class Empty:
        def take(self, need: MatrixNeed) -> None:
            raise CorrelationError(f"nothing left for {need.op}")

    layer = Layer((1, 1, 1), 1)
    numbers = ir.LinearNumbers(np.ones((1, 1, 1, 1), np.int64), np.zeros((1, 1, 1), np.int64))
    x = np.zeros(layer.shape, np.uint64)
    with pytest.raises(CorrelationError, match="nothing left for 1"):
        play(layer, 33, numbers, 1, x, x, (Empty(), Empty()))
