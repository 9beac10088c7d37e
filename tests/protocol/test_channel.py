import numpy as np
import numpy.typing as npt
import pytest

from mpcd.protocol import lockstep
from mpcd.protocol.channel import DATA_OWNER, MODEL_OWNER, Channel, Compute, Recv, Send
from mpcd.protocol.randomness import Prg
from mpcd.protocol.wire import WireError, array, message


@message("test-channel-a")
class A:
    values: npt.NDArray[np.uint32] = array("uint32", 1)


@message("test-channel-b")
class B:
    values: npt.NDArray[np.uint32] = array("uint32", 1)


ONE = np.ones(1, np.uint32)


@pytest.mark.parametrize(("party", "session"), [(2, bytes(16)), (-1, bytes(16)), (0, b""), (1, bytes(17))])
def test_party_and_session_are_checked(party, session):
    with pytest.raises(ValueError, match="party 0 or 1 and a 16-byte session"):
        Channel(party, session)


def test_public_values_are_shared_as_themselves_and_zero():
    assert Channel(MODEL_OWNER, bytes(16)).public(5) == 5
    assert Channel(DATA_OWNER, bytes(16)).public(5) == 0


def test_effects_as_a_driver_sees_them():
    async def protocol(channel):
        await channel.send(A(ONE))
        total = await channel.compute(sum, (1, 2))
        got = await channel.recv(B, values=(7,))
        return total, got

    coroutine = protocol(Channel(0, bytes(16)))
    sent = coroutine.send(None)
    assert isinstance(sent, Send)
    assert sent.frame.payload_size == 4
    assert coroutine.send(None) == Compute(sum, ((1, 2),))
    assert coroutine.send(3) == Recv(28)
    coroutine.close()


def test_messages_are_numbered_so_none_can_be_left_out_repeated_or_swapped():
    channel = Channel(0, bytes(16))

    def next_frame():
        return channel.send(A(ONE)).send(None).frame

    frames = [next_frame() for _ in range(3)]
    for order in ([1], [0, 0], [0, 2]):
        receiver = Channel(1, bytes(16))

        async def read(receiver=receiver, order=order):
            for _ in order:
                await receiver.recv(A, values=(1,))

        coroutine = read()
        coroutine.send(None)

        def feed(coroutine=coroutine, order=order):
            for i in order:
                coroutine.send((frames[i].header, b"".join(frames[i].payload)))

        with pytest.raises(WireError, match="expected message number"):
            feed()


def test_another_kind_than_expected_is_refused():
    async def sends(channel):
        await channel.send(B(ONE))

    async def receives(channel):
        await channel.recv(A, values=(1,))

    with pytest.raises(WireError, match="expected a test-channel-a message"):
        lockstep.run(sends(Channel(0, bytes(16))), receives(Channel(1, bytes(16))))


def test_randomness_is_fresh_unless_given():
    one, two = Channel(0, bytes(16)), Channel(0, bytes(16))
    assert one.prg.octets(16) != two.prg.octets(16)
    replayed = Channel(0, bytes(16), Prg(bytes(16)))
    assert replayed.prg.octets(16) == Prg(bytes(16)).octets(16)
