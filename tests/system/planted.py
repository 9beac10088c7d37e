"""Secrets that can be looked for: unusual ones, in every form in which a program may let them out."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

Secret = str | bytes


def forms(secret: Secret) -> dict[str, bytes]:
    """The bytes to look for, by the name of the form."""
    raw = secret.encode() if isinstance(secret, str) else secret
    found = {
        "raw": raw,
        "hex": raw.hex().encode(),
        "HEX": raw.hex().upper().encode(),
        "decimal": ",".join(map(str, raw)).encode(),
        "decimal, spaced": ", ".join(map(str, raw)).encode(),
        "repr": repr(raw)[2:-1].encode(),
    }
    for name, encode in (("base64", base64.b64encode), ("url base64", base64.urlsafe_b64encode)):
        for shift in range(3):  # wherever it begins in what was encoded; its ends are mixed with what is beside it
            text = encode(bytes(shift) + raw).rstrip(b"=")
            found[f"{name} {shift}"] = text[(0, 2, 3)[shift] : -1 - (len(raw) + shift) % 3]
    if isinstance(secret, str):
        found["UTF-16LE"], found["UTF-16BE"] = secret.encode("utf-16le"), secret.encode("utf-16be")
        found["JSON"] = json.dumps(secret)[1:-1].encode()
    return {name: form for name, form in found.items() if len(form) >= 6}


def search(secrets: Mapping[str, Secret], places: Mapping[str, bytes]) -> list[str]:
    """``SECRET in PLACE as FORM`` of everything that is found."""
    return [
        f"{name} in {place} as {form}"
        for name, secret in secrets.items()
        for form, wanted in forms(secret).items()
        for place, data in places.items()
        if wanted in data
    ]


def files(folder: Path) -> dict[str, bytes]:
    """Everything below it, names included."""
    found = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    return {**found, "the names of files": "\n".join(found).encode()}


def windows(data: bytes, size: int = 32, most: int = 4) -> dict[str, bytes]:
    """Pieces of bulk data, from all over it; of zeros or a pattern none."""
    found = {}
    for number in range(most):
        start = (len(data) - size) * (number + 1) // (most + 1)
        piece = data[start : start + size]
        if len(set(piece)) > size // 3:
            found[f"bytes {start} to {start + size}"] = piece
    return found


def integers(values: Iterable[int]) -> dict[str, Secret]:
    """A few numbers in a row, as text and as the arrays that hold such."""
    row = [int(v) for v in values]
    found: dict[str, Secret] = {
        "as text": ", ".join(map(str, row)),
        "as dense text": ",".join(map(str, row)),
        "as lines": "\n".join(map(str, row)),
    }
    for width in (2, 4, 8):
        if all(-(1 << 8 * width - 1) <= v < 1 << 8 * width - 1 for v in row):
            found[f"as int{8 * width}"] = b"".join(v.to_bytes(width, "little", signed=True) for v in row)
    return found


class Recorder:
    """A relay on loopback that keeps what goes through, both ways together."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.heard = bytearray()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                if self._listener.fileno() < 0:
                    return
                near.close()
                continue
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                self.heard += data
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                end.close()
