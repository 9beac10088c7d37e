"""What every target of the fuzzer is, and how one process tries inputs on it.

A target takes bytes and returns, or raises: then it has found a bug. It swallows the errors that its subject
documents, and nothing else. An input that takes longer than HANG is a bug as well, and so is memory that grows.
"""

from __future__ import annotations

import dataclasses
import importlib
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
import psutil
from hypothesis import strategies as st

HANG = 10.0  # seconds
ROUND = 1000  # inputs of Hypothesis
GROWTH = 48.0  # MiB from the first tenth of a run to its end

# Name: the modules whose branches atheris follows, inputs in full by Hypothesis and by atheris.
TARGETS: dict[str, tuple[tuple[str, ...], int, int]] = {
    "frames": (("mpcd.daemon.network.transport",), 4_000, 40_000),
    "messages": (("mpcd.protocol.wire",), 4_000, 350_000),
    "greetings": (("mpcd.daemon.network.greeting",), 5_000, 250_000),
    "calls": (("mpcd.daemon.network.rpc",), 4_000, 80_000),
    "handlers": ((), 10_000, 0),
    "control": (("mpcd.daemon.control.server",), 4_000, 60_000),
    "recipes": (("mpcd.daemon.image.recipe", "tomllib"), 8_000, 50_000),
    "labels": (("mpcd.daemon.image.labels",), 6_000, 30_000),
    "settings": (("mpcd.daemon.config", "mpcd.daemon.sessions.policy"), 6_000, 15_000),
    "invites": (("mpcd.daemon.network.identity",), 6_000, 150_000),
    "announcements": (("mpcd.daemon.network.rotation",), 4_000, 40_000),
    "networks": (("mpcd.protocol.network",), 4_000, 60_000),
    "numbers": (("mpcd.daemon.model.artifact",), 5_000, 20_000),
    "weights": (("mpcd.daemon.model.load",), 1_500, 4_000),
    "dicoms": (("mpcd.daemon.image.dicom", "pydicom"), 4_000, 15_000),
}


class Target:
    """Base of the targets: one subject each."""

    def seeds(self) -> Sequence[bytes]:
        """Inputs that the subject takes; others are made from them."""
        raise NotImplementedError

    def structured(self) -> st.SearchStrategy[bytes] | None:
        """Inputs that are right in form and wrong in what they say, if there is a way to make them."""
        return None

    def one(self, data: bytes) -> None:
        """Try this input. Raises only where there is a bug."""
        raise NotImplementedError

    def close(self) -> None:
        """At the end."""


def load(name: str, folder: Path) -> Target:
    """The target in the module of this name. ``folder``: scratch, for those whose subject reads files."""
    made: Target = importlib.import_module(f"tests.fuzz.{name}").make(folder)
    return made


class Hang(BaseException):
    """An input took too long."""


@dataclasses.dataclass
class Figures:
    """What one process tried."""

    inputs: int
    seconds: float
    growth_mib: float


class Trying:
    """Calls the target, with a limit on time, and watches this process's memory."""

    def __init__(self, target: Target, planned: int, alarm: bool = True) -> None:
        """``alarm`` False: libFuzzer watches the time, which ends a hang in C as well."""
        self._target = target
        self._planned = planned
        self._process = psutil.Process()
        self._warm = 0
        self._began = time.monotonic()
        self._deadline = 0.0
        self.tried = 0
        self._alarm = alarm
        if alarm:
            signal.signal(signal.SIGALRM, self._late)
            signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)

    def __call__(self, data: bytes) -> None:
        self._deadline = time.monotonic() + HANG
        self._target.one(data)
        self._deadline = 0.0
        self.tried += 1
        if self.tried == max(1, self._planned // 10):
            self._warm = self._process.memory_info().rss

    def figures(self) -> Figures:
        if self._alarm:
            signal.setitimer(signal.ITIMER_REAL, 0.0)  # its handler does not outlive the interpreter
        grown = (self._process.memory_info().rss - self._warm) / (1 << 20)
        return Figures(self.tried, round(time.monotonic() - self._began, 1), round(grown, 1))

    def _late(self, number: int, frame: FrameType | None) -> None:
        if self._deadline and time.monotonic() > self._deadline:
            raise Hang(f"an input takes more than {HANG:g} seconds")


def mutated(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Seeds with pieces changed, cut, repeated, exchanged with another's."""

    def change(seed: bytes, other: bytes, number: int) -> bytes:
        rng = random.Random(number)
        data = bytearray(seed)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 4, 8))):
            at = rng.randrange(len(data) + 1)
            end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 64)))
            kind = rng.randrange(7)
            if kind == 0 and data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data[at:end] = rng.randbytes(end - at)
            elif kind == 2:
                del data[at:end]
            elif kind == 3:
                data[at:at] = data[at:end] * rng.choice((1, 2, 50))
            elif kind == 4:
                data[at:end] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * (end - at)
            elif kind == 5:
                place = rng.randrange(len(other) + 1)
                data[at:end] = other[place : place + rng.choice((1, 4, 16, 256))]
            else:
                del data[at:]
        return bytes(data)

    return st.builds(change, st.sampled_from(seeds), st.sampled_from(seeds), st.integers(0, 1 << 62))


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """What Hypothesis tries: mostly what is nearly right."""
    seeds = target.seeds()
    kinds = [mutated(seeds), mutated(seeds), st.binary(max_size=300)]
    if (structured := target.structured()) is not None:
        kinds += [structured, structured]
    return st.one_of(kinds)


def by_hypothesis(target: Target, trying: Callable[[bytes], None], number: int, seed: int) -> None:
    """In rounds: Hypothesis remembers what a round tried."""
    for first in range(0, number, ROUND):
        _round(target, trying, min(ROUND, number - first), seed + first)


def _round(target: Target, trying: Callable[[bytes], None], number: int, seed: int) -> None:
    settings = hypothesis.settings(
        max_examples=number,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
    )

    @hypothesis.seed(seed)
    @settings
    @hypothesis.given(inputs(target))
    def run(data: bytes) -> None:
        trying(data)

    run()


# Values of every kind that msgpack has, around what a decoder looks at.
PLAIN: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 1 << 31, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1]),
    st.integers(-10, 300),
    st.floats(),
    st.sampled_from(["", "x", "call", "result", "error", "\x1b[2J", "small", "0" * 32, "a" * 64, "é" * 70]),
    st.sampled_from([b"", bytes(16), bytes(32), b"\xff" * 40]),
)


def values(leaves: st.SearchStrategy[Any] = PLAIN) -> st.SearchStrategy[Any]:
    """Nested lists and maps of such values."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(["a", "b", "k", ""]), inner, max_size=4)
        ),
        max_leaves=8,
    )


def changed(valid: Any, leaves: st.SearchStrategy[Any] = PLAIN) -> st.SearchStrategy[Any]:
    """``valid``, a nest of lists and maps, with a few of its parts exchanged for anything, or left out."""

    def change(number: int, others: list[Any]) -> Any:
        rng = random.Random(number)

        def walk(value: Any, depth: int) -> Any:
            if others and rng.random() < 0.12:
                return others[rng.randrange(len(others))]
            if isinstance(value, (list, tuple)):
                kept = [walk(item, depth + 1) for item in value if rng.random() > 0.03]
                return kept + kept[:1] if rng.random() < 0.03 else kept
            if isinstance(value, dict):
                return {key: walk(item, depth + 1) for key, item in value.items() if rng.random() > 0.03}
            return value

        return walk(valid, 0)

    return st.builds(change, st.integers(0, 1 << 62), st.lists(values(leaves), max_size=3))
