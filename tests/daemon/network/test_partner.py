"""Two halves of one job."""

import asyncio
import os
from types import SimpleNamespace

import pytest

from mpcd.daemon.errors import Conflict, LinkError, PeerError, ProtocolViolation
from mpcd.daemon.network.partner import EARLY, Partner

JOB, OTHER = os.urandom(16), os.urandom(16)


class Net:
    """Of one peer, that hears what it is told."""

    def __init__(self):
        self.told = []

    def connected(self, peer):
        return True

    async def call(self, peer, method, params, timeout):
        self.told.append((peer, method, params["job"], params["error"]["code"]))
        return {}


@pytest.fixture
def partner():
    return Partner(SimpleNamespace(net=Net()))


async def hang_then(error):
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        raise error from None


def failed(job, code="refused"):
    return {"job": job, "error": {"code": code, "message": "their half failed", "exit_status": 6}}


def test_our_result_is_what_our_half_returns(run, partner):
    async def half():
        return 7

    assert run(partner.run("beta", JOB, half())) == 7
    assert partner._context.net.told == []


def test_our_failure_is_told(run, partner):
    async def half():
        raise Conflict("it is over already")

    async def main():
        with pytest.raises(Conflict, match="over already"):
            await partner.run("beta", JOB, half())
        assert partner._context.net.told == [("beta", "job.failed", JOB, "conflict")]

    run(main())


def test_theirs_ends_ours_whatever_that_fails_with_then(run, partner):
    async def main():
        work = asyncio.create_task(partner.run("beta", JOB, hang_then(Conflict("too late for anybody"))))
        await asyncio.sleep(0.01)
        await partner.handlers["job.failed"]("beta", failed(OTHER))
        await partner.handlers["job.failed"]("gamma", failed(JOB))
        await asyncio.sleep(0.01)
        assert not work.done()
        await partner.handlers["job.failed"]("beta", failed(JOB))
        with pytest.raises(PeerError, match="their half failed"):
            await work

    run(main())


def test_a_broken_link_is_explained_by_their_failure(run, partner):
    async def half():
        raise LinkError("the connection was closed")

    async def main():
        work = asyncio.create_task(partner.run("beta", JOB, half()))
        await asyncio.sleep(0.01)
        await partner.handlers["job.failed"]("beta", failed(JOB))
        with pytest.raises(PeerError, match="their half failed"):
            await work
        assert partner._context.net.told == []

    run(main())


def test_cancelled_it_says_so_and_is_silent_about_what_follows(run, partner):
    async def main():
        work = asyncio.create_task(partner.run("beta", JOB, hang_then(Conflict("too late for anybody"))))
        await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert partner._context.net.told == [("beta", "job.failed", JOB, "stopped")]

    run(main())


def test_their_failure_may_come_before_our_half_begins(run, partner):
    """What was asked for is given up while it is looked at: our half would wait for a connection that never comes."""

    async def main():
        await partner.handlers["job.failed"]("beta", failed(JOB))
        with pytest.raises(PeerError, match="their half failed"):
            await partner.run("beta", JOB, asyncio.sleep(60))
        assert partner._context.net.told == []
        for _ in range(2 * EARLY):
            await partner.handlers["job.failed"]("beta", failed(os.urandom(16)))
        assert len(partner._early["beta"]) == EARLY

    run(main())


def test_one_job_at_a_time_of_an_id(run, partner):
    async def main():
        work = asyncio.create_task(partner.run("beta", JOB, asyncio.sleep(0.1, "done")))
        await asyncio.sleep(0.01)
        with pytest.raises(ProtocolViolation, match="at work already"):
            await partner.run("beta", JOB, asyncio.sleep(60))
        assert await work == "done"
        for job in (None, "x", b"short"):
            with pytest.raises(ProtocolViolation, match="malformed"):
                await partner.handlers["job.failed"]("beta", failed(job))

    run(main())
