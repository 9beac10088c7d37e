"""Models and data sets at rest: names, commitments, and models that cannot be run refused before anybody waits."""

import dataclasses
import stat

import numpy as np
import pytest

from mpcd.daemon.errors import BadInput, Conflict, NotFound
from mpcd.daemon.library import Library, Model, commit
from mpcd.daemon.model import artifact
from mpcd.protocol import network as ir
from tests.daemon.two_daemons import DATASET, HOSPITAL, MODEL, RECIPE, VENDOR, install
from tests.protocol.small_networks import dense, residual


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path)


def add(library, name, seed=3):
    network, numbers = residual(seed)
    scratch = library.scratch_folder()
    artifact.save(scratch, artifact.Artifact(network, numbers, RECIPE, {"layers": []}))
    return library.add_model(name, scratch)


def test_models(library, tmp_path):
    model = add(library, "m")
    assert library.models() == [model]
    assert library.model("m").network == residual(3)[0]
    numbers = library.numbers("m")
    for op, own in residual(3)[1].items():
        for field in dataclasses.fields(own):
            np.testing.assert_array_equal(getattr(numbers[op], field.name), getattr(own, field.name))
    with pytest.raises(Conflict, match="'m'"):
        library.free_model_name("m")
    for wrong in ("", "a/b", "../m", "M", ".m"):
        with pytest.raises(BadInput):
            library.free_model_name(wrong)
        with pytest.raises(NotFound):
            library.model(wrong)
    assert all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in (tmp_path / "models" / "m").iterdir())
    assert stat.S_IMODE((tmp_path / "models" / "m").stat().st_mode) == 0o700
    library.remove_model("m")
    assert library.models() == []
    assert not any((tmp_path / "scratch").iterdir())


def test_commitments_bind_and_hide(library):
    first, same, other = add(library, "a"), add(library, "b"), add(library, "c", seed=4)
    assert len({first.commitment, same.commitment, other.commitment}) == 3
    assert library.model("a").commitment == first.commitment
    assert commit(b"x", b"s", b"ab", b"c") != commit(b"x", b"s", b"a", b"bc")


def test_scratch_is_cleared_at_the_start(library, tmp_path):
    library.scratch_folder()
    Library(tmp_path)
    assert not any((tmp_path / "scratch").iterdir())


def test_a_recipe_that_does_not_fit(library):
    network, numbers = dense(1)
    scratch = library.scratch_folder()
    artifact.save(scratch, artifact.Artifact(network, numbers, RECIPE, {}))
    with pytest.raises(BadInput, match=r"\(3, 8, 8\).*\(2, 13, 13\)"):
        library.add_model("m", scratch)


def test_a_network_beyond_the_noise_budget(library):
    """Refused where it is added, and by the peer that is offered it, with what would fit."""
    shape = RECIPE.shape
    network = ir.Network(
        "wide",
        (ir.Value(shape, 48), ir.Value((1, 1, 1), 48), ir.Value((1, 1, 1), 20)),
        (ir.Input(0), ir.Linear((0,), 1, (8, 8), (1, 1), (0, 0), 1), ir.Truncate((1,), 2, 28)),
        2,
        1.0,
        1.0,
        ("x",),
        {1: 1 << 26},
    )
    network.check()
    with pytest.raises(BadInput, match=r"model big: operation 1 .* would fit"):
        Model("big", network, RECIPE, "0" * 64).check()


def test_datasets(tmp_path):
    install(tmp_path)
    library = Library(tmp_path / HOSPITAL)
    described = library.describe_dataset(DATASET)
    assert (described["images"], described["labelled"], described["name"]) == (6, 6, DATASET)
    assert described["commitment"] == library.dataset(DATASET).commitment
    with pytest.raises(Conflict):
        library.free_dataset_name(DATASET)
    library.remove_dataset(DATASET)
    with pytest.raises(NotFound, match=DATASET):
        library.dataset(DATASET)
    assert Library(tmp_path / VENDOR).has_model(MODEL)
