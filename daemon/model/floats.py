"""Runs a graph in float32: the clear network that integers are compared with, and the ranges they need."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import torch
from torch import Tensor
from torch.nn import functional

from mpcd.daemon.files import write_private
from mpcd.daemon.model.nodes import Floats, Graph, ModelError, Node, Range

Images = Iterable[npt.NDArray[np.float32]]


def save(graph: Graph, path: Path) -> None:
    """The float network as safetensors, float32, its structure as JSON in the metadata."""
    structure, arrays = graph.to_arrays()
    write_private(path, safetensors.numpy.save(arrays, {"graph": structure}))


def load(path: Path) -> Graph:
    """Inverse of save. Raises ModelError."""
    try:
        with safetensors.safe_open(path, "np") as file:
            return Graph.from_arrays(file.metadata()["graph"], {k: file.get_tensor(k) for k in file.keys()})  # noqa: SIM118
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise ModelError(f"the float network in {path} cannot be read: {error}", "add the model again") from error


def run(graph: Graph, images: Images, seen: Callable[[int, Tensor], None] | None = None) -> Floats:
    """Logits, one row an image; ``seen(index, value)`` is called with every node's value, (1, C, H, W)."""
    numbers = [
        None if n.weight is None else tuple(torch.from_numpy(a.astype(np.float32)) for a in n.numbers)
        for n in graph.nodes
    ]
    last_use = {i: index for index, node in enumerate(graph.nodes) for i in node.inputs}
    rows = []
    with torch.inference_mode():
        for image in images:
            if image.shape != graph.nodes[0].shape:
                raise ModelError(f"an image is {image.shape}, the model takes {graph.nodes[0].shape}")
            values: dict[int, Tensor] = {}
            for index, node in enumerate(graph.nodes):
                if node.kind == "input":
                    value = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None]
                else:
                    value = _apply(node, numbers[index], [values[i] for i in node.inputs])
                if seen is not None:
                    seen(index, value)
                values[index] = value
                for i in node.inputs:
                    if last_use[i] == index:
                        values.pop(i, None)
            rows.append(value.reshape(-1).numpy().astype(np.float64))
    return np.stack(rows)


def ranges(graph: Graph, images: Images, tick: Callable[[], None] | None = None) -> tuple[list[Range], Floats]:
    """Every node's range per channel, and the logits."""
    lows: dict[int, list[Tensor]] = {i: [] for i in range(len(graph.nodes))}
    highs: dict[int, list[Tensor]] = {i: [] for i in range(len(graph.nodes))}
    means: dict[int, list[Tensor]] = {i: [] for i in range(len(graph.nodes))}

    def seen(index: int, value: Tensor) -> None:
        flat = value[0].flatten(1)
        lows[index].append(flat.amin(1))
        highs[index].append(flat.amax(1))
        means[index].append(flat.mean(1, dtype=torch.float64))
        if tick is not None and index == len(graph.nodes) - 1:
            tick()

    logits = run(graph, images, seen)

    def joined(parts: list[Tensor], how: Callable[[Tensor], Tensor]) -> Floats:
        result: Floats = how(torch.stack(parts)).to(torch.float64).numpy()
        return result

    result = [
        Range(
            joined(lows[i], lambda t: t.amin(0)),
            joined(highs[i], lambda t: t.amax(0)),
            joined(means[i], lambda t: t.mean(0)),
        )
        for i in range(len(graph.nodes))
    ]
    bad = next((i for i, r in enumerate(result) if not np.isfinite(r.largest).all()), None)
    if bad is not None:
        raise ModelError(f"{graph.nodes[bad].place}: the float model makes numbers that are not finite")
    return result, logits


def _apply(node: Node, numbers: tuple[Tensor, ...] | None, x: list[Tensor]) -> Tensor:
    if numbers is not None and node.kind == "conv":
        weight, bias = numbers
        return torch.conv2d(x[0], weight, bias, node.stride, node.padding, 1, node.groups)
    if numbers is not None and node.kind == "norm":
        return x[0] * numbers[0][:, None, None] + numbers[1][:, None, None]
    if node.kind == "relu":
        return functional.relu(x[0])
    if node.kind == "max_pool":
        return functional.max_pool2d(x[0], node.kernel, node.stride, node.padding)
    if node.kind == "avg_pool":
        return functional.avg_pool2d(x[0], node.kernel, node.stride)
    if node.kind == "add":
        return x[0] + x[1]
    if node.kind == "concat":
        return torch.cat(x, 1)
    if node.kind == "flatten":
        return x[0].reshape(1, -1, 1, 1)
    raise ModelError(f"{node.place}: no float form of {node.kind}")
