import asyncio
import os
import random
import time

import numpy as np
import pytest

from mpcd.daemon.config import Timeouts
from mpcd.daemon.errors import FrameTooLarge, LinkError, PeerClosed, PeerSilent, ProtocolViolation
from mpcd.daemon.network import transport
from mpcd.daemon.network.transport import PREFIX
from mpcd.protocol.wire import MAX_HEADER, Frame
from tests.daemon.network.sides import until

QUICK = Timeouts(keepalive=0.05, silence=0.3, stall=0.5)
MUTE = Timeouts(keepalive=60.0, silence=120.0)


def frame(header, *parts):
    return Frame(header, tuple(memoryview(part) for part in parts))


def raw(connection, data):
    """Send bytes that need not be frames."""
    connection._encrypt(data)


def test_frames_of_many_sizes_arrive_whole_and_in_order(run, connected):
    sizes = [0, 1, 2, 11, 16383, 16384, 16385, 262143, 262144, 262145, 3_000_001, 0, 7]
    sent = [(os.urandom(random.randint(1, MAX_HEADER)), os.urandom(size)) for size in sizes]

    async def main():
        async with connected() as ends:
            for tx, rx in (ends, ends[::-1]):

                async def send(tx=tx):
                    for header, payload in sent:
                        cut = random.randint(0, len(payload))
                        await tx.send_frame(frame(header, payload[:cut], payload[cut:]))

                task = asyncio.create_task(send())
                for header, payload in sent:
                    got = await rx.recv_frame(len(payload))
                    assert got[0] == header
                    assert bytes(got[1]) == payload
                await task
                assert tx.bytes_sent == rx.bytes_received == sum(PREFIX.size + len(h) + len(p) for h, p in sent)

    run(main())


def test_200_megabytes_each_way_at_once_byte_for_byte(run, connected):
    rng = np.random.default_rng()
    data = [rng.integers(0, 256, 200_000_000, np.uint8) for _ in range(2)]

    async def main():
        async with connected() as (server, client):
            results = await asyncio.gather(
                server.send_frame(frame(b"big", data[0])),
                client.send_frame(frame(b"big", data[1])),
                client.recv_frame(200_000_000),
                server.recv_frame(200_000_000),
            )
            for original, (header, payload) in zip(data, results[2:], strict=True):
                assert header == b"big"
                assert np.array_equal(np.frombuffer(payload, np.uint8), original)

    run(main())


@pytest.mark.parametrize("size", [10, 100_000])
def test_whoever_has_the_last_frame_may_close_at_once(run, connected, monkeypatch, size):
    """However long our event loop is kept busy meanwhile: the frame was sent."""

    async def main():
        async with connected() as (server, client):
            drain, head = server._drain, PREFIX.size + 1

            async def late():
                if server.bytes_written >= head + size:
                    await until(lambda: server.failure is not None)
                await drain()

            monkeypatch.setattr(server, "_drain", late)
            sending = asyncio.create_task(server.send_frame(frame(b"h", bytes(size))))
            assert len((await client.recv_frame(size))[1]) == size
            await client.close()
            await sending
            await until(lambda: isinstance(server.failure, PeerClosed))

    run(main())


def test_payload_buffer_is_the_readers_own(run, connected):
    async def main():
        async with connected() as (server, client):
            await client.send_frame(frame(b"a", b"one"))
            _, first = await server.recv_frame(3)
            await client.send_frame(frame(b"b", b"two"))
            _, second = await server.recv_frame(3)
            first[:] = b"xxx"
            assert (bytes(first), bytes(second)) == (b"xxx", b"two")

    run(main())


def test_oversized_payload_is_refused_before_it_is_allocated(run, connected, monkeypatch):
    monkeypatch.setattr(transport.np, "empty", lambda *a: pytest.fail("allocated"))

    async def main():
        async with connected() as (server, client):
            raw(client, PREFIX.pack(1, 1 << 62) + b"h")
            with pytest.raises(FrameTooLarge, match=f"announced {1 << 62} bytes where this step allows 100"):
                await server.recv_frame(100)
            with pytest.raises(FrameTooLarge):
                await server.send_frame(frame(b"x"))
            with pytest.raises(PeerClosed):
                await client.recv_frame(0)

    run(main())


def test_limit_counts_also_for_a_frame_that_came_before_its_reader(run, connected):
    async def main():
        async with connected() as (server, client):
            await client.send_frame(frame(b"h", b"x" * 101))
            await until(lambda: server.frame_waiting)
            with pytest.raises(FrameTooLarge):
                await server.recv_frame(100)

    run(main())


def test_unread_frame_is_not_taken_in(run, connected):
    async def main():
        async with connected() as (server, client):
            data = os.urandom(40_000_000)
            task = asyncio.create_task(client.send_frame(frame(b"h", data)))
            await asyncio.sleep(0.3)
            assert not task.done()  # TCP holds the sender back
            assert server._incoming.pending <= transport.CIPHERTEXT_HELD + transport.SOCKET_READ
            assert bytes((await server.recv_frame(len(data)))[1]) == data
            await task

    run(main())


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (PREFIX.pack(MAX_HEADER + 1, 0), FrameTooLarge),
        (PREFIX.pack(0xFFFFFFFF, 0), FrameTooLarge),
        (PREFIX.pack(0, 1), ProtocolViolation),
        (b"\xff" * 64, FrameTooLarge),
    ],
)
def test_garbage_drops_the_connection(run, connected, data, error):
    async def main():
        async with connected() as (server, client):
            raw(client, data)
            with pytest.raises(error):
                await server.recv_frame(1000)
            assert isinstance(server.failure, error)

    run(main())


@pytest.mark.parametrize("cut", [3, PREFIX.size, PREFIX.size + 2, PREFIX.size + 5 + 50])
@pytest.mark.parametrize("gracefully", [True, False])
def test_truncated_frame(run, connected, cut, gracefully):
    whole = PREFIX.pack(5, 100) + b"hello" + bytes(100)

    async def main():
        async with connected() as (server, client):
            await client.send_frame(frame(b"good", b"bytes"))
            raw(client, whole[:cut])
            await asyncio.sleep(0.02)
            if gracefully:
                closing = asyncio.create_task(client.close())
            else:
                client._transport.close()
            assert bytes((await server.recv_frame(100))[1]) == b"bytes"
            with pytest.raises(PeerClosed, match="in the middle of a frame"):
                await server.recv_frame(100)
            if gracefully:
                await closing

    run(main())


@pytest.mark.parametrize(
    "record",
    [
        b"\x17\x03\x03\x00\x20" + os.urandom(32),
        b"\x17\x07\x07\x00\x20" + os.urandom(32),  # in a handshake: no TLS
        b"\x15\x03\x03\x00\x02\x02\x46",  # an alert in the clear: protocol version
        os.urandom(64),
    ],
)
def test_records_forged_on_the_way_are_noticed(run, connected, record):
    """A broken link, whatever it looks like: the other end has shown that it speaks TLS."""

    async def main():
        async with connected() as (server, client):
            client._transport.write(record)
            with pytest.raises(LinkError, match="TLS broke"):
                await server.recv_frame(100)

    run(main())


def test_silent_peer_while_waiting_and_in_the_middle_of_a_frame(run, connected):
    async def main():
        for start in (b"", PREFIX.pack(5, 100) + b"hello" + b"x" * 10):
            async with connected(server_timeouts=QUICK, client_timeouts=MUTE) as (server, client):
                if start:
                    raw(client, start)
                with pytest.raises(PeerSilent, match=r"silent for 0\.3 seconds"):
                    await server.recv_frame(100)

    run(main())


def test_keepalives_tell_a_busy_peer_from_a_silent_one(run, connected):
    async def main():
        async with connected(QUICK, QUICK) as (server, client):
            waiting = asyncio.create_task(server.recv_frame(10))
            await asyncio.sleep(1.0)
            assert not waiting.done()
            await client.send_frame(frame(b"late", b"answer"))
            assert (await waiting)[0] == b"late"
            assert server.bytes_received == PREFIX.size + 10  # keepalives are not counted

    run(main())


@pytest.mark.parametrize("begun", [b"", PREFIX.pack(1, 1000) + b"h" + bytes(10)])
def test_patience_with_a_peer_that_is_there_and_sends_no_message(run, connected, begun):
    """Keepalives, or a byte now and then, do not lengthen it."""

    async def main():
        async with connected(server_timeouts=QUICK, client_timeouts=QUICK) as (server, client):
            raw(client, begun or transport.KEEPALIVE)

            async def dribble():
                while server.failure is None:
                    raw(client, b"x" if begun else transport.KEEPALIVE)
                    await asyncio.sleep(0.1)

            task = asyncio.create_task(dribble())
            with pytest.raises(PeerSilent, match="is there, but sent no whole message"):
                await server.recv_frame(1000, patience=0.6)
            task.cancel()

    run(main())


def test_a_slow_link_is_given_its_time(run, connected):
    async def main():
        async with connected(server_timeouts=QUICK, client_timeouts=QUICK) as (server, client):
            raw(client, PREFIX.pack(1, 4000) + b"h")

            async def slowly():
                for _ in range(10):
                    raw(client, bytes(400))
                    await asyncio.sleep(0.1)

            task = asyncio.create_task(slowly())
            assert len((await server.recv_frame(4000, patience=0.3))[1]) == 4000
            await task

    run(main())


def test_a_flood_of_keepalives(run, connected):
    async def main():
        async with connected() as (server, client):
            raw(client, transport.KEEPALIVE * 100_000)
            with pytest.raises(ProtocolViolation, match="flood"):
                await server.recv_frame(0)

    run(main())


def test_our_own_sleep_is_not_the_peers_silence(run, connected):
    """Timers run before sockets are read, so a loop that was held up sees the clock first."""

    async def main():
        async with connected(QUICK, QUICK) as (server, client):
            waiting = asyncio.create_task(server.recv_frame(10))
            for _ in range(3):
                await asyncio.sleep(0.1)
                time.sleep(0.5)
            await asyncio.sleep(0.1)
            assert not waiting.done()
            await client.send_frame(frame(b"late"))
            assert (await waiting)[0] == b"late"

    run(main())


def test_silence_counts_only_while_somebody_waits(run, connected):
    async def main():
        async with connected(QUICK, MUTE) as (server, client):
            await asyncio.sleep(0.6)
            assert server.failure is None
            await client.send_frame(frame(b"h"))
            await server.recv_frame(0)

    run(main())


def test_peer_that_takes_nothing(run, connected):
    async def main():
        async with connected(QUICK, MUTE) as (server, client):
            client._transport.pause_reading()
            client._reading_paused = False
            with pytest.raises(PeerSilent, match="has taken nothing"):
                await server.send_frame(frame(b"h", bytes(50_000_000)))

    run(main())


def test_cancelled_read_goes_on_where_it_was(run, connected):
    async def main():
        async with connected() as (server, client):
            data = os.urandom(1000)
            raw(client, PREFIX.pack(1, 1000) + b"h" + data[:400])
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(server.recv_frame(1000), 0.03)
            raw(client, data[400:])
            assert bytes((await server.recv_frame(1000))[1]) == data

    run(main())


def test_cancelled_write_drops_the_connection_only_if_it_had_begun(run, connected):
    async def main():
        async with connected() as (server, client):
            big = asyncio.create_task(client.send_frame(frame(b"big", bytes(40_000_000))))
            await asyncio.sleep(0.05)
            queued = asyncio.create_task(client.send_frame(frame(b"next")))
            await asyncio.sleep(0)
            queued.cancel()
            await asyncio.gather(queued, return_exceptions=True)
            assert client.failure is None
            big.cancel()
            await asyncio.gather(big, return_exceptions=True)
            assert "middle of a frame" in str(client.failure)
            with pytest.raises(PeerClosed):
                await server.recv_frame(40_000_000)

    run(main())


def test_writers_take_turns(run, connected):
    async def main():
        async with connected() as (server, client):
            tasks = [
                asyncio.create_task(client.send_frame(frame(bytes([65 + i]), bytes([i]) * 400_000))) for i in range(8)
            ]
            for _ in range(8):
                header, payload = await server.recv_frame(400_000)
                assert bytes(payload) == bytes([header[0] - 65]) * 400_000
            await asyncio.gather(*tasks)

    run(main())


def test_close_lets_everything_arrive(run, connected):
    async def main():
        async with connected() as (server, client):
            data = os.urandom(5_000_000)

            async def say_and_leave():
                await server.send_frame(frame(b"nobody reads this"))
                await client.send_frame(frame(b"last", data))
                await client.close()

            task = asyncio.create_task(say_and_leave())
            await asyncio.sleep(0.05)
            assert bytes((await server.recv_frame(len(data)))[1]) == data
            with pytest.raises(PeerClosed, match=r"closed the connection$"):
                await server.recv_frame(0)
            await task

    run(main())


def test_use_after_close_and_two_readers(run, connected):
    async def main():
        async with connected() as (server, client):
            first = asyncio.create_task(server.recv_frame(0))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="one reader"):
                await server.recv_frame(0)
            with pytest.raises(ValueError, match="header"):
                await client.send_frame(frame(b""))
            await client.close()
            with pytest.raises(LinkError, match="closed on this side"):
                await client.send_frame(frame(b"x"))
            with pytest.raises(PeerClosed):
                await first

    run(main())
