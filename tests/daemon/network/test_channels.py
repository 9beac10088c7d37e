"""Data connections of two networks: whoever dials, early and late, and what is left of them."""

import asyncio
import gc
import os
import weakref

import pytest

from mpcd.daemon.errors import Conflict, LinkError, PeerClosed, PeerError, PeerUnreachable
from mpcd.daemon.network import channels, greeting
from mpcd.protocol.wire import Frame
from tests.daemon.network.sides import (
    Side,
    dial_by_hand,
    hello,
    joined,
    joined_by_relay,
    linked,
    send_by_hand,
    until,
    up,
)

JOB = bytes(range(16))


@pytest.mark.parametrize("who_dials", ["a", "b", "both"])
@pytest.mark.parametrize("first", ["a", "b"])
def test_open_channel_either_direction_whoever_asks_first(run, sides, who_dials, first):
    a, b = sides

    async def main():
        async with joined(a, b, who_dials):
            early = asyncio.create_task(
                a.net.open_channel("beta", JOB) if first == "a" else b.net.open_channel("alpha", JOB)
            )
            await asyncio.sleep(0.1)
            assert not early.done()  # open means: on both sides
            late = await (b.net.open_channel("alpha", JOB) if first == "a" else a.net.open_channel("beta", JOB))
            one, two = await early, late
            data = os.urandom(3_000_000)
            for tx, rx in ((one, two), (two, one)):
                task = asyncio.create_task(tx.send_frame(Frame(b"x", (memoryview(data),))))
                assert bytes((await rx.recv_frame(len(data)))[1]) == data
                await task

    run(main())


def test_channels_of_several_jobs_do_not_get_mixed_up(run, sides):
    a, b = sides
    jobs = [os.urandom(16) for _ in range(6)]

    async def main():
        async with joined(a, b, "both"):
            ours = [asyncio.create_task(a.net.open_channel("beta", job)) for job in jobs]
            theirs = [asyncio.create_task(b.net.open_channel("alpha", job)) for job in reversed(jobs)]
            for job, task in zip(jobs, ours, strict=True):
                await (await task).send_frame(Frame(job, ()))
            for job, task in zip(reversed(jobs), theirs, strict=True):
                assert (await (await task).recv_frame(0))[0] == job

    run(main())


def test_channel_for_a_job_the_peer_does_not_want_times_out(run, sides):
    a, b = sides

    async def main():
        async with joined(a, b):
            for net, peer in ((a.net, "beta"), (b.net, "alpha")):
                with pytest.raises(PeerUnreachable, match=r"did not open its end .* within 0\.3 seconds"):
                    await net.open_channel(peer, JOB, timeout=0.3)
            with pytest.raises(ValueError, match="16 bytes"):
                await a.net.open_channel("beta", b"short")
            # And what was left of the failed attempts does not stand in the way.
            one, two = await asyncio.gather(a.net.open_channel("beta", JOB), b.net.open_channel("alpha", JOB))
            await one.send_frame(Frame(b"x", ()))
            assert (await two.recv_frame(0))[0] == b"x"

    run(main())


def test_same_job_twice_at_the_same_time_is_refused(run, sides):
    a, b = sides

    async def main():
        async with joined(a, b):
            first = asyncio.create_task(b.net.open_channel("alpha", JOB, timeout=0.5))
            await asyncio.sleep(0)
            with pytest.raises(Conflict):
                await b.net.open_channel("alpha", JOB)
            with pytest.raises(PeerUnreachable):
                await first

    run(main())


def test_too_many_channels_are_turned_away_until_some_close(run, identities, tmp_path):
    a, b = identities
    one = Side(a, "alpha", tmp_path)
    two = Side(b, "beta", tmp_path, limits={"channels_per_peer": 2})

    async def main():
        async with joined(one, two):

            async def pair():
                job = os.urandom(16)
                theirs = asyncio.create_task(two.net.open_channel("alpha", job, timeout=5))
                try:
                    return await one.net.open_channel("beta", job, timeout=5), await theirs
                finally:
                    theirs.cancel()

            first = await pair()
            await pair()
            with pytest.raises(PeerError) as caught:
                await pair()
            assert caught.value.code == "busy"
            await first[0].close()
            await pair()

    run(main())


def test_channel_is_opened_across_a_reconnect(run, sides):
    a, b = sides

    async def main():
        async with joined_by_relay(a, b) as relay:
            relay.accepting = False
            relay.cut()
            await until(lambda: not a.net.connected("beta"))
            both = asyncio.gather(a.net.open_channel("beta", JOB), b.net.open_channel("alpha", JOB))
            await asyncio.sleep(0.2)
            relay.accepting = True
            one, two = await both
            await one.send_frame(Frame(b"x", ()))
            assert (await two.recv_frame(0))[0] == b"x"
            relay.cut()
            for end in (one, two):
                with pytest.raises(LinkError):
                    await end.recv_frame(0)

    run(main())


def test_a_job_is_given_up_when_the_peer_was_restarted(run, sides):
    """The new instance knows nothing of it: there is nothing to wait for."""
    a, b = sides

    async def main():
        a.knows(b)
        b.knows(a, "")
        async with up(a):
            await b.net.start()
            await linked(a, b)
            waiting = asyncio.create_task(a.net.open_channel("beta", JOB, 60))
            await asyncio.sleep(0.1)
            await b.net.stop()
            await asyncio.sleep(0.1)
            assert not waiting.done(), "a link that breaks may come back"
            b.net = b.network()
            async with up(b):
                with pytest.raises(LinkError, match="beta was restarted"):
                    async with asyncio.timeout(10):
                        await waiting

    run(main())


@pytest.mark.parametrize("who_dials", ["a", "b"])
def test_a_data_connection_that_ended_is_forgotten(run, sides, who_dials):
    """By whoever dialled: a daemon has thousands in a night."""
    a, b = sides
    ended = []

    async def main():
        async with joined(a, b, who_dials):
            for _ in range(5):
                job = os.urandom(16)
                ends = await asyncio.gather(a.net.open_channel("beta", job), b.net.open_channel("alpha", job))
                ended.extend(map(weakref.ref, ends))
                await asyncio.gather(*(end.close() for end in ends))
                del ends
            both = a.net._records["beta"].channels, b.net._records["alpha"].channels
            await until(lambda: not any(side._open or side._arrived for side in both))
            a.net.traffic("beta"), b.net.traffic("alpha")

            def gone():
                gc.collect()
                return all(end() is None for end in ended)

            await until(gone)

    run(main())


def test_a_data_connection_that_nobody_wants_is_dropped(run, sides, monkeypatch):
    monkeypatch.setattr(channels, "UNCLAIMED", 0.3)
    a, b = sides
    b.knows(a, "")

    async def main():
        async with up(b):
            connection, _ = await dial_by_hand(a, b)
            await send_by_hand(connection, greeting.HEADER, hello(a, purpose=greeting.CHANNEL, job=JOB))
            with pytest.raises(PeerClosed):
                await connection.recv_frame(10_000)
            assert not b.net._records["alpha"].channels._arrived
            connection.abort()

    run(main())
