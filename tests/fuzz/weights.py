"""A vendor's weights: safetensors, .pt and .pt2. Whatever is in them, nothing is run."""

from __future__ import annotations

import io
import json
import logging
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from hypothesis import strategies as st
from safetensors.torch import save

from mpcd.daemon.model import load
from mpcd.daemon.model.nodes import ModelError
from tests.fuzz.harness import Target, changed

SUFFIXES = (".safetensors", ".pt", ".pt2")


class Run:
    """What a pickle may ask for."""

    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._proof,)


logging.disable(logging.CRITICAL)  # torch tells of every file that it does not read


class Weights(Target):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._proof = folder / "run"
        tensors = {"classifier.weight": torch.ones(2, 3), "classifier.bias": torch.zeros(2)}
        saved = io.BytesIO()
        torch.save(tensors, saved)
        self._safetensors = save(tensors)
        self._pt = saved.getvalue()
        self._pickle = pickle.dumps({"a": Run(self._proof)})

    def seeds(self) -> Sequence[bytes]:
        return [
            b"\0" + self._safetensors,
            b"\1" + self._pt,
            b"\1" + self._pickle,
            b"\1" + _with_pickle(self._pt, self._pickle),
            b"\2" + _archive({"config": {}}),
        ]

    def structured(self) -> st.SearchStrategy[bytes]:
        size = int.from_bytes(self._safetensors[:8], "little")
        header, body = json.loads(self._safetensors[8 : 8 + size]), self._safetensors[8 + size :]

        def framed(header: object) -> bytes:
            text = json.dumps(header, default=str).encode()
            return b"\0" + len(text).to_bytes(8, "little") + text + body

        rows = {"x": {"path_name": "weight_0", "is_param": True, "use_pickle": False, "tensor_meta": {"dtype": 7}}}
        return st.one_of(
            changed(header).map(framed),
            changed({"config": rows}).map(lambda config: b"\2" + _archive(config)),
        )

    def one(self, data: bytes) -> None:
        if not data:
            return
        suffix = SUFFIXES[data[0] % len(SUFFIXES)]
        file = self._folder / f"model{suffix}"
        file.write_bytes(data[1:])
        try:
            if suffix == ".pt2":
                load._program(file)
            else:
                load.state_dict(file)
        except ModelError as error:
            str(error)
        assert not self._proof.exists(), "a pickle was run"


def _archive(config: object) -> bytes:
    """A .pt2 as far as its list of tensors."""
    text = json.dumps(config, default=str)
    members = {"models/model.json": "{}", "archive_format": "pt2", "archive_version": "0", "byteorder": "little"}
    members |= {f"data/{kind}/model_{kind}_config.json": text for kind in ("weights", "constants")}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, value in {**members, "data/weights/weight_0": "12345678"}.items():
            archive.writestr(f"archive/{name}", value)
    return buffer.getvalue()


def _with_pickle(saved: bytes, pickled: bytes) -> bytes:
    """A .pt whose data.pkl is another one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return buffer.getvalue()


def make(folder: Path) -> Target:
    return Weights(folder)
