"""Two networks as a whole: a peer that is removed, one that dials without end, and the stop."""

import asyncio

import pytest

from mpcd.daemon.errors import LinkError, MpcdError, NotFound
from mpcd.daemon.network import greeting, link, peer_network
from tests.daemon.network.sides import dial_by_hand, hello, joined, send_by_hand, until, up

JOB = bytes(range(16))


def test_removed_peer_loses_its_links_and_is_refused(run, sides):
    a, b = sides

    async def main():
        async with joined(a, b):
            ends = await asyncio.gather(a.net.open_channel("beta", JOB), b.net.open_channel("alpha", JOB))
            b.peers.remove("alpha")
            await until(lambda: a.net.status("beta").code == "unknown_peer")
            for end in ends:
                with pytest.raises(MpcdError):
                    await end.recv_frame(0)
            with pytest.raises(NotFound):
                await b.net.call("alpha", "echo", {})

    run(main())


def test_a_link_that_another_took_over_ends_with_the_removal_too(run, sides):
    """Calls at work on it would hold it open, and its handlers know the peer by its name only."""
    a, b = sides
    at_work, cancelled = asyncio.Event(), []

    async def slow(peer, params):
        at_work.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(peer)
            raise

    b.serve(slow=slow)

    async def main():
        async with joined(a, b):
            old = a.net._records["beta"].link
            before = old.current
            call = asyncio.create_task(a.net.call("beta", "slow", {}))
            await at_work.wait()
            old.renew()
            await until(lambda: old.current not in (before, None))
            b.peers.remove("alpha")
            with pytest.raises(LinkError):
                await asyncio.wait_for(call, 5)
            await until(lambda: cancelled == ["alpha"])

    run(main())


def test_a_peer_that_dials_without_end_is_held_to_its_rate(run, sides, monkeypatch):
    """Control links one after the other: old ones are not kept, and beyond the rate the connection is dropped."""
    monkeypatch.setattr(peer_network, "CONNECTIONS_A_SECOND", 0.01)
    a, b = sides
    b.knows(a, "")

    async def main():
        async with up(b):
            open_ones, dropped = [], 0
            for _ in range(25):
                try:
                    connection, _ = await dial_by_hand(a, b)
                    await send_by_hand(connection, greeting.HEADER, hello(a))
                    await connection.recv_frame(10_000)
                    open_ones.append(connection)
                except LinkError:
                    dropped += 1
            assert len(open_ones) == peer_network.CONNECTIONS_AT_ONCE / peer_network.LINK_COSTS
            assert dropped == 25 - len(open_ones)
            assert b.net.connected("alpha")
            await until(lambda: sum(c.failure is None for c in open_ones) <= link.RETIRING + 1)
            for connection in open_ones:
                connection.abort()

    run(main())


def test_nothing_is_left_running_after_stop(run, sides):
    a, b = sides

    async def main():
        async with joined(a, b, "both"):
            await asyncio.gather(a.net.open_channel("beta", JOB), b.net.open_channel("alpha", JOB))
        me = asyncio.current_task()
        await until(lambda: asyncio.all_tasks() == {me})

    run(main())
