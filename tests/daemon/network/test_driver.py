import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from mpcd.daemon.config import Timeouts
from mpcd.daemon.errors import FrameTooLarge, LinkError, PeerClosed, PeerSilent, ProtocolViolation
from mpcd.daemon.network import driver
from mpcd.daemon.network.driver import drive
from mpcd.protocol import lockstep, wire
from mpcd.protocol.channel import Channel
from mpcd.protocol.wire import array, blob, message

SESSION = bytes(range(16))


@message("test-driver-masked")
class Masked:
    values: npt.NDArray[np.uint64] = array("uint64", 1)


@message("test-driver-digest")
class Digest:
    digest: bytes = blob(16)


@message("test-driver-other")
class Other:
    values: npt.NDArray[np.uint32] = array("uint32", 1)


async def inner_product(channel: Channel, own: npt.NDArray[np.uint64], rounds: int) -> int:
    """Each side learns the inner product of two masked vectors, ``rounds`` times: symmetric, with bulk both ways."""
    total = 0
    for _ in range(rounds):
        theirs = await channel.exchange(Masked(own), values=own.shape)
        total += int(await channel.compute(np.dot, own, theirs.values))
    tag = (total % (1 << 64)).to_bytes(16, "little")
    if (await channel.exchange(Digest(tag))).digest != tag:
        raise AssertionError("the parties disagree")
    return total % (1 << 64)


def channels():
    return Channel(0, SESSION), Channel(1, SESSION)


@pytest.fixture
def executor():
    with ThreadPoolExecutor(2) as pool:
        yield pool


async def both(connected, executor, zero, one, **timeouts):
    """Drive both parties; their results or exceptions."""
    async with connected(**timeouts) as (server, client), asyncio.timeout(60):
        return await asyncio.gather(drive(zero, server, executor), drive(one, client, executor), return_exceptions=True)


@pytest.mark.parametrize(("n", "rounds"), [(0, 1), (1, 3), (1000, 50), (6_000_000, 3)])
def test_a_protocol_over_tls_gives_what_lockstep_gives(run, connected, executor, n, rounds):
    """At 48 MB a message both parties send far more than sockets hold before either reads."""
    rng = np.random.default_rng()
    x, y = (rng.integers(0, 1 << 64, n, np.uint64) for _ in range(2))

    def parties():
        zero, one = channels()
        return inner_product(zero, x, rounds), inner_product(one, y, rounds)

    expected = lockstep.run(*parties()).results
    assert tuple(run(both(connected, executor, *parties()))) == expected


def test_one_sided_bulk_is_bounded_by_the_outbox(run, connected, executor, monkeypatch):
    """A sender that outruns its peer waits; it does not pile up."""
    monkeypatch.setattr(driver, "OUTBOX", 4_000_000)
    seen = []
    chunk = np.arange(250_000, dtype=np.uint64)

    async def sender(channel, outbox):
        for _ in range(40):
            await channel.send(Masked(chunk))
            seen.append(outbox[0]._bytes)

    async def receiver(channel):
        for _ in range(40):
            await channel.compute(time.sleep, 0.005)
            got = await channel.recv(Masked, values=chunk.shape)
            assert np.array_equal(got.values, chunk)

    box = []
    original = driver._Outbox.__init__

    def remember(self, connection):
        original(self, connection)
        box.append(self)

    monkeypatch.setattr(driver._Outbox, "__init__", remember)
    zero, one = channels()
    assert run(both(connected, executor, sender(zero, box), receiver(one))) == [None, None]
    assert len(seen) == 40
    assert max(seen) <= 4_000_000 + chunk.nbytes


def test_both_sending_much_before_either_reads_does_not_hang(run, connected, executor, monkeypatch):
    monkeypatch.setattr(driver, "OUTBOX", 4_000_000)
    monkeypatch.setattr(driver, "GIVE_WAY", 0.05)
    chunk = np.arange(1_000_000, dtype=np.uint64)

    async def flood(channel):
        for _ in range(5):
            await channel.send(Masked(chunk))
        for _ in range(5):
            assert np.array_equal((await channel.recv(Masked, values=chunk.shape)).values, chunk)

    assert run(both(connected, executor, *map(flood, channels()))) == [None, None]


def test_the_loop_lives_while_a_kernel_runs_and_the_peer_waits(run, connected, executor):
    """The computation is longer than the silence allowed, and blocks its thread."""
    quick = Timeouts(keepalive=0.05, silence=0.3)
    beats = []

    async def slow(channel):
        assert await channel.compute(threading.current_thread) is not threading.main_thread()
        await channel.compute(time.sleep, 1.0)
        await channel.send(Digest(bytes(16)))

    async def waits(channel):
        return (await channel.recv(Digest)).digest

    async def main():
        async def beat():
            while True:
                beats.append(time.monotonic())
                await asyncio.sleep(0.02)

        task = asyncio.create_task(beat())
        zero, one = channels()
        result = await both(connected, executor, slow(zero), waits(one), server_timeouts=quick, client_timeouts=quick)
        task.cancel()
        return result

    assert run(main()) == [None, bytes(16)]
    assert len(beats) > 5, "some fifty on an idle machine, one or two where the kernel holds the loop"


def test_incoming_data_flows_while_a_kernel_runs(run, connected, executor):
    reading = threading.Event()

    async def reads_late(channel):
        await channel.compute(reading.wait, 20)
        return (await channel.recv(Masked, values=(1000,))).values.sum()

    async def sends(channel):
        await channel.send(Masked(np.ones(1000, np.uint64)))
        await channel.compute(reading.set)

    zero, one = channels()
    assert run(both(connected, executor, reads_late(zero), sends(one)))[0] == 1000


@pytest.mark.parametrize(
    ("sent", "match"),
    [
        (Other(np.zeros(3, np.uint32)), "expected a test-driver-masked message"),
        (Masked(np.zeros(2, np.uint64)), "should be"),
    ],
)
def test_a_message_that_does_not_fit_ends_the_run_on_both_sides(run, connected, executor, sent, match):
    async def wrong(channel):
        await channel.send(sent)
        await channel.recv(Digest)

    async def reads(channel):
        await channel.recv(Masked, values=(3,))

    zero, one = channels()
    first, second = run(both(connected, executor, wrong(zero), reads(one)))
    assert isinstance(second, ProtocolViolation)
    assert match in str(second)
    assert isinstance(first, PeerClosed)


def test_surplus_bytes_wrong_dtype_garbage_and_oversize(run, connected, executor):
    async def reads(channel):
        await channel.recv(Masked, values=(3,))

    good = wire.encode(Masked(np.zeros(3, np.uint64)), 0)
    cases = [
        (wire.Frame(good.header, (*good.payload[:0], memoryview(bytes(23)))), ProtocolViolation, "truncated"),
        (
            wire.Frame(good.header, (*good.payload, memoryview(b"x"))),
            FrameTooLarge,
            "25 bytes where this step allows 24",
        ),
        (wire.Frame(good.header.replace(b"<u8", b"<u4"), good.payload), ProtocolViolation, "should be"),
        (wire.Frame(b"\xc1garbage", good.payload), ProtocolViolation, "does not decode"),
    ]

    async def main():
        for frame, error, match in cases:
            async with connected() as (server, client):
                await client.send_frame(frame)
                with pytest.raises(error, match=match):
                    await drive(reads(channels()[0]), server, executor)
                with pytest.raises(PeerClosed):
                    await client.recv_frame(0)

    run(main())


def test_silent_peer_ends_the_run(run, connected, executor):
    async def reads(channel):
        await channel.recv(Digest)

    async def main():
        timeouts = Timeouts(keepalive=0.1, silence=0.3), Timeouts(keepalive=60, silence=120)
        async with connected(*timeouts) as (server, _client):
            with pytest.raises(PeerSilent):
                await drive(reads(channels()[0]), server, executor)

    run(main())


def test_errors_reach_the_protocol_where_they_happen(run, connected, executor):
    seen = []

    async def careful(channel):
        try:
            await channel.compute(divmod, 1, 0)
        except ZeroDivisionError:
            seen.append("compute")
        try:
            await channel.recv(Digest)
        except PeerClosed:
            seen.append("recv")
            raise
        finally:
            seen.append("finally")

    async def leaves(channel):
        return None

    async def main():
        async with connected() as (server, client):
            await drive(leaves(channels()[1]), client, executor)
            await client.close(0.1)
            with pytest.raises(PeerClosed):
                await drive(careful(channels()[0]), server, executor)

    run(main())
    assert seen == ["compute", "recv", "finally"]


def test_a_failing_protocol_drops_the_connection(run, connected, executor):
    async def fails(channel):
        raise RuntimeError("a bug")

    async def waits(channel):
        await channel.recv(Digest)

    zero, one = channels()
    first, second = run(both(connected, executor, fails(zero), waits(one)))
    assert isinstance(first, RuntimeError)
    assert isinstance(second, PeerClosed)


def test_cancelled_in_a_computation_returns_only_when_the_thread_is_done(run, connected, executor):
    events, begun = [], threading.Event()

    def kernel():
        begun.set()
        time.sleep(0.4)
        events.append("kernel done")

    async def computes(channel):
        try:
            await channel.compute(kernel)
        finally:
            events.append("closed")

    async def main():
        async with connected() as (server, client):
            task = asyncio.create_task(drive(computes(channels()[0]), server, executor))
            await asyncio.to_thread(begun.wait)
            task.cancel()
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            events.append("returned")
            assert isinstance(server.failure, LinkError)
            with pytest.raises(PeerClosed):
                await client.recv_frame(0)

    run(main())
    assert events == ["kernel done", "closed", "returned"]


@pytest.mark.parametrize("waits_in", ["recv", "send"])
def test_cancelled_while_waiting_for_the_peer(run, connected, executor, waits_in):
    async def waits(channel):
        if waits_in == "recv":
            await channel.recv(Digest)
        for _ in range(100):
            await channel.send(Masked(np.zeros(2_000_000, np.uint64)))

    async def main():
        async with connected() as (server, _client):
            before = asyncio.all_tasks()
            task = asyncio.create_task(drive(waits(channels()[0]), server, executor))
            await asyncio.sleep(0.2)
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert asyncio.all_tasks() == before

    run(main())
