"""Shells complete mpcctl's words: the scripts, and what they ask mpcctl."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_commands import run

BIN = Path(sys.executable).parent


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert "_MPCCTL_COMPLETE" in done.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.stdout, text=True, check=True, timeout=60)


@pytest.mark.parametrize(
    ("line", "offered"),
    [("mpcctl off", {"offline"}), ("mpcctl offline m", {"make"}), ("mpcctl doctor --p", {"--peer"})],
)
def test_bash_completes(line: str, offered: set[str]) -> None:
    words = line.split()
    script = (
        f'export PATH={BIN}:$PATH; eval "$(mpcctl completion bash)"; '
        f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _mpcctl_completion mpcctl; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) == offered
