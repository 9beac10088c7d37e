"""Heavy work in a process of its own: real compile, scan and evaluation; errors in words; gone when nobody waits."""

import asyncio
import json
import os
import subprocess
import sys

import psutil
import pytest

from mpcd.daemon import worker
from mpcd.daemon.control.jobs import Job
from mpcd.daemon.errors import InternalError, PeerError
from mpcd.daemon.image import dataset, phantom
from mpcd.daemon.library import Library

RECIPE = """
format = 1
name = "grey-16"
[pixels]
range = "stored_bits"
low = 0.0
high = 1.0
[geometry]
crop = "centre"
size = 16
interpolation = "bilinear"
[channels]
count = 1
mean = [0.5]
std = [0.25]
[files]
multi_frame = "skip"
"""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    phantom.write_cohort(folder, 4, 1)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def program(cohort):
    """A small trained-looking network as a .pt2 file."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 2),
    ).eval()
    torch.export.save(torch.export.export(net, (torch.zeros(1, 1, 16, 16),)), cohort / "net.pt2")
    return cohort / "net.pt2"


def work(task):
    """The worker's result and the job that followed it."""

    async def main():
        job = Job()
        with job.watched() as progress:
            result = await worker.run(task, job, 1)
            job.end()
            return result, [p async for p in progress]

    return asyncio.run(main())


def test_scan(cohort, tmp_path):
    out = tmp_path / "index.json"
    result, progress = work(
        {"task": "scan", "path": str(cohort / "dicom"), "labels": str(cohort / "labels.csv"), "out": str(out)}
    )
    assert result == {}
    assert (progress[-1].stage, progress[-1].done, progress[-1].total) == ("scan", 4, 4)
    assert len(dataset.load(out).entries) == 4


def test_compile_add_and_evaluate(cohort, program, tmp_path):
    library = Library(tmp_path)
    for labels in (None, str(cohort / "labels.csv")):
        name = "plain" if labels is None else "labelled"
        scratch = library.scratch_folder()
        task = {
            "task": "compile",
            "name": name,
            "path": str(program),
            "arch": None,
            "recipe": str(cohort / "recipe.toml"),
            "calibrate": str(cohort / "dicom"),
            "labels": labels,
            "findings": ["one", "two"] if labels is None else list(phantom.FINDINGS)[:2],
            "out": str(scratch),
        }
        report, progress = work(task)
        assert report["layers"]
        assert {p.stage for p in progress[1:]} == {"compile"}
        model = library.add_model(name, scratch)
        assert model.recipe.size == 16
        assert library.numbers(name)
        assert library.report(name)["findings"] == list(model.network.findings)
    assert {m.name for m in library.models()} == {"plain", "labelled"}
    assert not list(scratch.parent.iterdir())
    task = {"task": "evaluate", "model": str(library.model_folder("plain")), "path": str(cohort / "dicom")}
    for labels in (None, str(cohort / "labels.csv")):
        evaluation, _ = work({**task, "labels": labels})
        assert len(evaluation) == 4
        for row in evaluation.values():
            assert len(row["float"]) == len(row["integer"]) == 2
            assert row["logits"] == pytest.approx(row["float"], abs=0.05)


def test_two_models_of_the_same_weights_have_different_commitments(cohort, program, tmp_path):
    library = Library(tmp_path)
    found = set()
    for name in ("a", "b"):
        scratch = library.scratch_folder()
        task = {
            "task": "compile",
            "name": "same",
            "path": str(program),
            "arch": None,
            "recipe": str(cohort / "recipe.toml"),
            "calibrate": str(cohort / "dicom"),
            "labels": None,
            "findings": None,
            "out": str(scratch),
        }
        work(task)
        model = library.add_model(name, scratch)
        found.add(model.commitment)
    assert len(found) == 2, "salted: the peer cannot confirm a guess"


@pytest.mark.parametrize(
    ("task", "code", "named"),
    [
        ({"task": "scan", "path": "/nowhere", "labels": "/nowhere.csv", "out": "/nowhere"}, "dataset", "/nowhere"),
        ({"task": "compile", "recipe": "no-such", "calibrate": "/nowhere"}, "recipe", "no-such"),
    ],
)
def test_errors_come_back_in_words(task, code, named):
    with pytest.raises(PeerError, match=named) as error:
        work(task)
    assert (error.value.code, error.value.exit_status) == (code, 9)


def test_without_torch(cohort, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    task = {"task": "compile", "name": "x", "path": "/x.pt2", "recipe": "imagenet-224", "calibrate": "/x", "out": "/x"}
    with pytest.raises(PeerError, match="torch") as error:
        work(task)
    assert (error.value.code, error.value.hint) == ("needs_torch", "pip install 'mpcd[model]'")


def test_the_daemon_does_not_import_torch():
    code = "import sys, mpcd.daemon.service, mpcd.daemon.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_worker_that_dies(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InternalError, match="status 1"):
        work({"task": "scan"})


def test_gone_when_nobody_waits(run, cohort, tmp_path):
    """Not sooner: an interrupt at the daemon's terminal is not the worker's."""

    async def main():
        task = {"task": "scan", "path": str(cohort / "dicom"), "labels": str(cohort / "labels.csv"), "out": "/x"}
        running = asyncio.create_task(worker.run(task, Job(), 1))
        while not psutil.Process().children():
            await asyncio.sleep(0.01)
        (child,) = psutil.Process().children()
        assert os.getpgid(child.pid) != os.getpgid(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        async with asyncio.timeout(10):
            while child.is_running():
                await asyncio.sleep(0.01)

    run(main())


def test_what_libraries_print_is_no_answer(cohort, tmp_path):
    """A line on stdout would not decode; it goes to stderr."""
    task = {
        "task": "scan",
        "path": str(cohort / "dicom"),
        "labels": str(cohort / "labels.csv"),
        "out": str(tmp_path / "i"),
    }
    code = (
        "from mpcd.daemon import worker; from mpcd.daemon.image import dataset; import os\n"
        "scan = dataset.scan\n"
        "dataset.scan = lambda *a: (print('chatter', flush=True), os.write(1, b'noise\\n'), scan(*a))[2]\n"
        "worker.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(task), capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1] == {"result": {}}
    assert "chatter" in done.stderr
