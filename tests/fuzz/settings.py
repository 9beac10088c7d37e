"""mpcd.toml and policy.toml: an operator's mistakes, or a tool's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from hypothesis import strategies as st

from mpcd.daemon.config import Config
from mpcd.daemon.errors import ConfigError
from mpcd.daemon.sessions import policy
from tests.fuzz.harness import Target
from tests.fuzz.recipes import ODD

CONFIG = """\
name = "vendor"
advertise = "vendor.example:7443"
[listen]
host = "0.0.0.0"
port = 7443
[limits]
threads = 1
memory_gib = 4.0
[offline]
extension = "auto"
[online]
in_flight = 2
[timeouts]
keepalive = 5.0
silence = 20.0
"""
POLICY = """\
[[allow]]
peer = "hospital"
model = "*"
reveal = ["scores"]
max_images = 100
budget = 1000
per = "30d"
[offline]
max_units = 3
peers = ["hospital"]
"""


class Settings(Target):
    def __init__(self, folder: Path) -> None:
        self._files = (folder / "mpcd.toml", folder / "policy.toml")

    def seeds(self) -> Sequence[bytes]:
        return [b"\0" + CONFIG.encode(), b"\1" + POLICY.encode(), b"\0a = " + b"[" * 3000, b"\1a = " + b"[" * 3000]

    def structured(self) -> st.SearchStrategy[bytes]:
        def change(which: int, number: int) -> bytes:
            rng = random.Random(number)
            lines = (CONFIG, POLICY)[which].splitlines()
            for _ in range(rng.choice((1, 1, 2, 5))):
                at = rng.randrange(len(lines))
                key, equals, _ = lines[at].partition("=")
                lines[at] = f"{key}= {rng.choice(ODD)}" if equals and rng.random() < 0.8 else rng.choice(lines)
            return bytes([which]) + "\n".join(lines).encode()

        return st.builds(change, st.integers(0, 1), st.integers(0, 1 << 62))

    def one(self, data: bytes) -> None:
        if not data:
            return
        which = data[0] % 2
        self._files[which].write_bytes(data[1:])
        try:
            (Config, policy)[which].load(self._files[which])  # type: ignore[attr-defined]
        except ConfigError as error:
            assert str(self._files[which]) in str(error), "the error does not name the file"


def make(folder: Path) -> Target:
    return Settings(folder)
