"""Messages that the peer sends ahead of their use.

Both directions of a party's OTs share one connection, whose messages come in the order sent. An end that wants one
which lies behind others opens those first and keeps them. For this every end says what it expects at the point where
the peer sends it: both parties must take the same steps in the same order, direction A's before direction B's.

Who reads from the channel by itself must drain first.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Generic, TypeVar

from mpcd.protocol.channel import Channel

M = TypeVar("M")


class Expected(Generic[M]):
    """A message that the peer has sent, or is about to."""

    def __init__(self, cls: type[M], shapes: dict[str, tuple[int, ...]]) -> None:
        self.cls = cls
        self.shapes = shapes
        self.message: M | None = None


class Inbox:
    def __init__(self) -> None:
        self._unread: deque[Expected[Any]] = deque()

    def expect(self, cls: type[M], **shapes: tuple[int, ...]) -> Expected[M]:
        expected = Expected(cls, shapes)
        self._unread.append(expected)
        return expected

    async def open(self, channel: Channel, expected: Expected[M]) -> M:
        """The message, once those before it have been received."""
        while expected.message is None:
            await self._receive(channel)
        return expected.message

    async def drain(self, channel: Channel) -> None:
        """Receives all that is expected."""
        while self._unread:
            await self._receive(channel)

    async def _receive(self, channel: Channel) -> None:
        first = self._unread.popleft()
        first.message = await channel.recv(first.cls, **first.shapes)
