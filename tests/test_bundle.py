"""The bundle for machines without internet: installed, upgraded, interrupted, and removed, in a folder and without net.

``make bundle-test`` runs this with the whole bundle (MPCD_BUNDLE names it). Otherwise the bundle holds mpcd alone, and
its dependencies are those of the Python that runs the tests.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WHOLE = os.environ.get("MPCD_BUNDLE")
VERSION = "0.1.0"

pytestmark = pytest.mark.skipif(
    shutil.which("sha256sum") is None or sys.platform != "linux" or os.uname().machine != "x86_64",
    reason="bundles are for Linux on x86_64",
)


def no_network() -> list[str]:
    """Words before a command that take its network away, where this machine allows that."""
    for words in (["unshare", "-n"], ["unshare", "-rn"]):
        if (
            shutil.which("unshare")
            and subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0
        ):
            return words
    return []


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked."""
    folder = tmp_path_factory.mktemp("bundle")
    archive = WHOLE
    if archive is None:
        pytest.importorskip("build")
        pytest.importorskip("setuptools", "77")
        (folder / "none").mkdir()
        done = subprocess.run(
            [
                ROOT / "systemd" / "bundle.sh",
                *("--python", sys.executable, "--wheelhouse", folder / "none", "--out", folder),
            ],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        archive = done.stdout.strip()
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (unpacked,) = (f for f in folder.iterdir() if (f / "VERSION").is_file())
    return unpacked


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Without pip's configuration; and with this Python's packages, less mpcd, where the bundle lacks them."""
    keep = {key: os.environ[key] for key in ("PATH", "LANG", "NUMBA_CACHE_DIR") if key in os.environ}
    found = {**keep, "HOME": str(tmp_path_factory.mktemp("home")), "PIP_NO_INDEX": "1"}
    if WHOLE is None:
        packages = tmp_path_factory.mktemp("packages")
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if "mpcd" not in entry.name and entry.name not in ("pip", "setuptools", "bin"):
                (packages / entry.name).symlink_to(entry)
        found["PYTHONPATH"] = str(packages)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def variant(bundle: Path, to: Path, change: str = "VERSION") -> Path:
    """Another build: a file of the bundle has grown, its checksums fit."""
    shutil.copytree(bundle, to)
    with next(to.glob(change)).open("ab") as file:
        file.write(b"\n")
    sums = subprocess.run(
        "find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs sha256sum",
        shell=True, cwd=to, capture_output=True, check=True,
    )  # fmt: skip
    (to / "SHA256SUMS").write_bytes(sums.stdout)
    return to


def install(
    bundle: Path, root: Path, env: dict[str, str], *words: str, typed: str = ""
) -> subprocess.CompletedProcess[str]:
    command = [*no_network(), "sh", bundle / "install.sh", *words, "--root", root]
    if not words:
        command += ["--python", sys.executable]
    return subprocess.run(command, env=env, input=typed, capture_output=True, text=True, timeout=600, check=False)


def installed(root: Path) -> str:
    return os.readlink(root / "opt/mpcd/current")


def test_what_a_bundle_holds(bundle: Path) -> None:
    assert {f.name for f in bundle.iterdir()} == {
        "install.sh", "VERSION", "PYTHONS", "SHA256SUMS", "requirements.txt", "wheels", "pip", "systemd", "share",
    }  # fmt: skip
    assert (bundle / "VERSION").read_text() == f"{VERSION}\n"
    lines = (bundle / "requirements.txt").read_text().splitlines()
    assert len(lines) == len(list((bundle / "wheels").iterdir()))
    assert all("==" in line and " --hash=sha256:" in line for line in lines)
    assert any(line.startswith(f"mpcd=={VERSION} ") for line in lines)
    names = {line.partition("==")[0] for line in lines}
    if WHOLE is not None:
        assert {"numpy", "numba", "cryptography", "pydicom"} <= names
        assert ("torch" in names) == ("-model" in WHOLE)


def test_from_installation_to_removal(bundle: Path, root: Path, env: dict[str, str], tmp_path: Path) -> None:
    done = install(bundle, root, env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is installed in /opt/mpcd" in done.stdout
    home = root / "opt/mpcd"
    for word in ("mpcd", "mpcctl"):
        said = subprocess.run([home / "bin" / word, "--version"], env=env, capture_output=True, text=True, check=True)
        assert VERSION in said.stdout
    assert subprocess.run([home / "bin/mpcctl", "--help"], env=env, capture_output=True, check=True).stdout
    for unit in ("mpcd.service", "mpcd-offline.service", "mpcd-offline.timer"):
        assert (root / "usr/local/lib/systemd/system" / unit).read_text() == (ROOT / "systemd" / unit).read_text()
    share = root / "usr/local/share"
    assert "mpcctl" in (share / "bash-completion/completions/mpcctl").read_text()
    assert {page.name for page in share.glob("man/man?/*")} == {page.name for page in (ROOT / "docs/man").iterdir()}
    assert "u mpcd" in (root / "usr/local/lib/sysusers.d/mpcd.conf").read_text()
    assert (root / "var/lib/mpcd").stat().st_mode & 0o777 == 0o700

    # The daemon, from the bundle alone, with the configuration that came with it.
    state = root / "var/lib/mpcd"
    run = {**env, "MPCD_STATE": str(state), "MPCD_CACHE": str(root / "var/cache/mpcd")}
    with open(tmp_path / "log", "w") as log:
        daemon = subprocess.Popen(
            [home / "bin/mpcd", "--config", root / "etc/mpcd/mpcd.toml", "--listen", "none"], env=run, stderr=log
        )
    try:
        for _ in range(600):
            status = subprocess.run([home / "bin/mpcctl", "id", "--json"], env=run, capture_output=True, check=False)
            if status.returncode == 0:
                break
            assert daemon.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        assert status.returncode == 0
        assert b"fingerprint" in status.stdout
    finally:
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(60) == 0, (tmp_path / "log").read_text()
    identity = (state / "identity.pem").read_bytes()

    # Again: nothing is made anew, an edited configuration stays.
    (root / "etc/mpcd/mpcd.toml").write_text('name = "site"\n')
    first = installed(root)
    made = (home / first / "complete").stat().st_mtime_ns
    assert install(bundle, root, env).returncode == 0
    assert (installed(root), (home / first / "complete").stat().st_mtime_ns) == (first, made)

    # Another build goes beside it; the one before stays.
    if WHOLE is None:
        assert install(variant(bundle, tmp_path / "second"), root, env).returncode == 0
        second = installed(root)
        assert second != first
        assert {f.name for f in (home / "versions").iterdir()} == {Path(first).name, Path(second).name}
        assert (
            VERSION in subprocess.run([home / "bin/mpcd", "--version"], env=env, capture_output=True, text=True).stdout
        )
    assert (root / "etc/mpcd/mpcd.toml").read_text() == 'name = "site"\n'

    done = install(home, root, env, "uninstall")  # by the script that was installed along
    assert done.returncode == 0, done.stderr
    assert "kept: /var/lib/mpcd and /etc/mpcd" in done.stdout
    left = {f.relative_to(root).as_posix() for f in root.rglob("*") if not f.is_dir() or f.is_symlink()}
    assert {f for f in left if not f.startswith("var/lib/mpcd/")} == {"etc/mpcd/mpcd.toml"}
    assert (state / "identity.pem").read_bytes() == identity

    # Purging asks first.
    done = install(bundle, root, env, "uninstall", "--purge", typed="yes\n")
    assert done.returncode == 1
    assert "nothing was removed" in done.stderr
    assert state.exists()
    assert install(bundle, root, env, "uninstall", "--purge", typed="delete mpcd\n").returncode == 0
    assert not state.exists()
    assert not (root / "etc/mpcd").exists()
    assert install(bundle, root, env, "uninstall", "--purge", "--yes").returncode == 0, "once more does no harm"


@pytest.mark.skipif(WHOLE is not None, reason="the short bundle shows it")
def test_a_bundle_that_fails_leaves_the_version_before_under_another_prefix(
    bundle: Path, root: Path, env: dict[str, str], tmp_path: Path
) -> None:
    def attempt(bundle: Path) -> subprocess.CompletedProcess[str]:
        return install(bundle, root, env, "install", "--prefix", "/srv/mpcd", "--python", sys.executable)

    done = attempt(bundle)
    assert done.returncode == 0, done.stderr
    home = root / "srv/mpcd"
    before = os.readlink(home / "current")
    unit = (root / "usr/local/lib/systemd/system/mpcd.service").read_text()
    assert "ExecStart=/srv/mpcd/bin/mpcd\n" in unit
    assert "/opt/mpcd" not in unit

    damaged = tmp_path / "damaged"
    shutil.copytree(bundle, damaged)
    with next(damaged.glob("wheels/*.whl")).open("ab") as file:
        file.write(b"x")
    done = attempt(damaged)
    assert done.returncode == 1
    assert "this bundle is damaged: fetch it again" in done.stderr

    # Its checksums fit, but the wheel is not the one that the requirements name.
    done = attempt(variant(bundle, tmp_path / "other", "wheels/*.whl"))
    assert done.returncode == 1
    assert f"not installed; {Path(before).name} stays" in done.stderr

    # Killed in the middle, at a moment when the new version's folder exists.
    other = variant(bundle, tmp_path / "killed")
    process = subprocess.Popen(
        ["sh", other / "install.sh", "--prefix", "/srv/mpcd", "--root", root, "--python", sys.executable],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    versions = home / "versions"
    while len(list(versions.iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)

    assert os.readlink(home / "current") == before
    assert subprocess.run([home / "bin/mpcd", "--version"], env=env, capture_output=True).returncode == 0
    assert attempt(other).returncode == 0
    assert os.readlink(home / "current") != before
    assert install(bundle, root, env, "uninstall", "--prefix", "/srv/mpcd", "--purge", "--yes").returncode == 0
    assert not home.exists()


def test_what_an_installation_needs(bundle: Path, root: Path, env: dict[str, str], tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\necho 3.8\n")
    old.chmod(0o755)
    for words, said in (
        (("--python", str(old)), "is Python 3.8, this bundle is for Python 3."),
        (("--python", "/nonexistent"), "there is no /nonexistent"),
        (("--prefix", "opt"), "an absolute path that is not / itself"),
        (("--prefix", "/"), "an absolute path that is not / itself"),
        (("--colour",), "unknown word --colour"),
        (("--root",), "needs a value"),
    ):
        command = ["sh", bundle / "install.sh", *([] if "--root" in words else ["--root", root]), *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in (1, 2)
        assert said in done.stderr
    assert not (root / "opt").exists()


@pytest.mark.parametrize("script", ["install.sh", "bundle.sh"])
def test_scripts_are_plain(script: str) -> None:
    shellcheck = shutil.which("shellcheck") or Path(sys.executable).parent / "shellcheck"
    if not Path(shellcheck).exists():
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, ROOT / "systemd" / script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
