"""Compiling the kernels before anybody waits for them: ``python -m mpcd.daemon.warm``, in a process of its own.

It runs both parties of a tiny network that has every operation; Numba keeps what it compiles in NUMBA_CACHE_DIR, where
the daemon finds it. Daemons that share a cache take turns. Output: a line ``done total`` for every step.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from mpcd.daemon import log
from mpcd.daemon.control.jobs import Job
from mpcd.daemon.version import software_digest
from mpcd.kernels import aes
from mpcd.protocol import executor, lockstep, preprocessing
from mpcd.protocol.channel import Channel
from mpcd.protocol.correlations import MatrixNeed, Need
from mpcd.protocol.network import (
    Add,
    Concat,
    Extend,
    Grow,
    GrowNumbers,
    Input,
    Linear,
    LinearNumbers,
    MaxPool,
    Network,
    PrivateNumbers,
    Relu,
    ReluNumbers,
    Reshape,
    SumPool,
    Truncate,
    TruncateRelu,
    Value,
)

STEPS = 1000

_log = log.get("warm")


class Kernels:
    """Whether the kernels are compiled; jobs wait for it, since compiling twice side by side helps nobody."""

    def __init__(self) -> None:
        self.done = 0
        self.ready = asyncio.Event()

    def describe(self) -> dict[str, Any]:
        return {"ready": self.ready.is_set(), "done": self.done, "total": STEPS}

    async def wait(self, job: Job) -> None:
        while not self.ready.is_set():
            job.report("warm", self.done, STEPS, "compiling kernels for this machine, the first time only")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self.ready.wait()

    async def run(self) -> None:
        """Compile; a failure costs only time, later: it is logged."""
        try:
            await self._compile()
        except Exception as error:
            known = isinstance(error, OSError)  # no room for a process, or no way to the cache
            _log.warning("kernels could not be compiled ahead", reason=error, exc_info=None if known else error)
        finally:
            self.ready.set()

    async def _compile(self) -> None:
        began = time.monotonic()
        done = await asyncio.to_thread(_mark)
        if done is not None and done.exists():
            self.done = STEPS
            await asyncio.to_thread(first_kernel)
            return
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "mpcd.daemon.warm",
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the daemon's terminal is the daemon's, which kills this
        )
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                self.done = int(line.split()[0])
            if status := await process.wait():
                _log.warning("kernels could not be compiled ahead", status=status)
            else:
                await asyncio.to_thread(first_kernel)
                _log.info("kernels ready", seconds=round(time.monotonic() - began, 1))
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def first_kernel() -> None:
    """With its first kernel Numba loads much of itself: in a thread, so that the event loop does not stand still."""
    aes.expand_key(np.zeros(16, np.uint8))


class _Unit:
    """Sink and source in memory: matrix triples and the others, each in order."""

    def __init__(self) -> None:
        self._rows: tuple[deque[Any], deque[Any]] = (deque(), deque())

    def put(self, need: Need, correlation: Any) -> None:
        self._rows[isinstance(need, MatrixNeed)].append(correlation)

    def take(self, need: Need) -> Any:
        return self._rows[isinstance(need, MatrixNeed)].popleft()


def every_operation() -> tuple[Network, PrivateNumbers]:
    """A network of a few pixels in which every operation occurs."""
    k, f = 13, 4

    def narrow(*shape: int) -> Value:
        return Value((shape[0], shape[1], shape[2]), k)

    def wide(*shape: int) -> Value:
        return Value((shape[0], shape[1], shape[2]), k + f)

    values = (
        wide(1, 6, 6),  # 0
        wide(2, 6, 6),
        narrow(2, 6, 6),  # 2 truncated
        narrow(2, 3, 3),
        narrow(2, 3, 3),  # 4 relu
        wide(2, 3, 3),
        wide(2, 3, 3),  # 6 grouped convolution
        narrow(2, 3, 3),
        narrow(2, 3, 3),  # 8 sum
        narrow(4, 3, 3),
        wide(4, 3, 3),  # 10 extended
        wide(4, 1, 1),
        wide(4, 1, 1),  # 12 flat
        wide(2, 1, 1),
        narrow(2, 1, 1),
    )
    ops = (
        Input(0),
        Linear((0,), 1, (3, 3), (1, 1), (1, 1), 1),
        Truncate((1,), 2, f),
        MaxPool((2,), 3, (3, 3), (2, 2), (1, 1)),
        Relu((3,), 4, True),
        Grow((4,), 5, True),
        Linear((5,), 6, (3, 3), (1, 1), (1, 1), 2),
        TruncateRelu((6,), 7, f),
        Add((7, 4), 8),
        Concat((8, 7), 9),
        Extend((9,), 10),
        SumPool((10,), 11, (3, 3), (3, 3)),
        Reshape((11,), 12),
        Linear((12,), 13, (1, 1), (1, 1), (0, 0), 1),
        Truncate((13,), 14, f),
    )
    bias = np.zeros((2, 1, 1), np.int64)
    numbers: PrivateNumbers = {
        1: LinearNumbers(np.ones((2, 1, 3, 3), np.int64), bias),
        4: ReluNumbers(np.zeros(2, np.int64), np.array([False, True])),
        5: GrowNumbers(np.array([0, (1 << (k - 1)) - 1])),
        6: LinearNumbers(np.ones((2, 1, 3, 3), np.int64), bias),
        13: LinearNumbers(np.ones((2, 4, 1, 1), np.int64), bias),
    }
    network = Network("warm", values, ops, 14, 1.0, 1.0, ("a", "b"), {1: 16, 6: 16, 13: 4})
    network.check()
    return network, numbers


def compile_kernels() -> None:
    network, numbers = every_operation()
    units = (_Unit(), _Unit())

    def offline(done: int, total: int) -> None:
        print(STEPS * 7 * done // (10 * total), STEPS, flush=True)

    def online(done: int, total: int) -> None:
        print(STEPS * 7 // 10 + STEPS * 3 * done // (10 * total), STEPS, flush=True)

    def quiet(done: int, total: int) -> None:
        pass

    async def image(party: int) -> Any:
        channel = Channel(party, bytes(16))
        own, pixels = (numbers, None) if party == 0 else (None, np.zeros(network.values[0].shape, np.int64))
        share = await executor.infer(channel, network, own, units[party], pixels, online if party else quiet)
        return await executor.reveal_to_data_owner(channel, network, share)

    def unit(party: int) -> Any:
        own, sink = numbers if party == 0 else None, units[party]
        tell = offline if party else quiet
        channel, seeds = Channel(party, bytes(16)), [os.urandom(16)]
        # The silent extension begins with IKNP: both are compiled.
        return preprocessing.make_units(channel, network, own, seeds, [sink], tell, "silent")

    lockstep.run(unit(0), unit(1))
    lockstep.run(image(0), image(1))


def _mark() -> Path | None:
    folder = os.environ.get("NUMBA_CACHE_DIR")
    return mark(Path(folder)) if folder else None


def mark(folder: Path) -> Path | None:
    """A file in this cache that says: this software's kernels are there for this processor."""
    with contextlib.suppress(OSError):
        flags = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Feat"))]
        versions = [software_digest(), sys.version, importlib.metadata.version("numba"), *flags[:1]]
        return folder / f"warm-{hashlib.sha256(repr(versions).encode()).hexdigest()[:32]}"
    return None


def main() -> None:
    done = _mark()
    with contextlib.ExitStack() as stack:
        if done is not None:
            done.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(done.parent / "warm.lock", "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            compile_kernels()
        except BrokenPipeError:  # the daemon was killed; the next one goes on
            os._exit(1)
        if done is not None:
            done.touch()


if __name__ == "__main__":
    main()
