"""What this daemon holds: compiled models (``models/<name>/``) and data sets' indices (``datasets/<name>.json``).

A digest that leaves this machine is a salted commitment: a plain hash of images and labels, or of a public model's
weights, would let the other side confirm a guess. The salt is drawn when the thing is added and stays here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpcd.daemon.config import NAME, NAME_RULE
from mpcd.daemon.errors import BadInput, Conflict, NotFound
from mpcd.daemon.files import write_private
from mpcd.daemon.image import dataset as datasets
from mpcd.daemon.image import recipe as recipes
from mpcd.daemon.image.dataset import Dataset
from mpcd.daemon.image.recipe import Recipe
from mpcd.daemon.model import artifact
from mpcd.protocol import matrix_triple, preprocessing
from mpcd.protocol.network import Input, MaxPool, Network, Op, PrivateNumbers, Relu, Truncate, TruncateRelu


@dataclasses.dataclass(frozen=True)
class Model:
    """A model's public side: ours, or one a peer offers (``peer``)."""

    name: str
    network: Network
    recipe: Recipe
    commitment: str
    peer: str | None = None
    added: float | None = None

    @property
    def ring(self) -> dict[str, int]:
        """Bits of an activation, bits truncated, bits of a linear result."""
        wide = self.network.values[self.network.ops[0].output].bits
        for op in self.network.ops:
            if isinstance(op, Truncate | TruncateRelu):
                return {"activation": self.network.values[op.output].bits, "fraction": op.fraction, "wide": wide}
        return {"activation": wide, "fraction": 0, "wide": wide}

    def describe(self) -> dict[str, Any]:
        """As the control API has it (docs/control-api.md)."""
        network = self.network
        return {
            "name": self.name,
            "peer": self.peer,
            "commitment": self.commitment,
            "network_digest": network.digest,
            "recipe_digest": self.recipe.digest,
            "findings": list(network.findings),
            "input_shape": list(network.values[network.ops[0].output].shape),
            "ring": self.ring,
            "operations": len(network.ops),
            "comparisons": sum(_comparisons(network, op) for op in network.ops),
            "added": self.added,
        }

    def check(self) -> None:
        """Raise BadInput unless the recipe makes what the network takes and both phases can run the network."""
        shape = self.network.values[self.network.ops[0].output].shape
        if not isinstance(self.network.ops[0], Input) or self.recipe.shape != shape:
            raise BadInput(
                f"model {self.name}: recipe {self.recipe.name} makes images of shape {self.recipe.shape},"
                f" the network takes {shape}",
                "choose a recipe of the network's input size and channels",
            )
        try:
            for need in preprocessing.matrix_needs(self.network):
                matrix_triple.budget(self.network, need.op).check()
        except ValueError as error:
            raise BadInput(
                f"model {self.name}: {error}",
                "fewer bits or smaller weights are needed: another ring, or another model",
            ) from error


def ring_text(ring: dict[str, int]) -> str:
    return f"k={ring['activation']} f={ring['fraction']} l={ring['wide']}"


class Library:
    """The models and data sets in a state folder."""

    def __init__(self, state: Path) -> None:
        self._models = state / "models"
        self._datasets = state / "datasets"
        self._scratch = state / "scratch"
        shutil.rmtree(self._scratch, ignore_errors=True)  # left by a crash between compiling and adding
        for folder in (self._models, self._datasets, self._scratch):
            folder.mkdir(mode=0o700, exist_ok=True)

    # Models

    def models(self) -> list[Model]:
        return [self.model(folder.name) for folder in sorted(self._models.iterdir())]

    def names(self) -> dict[str, str]:
        """Our models' names by their commitments."""
        found = {}
        for folder in sorted(self._models.iterdir()):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                found[json.loads((folder / "model.json").read_text())["commitment"]] = folder.name
        return found

    def has_model(self, name: str) -> bool:
        return bool(NAME.fullmatch(name)) and (self._models / name).is_dir()

    def model(self, name: str) -> Model:
        """Raises NotFound."""
        folder = self._model_folder(name)
        meta = json.loads((folder / "model.json").read_text())
        return Model(
            name,
            Network.from_bytes((folder / "network.bin").read_bytes()),
            recipes.parse((folder / "recipe.toml").read_text(), f"the recipe of model {name}"),
            meta["commitment"],
            added=meta["added"],
        )

    def numbers(self, name: str) -> PrivateNumbers:
        """The model owner's secret."""
        return artifact.load(self._model_folder(name)).numbers

    def report(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self._model_folder(name) / "report.json").read_text())
        return found

    def model_salt(self, name: str) -> bytes:
        """Of its commitment: for an opening (daemon/commitments.py) only."""
        return bytes.fromhex(json.loads((self._model_folder(name) / "model.json").read_text())["salt"])

    def model_folder(self, name: str) -> Path:
        return self._model_folder(name)

    def free_model_name(self, name: str) -> None:
        """Raises BadInput or Conflict unless ``name`` can be given to a new model."""
        _check_name(name)
        if self.has_model(name):
            raise Conflict(f"there is a model {name!r} already", f"mpcctl model remove {name}, or choose another name")

    def scratch_folder(self) -> Path:
        """An empty private folder, where a worker puts what it made before ``add_*`` takes it."""
        folder = self._scratch / os.urandom(8).hex()
        folder.mkdir(mode=0o700)
        return folder

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A scratch folder for the time of this context: what ``add_*`` has not taken goes."""
        folder = self.scratch_folder()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def add_model(self, name: str, scratch: Path) -> Model:
        """Take the artifact (daemon/model/artifact.py) that a worker left in ``scratch``."""
        self.free_model_name(name)
        made = artifact.load(scratch)
        salt = os.urandom(32)
        numbers = artifact.numbers_digest(made.numbers)
        commitment = model_commitment(salt, made.network.to_bytes(), numbers, made.recipe.canonical())
        meta = {"commitment": commitment, "salt": salt.hex(), "added": time.time()}
        Model(name, made.network, made.recipe, commitment).check()
        write_private(scratch / "model.json", json.dumps(meta).encode())
        scratch.rename(self._models / name)
        return self.model(name)

    def remove_model(self, name: str) -> Model:
        model = self.model(name)
        gone = self._scratch / os.urandom(8).hex()
        self._model_folder(name).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        return model

    def _model_folder(self, name: str) -> Path:
        if not self.has_model(name):
            known = ", ".join(sorted(f.name for f in self._models.iterdir())) or "none"
            raise NotFound(
                f"there is no model {name!r}", f"our models: {known}", peer_text=f"there is no model {name!r}"
            )
        return self._models / name

    # Data sets

    def datasets(self) -> list[str]:
        return sorted(file.stem for file in self._datasets.glob("*.json"))

    def dataset(self, name: str) -> Dataset:
        """Raises NotFound, DatasetError."""
        return datasets.load(self._dataset_file(name))

    def describe_dataset(self, name: str) -> dict[str, Any]:
        """As the control API has it (docs/control-api.md)."""
        dataset = self.dataset(name)
        return {
            "name": name,
            "path": dataset.folder,
            "labels": dataset.labels_file,
            "added": self._dataset_file(name).stat().st_mtime,
            **dataset.summary(),
        }

    def free_dataset_name(self, name: str) -> None:
        """Raises BadInput or Conflict unless ``name`` can be given to a new data set."""
        _check_name(name)
        if (self._datasets / f"{name}.json").exists():
            raise Conflict(
                f"there is a data set {name!r} already", f"mpcctl dataset remove {name}, or choose another name"
            )

    def add_dataset(self, name: str, index: Path) -> None:
        """Take the index that a worker saved at ``index``."""
        self.free_dataset_name(name)
        datasets.load(index)
        index.rename(self._datasets / f"{name}.json")

    def remove_dataset(self, name: str) -> None:
        self._dataset_file(name).unlink()

    def _dataset_file(self, name: str) -> Path:
        file = self._datasets / f"{name}.json"
        if not NAME.fullmatch(name) or not file.is_file():
            known = ", ".join(self.datasets()) or "none"
            raise NotFound(f"there is no data set {name!r}", f"our data sets: {known}")
        return file


def model_commitment(salt: bytes, network: bytes, numbers: bytes, recipe: bytes) -> str:
    """``numbers``: the digest of the weights. What the other party has of a model."""
    return commit(b"mpcd model 1", salt, network, numbers, recipe)


def commit(what: bytes, salt: bytes, *parts: bytes) -> str:
    """SHA-256 commitment: binding by collision resistance, hiding by 32 random bytes of salt."""
    digest = hashlib.sha256()
    for part in (what, salt, *parts):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _comparisons(network: Network, op: Op) -> int:
    out = network.values[op.output]
    if isinstance(op, Relu | TruncateRelu):
        return out.size
    if isinstance(op, MaxPool):  # along rows, then columns
        channels, height, width = out.shape
        rows = network.values[op.inputs[0]].shape[1]
        return channels * width * (rows * (op.kernel[1] - 1) + height * (op.kernel[0] - 1))
    return 0


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise BadInput(f"{name!r} is not allowed as a name: {NAME_RULE}")
