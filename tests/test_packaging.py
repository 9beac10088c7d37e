"""The wheel holds what the folders hold and nothing else; the data owner's install needs no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("kernels", "protocol", "daemon", "cli")


def settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources() -> set[str]:
    """What is in the folders: Python and recipes; anything else would have to be declared."""
    found = set()
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                found.add(file.relative_to(ROOT).as_posix())
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel built from a copy of the sources."""
    pytest.importorskip("build")
    pytest.importorskip("setuptools", "77")
    copy = tmp_path_factory.mktemp("copy") / "mpcd"
    copy.mkdir()
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, copy)
    shutil.copytree(ROOT / "docs" / "man", copy / "docs" / "man")
    (copy / "tests").mkdir()
    (copy / "tests" / "test_nothing.py").touch()
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", copy / "out", copy],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "out").glob("*.whl")
    assert built.name.endswith("-py3-none-any.whl"), "no build step at install"
    return {name for name in zipfile.ZipFile(built).namelist() if not name.endswith("/")}


def test_the_wheel_holds_the_folders(wheel: set[str]) -> None:
    packed = {name for name in wheel if ".dist-info/" not in name and ".data/" not in name}
    assert packed == {f"mpcd/{name}" for name in sources()}
    assert "mpcd/daemon/image/recipes/imagenet-224.toml" in packed
    assert "mpcd/daemon/image/recipes/xrv-224.toml" in packed
    assert "mpcd/__init__.py" not in packed, "mpcd is a namespace of four folders"


def test_the_manual_is_installed(wheel: set[str]) -> None:
    pages = {name.partition(".data/data/")[2] for name in wheel if ".data/" in name}
    assert pages == {"share/man/man1/mpcctl.1", "share/man/man8/mpcd.8"}


def test_the_wheel_s_programs(wheel: set[str]) -> None:
    assert settings()["project"]["scripts"] == {"mpcd": "mpcd.daemon.main:main", "mpcctl": "mpcd.cli.main:main"}
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel)


def test_every_package_is_listed() -> None:
    folders = {Path(name).parent.as_posix() for name in sources() if name.endswith(".py")}
    assert set(settings()["tool"]["setuptools"]["packages"]) == {"mpcd." + f.replace("/", ".") for f in folders}
    for folder in folders:
        assert (ROOT / folder / "__init__.py").is_file()


def test_links_for_checkers() -> None:
    links = {link.name: link.resolve() for link in (ROOT / ".types" / "mpcd").iterdir()}
    assert links == {folder: ROOT.resolve() / folder for folder in FOLDERS}


def test_torch_is_pinned_and_an_extra() -> None:
    project = settings()["project"]
    assert "torch==2.13.0" in project["optional-dependencies"]["model"]
    assert not any(need.startswith(("torch", "safetensors")) for need in project["dependencies"])


def test_the_data_owner_needs_no_torch(tmp_path: Path) -> None:
    """Everything a hospital's daemon imports, and indexing its images, with torch out of reach."""
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "safetensors", "torchvision"):
            raise ModuleNotFoundError(f"no {name} here", name=name)
sys.meta_path.insert(0, Blocked())
import mpcd.daemon.main, mpcd.daemon.service, mpcd.daemon.warm, mpcd.cli.main
from pathlib import Path
from mpcd.daemon import worker
from mpcd.daemon.image import phantom
folder = Path(sys.argv[1])
phantom.write_cohort(folder, 2, 1)
worker.scan_task({"path": str(folder / "dicom"), "labels": str(folder / "labels.csv"), "out": str(folder / "index")},
                 lambda *progress: None)
assert (folder / "index").stat().st_size
try:
    worker.compile_task({}, print)
except ModuleNotFoundError as error:
    assert error.name == "torch"
else:
    raise AssertionError("torch was not blocked")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_without_torch_the_worker_says_so(tmp_path: Path) -> None:
    """As the daemon runs it: an error with a way out, not a traceback."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError('none here', name='torch')\n"
        "sys.meta_path.insert(0, Blocked())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mpcd.daemon.worker"],
        input='{"task": "compile"}', capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert '"needs_torch"' in done.stdout, done.stdout + done.stderr
    assert "mpcd[model]" in done.stdout
