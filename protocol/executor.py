"""The online phase: walk the integer network on shares, one image at a time.

Both parties run the same walk. P1 (data owner) enters with the image, P0 (model owner) with the numbers; each leaves
with its share of the network's output, which is then revealed as agreed. What P1 learns is what is revealed; what P0
learns is nothing (semi-honest parties; every message is masked by a correlation that is used once).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcd.kernels import bits as bit_kernels
from mpcd.protocol import growth, linear, local, max_pool, relu, truncation
from mpcd.protocol.channel import DATA_OWNER, MODEL_OWNER, Channel
from mpcd.protocol.correlations import Source
from mpcd.protocol.millionaires import Leaves, own_leaves
from mpcd.protocol.network import (
    Add,
    Concat,
    Extend,
    Grow,
    GrowNumbers,
    Input,
    Linear,
    LinearNumbers,
    MaxPool,
    Network,
    PrivateNumbers,
    Relu,
    ReluNumbers,
    Reshape,
    SumPool,
    Truncate,
    TruncateRelu,
    wrap,
)
from mpcd.protocol.shared_leaves import SharedLeaves, comparisons
from mpcd.protocol.wire import array, message

Share = npt.NDArray[np.uint64]
Progress = Callable[[int, int], None]


async def infer(
    channel: Channel,
    network: Network,
    numbers: PrivateNumbers | None,
    source: Source,
    image: npt.NDArray[np.int64] | None,
    progress: Progress,
) -> Share:
    """This party's share of the network's output for one image.

    ``numbers``: at P0, else None. ``image``: int64 of the input's shape at P1, else None. Returns uint64 (outputs,)
    mod 2^bits of the output value. Raises CorrelationError when the source does not hold what the network needs.
    """
    if (numbers is None) == (channel.party == MODEL_OWNER) or (image is None) == (channel.party == DATA_OWNER):
        raise ValueError("the model owner brings numbers, the data owner an image")
    run = _Run(channel, network, numbers, source)
    last_use = {i: index for index, op in enumerate(network.ops) for i in op.inputs}
    for index, op in enumerate(network.ops):
        run.values[op.output] = await run.step(index, image)
        for i in set(op.inputs):
            if last_use[i] == index and i != network.output:
                del run.values[i]
        progress(index + 1, len(network.ops))
    return run.values[network.output].reshape(-1)


@message("reveal.share")
class RevealedShare:
    """P0's share of the output, packed to the ring's width."""

    words: npt.NDArray[np.uint64] = array("uint64", 1)


async def reveal_to_data_owner(channel: Channel, network: Network, share: Share) -> npt.NDArray[np.int64] | None:
    """P0 sends its share; P1 returns the int64 outputs in [-2^(bits-1), 2^(bits-1)), P0 returns None."""
    value = network.values[network.output]
    if channel.party == MODEL_OWNER:
        await channel.send(RevealedShare(bit_kernels.pack_ring(share, value.bits)))
        return None
    theirs = await channel.recv(RevealedShare, words=((value.size * value.bits + 63) // 64,))
    total = local.add(share, bit_kernels.unpack_ring(theirs.words, value.bits, value.size), value.bits)
    return wrap(total.astype(np.int64), value.bits)


class _Run:
    """The values of one image on their way through the network."""

    def __init__(self, channel: Channel, network: Network, numbers: PrivateNumbers | None, source: Source) -> None:
        self.channel = channel
        self.network = network
        self.numbers = numbers
        self.source = source
        self.values: dict[int, Share] = {}
        self.pieces = comparisons(network)
        self.shared = SharedLeaves()

    async def step(self, index: int, image: npt.NDArray[np.int64] | None) -> Share:
        """This party's share of what operation ``index`` makes, in its value's shape."""
        channel, source = self.channel, self.source
        op = self.network.ops[index]
        out = self.network.values[op.output]
        args = [self.values[i] for i in op.inputs]
        x = args[0].reshape(-1) if args else np.empty(0, np.uint64)
        match op:
            case Input():
                y = _enter(image, out.shape, out.bits)
            case Linear() if channel.party == MODEL_OWNER:
                y = await linear.linear_server(
                    channel, source, self.network, index, self._own(index, LinearNumbers), args[0]
                )
            case Linear():
                y = await linear.linear_client(channel, source, self.network, index, args[0])
            case Truncate():
                y = await truncation.truncate(channel, source, x, op.fraction, out.bits)
            case TruncateRelu():
                y = await relu.truncate_relu(channel, source, x, op.fraction, out.bits)
            case Relu():
                y = await self._relu(index, op, x)
            case Grow():
                offset = None
                if op.secret and channel.party == MODEL_OWNER:
                    own = self._own(index, GrowNumbers)
                    offset = local.per_channel(own.offset.astype(np.uint64), out.shape)
                k = self.network.values[op.inputs[0]].bits
                y = await growth.grow(channel, source, x, k, out.bits, offset)
            case Extend():
                k = self.network.values[op.inputs[0]].bits
                y = await growth.extend(channel, source, x, k, out.bits)
            case MaxPool():
                y = await max_pool.max_pool(channel, source, args[0], out.bits, op.kernel, op.stride, op.padding)
            case SumPool():
                y = await channel.compute(local.sum_pool, args[0], op.kernel, op.stride, out.bits)
            case Add():
                y = local.add(args[0], args[1], out.bits)
            case Concat():
                y = np.concatenate(args)
            case Reshape():
                y = x
        return y.reshape(out.shape)

    async def _relu(self, index: int, op: Relu, x: Share) -> Share:
        """Thresholds are P0's to add; whether a channel's slope was negative is P0's to know."""
        value = self.network.values[op.output]
        negative = None
        if op.secret and self.channel.party == MODEL_OWNER:
            own = self._own(index, ReluNumbers)
            threshold = own.threshold - own.negative.astype(np.int64)
            x = local.add(x, local.per_channel(threshold.astype(np.uint64), value.shape), value.bits)
            negative = local.per_channel(own.negative, value.shape)
        leaves: Leaves = own_leaves
        if index in self.pieces:
            leaves = functools.partial(self.shared.shares, pieces=self.pieces[index])
        return await relu.relu(self.channel, self.source, x, value.bits, negative, leaves)

    def _own(self, index: int, kind: type) -> Any:
        assert self.numbers is not None
        own = self.numbers[index]
        if not isinstance(own, kind):
            raise TypeError(f"operation {index} needs {kind.__name__}, the model holds {type(own).__name__}")
        return own


def _enter(image: npt.NDArray[np.int64] | None, shape: tuple[int, int, int], bits: int) -> Share:
    """The image is the data owner's alone: its share is the image, the model owner's is zero."""
    if image is None:
        return np.zeros(shape, np.uint64)
    if image.shape != shape:
        raise ValueError(f"the network takes images of shape {shape}, this one is {image.shape}")
    return local.reduce(image.astype(np.uint64), bits)
