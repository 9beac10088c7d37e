"""The data owner's session on a disk that takes nothing: it waits, and goes on once there is room."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time

import pytest
import structlog

from mpcd.daemon import log
from mpcd.daemon.errors import NotEnough
from mpcd.daemon.sessions import running, sessions
from mpcd.daemon.sessions.policy import NotNow
from tests.daemon.two_daemons import DATASET, MODEL, VENDOR, Client, audit, daemons

START = {"peer": VENDOR, "model": MODEL, "dataset": DATASET, "reveal": "scores"}


class Disk:
    """Of both daemons: while it is full, no file grows."""

    def __init__(self):
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._before[1]))

    def free(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


@pytest.fixture
def disk():
    disk = Disk()
    yield disk
    disk.free()


@pytest.fixture
def heard():
    """Every event of the log."""
    found = []
    stop = log.listen(lambda event: found.append(dict(event)))
    yield found
    stop()
    structlog.reset_defaults()


async def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.005)
    return found


def full_from(disk, function):
    """``function``, before whose first call the disk is full."""
    calls = []

    def called(*args):
        if not calls:
            disk.fill()
        calls.append(args)
        return function(*args)

    return called


@contextlib.asynccontextmanager
async def approved(root, monkeypatch, disk, images=2):
    """Hospital and a session of its that is about to begin."""
    monkeypatch.setattr(running, "NO_ROOM_PAUSE", 0.1)
    monkeypatch.setattr(running, "NOT_NOW_PAUSE", 0.1)
    async with daemons(root) as (vendor, hospital):
        ours, theirs = (Client(daemon.context.paths.control_socket) for daemon in (vendor, hospital))
        id = (await theirs.call("session.start", **START, images=images))["session"]["id"]
        try:
            yield hospital, id, lambda: ours.call("session.approve", session=id)
        finally:
            disk.free()


def test_an_image_that_cannot_be_written_down_is_done_again(run, tmp_path, monkeypatch, disk, heard):
    async def main():
        async with approved(tmp_path, monkeypatch, disk) as (hospital, id, approve):
            records = hospital.context.records
            monkeypatch.setattr(records, "image_done", full_from(disk, records.image_done))
            await approve()
            unwritten = "what a session waits for cannot be written down"
            # More rounds than a session has attempts: a full disk costs none.
            await until(lambda: sum(e["event"] == unwritten for e in heard) > running.FAILURES + 2)
            session = records.get(id)
            assert (session.over, session.done) == (False, 0)
            assert not any(e["event"] == "session runner failed" for e in heard)
            disk.free()
            await until(lambda: records.get(id).state == "done")

    run(main())
    audit(tmp_path)


def test_a_session_that_waits_for_its_hour(run, tmp_path, monkeypatch, disk, heard):
    async def main():
        async with approved(tmp_path, monkeypatch, disk) as (hospital, id, approve):
            records, asking = hospital.context.records, hospital.sessions._asking
            check = asking.check_room

            def not_now(estimate):
                raise NotNow("not before eight")

            monkeypatch.setattr(asking, "check_room", full_from(disk, not_now))
            await approve()
            await until(lambda: sum(e["event"] == "session waits" for e in heard) > 1)
            monkeypatch.setattr(asking, "check_room", check)
            disk.free()
            await until(lambda: records.get(id).state == "done")

    run(main())


def test_a_failure_that_cannot_be_written_down_yet(run, tmp_path, monkeypatch, disk, heard):
    async def main():
        async with approved(tmp_path, monkeypatch, disk) as (hospital, id, approve):
            records = hospital.context.records
            with open(tmp_path / "images" / "dicom" / "0.dcm", "ab") as file:
                file.write(b"\0\0")
            monkeypatch.setattr(records, "set_told", full_from(disk, records.set_told))
            await approve()
            unwritten = "a session's failure cannot be written down"
            await until(lambda: sum(e["event"] == unwritten for e in heard) > 1)
            attempts = records.get(id).attempts
            assert not records.get(id).over
            disk.free()
            session = await until(lambda: records.get(id).over and records.get(id))
            assert (session.state, session.attempts) == ("failed", attempts)
            assert "changed" in session.reason

    run(main())


def test_no_traceback_of_a_watch_that_a_full_disk_stops(run, tmp_path, monkeypatch, heard):
    monkeypatch.setattr(sessions, "WATCH", 0.02)

    async def main():
        async with daemons(tmp_path) as (_, hospital):
            for error in (NotEnough("the disk is full"), ZeroDivisionError()):
                heard.clear()

                def fails(error=error):
                    raise error

                with monkeypatch.context() as patched:
                    patched.setattr(hospital.context.records, "open", fails)
                    told = await until(lambda: [e for e in heard if e["event"] == "sessions cannot be watched over"])
                assert bool(told[0].get("exc_info")) == isinstance(error, ZeroDivisionError)

    run(main())
