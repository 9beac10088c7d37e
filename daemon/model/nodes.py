"""A float network as the compiler sees it: nine kinds of node, batch-norms already a scale and a shift. No torch."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcd.daemon.errors import BadInput

Floats = npt.NDArray[np.float64]
Pair = tuple[int, int]
Shape = tuple[int, int, int]

KINDS = ("input", "conv", "norm", "relu", "max_pool", "avg_pool", "add", "concat", "flatten")


class ModelError(BadInput):
    """The model cannot be used."""

    code = "model"


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation on one image. ``inputs`` are indices of earlier nodes; ``place`` is for people.

    conv: ``weight`` (out, in / groups, kh, kw) and ``bias`` (out,); a Linear layer is a 1x1 convolution of a
    (features, 1, 1) value. norm: ``weight`` (channels,) times x plus ``bias`` (channels,). Pools do not pad,
    but for max_pool, where padding never wins.
    """

    kind: str
    inputs: tuple[int, ...]
    shape: Shape
    place: str
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    groups: int = 1
    weight: Floats | None = None
    bias: Floats | None = None

    @property
    def numbers(self) -> tuple[Floats, Floats]:
        if self.weight is None or self.bias is None:
            raise ModelError(f"{self.place}: a {self.kind} without numbers")
        return self.weight, self.bias


@dataclasses.dataclass(frozen=True)
class Graph:
    """Nodes in execution order; the first is the input, the last the output."""

    nodes: tuple[Node, ...]

    def users(self) -> list[list[int]]:
        result: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for i in node.inputs:
                result[i].append(index)
        return result

    def to_arrays(self) -> tuple[str, dict[str, npt.NDArray[np.float32]]]:
        """JSON of the structure and the numbers by name ("12.weight"), for storage."""
        rows: list[dict[str, Any]] = []
        arrays: dict[str, npt.NDArray[np.float32]] = {}
        for index, node in enumerate(self.nodes):
            row = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
            for name in ("weight", "bias"):
                value = row.pop(name)
                if value is not None:
                    arrays[f"{index}.{name}"] = np.ascontiguousarray(value, np.float32)
            rows.append(row)
        return json.dumps(rows), arrays

    @staticmethod
    def from_arrays(text: str, arrays: dict[str, npt.NDArray[np.float32]]) -> Graph:
        """Inverse of to_arrays."""
        nodes = []
        for index, row in enumerate(json.loads(text)):
            numbers: dict[str, Any] = {
                name: arrays[f"{index}.{name}"].astype(np.float64)
                for name in ("weight", "bias")
                if f"{index}.{name}" in arrays
            }
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
            nodes.append(Node(**fields, **numbers))
        return Graph(tuple(nodes))


@dataclasses.dataclass
class Range:
    """What a node's channels did on the calibration images."""

    low: Floats
    high: Floats
    mean: Floats

    @property
    def largest(self) -> Floats:
        return np.maximum(np.abs(self.low), np.abs(self.high))


def window_shape(shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Pair:
    rows, columns = ((s + 2 * p - k) // t + 1 for s, k, t, p in zip(shape[1:], kernel, stride, padding, strict=True))
    return rows, columns
