"""Scales: how many integer steps one unit of a value's channel has.

Every channel of a convolution's output chooses its own scale; batch-norms and thresholds that follow change nothing
in it, and an add makes both operands' channels choose together. A scale is as large as two bits of headroom allow
over the calibrated |x| + |threshold|: where a threshold lies far outside x, its sign never changes and the compiler
clamps it, so no more than 2 |x| is reserved for it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from mpcd.daemon.model.nodes import Floats, Graph, ModelError, Range
from mpcd.daemon.model.rewrite import purity

HEADROOM = 2  # bits
QUIET = 256  # a channel is given at least this fraction of its layer's range: calibration may have missed its peak
L1_BITS = 8  # a row's sum of |W| stays below 2^(fraction + L1_BITS)

Ids = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Plan:
    """``scales[i]`` per channel of node i's integers, where node i has narrow ones; ``pure``: see rewrite."""

    scales: dict[int, Floats]
    pure: list[bool]
    wide: list[bool]


def plan(graph: Graph, seen: list[Range], input_scale: float, bits: int, fraction: int) -> Plan:
    known = purity(graph)
    pure, wide = [p for p, _ in known], [w for _, w in known]
    ids, need = _classes(graph, seen, pure, wide)
    scale = 2.0 ** (bits - 1 - HEADROOM) / need
    _bound_weights(graph, ids, scale, input_scale, 2.0**fraction)
    last = ids[len(graph.nodes) - 1]
    scale[last] = 2.0 ** np.floor(np.log2(scale[last]))  # public, and so as little of the model's as may be
    return Plan({i: scale[c] for i, c in ids.items()}, pure, wide)


def _classes(graph: Graph, seen: list[Range], pure: list[bool], wide: list[bool]) -> tuple[dict[int, Ids], Floats]:
    """Scale class of each node's channels, and for every class the largest |x| + |threshold|."""
    total = sum(n.shape[0] for n in graph.nodes if n.kind == "conv")
    parent = np.arange(total)
    need = np.zeros(total)
    ids: dict[int, Ids] = {}
    slope: dict[int, Floats] = {}
    shift: dict[int, Floats] = {}
    extent: dict[int, Floats] = {}
    made = 0
    for index, node in enumerate(graph.nodes):
        if wide[index]:
            continue
        first = node.inputs[0]
        if node.kind == "conv":
            ids[index] = made + np.arange(node.shape[0])
            made += node.shape[0]
            if index == len(graph.nodes) - 1:
                parent[ids[index]] = ids[index][0]  # the logits share one
            extent[index] = np.maximum(seen[index].largest, seen[index].largest.max() / QUIET)
        elif node.kind == "add":
            ids[index] = ids[first]
            for a, b in zip(ids[first], ids[node.inputs[1]], strict=True):
                parent[_root(parent, int(a))] = _root(parent, int(b))
            extent[index] = seen[index].largest
        elif node.kind == "concat":
            for table in (ids, slope, shift, extent):
                table[index] = np.concatenate([table[i] for i in node.inputs])
            continue
        elif node.kind == "flatten":
            pixels = node.shape[0] // graph.nodes[first].shape[0]
            for table in (ids, slope, shift, extent):
                table[index] = np.repeat(table[first], pixels)
            continue
        else:
            ids[index], extent[index] = ids[first], extent[first]
        if pure[index]:
            slope[index], shift[index] = np.ones(node.shape[0]), np.zeros(node.shape[0])
        elif node.kind == "norm":
            scale, offset = node.numbers
            slope[index], shift[index] = slope[first] * scale, shift[first] * scale + offset
        else:  # a ReLU of a batch-norm: threshold shift / slope
            with np.errstate(divide="ignore", invalid="ignore"):
                threshold = np.nan_to_num(np.abs(shift[first] / slope[first]))
            extent[index] = extent[first] + np.minimum(threshold, 2 * extent[first])
            slope[index], shift[index] = slope[first], np.zeros(node.shape[0])
        np.maximum.at(need, ids[index], extent[index])
    roots = np.array([_root(parent, i) for i in range(total)])
    merged = np.zeros(total)
    np.maximum.at(merged, roots, need)
    merged = np.where(merged > 0, merged, 1.0)[roots]
    return {i: roots[c] for i, c in ids.items()}, merged


def _root(parent: Ids, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = int(parent[i])
    return i


def _bound_weights(graph: Graph, ids: dict[int, Ids], scale: Floats, input_scale: float, one: float) -> None:
    """Lower scales, in place, until no row of integer weights sums to more than ``one`` * 2^L1_BITS."""
    sums = {
        i: np.abs(n.numbers[0]).sum((2, 3)) for i, n in enumerate(graph.nodes) if n.kind == "conv"
    }  # (out, in / groups)
    for _ in range(64):
        changed = False
        steps = _steps(graph, ids, scale, input_scale)
        for index, rows in sums.items():
            node = graph.nodes[index]
            step = np.abs(steps[node.inputs[0]]).reshape(node.groups, -1)
            per_group = rows.reshape(node.groups, -1, rows.shape[1])
            l1 = np.einsum("goi,gi->go", per_group, step).reshape(-1) * scale[ids[index]] * one
            over = l1 / (one * 2.0**L1_BITS)
            if (over > 1).any():
                np.minimum.at(scale, ids[index], np.where(over > 1, scale[ids[index]] / (over * 1.001), np.inf))
                changed = True
                steps = _steps(graph, ids, scale, input_scale)
        if not changed:
            return
    raise ModelError("no scales keep the integer weights small; the model's weights differ too much in size")


def _steps(graph: Graph, ids: dict[int, Ids], scale: Floats, input_scale: float) -> list[Floats]:
    """Real size of one integer step, per channel of every node (negative after a negative batch-norm)."""
    result: list[Floats] = []
    for index, node in enumerate(graph.nodes):
        if node.kind == "input":
            step = np.full(node.shape[0], 1 / input_scale)
        elif node.kind in ("conv", "add"):
            step = 1 / scale[ids[index]]
        elif node.kind == "norm":
            step = result[node.inputs[0]] * node.numbers[0]
        elif node.kind == "avg_pool":
            step = result[node.inputs[0]] / (node.kernel[0] * node.kernel[1])
        elif node.kind == "concat":
            step = np.concatenate([result[i] for i in node.inputs])
        elif node.kind == "flatten":
            before = result[node.inputs[0]]
            step = np.repeat(before, node.shape[0] // len(before))
        else:
            step = result[node.inputs[0]]
        result.append(step)
    return result
