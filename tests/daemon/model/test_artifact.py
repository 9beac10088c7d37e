"""A compiled model on disk: whole, private, checked, and readable without torch."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from mpcd.daemon.image import recipe as recipes
from mpcd.daemon.model import artifact
from mpcd.daemon.model.artifact import Artifact, load, numbers_digest, save, verify
from mpcd.daemon.model.nodes import ModelError
from mpcd.protocol.network import GrowNumbers, LinearNumbers, PrivateNumbers, ReluNumbers


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x):
        x = self.a(x)
        return (self.b(self.norm(x).relu()) + self.b(x.relu())).mean([2, 3])


@pytest.fixture
def made(measure) -> Artifact:
    compiled = measure(Small(), (1, 6, 6)).compiled
    return Artifact(compiled.network, compiled.numbers, recipes.load("imagenet-224"), {"name": "t", "bits": 21})


def test_round_trip(tmp_path: Path, made: Artifact) -> None:
    folder = tmp_path / "model"
    save(folder, made)
    found = load(folder)
    assert found.network == made.network
    assert found.recipe == made.recipe
    assert found.report == made.report
    assert numbers_digest(found.numbers) == numbers_digest(made.numbers)
    for op, own in made.numbers.items():
        for field in dataclasses.fields(own):
            value = getattr(found.numbers[op], field.name)
            assert value.dtype == getattr(own, field.name).dtype
            assert np.array_equal(value, getattr(own, field.name))
    assert {f.stat().st_mode & 0o777 for f in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_digest_moves_with_every_number(made: Artifact) -> None:
    before = numbers_digest(made.numbers)
    for op, own in made.numbers.items():
        for field in dataclasses.fields(own):
            array = getattr(own, field.name).copy()
            array.flat[-1] = ~array.flat[-1] if array.dtype == np.bool_ else array.flat[-1] + 1
            changed = {**made.numbers, op: dataclasses.replace(own, **{field.name: array})}
            assert numbers_digest(changed) != before


def first(numbers: PrivateNumbers, kind: type) -> int:
    return next(i for i, own in numbers.items() if isinstance(own, kind))


def test_numbers_that_do_not_fit_are_refused(made: Artifact) -> None:
    numbers = made.numbers
    linear, relu, grow = (first(numbers, kind) for kind in (LinearNumbers, ReluNumbers, GrowNumbers))
    weight, bias = numbers[linear].weight, numbers[linear].bias
    threshold, negative = numbers[relu].threshold, numbers[relu].negative
    offset = numbers[grow].offset
    bad: list[tuple[int, object, str]] = [
        (linear, LinearNumbers(weight[:1], bias), "weights of shape"),
        (linear, LinearNumbers(weight, bias[:1]), "bias of shape"),
        (linear, LinearNumbers(weight.astype(np.int32), bias), "int64"),
        (linear, LinearNumbers(weight << 20, bias), "public bound"),
        (linear, LinearNumbers(weight, bias + (1 << 40)), "outside the ring"),
        (linear, numbers[relu], "wrong kind"),
        (relu, ReluNumbers(threshold[:1], negative), "shape"),
        (relu, ReluNumbers(threshold, negative.astype(np.int64)), "bool"),
        (relu, ReluNumbers(threshold + (1 << 21), negative), "outside the ring"),
        (grow, GrowNumbers(offset[:1]), "shape"),
        (grow, GrowNumbers(offset + 1), "neither"),
    ]
    for op, own, message in bad:
        with pytest.raises(ModelError, match=message):
            verify(made.network, {**numbers, op: own})  # type: ignore[dict-item]
    with pytest.raises(ModelError, match="lack numbers"):
        verify(made.network, {i: own for i, own in numbers.items() if i != linear})
    with pytest.raises(ModelError, match="too many"):
        verify(made.network, {**numbers, 0: numbers[grow]})


@pytest.mark.parametrize("file", ["network.bin", "numbers.npz", "recipe.toml", "report.json"])
def test_damage_is_named(tmp_path: Path, made: Artifact, file: str) -> None:
    save(tmp_path / "m", made)
    path = tmp_path / "m" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises((ModelError, recipes.RecipeError)):
        load(tmp_path / "m")
    path.unlink()
    with pytest.raises(ModelError, match=file):
        load(tmp_path / "m")


def test_a_pickle_among_the_numbers_is_not_opened() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{"1.ReluNumbers.threshold": np.array([{}], object)})
    with pytest.raises(ModelError, match="do not decode"):
        artifact.numbers_from_bytes(buffer.getvalue())


@pytest.mark.parametrize("header", ["(" * 300, "{'descr': '<i8', 'fortran_order': False, 'shape': (1 << 62,), }", "\0"])
def test_numbers_whose_header_is_no_header(header: str) -> None:
    """NumPy parses it as Python, and says so with errors of Python's tokenizer."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
        archive.writestr("1.LinearNumbers.weight.npy", start + header.encode())
    with pytest.raises(ModelError, match="do not decode"):
        artifact.numbers_from_bytes(buffer.getvalue())


def test_loading_needs_no_torch() -> None:
    code = "import sys; from mpcd.daemon.model import artifact; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
