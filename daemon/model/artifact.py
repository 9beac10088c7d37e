"""A compiled model on disk, loaded without torch. A folder that only its owner may read:

network.bin        the public part: Network.to_bytes
numbers.npz        P0's numbers, "<op>.<class>.<field>", int64 or bool; never pickled
recipe.toml        how images are prepared
report.json        what the vendor is shown: ranges, widths, the cost of float to integer
float.safetensors  the float network, for comparisons in the clear
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcd.daemon.files import write_private
from mpcd.daemon.image import recipe as recipes
from mpcd.daemon.image.recipe import Recipe
from mpcd.daemon.model.nodes import ModelError
from mpcd.protocol import network as net
from mpcd.protocol.network import (
    GrowNumbers,
    LinearNumbers,
    Network,
    NetworkError,
    Numbers,
    PrivateNumbers,
    ReluNumbers,
)

FLOAT = "float.safetensors"
_CLASSES: dict[str, type] = {cls.__name__: cls for cls in (LinearNumbers, ReluNumbers, GrowNumbers)}


@dataclasses.dataclass(frozen=True)
class Artifact:
    network: Network
    numbers: PrivateNumbers
    recipe: Recipe
    report: dict[str, Any]


def save(folder: Path, artifact: Artifact) -> None:
    """Write all but the float network into ``folder``, which is made if need be, files of mode 0600."""
    verify(artifact.network, artifact.numbers)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(folder / "network.bin", artifact.network.to_bytes())
    write_private(folder / "numbers.npz", numbers_to_bytes(artifact.numbers))
    write_private(folder / "recipe.toml", artifact.recipe.to_toml().encode())
    write_private(folder / "report.json", json.dumps(artifact.report, indent=1, allow_nan=False).encode())


def load(folder: Path) -> Artifact:
    """Inverse of save, checked. Raises ModelError."""
    try:
        network = Network.from_bytes((folder / "network.bin").read_bytes())
        numbers = numbers_from_bytes((folder / "numbers.npz").read_bytes())
        recipe = recipes.parse((folder / "recipe.toml").read_text("utf-8"), f"{folder.name}/recipe.toml")
        report = json.loads((folder / "report.json").read_text("utf-8"))
    except (OSError, NetworkError, ValueError, RecursionError) as error:
        raise ModelError(f"the compiled model in {folder} cannot be read: {error}", "add the model again") from error
    verify(network, numbers)
    return Artifact(network, numbers, recipe, report)


def numbers_to_bytes(numbers: PrivateNumbers) -> bytes:
    arrays: dict[str, Any] = {}
    for op, own in numbers.items():
        for field in dataclasses.fields(own):
            arrays[f"{op}.{type(own).__name__}.{field.name}"] = getattr(own, field.name)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def numbers_from_bytes(data: bytes) -> PrivateNumbers:
    """Inverse of numbers_to_bytes. Raises ModelError."""
    fields: dict[int, dict[str, npt.NDArray[Any]]] = {}
    kinds: dict[int, type] = {}
    try:
        with contextlib.closing(np.load(io.BytesIO(data), allow_pickle=False)) as arrays:
            for key in arrays.files:
                op, kind, field = key.split(".")
                kinds[int(op)] = _CLASSES[kind]
                fields.setdefault(int(op), {})[field] = arrays[key]
        return {op: kinds[op](**own) for op, own in sorted(fields.items())}
    except Exception as error:
        # NumPy's and zipfile's readers raise nearly anything on damaged files: SyntaxError, TokenError, zlib.error, ...
        raise ModelError(f"the model's numbers do not decode: {error}", "add the model again") from error


def numbers_digest(numbers: PrivateNumbers) -> bytes:
    """SHA-256 over every array, in order of operations. Never leaves the model owner unsalted."""
    digest = hashlib.sha256()
    for op, own in sorted(numbers.items()):
        for field in dataclasses.fields(own):
            array = np.ascontiguousarray(getattr(own, field.name)).astype("<i8")
            digest.update(repr((op, type(own).__name__, field.name, array.shape)).encode() + array.tobytes())
    return digest.digest()


def verify(network: Network, numbers: PrivateNumbers) -> None:
    """Raise ModelError unless ``numbers`` are what ``network`` needs: all there, of the right shapes, in range, and
    every row of weights within the public bound."""
    network.check()
    wanted = {
        i
        for i, op in enumerate(network.ops)
        if isinstance(op, net.Linear) or (isinstance(op, (net.Relu, net.Grow)) and op.secret)
    }
    if wanted != numbers.keys():
        raise ModelError(f"operations {sorted(wanted ^ numbers.keys())[:8]} lack numbers or have too many")
    for index in sorted(wanted):
        problem = _problem(network, index, network.ops[index], numbers[index])
        if problem:
            raise ModelError(f"the numbers of operation {index} ({type(network.ops[index]).__name__}): {problem}")


def _problem(network: Network, index: int, op: net.Op, own: Numbers) -> str:
    channels, rows, columns = network.values[op.output].shape
    source = network.values[op.inputs[0]]
    half = 1 << (network.values[op.output].bits - 1)
    if isinstance(op, net.Linear) and isinstance(own, LinearNumbers):
        if own.weight.shape != (channels, source.shape[0] // op.groups, *op.kernel):
            return f"weights of shape {own.weight.shape}"
        if own.bias.shape not in ((channels, 1, 1), (channels, rows, columns)):
            return f"a bias of shape {own.bias.shape}"
        if own.weight.dtype != np.int64 or own.bias.dtype != np.int64:
            return "not int64"
        if not net.weights_within(own.weight, network.weight_l1[index]):
            return "weights beyond their public bound"
        return "a bias outside the ring" if own.bias.min() < -half or own.bias.max() >= half else ""
    if isinstance(op, net.Relu) and isinstance(own, ReluNumbers):
        if own.threshold.shape != (channels,) or own.negative.shape != (channels,):
            return "of another shape"
        if own.threshold.dtype != np.int64 or own.negative.dtype != np.bool_:
            return "not int64 and bool"
        return "outside the ring" if own.threshold.min() < -half or own.threshold.max() >= half else ""
    if isinstance(op, net.Grow) and isinstance(own, GrowNumbers):
        if own.offset.shape != (channels,) or own.offset.dtype != np.int64:
            return "of another shape or type"
        allowed = (0, (1 << (source.bits - 1)) - 1)
        return "" if np.isin(own.offset, allowed).all() else "neither 0 nor 2^(k-1) - 1"
    return f"of the wrong kind ({type(own).__name__})"
