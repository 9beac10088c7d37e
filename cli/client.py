"""The daemon's control API from the caller's side: one request on the unix socket, progress, then a result.

Wire: each message is a little-endian uint32 length and that many bytes of msgpack (docs/control-api.md).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

MAX_MESSAGE = 64 * 1024 * 1024
SYSTEM_SOCKET = Path("/run/mpcd/control.sock")

Progress = Callable[[dict[str, Any]], None]


class ControlError(Exception):
    """The daemon's answer was an error, or there is no daemon: message, the way out, code, exit status."""

    def __init__(self, code: str, message: str, hint: str, exit_status: int) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.exit_status = exit_status

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "hint": self.hint, "exit_status": self.exit_status}


def socket_path(given: str | None) -> Path:
    """``--socket``, else where the daemon of this environment has it (daemon/config.py), else the system service's."""
    if given:
        return Path(given)
    env = os.environ.get
    if runtime := env("MPCD_RUNTIME"):
        return Path(runtime) / "control.sock"
    if state := env("MPCD_STATE"):
        return Path(state) / "run" / "control.sock"
    if _is_there(SYSTEM_SOCKET):
        return SYSTEM_SOCKET
    if runtime := env("XDG_RUNTIME_DIR"):
        return Path(runtime) / "mpcd" / "control.sock"
    return Path(env("XDG_STATE_HOME") or Path.home() / ".local/state") / "mpcd" / "run" / "control.sock"


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # in a folder that another user may not enter
        return True


def call(path: Path, method: str, params: dict[str, Any], progress: Progress) -> Any:
    """The result of ``method``. Raises ControlError; ``progress`` gets every progress record on the way."""
    with _connect(path) as connection:
        _write(connection, {"id": 1, "method": method, "params": params})
        while True:
            answer = _read(connection)
            if "progress" in answer:
                progress(answer["progress"])
            elif "error" in answer:
                error = answer["error"]
                raise ControlError(
                    error["code"], error["message"], error.get("hint", ""), int(error.get("exit_status", 1))
                )
            else:
                return answer["result"]


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(os.fspath(path))
    except OSError as error:
        connection.close()
        if isinstance(error, PermissionError):
            hint = "run mpcctl as the user the daemon runs as: sudo -u mpcd mpcctl ..."
        else:
            hint = "start it (systemctl start mpcd, or run mpcd), or name its socket with --socket"
        raise ControlError("no_daemon", f"no daemon answers at {path} ({error.strerror})", hint, 3) from None
    return connection


def _write(connection: socket.socket, message: dict[str, Any]) -> None:
    body = msgpack.packb(message)
    connection.sendall(struct.pack("<I", len(body)) + body)


def _read(connection: socket.socket) -> dict[str, Any]:
    (size,) = struct.unpack("<I", _exactly(connection, 4))
    if size > MAX_MESSAGE:
        raise ControlError("control", f"the daemon announced an answer of {size} bytes", "is this mpcd's socket?", 1)
    answer: dict[str, Any] = msgpack.unpackb(_exactly(connection, size))
    return answer


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise ControlError("no_daemon", "the daemon went away before it answered", "see its log", 3)
        parts += part
    return bytes(parts)
