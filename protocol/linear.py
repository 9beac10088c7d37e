"""Linear layers online: y = W x + B on shares, with a matrix triple.

Beaver, CRYPTO 1991, with one operand fixed; as in Delphi (eprint 2020/050, linear phase) on additive shares.

P0 (model owner) holds W, B, its share x_0 and a mask s; P1 (data owner) its share x_1, a mask r, and c = W r - s.
1. P1 sends d = x_1 - r mod 2^l.                                                                  (``MaskedInput``)
2. P0 sets y_0 = W (x_0 + d) + s + B mod 2^l.
3. P1 sets y_1 = c.
Then y_0 + y_1 = W (x_0 + x_1 - r) + s + B + W r - s = W x + B.

Cost: l bits an input element (a layer's message is padded to 8 bytes), one flow from P1 to P0.
Adversary: semi-honest; d is uniform because r is, and is used once. P1 receives nothing.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from mpcd.kernels import bits as bit_kernels
from mpcd.kernels import im2col
from mpcd.protocol.channel import Channel
from mpcd.protocol.correlations import MatrixClient, MatrixNeed, MatrixServer, Source, take
from mpcd.protocol.network import Linear, LinearNumbers, Network
from mpcd.protocol.wire import array, message

Words = npt.NDArray[np.uint64]


@message("linear.masked")
class MaskedInput:
    """Step 1, P1 to P0: x_1 - r, packed to the ring's width."""

    d: Words = array("uint64", 1)


def needs(network: Network, op_index: int) -> tuple[MatrixNeed, ...]:
    """What one image's Linear operation takes from its source."""
    op = network.ops[op_index]
    out = network.values[op.output]
    return (MatrixNeed(op_index, out.bits, network.values[op.inputs[0]].shape, out.shape),)


async def linear_server(
    channel: Channel, source: Source, network: Network, op_index: int, numbers: LinearNumbers, x0: Words
) -> Words:
    """P0's share of the output, uint64 of its shape, from its share of the input, uint64 below 2^l.

    The weights must be within the network's bound (``network.weights_within``): checked when they are loaded, and
    not here, where nothing may be timed that depends on them alone.
    """
    (need,) = needs(network, op_index)
    triple: MatrixServer = await take(channel, source, need)
    received = await channel.recv(MaskedInput, d=_packed(need))
    return await channel.compute(_open, network, op_index, numbers, need, x0, received.d, triple.s)


async def linear_client(channel: Channel, source: Source, network: Network, op_index: int, x1: Words) -> Words:
    """P1's share of the output, uint64 of its shape, from its share of the input, uint64 below 2^l."""
    (need,) = needs(network, op_index)
    triple: MatrixClient = await take(channel, source, need)
    masked = x1.reshape(-1) - triple.r.reshape(-1)
    await channel.send(MaskedInput(await channel.compute(bit_kernels.pack_ring, masked, need.bits)))
    return np.asarray(triple.c, np.uint64).reshape(need.output_shape)


def _packed(need: MatrixNeed) -> tuple[int]:
    return ((math.prod(need.input_shape) * need.bits + 63) // 64,)


def _open(
    network: Network, op_index: int, numbers: LinearNumbers, need: MatrixNeed, x0: Words, packed: Words, s: Words
) -> Words:
    """Step 2."""
    op = network.ops[op_index]
    assert isinstance(op, Linear)
    d = bit_kernels.unpack_ring(packed, need.bits, math.prod(need.input_shape))
    x = (x0.reshape(-1) + d).reshape(need.input_shape)
    l1 = network.weight_l1[op_index]
    y = im2col.convolve(numbers.weight, x, op.stride, op.padding, op.groups, need.bits, l1)
    mask = np.uint64((1 << need.bits) - 1)
    return np.asarray((y + s + numbers.bias.astype(np.uint64)) & mask, np.uint64)
