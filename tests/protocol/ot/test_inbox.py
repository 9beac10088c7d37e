"""Messages sent ahead: kept in their order, opened in any."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpcd.protocol import lockstep
from mpcd.protocol.channel import Channel
from mpcd.protocol.ot.inbox import Inbox
from mpcd.protocol.wire import WireError, array, message

SESSION = bytes(16)


@message("test-inbox")
class Note:
    words: Any = array("uint64", 1)


@message("test-inbox-other")
class Other:
    words: Any = array("uint64", 1)


async def send(channel: Channel) -> None:
    for i, cls in enumerate((Note, Other, Note)):
        await channel.send(cls(np.full(i + 1, i, np.uint64)))


async def read(channel: Channel, order: tuple[int, ...]) -> list[int]:
    inbox = Inbox()
    expected: list[Any] = [inbox.expect(cls, words=(i + 1,)) for i, cls in enumerate((Note, Other, Note))]
    seen = [int((await inbox.open(channel, expected[i])).words[0]) for i in order]
    await inbox.drain(channel)
    await inbox.drain(channel)
    assert all(e.message is not None for e in expected)
    return seen


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 1, 0), (), (0,)], ids=str)
def test_any_order(order: tuple[int, ...]) -> None:
    assert lockstep.run(read(Channel(0, SESSION), order), send(Channel(1, SESSION))).results[0] == list(order)


def test_another_message_is_refused() -> None:
    async def wrong(channel: Channel) -> None:
        inbox = Inbox()
        inbox.expect(Other, words=(1,))
        await inbox.drain(channel)

    with pytest.raises(WireError):
        lockstep.run(wrong(Channel(0, SESSION)), send(Channel(1, SESSION)))
