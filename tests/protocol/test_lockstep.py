import hashlib

import numpy as np
import numpy.typing as npt
import pytest

from mpcd.protocol import lockstep
from mpcd.protocol.channel import Channel
from mpcd.protocol.lockstep import Deadlock
from mpcd.protocol.wire import WireError, array, message

SESSION = bytes(16)


@message("test-lockstep")
class Values:
    values: npt.NDArray[np.uint64] = array("uint64", 1)


def ones(n):
    return Values(np.ones(n, np.uint64))


async def sends(channel, *sizes):
    for n in sizes:
        await channel.send(ones(n))


async def receives(channel, *sizes):
    return [int((await channel.recv(Values, values=(n,))).values.sum()) for n in sizes]


def pair():
    return Channel(0, SESSION), Channel(1, SESSION)


def test_results_bytes_messages_and_digests_of_each_direction():
    zero, one = pair()
    run = lockstep.run(sends(zero, 3, 0, 5), receives(one, 3, 0, 5))
    assert run.results == (None, [3, 0, 5])
    first, second = run.traffic
    assert (first.payload_bytes, first.messages) == (64, 3)
    assert (second.payload_bytes, second.messages, second.header_bytes) == (0, 0, 0)
    assert second.digest.digest() == hashlib.sha256().digest()
    assert first.digest.digest() != second.digest.digest()


def test_flows_are_runs_of_messages_in_one_direction():
    async def ping_pong(channel):
        for _ in range(3):
            if channel.party == 0:
                await sends(channel, 1, 1)
                await receives(channel, 1)
            else:
                await receives(channel, 1, 1)
                await sends(channel, 1)

    assert lockstep.run(*map(ping_pong, pair())).flows == 6
    zero, one = pair()
    assert lockstep.run(sends(zero, 1, 1, 1), receives(one, 1, 1, 1)).flows == 1


def test_symmetric_steps():
    async def exchange(channel):
        got = await channel.exchange(ones(4), values=(4,))
        return int(got.values.sum())

    run = lockstep.run(*map(exchange, pair()))
    assert run.results == (4, 4)
    assert run.flows == 2


def test_both_waiting_is_a_deadlock():
    zero, one = pair()
    with pytest.raises(Deadlock, match="P0 waits, P1 waits"):
        lockstep.run(receives(zero, 1), receives(one, 1))


def test_waiting_for_one_that_is_done_is_a_deadlock():
    zero, one = pair()
    with pytest.raises(Deadlock, match="P0 done, P1 waits"):
        lockstep.run(sends(zero, 1), receives(one, 1, 1))


def test_a_frame_nobody_reads_is_an_error():
    zero, one = pair()
    with pytest.raises(RuntimeError, match="nobody read"):
        lockstep.run(sends(zero, 1, 1), receives(one, 1))


def test_more_than_announced_is_refused():
    zero, one = pair()
    with pytest.raises(WireError, match="payload of 16 bytes, at most 8 expected"):
        lockstep.run(sends(zero, 2), receives(one, 1))


def test_errors_of_a_party_come_out_and_both_are_closed():
    closed = []

    async def fails(channel):
        await channel.compute(divmod, 1, 0)

    async def waits(channel):
        try:
            await receives(channel, 1)
        finally:
            closed.append(True)

    zero, one = pair()
    with pytest.raises(ZeroDivisionError):
        lockstep.run(waits(zero), fails(one))
    assert closed == [True]


def test_what_is_no_effect_is_refused():
    class Strange:
        def __await__(self):
            yield "strange"

    async def strange():
        await Strange()

    async def nothing():
        return None

    with pytest.raises(TypeError, match="not an effect"):
        lockstep.run(strange(), nothing())
