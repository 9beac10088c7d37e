"""Two daemons in folders of their own, x-rays and a model; a failure shows the logs, nothing is left running."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpcd.daemon.image import phantom
from tests.system.two_parties import Pair

IMAGES = 4


PAIRS: pytest.StashKey[list[Pair]] = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failure shows the logs of the daemons that the test had."""
    report = yield
    if report.failed:
        for pair in item.config.stash.get(PAIRS, []):
            if any(party.process is not None and party.process.poll() is None for party in pair.both):
                report.sections.append(("the daemons' logs", pair.logs()))
    return report


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``dicom/`` and ``labels.csv`` of a few phantoms, in several transfer syntaxes."""
    folder = tmp_path_factory.mktemp("cohort")
    phantom.write_cohort(folder, IMAGES, 1)
    return folder


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small DenseNet as a .pt2 program, and its recipe."""
    pytest.importorskip("torch")
    from tests.system import small_models

    folder = tmp_path_factory.mktemp("small-model")
    recipe = small_models.write_recipe(folder / "small.toml", 32)
    return small_models.export(small_models.small_densenet(3), folder / "small.pt2", 1, 32), recipe


def add_small(pair: Pair, cohort: Path, small_model: tuple[Path, Path]) -> None:
    model, recipe = small_model
    pair.vendor.ctl(
        "model", "add", model, "--name", "small", "--recipe", recipe, "--calibrate", cohort / "dicom",
        "--findings", "Cardiomegaly,Effusion,Mass",
    )  # fmt: skip
    pair.hospital.ctl("dataset", "add", cohort / "dicom", "--labels", cohort / "labels.csv", "--name", "site")


@pytest.fixture(scope="session")
def make_pair(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Callable[..., Pair]]:
    """Pairs of running daemons that know each other; all are stopped at the end of the run, whatever happened."""
    pairs = pytestconfig.stash.setdefault(PAIRS, [])

    def make(name: str, **limits: float) -> Pair:
        pair = Pair(tmp_path_factory.mktemp(name), **limits)
        pairs.append(pair)
        pair.start()
        pair.introduce()
        return pair

    yield make
    for pair in pairs:
        pair.stop()


@pytest.fixture(scope="module")
def pair(
    make_pair: Callable[..., Pair], cohort: Path, small_model: tuple[Path, Path], request: pytest.FixtureRequest
) -> Iterator[Pair]:
    """With the model ``small`` at the vendor and the data set ``site`` at the hospital."""
    made = make_pair(request.module.__name__.rpartition(".")[2])
    add_small(made, cohort, small_model)
    yield made
    statuses = made.stop()
    assert statuses == [0, 0], f"the daemons ended with {statuses}"
    for party in made.both:
        assert "Traceback" not in party.log.read_text(), party.log.read_text()
