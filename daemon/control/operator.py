"""Who is at the other end of the control socket: the kernel says so, not the client."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from contextvars import ContextVar

_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED

uid: ContextVar[int | None] = ContextVar("operator", default=None)
"""Of the request that is being answered. Tasks that it begins inherit it."""


def uid_of(writer: asyncio.StreamWriter) -> int | None:
    """The user on the other end of a unix socket; None where the system does not tell."""
    with contextlib.suppress(OSError, AttributeError):
        given = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return int(_UCRED.unpack(given)[1])
    return None
