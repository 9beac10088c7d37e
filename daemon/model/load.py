"""A vendor's file to a float graph. Nothing is ever unpickled: safetensors, weights-only ``.pt``, or ``.pt2``."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mpcd.daemon.model import architectures
from mpcd.daemon.model.graph import from_module, from_program
from mpcd.daemon.model.nodes import Graph, ModelError, Shape


def load(source: Path, arch: str | None, input_shape: Shape, outputs: int | None = None) -> Graph:
    """The graph in ``source``: a state dict of ``arch``, or a ``.pt2`` program (``arch`` None).

    ``outputs``: how many findings the vendor named, checked. Raises ModelError.
    """
    suffix = source.suffix.lower()
    if not source.is_file():
        raise ModelError(f"{source} is not a file")
    if suffix == ".pt2":
        if arch is not None:
            raise ModelError(f"{source.name} brings its own architecture: leave --arch out")
        graph = from_program(_program(source), input_shape)
    else:
        if arch is None:
            raise ModelError(f"{source.name} holds weights only: say --arch ({', '.join(architectures.NAMES)})")
        graph = from_module(module(state_dict(source), arch, input_shape[0]), input_shape)
    made = graph.nodes[-1].shape[0]
    if outputs is not None and made != outputs:
        raise ModelError(f"{source.name} has {made} outputs, but {outputs} findings were named")
    return graph


def state_dict(source: Path) -> dict[str, Tensor]:
    """Tensors by name. A ``.pt`` may hold them directly or under "state_dict"."""
    suffix = source.suffix.lower()
    try:
        if suffix == ".safetensors":
            return dict(load_file(source))
        if suffix not in (".pt", ".pth"):
            raise ModelError(f"{source.name}: a model is a .safetensors, .pt, .pth or .pt2 file")
        found: Any = torch.load(source, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{source.name} cannot be read as weights alone, and nothing else is ever unpickled; "
            f"save it with safetensors.torch.save_file(model.state_dict(), ...) ({type(error).__name__})"
        ) from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ModelError(f"{source.name} does not hold a state dict: save model.state_dict()")
    return {str(k): v for k, v in found.items()}


def module(tensors: Mapping[str, Tensor], arch: str, in_channels: int) -> nn.Module:
    """``arch`` with these weights, widened to float32. Raises ModelError naming what is missing or too much."""
    head = architectures.classifier(arch) + ".weight"
    if head not in tensors:
        raise ModelError(f"{arch} has its outputs in {head}, which this file lacks; rename it to torchvision's name")
    result = architectures.build(arch, tensors[head].shape[0], in_channels)
    expected = result.state_dict()
    optional = {k for k in expected if k.endswith("num_batches_tracked")}
    missing = sorted(expected.keys() - tensors.keys() - optional)
    surplus = sorted(tensors.keys() - expected.keys())
    shapes = [
        f"{k} is {tuple(v.shape)}, should be {tuple(expected[k].shape)}"
        for k, v in tensors.items()
        if k in expected and v.shape != expected[k].shape
    ]
    if missing or surplus or shapes:
        parts = [("missing", missing), ("unexpected", surplus), ("of another shape", shapes)]
        raise ModelError(
            f"this file is not a {arch}: "
            + "; ".join(f"{len(names)} {what} ({_few(names)})" for what, names in parts if names)
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(f"{name} holds a number that is not finite")
    result.load_state_dict({**{k: expected[k] for k in optional}, **dict(tensors)})
    return result


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _program(source: Path) -> torch.export.ExportedProgram:
    """A torch.export archive. torch's own loader unpickles some members, so only an archive that was rebuilt
    here from its plain members (JSON and raw tensors) is given to it."""
    try:
        with zipfile.ZipFile(source) as archive:
            members = {name.split("/", 1)[-1]: archive.read(name) for name in archive.namelist()}
    except Exception as error:  # zipfile's, and what its decompressors raise
        raise ModelError(f"{source.name} is not a .pt2 archive") from error
    configs = {f"data/{kind}/model_{kind}_config.json": kind for kind in ("weights", "constants")}
    if "models/model.json" not in members or not configs.keys() <= members.keys():
        raise ModelError(f"{source.name} holds no program named 'model'; save it again with torch.export.save")
    plain = {"models/model.json", "archive_format", "archive_version", "byteorder", ".data/version", *configs}
    try:
        for config, kind in configs.items():
            for name, row in json.loads(members[config])["config"].items():
                path = row["path_name"]
                if row["use_pickle"] or not path.startswith(("weight_", "tensor_")) or "/" in path:
                    raise ModelError(f"{source.name}: {name} is stored as a pickle, which is never opened")
                plain.add(f"data/{kind}/{path}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{source.name}: its list of tensors does not decode") from error
    rebuilt = io.BytesIO()
    with zipfile.ZipFile(rebuilt, "w") as archive:
        for name in sorted(plain & members.keys()):
            archive.writestr(f"archive/{name}", members[name])
        archive.writestr("archive/data/sample_inputs/model.pt", b"")
    rebuilt.seek(0)
    try:
        program: torch.export.ExportedProgram = torch.export.load(rebuilt)
    except Exception as error:
        raise ModelError(f"{source.name} is not a program this torch ({torch.__version__}) reads: {error}") from error
    return program
