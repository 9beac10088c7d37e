"""What waits for the disk is done aside, and to its end."""

import asyncio
import threading

import pytest

from mpcd.daemon.context import aside


def test_the_end_is_waited_for_however_often_the_caller_is_cancelled(run):
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def work():
        begun.set()
        go.wait(30)
        ended.set()

    async def main():
        task = asyncio.create_task(aside(work))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.02)
            assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    run(main())


def test_an_error_after_the_caller_is_cancelled_is_no_news(run):
    """``run`` finds errors that nobody took: asyncio would log them with a traceback."""
    begun, go = threading.Event(), threading.Event()

    def work():
        begun.set()
        go.wait(30)
        raise ValueError("too late for anybody")

    async def main():
        task = asyncio.create_task(aside(work))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0.02)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
