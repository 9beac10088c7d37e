"""Warming up: every operation occurs, so that every kernel is compiled; daemons that share a cache compile once."""

import asyncio
import os
import subprocess
import sys

import psutil
import pytest

from mpcd.daemon import warm
from mpcd.daemon.control.jobs import Job
from mpcd.protocol import network


def test_every_operation_occurs():
    made, numbers = warm.every_operation()
    assert {type(op) for op in made.ops} == set(network.Op.__args__)
    assert any(op.groups > 1 for op in made.ops if isinstance(op, network.Linear))
    assert set(numbers) == {1, 4, 5, 6, 13}


def test_compiles_and_says_how_far():
    done = subprocess.run([sys.executable, "-m", "mpcd.daemon.warm"], capture_output=True, text=True, check=True)
    steps = [[int(x) for x in line.split()] for line in done.stdout.splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == [warm.STEPS, warm.STEPS]


def test_jobs_wait_and_a_marked_cache_is_ready(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))

    async def main():
        kernels, job = warm.Kernels(), Job()
        waiting = asyncio.create_task(kernels.wait(job))
        await asyncio.sleep(0)
        assert job.progress.stage == "warm"
        warm._mark().touch()
        monkeypatch.setattr(sys, "executable", "/bin/false")
        await kernels.run()
        await waiting
        assert kernels.describe() == {"ready": True, "done": warm.STEPS, "total": warm.STEPS}

    asyncio.run(main())


@pytest.mark.parametrize("python", ["/bin/false", "/nowhere/python"], ids=["fails", "cannot be started"])
def test_failing_to_warm_stops_nobody(monkeypatch, python):
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")

    async def main():
        kernels = warm.Kernels()
        await kernels.run()
        assert kernels.ready.is_set()

    asyncio.run(main())


def test_an_interrupt_at_the_terminal_is_the_daemons(run, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")

    async def main():
        before = psutil.Process().children()
        running = asyncio.create_task(warm.Kernels().run())
        while not (started := set(psutil.Process().children()) - set(before)):
            await asyncio.sleep(0.01)
        (child,) = started
        assert os.getpgid(child.pid) != os.getpgid(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        async with asyncio.timeout(10):
            while child.is_running():
                await asyncio.sleep(0.01)

    run(main())


def test_what_numba_loads_with_its_first_kernel_is_there_when_jobs_begin():
    """Else the first session's first step would do it on the event loop, which stood still for seconds."""
    code = """
import asyncio, os, sys
from pathlib import Path
from mpcd.daemon import warm
from mpcd.kernels import aes
done = warm.mark(Path(os.environ["NUMBA_CACHE_DIR"]))
fresh = not done.exists()
done.touch()
assert not aes.expand_key.overloads
asyncio.run(warm.Kernels().run())
if fresh:
    done.unlink()
assert aes.expand_key.overloads
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
