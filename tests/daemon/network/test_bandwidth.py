import asyncio
import time

import pytest

from mpcd.daemon.config import Timeouts
from mpcd.daemon.network.bandwidth import BURST, Bandwidth, Bucket
from mpcd.protocol.wire import Frame
from tests.daemon.network.sides import Side, linked, meet, up


def test_pieces_go_one_after_the_other_at_the_rate():
    bucket = Bucket(1000.0)
    assert bucket.book(100, now=50.0) == 0.0, "a burst goes at once"
    waits = [bucket.book(100, now=50.0) for _ in range(10)]
    assert waits == pytest.approx([max(0.0, 0.1 * i - BURST + 0.1) for i in range(10)])
    assert bucket.debt(now=50.0) == pytest.approx(1.1 - BURST)
    assert bucket.book(100, now=99.0) == 0.0, "what was not used is not saved up beyond the burst"
    assert bucket.book(100, now=99.0) == pytest.approx(0.0)
    assert bucket.book(100, now=99.0) == pytest.approx(0.1)


@pytest.mark.parametrize("limited", ["sender", "receiver"])
def test_two_connections_share_one_limit(run, connected, limited):
    """8 Mbit/s are 1 MB a second: twice 300 kB, less a burst on each side, take half a second at least."""

    async def main():
        async with connected() as (one, a), connected() as (two, b):
            shared = Bandwidth(8.0)
            for end in (a, b) if limited == "sender" else (one, two):
                end.limit_bandwidth(shared)
            size = 300_000
            data = memoryview(bytes(range(256)) * (size // 256 + 1))[:size]
            began = time.monotonic()
            frames = [a.send_frame(Frame(b"h", (data,))), b.send_frame(Frame(b"h", (data,)))]
            *_, first, second = await asyncio.gather(*frames, one.recv_frame(size), two.recv_frame(size))
            assert bytes(first[1]) == bytes(second[1]) == bytes(data)
            if limited == "receiver":
                # What is booked last has yet to be waited for: the next bytes come after it.
                await asyncio.gather(a.send_frame(Frame(b"h", (data[:1],))), one.recv_frame(1))
            assert time.monotonic() - began > 0.35

    run(asyncio.wait_for(main(), 30))


def test_a_limit_is_not_silence(run, connected):
    """Slower than the patience for a dead peer, in both directions, and the connection lives."""
    times = Timeouts(keepalive=0.05, silence=0.4)

    async def main():
        async with connected(times, times) as (server, client):
            server.limit_bandwidth(Bandwidth(0.8))  # 100 kB a second
            size = 150_000
            _, (_, payload) = await asyncio.gather(
                client.send_frame(Frame(b"h", (memoryview(bytes(size)),))), server.recv_frame(size)
            )
            _, (_, back) = await asyncio.gather(server.send_frame(Frame(b"h", (payload,))), client.recv_frame(size))
            assert len(back) == size
            assert server.failure is client.failure is None

    run(asyncio.wait_for(main(), 30))


def test_closing_does_not_wait_for_a_turn(run, connected):
    async def main():
        async with connected() as (server, client):
            server.limit_bandwidth(Bandwidth(0.5))
            await client.send_frame(Frame(b"h", (memoryview(bytes(200_000)),)))
            await asyncio.sleep(0.1)
            began = time.monotonic()
            await server.close()
            assert time.monotonic() - began < 3

    run(asyncio.wait_for(main(), 30))


def test_calls_are_not_delayed_by_data(run, identities, tmp_path):
    limits = {"limits": {"bandwidth_mbit_s": 0.5}}
    a, b = (
        Side(identity, name, tmp_path, **limits) for identity, name in zip(identities, ("alpha", "beta"), strict=True)
    )
    meet(a, b, "a")

    async def main():
        async with up(a, b):
            await linked(a, b)
            ours, theirs = await asyncio.gather(
                a.net.open_channel("beta", bytes(16)), b.net.open_channel("alpha", bytes(16))
            )
            sending = asyncio.create_task(ours.send_frame(Frame(b"h", (memoryview(bytes(2_000_000)),))))
            receiving = asyncio.create_task(theirs.recv_frame(2_000_000))
            await asyncio.sleep(0.2)
            began = time.monotonic()
            for _ in range(20):
                await a.net.call("beta", "echo", {"x": bytes(10_000)})
            assert time.monotonic() - began < 5, "200 kB alone would take three seconds each way at this rate"
            assert not sending.done()
            sending.cancel()
            receiving.cancel()
            await asyncio.wait([sending, receiving])

    run(main())
