"""The manual pages: every command and option is there, and groff has nothing to complain of."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mpcd.cli.main import mpcctl
from mpcd.daemon.main import main as mpcd

PAGES = Path(__file__).parent.parent / "docs" / "man"


def commands(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*above, name))
        else:
            yield " ".join((*above, name))


def test_every_command_is_named() -> None:
    named = set(re.findall(r"^\.It Cm ([a-z -]+?)(?: Ar .*)?$", (PAGES / "mpcctl.1").read_text(), re.MULTILINE))
    there = set(commands(mpcctl))
    assert (there - named, named - there) == (set(), set()), "docs/man/mpcctl.1 lacks some, or has too many"


def test_every_command_is_in_the_reference() -> None:
    """docs/cli.md: ``mpcctl key show \\| rotate`` names two."""
    table = (PAGES.parent / "cli.md").read_text()
    named = set()
    for cell in re.findall(r"^\| (`mpcctl .*?) \| ", table, re.MULTILINE):
        for code in re.findall(r"`mpcctl ([^`]+)`", cell):
            first, *others = code.split(" \\| ")
            words = [word for word in first.split() if re.fullmatch(r"[a-z][a-z-]*", word)]
            named.add(" ".join(words))
            named |= {" ".join((*words[:-1], other.split()[0])) for other in others}
    assert set(commands(mpcctl)) - named == set(), "docs/cli.md lacks these"


def test_every_option_of_the_daemon_is_named() -> None:
    named = set(re.findall(r"^\.It Fl (?:h , )?-([a-z]+)", (PAGES / "mpcd.8").read_text(), re.MULTILINE))
    assert {f"--{name}" for name in named} == {o for option in mpcd.params for o in option.opts} | {"--help"}


@pytest.mark.parametrize("page", ["mpcctl.1", "mpcd.8"])
def test_groff_accepts_it(page: str) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    command = ["groff", "-mdoc", "-Tutf8", "-ww", "-z", str(PAGES / page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
