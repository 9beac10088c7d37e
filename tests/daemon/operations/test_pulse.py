"""The event loop's and the kernels' pulse, and what systemd's watchdog hears of it."""

import asyncio
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mpcd.daemon import log
from mpcd.daemon.operations import pulse
from mpcd.daemon.operations.pulse import Pulse, keep_watchdog, watchdog_seconds
from tests.daemon.network.sides import until


@pytest.fixture
def told():
    """Events of the log."""
    events = []
    log.configure(as_json=True)
    stop = log.listen(events.append)
    yield events
    stop()


def blocked_loop():
    time.sleep(2.0)


def test_a_loop_that_does_not_turn_is_told_with_its_place(run, told, monkeypatch):
    monkeypatch.setattr(pulse, "BEAT", 0.02)

    async def main():
        with ThreadPoolExecutor(1) as kernels:
            watched = Pulse(kernels, stalled=0.8)
            watched.start()
            await asyncio.sleep(0.6)
            assert watched.lag < 1
            blocked_loop()
            await asyncio.sleep(0.6)
            assert watched.lag > 0.9
            await watched.stop()

    run(main())
    stalled = [event for event in told if event["event"] == "the event loop does not turn"]
    assert len(stalled) == 1
    assert any("blocked_loop" in place for place in stalled[0]["where"])
    assert [event["event"] for event in told if event["level"] == "warning"] == ["the event loop was late"]


def test_kernels_that_do_not_answer(run, told, monkeypatch):
    monkeypatch.setattr(pulse, "BEAT", 0.02)
    release = threading.Event()

    async def main():
        with ThreadPoolExecutor(1) as kernels:
            watched = Pulse(kernels, kernels_stalled=0.3)
            watched.start()
            kernels.submit(release.wait, 60)
            await asyncio.sleep(0.1)
            assert watched.well
            await until(lambda: not watched.well)
            await until(lambda: watched.kernels_silent > 2)
            assert watched.lag < 1.5, "the loop turns all the same"
            release.set()
            await until(lambda: watched.well)
            await watched.stop()

    run(main())
    assert any("kernels' threads" in event["event"] for event in told)


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "120000000"}, 120.0),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
        ({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": str(os.getpid())}, 0.001),
    ],
)
def test_whether_systemd_wants_to_hear(environ, seconds):
    assert watchdog_seconds(environ) == seconds


def test_the_watchdog_hears_only_that_all_is_well(run, tmp_path, monkeypatch):
    well = [True]

    async def main(listener):
        task = asyncio.create_task(keep_watchdog(0.05, lambda: well[0]))
        heard = []
        for _ in range(10):  # the socket holds few
            await asyncio.sleep(0.1)
            heard += drained(listener)
        assert len(heard) >= 5, "some twenty on an idle machine"
        assert set(heard) == {b"WATCHDOG=1"}
        well[0] = False
        await asyncio.sleep(0.1)
        drained(listener)
        await asyncio.sleep(0.2)
        assert drained(listener) == []
        task.cancel()

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        run(main(listener))


def drained(listener):
    heard = []
    while True:
        try:
            heard.append(listener.recv(100))
        except BlockingIOError:
            return heard
