"""A network of one Linear operation, and its convolution written plainly."""

from __future__ import annotations

import dataclasses

import numpy as np

from mpcd.protocol import network as ir

OP = 1  # operation 0 is the input


@dataclasses.dataclass(frozen=True)
class Layer:
    """(channels, height, width) to ``outputs`` channels."""

    shape: tuple[int, int, int]
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.outputs, self.shape[0] // self.groups, *self.kernel)

    def network(self, bits: int, l1: int) -> ir.Network:
        h, w = (
            ir.windows(s, k, t, p)
            for s, k, t, p in zip(self.shape[1:], self.kernel, self.stride, self.padding, strict=True)
        )
        out = ir.Value((self.outputs, h, w), bits)
        network = ir.Network(
            name="one layer",
            values=(ir.Value(self.shape, bits), out),
            ops=(ir.Input(0), ir.Linear((0,), 1, self.kernel, self.stride, self.padding, self.groups)),
            output=1,
            input_scale=1.0,
            output_scale=1.0,
            findings=("f",) * out.size,
            weight_l1={OP: l1},
        )
        network.check()
        return network

    def apply(self, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
        """W x mod 2^64, tap by tap."""
        kh, kw = self.kernel
        (sh, sw), (ph, pw) = self.stride, self.padding
        c, h, w = x.shape
        padded = np.zeros((c, h + 2 * ph, w + 2 * pw), np.uint64)
        padded[:, ph : ph + h, pw : pw + w] = x
        out_h, out_w = (h + 2 * ph - kh) // sh + 1, (w + 2 * pw - kw) // sw + 1
        y = np.zeros((self.outputs, out_h, out_w), np.uint64)
        inputs, outputs = c // self.groups, self.outputs // self.groups
        for o in range(self.outputs):
            for i in range(inputs):
                channel = padded[o // outputs * inputs + i]
                for u in range(kh):
                    for v in range(kw):
                        tap = np.uint64(int(weight[o, i, u, v]) % 2**64)
                        y[o] += tap * channel[u : u + sh * (out_h - 1) + 1 : sh, v : v + sw * (out_w - 1) + 1 : sw]
        return y


def l1(weight: np.ndarray) -> int:
    """The largest sum |w| of an output."""
    return max(sum(abs(w) for w in row.tolist()) for row in weight.reshape(len(weight), -1))
