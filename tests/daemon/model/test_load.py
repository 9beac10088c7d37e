"""Weights from files: by name and shape, never unpickled."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mpcd.daemon.model import architectures
from mpcd.daemon.model.load import load, module, state_dict
from mpcd.daemon.model.nodes import ModelError

SHAPE = (3, 64, 64)


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return architectures.build("squeezenet1_1", 2).state_dict()


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    return torch.export.export(model, (torch.zeros(1, *SHAPE),))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_a_state_dict_in_half_precision(tmp_path: Path, tensors: dict[str, torch.Tensor], suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    half = {k: v.half() for k, v in tensors.items()}
    save_file(half, path) if suffix == ".safetensors" else torch.save({"state_dict": half, "epoch": 3}, path)
    graph = load(path, "squeezenet1_1", SHAPE, 2)
    assert graph.nodes[1].weight is not None
    assert torch.equal(torch.from_numpy(graph.nodes[1].weight), half["features.0.weight"].double())


def test_batch_counters_may_be_missing() -> None:
    tensors = architectures.build("resnet18", 2).state_dict()
    module({k: v for k, v in tensors.items() if "num_batches" not in k}, "resnet18", 3)


def test_what_does_not_fit_is_named(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    wrong = dict(tensors)
    wrong["features.0.wait"] = wrong.pop("features.0.weight")
    with pytest.raises(ModelError, match=r"1 missing \(features\.0\.weight\); 1 unexpected \(features\.0\.wait\)"):
        module(wrong, "squeezenet1_1", 3)
    with pytest.raises(ModelError, match=r"features\.0\.weight is \(64, 3, 3, 3\), should be \(64, 1, 3, 3\)"):
        module(tensors, "squeezenet1_1", 1)
    with pytest.raises(ModelError, match=r"fc\.weight"):
        module(tensors, "resnet18", 3)
    with pytest.raises(ModelError, match=r"known are densenet121"):
        module(tensors, "lenet", 3)
    with pytest.raises(ModelError, match=r"classifier\.1\.bias.*finite"):
        module({**tensors, "classifier.1.bias": torch.tensor([0.0, float("inf")])}, "squeezenet1_1", 3)
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="2 outputs, but 3 findings"):
        load(tmp_path / "m.safetensors", "squeezenet1_1", SHAPE, 3)
    with pytest.raises(ModelError, match="--arch"):
        load(tmp_path / "m.safetensors", None, SHAPE)
    with pytest.raises(ModelError, match="is not a file"):
        load(tmp_path / "n.safetensors", "squeezenet1_1", SHAPE)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    torch.save({"a": torch.zeros(1), "b": Trap(trap)}, tmp_path / "m.pt")
    (tmp_path / "n.pt").write_bytes(pickle.dumps(Trap(trap)))
    (tmp_path / "o.safetensors").write_bytes(pickle.dumps(Trap(trap)))
    for name in ("m.pt", "n.pt", "o.safetensors"):
        with pytest.raises(ModelError, match="cannot be read as weights alone"):
            state_dict(tmp_path / name)
    torch.save([torch.zeros(1)], tmp_path / "p.pt")
    with pytest.raises(ModelError, match="state dict"):
        state_dict(tmp_path / "p.pt")
    (tmp_path / "q.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"\.safetensors, \.pt, \.pth or \.pt2"):
        state_dict(tmp_path / "q.onnx")
    assert not trap.exists()


def test_a_program_whose_archive_hides_a_pickle(tmp_path: Path, program: torch.export.ExportedProgram) -> None:
    trap = tmp_path / "sprung"
    good = tmp_path / "good.pt2"
    torch.export.save(program, good)
    members = {i: zipfile.ZipFile(good).read(i) for i in zipfile.ZipFile(good).namelist()}
    poison = io.BytesIO()
    torch.save(Trap(trap), poison)

    def rewritten(**changed: bytes) -> Path:
        path = tmp_path / "bad.pt2"
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                found = [v for k, v in changed.items() if name.endswith(k.replace("__", "/"))]
                archive.writestr(name, found[0] if found else data)
        return path

    # Sample inputs are pickled by torch itself: they are left out, and the program loads.
    sample = next(n for n in members if "sample_inputs" in n)
    members[sample] = poison.getvalue()
    graph = load(rewritten(), None, SHAPE, 2)
    assert [n.kind for n in graph.nodes] == ["input", "conv", "avg_pool"]
    # A weight marked as pickled is refused before torch sees it.
    config = next(n for n in members if n.endswith("model_weights_config.json"))
    members[config] = members[config].replace(b'"use_pickle": false', b'"use_pickle": true', 1)
    with pytest.raises(ModelError, match="stored as a pickle"):
        load(rewritten(), None, SHAPE)
    members[config] = b'{"config": []}'
    with pytest.raises(ModelError, match="does not decode"):
        load(rewritten(), None, SHAPE)
    assert not trap.exists()


def test_damaged_programs(tmp_path: Path, program: torch.export.ExportedProgram) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"not a \.pt2 archive"):
        load(path, None, SHAPE)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "1")
    with pytest.raises(ModelError, match="no program"):
        load(path, None, SHAPE)
    torch.export.save(program, path)
    with pytest.raises(ModelError, match="leave --arch out"):
        load(path, "resnet18", SHAPE)
    members = {i: zipfile.ZipFile(path).read(i) for i in zipfile.ZipFile(path).namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data[:-9] if name.endswith("models/model.json") else data)
    with pytest.raises(ModelError, match="is not a program this torch"):
        load(path, None, SHAPE)
