"""What a paired peer can call at a real daemon with a model, and what a client can ask of its control API."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from mpcd.daemon import log
from mpcd.daemon.control.jobs import Job
from mpcd.daemon.control.server import Params
from mpcd.daemon.errors import InternalError, MpcdError
from mpcd.daemon.network.identity import Identity
from mpcd.daemon.service import Daemon
from tests.daemon import two_daemons
from tests.daemon.two_daemons import HOSPITAL, MODEL, VENDOR
from tests.fuzz.harness import Target

KEYS = (
    "name", "model", "network", "ready", "job", "error", "data", "units", "extension", "session", "request", "images",
    "estimate_only", "states", "terms", "software", "image", "unit", "beside", "in_flight", "model_commitment",
    "network_digest", "peer", "dataset", "reveal", "id", "reason", "path", "clear", "invite", "address", "limit",
    "announcement",
)  # fmt: skip
# These start a process, a task that goes on, or end the daemon.
HEAVY = ("model.add", "model.evaluate", "dataset.add", "offline.make", "session.watch", "doctor", "support")


class Handlers(Target):
    def __init__(self, folder: Path) -> None:
        log.configure(as_json=True)
        self._loop = asyncio.new_event_loop()
        two_daemons.install(folder)
        self._vendor = Daemon(two_daemons.paths(folder, VENDOR), two_daemons.config(VENDOR))
        self._loop.run_until_complete(self._vendor.start(warm=False))
        (folder / "theirs").mkdir()
        theirs = Identity.load_or_create(folder / "theirs", HOSPITAL)
        context = self._vendor.context
        context.peers.add(theirs.invite(HOSPITAL))
        model = context.library.model(MODEL)
        self._known = {
            "model": MODEL, "name": MODEL, "model_commitment": model.commitment, "network_digest": model.network.digest,
        }  # fmt: skip
        self._calls: dict[str, Any] = dict(self._vendor.net._handlers)
        self._methods = {n: m for n, m in self._vendor.api.methods.items() if not n.startswith(HEAVY)}

    def seeds(self) -> Sequence[bytes]:
        return [number.to_bytes(8, "little") for number in range(64)]

    def one(self, data: bytes) -> None:
        rng = random.Random(data)
        params = {rng.choice(KEYS): self._value(rng) for _ in range(rng.randrange(7))}
        if rng.random() < 0.5:
            params |= {key: value for key, value in self._known.items() if rng.random() < 0.8}
        self._loop.run_until_complete(self._one(rng, params))

    async def _one(self, rng: random.Random, params: dict[str, Any]) -> None:
        if rng.random() < 0.6:
            name = rng.choice(sorted(self._calls))
            asked = self._calls[name](HOSPITAL, params)
        else:
            name = rng.choice(sorted(self._methods))
            asked = self._methods[name](Params(params), Job())
        try:
            async with asyncio.timeout(5):
                answer = await asked
        except InternalError as error:
            raise AssertionError(f"{name}: {params}") from error
        except MpcdError as error:
            assert str(error)
        except Exception as error:
            raise AssertionError(f"{name}: {params}") from error
        else:
            assert isinstance(answer, dict)

    def _value(self, rng: random.Random, depth: int = 0) -> Any:
        plain: list[Any] = [
            None, True, False, 0, 1, 3, -1, 1 << 63, 2**64 - 1, 0.5, float("nan"), "", MODEL, VENDOR, HOSPITAL,
            "../../etc/passwd", "/etc/passwd", "/nonexistent", "\x1b[2J", "0" * 32, "a" * 64, "softspoken4", "scores",
            b"", bytes(16), rng.randbytes(16), bytes(5000), [], {},
        ]  # fmt: skip
        kind = rng.randrange(4) if depth < 2 else 0
        if kind < 2:
            return rng.choice(plain)
        if kind == 2:
            return [self._value(rng, depth + 1) for _ in range(rng.randrange(4))]
        return {rng.choice(KEYS): self._value(rng, depth + 1) for _ in range(rng.randrange(4))}

    def structured(self) -> st.SearchStrategy[bytes]:
        return st.integers(0, (1 << 64) - 1).map(lambda number: number.to_bytes(8, "little"))

    def close(self) -> None:
        self._loop.run_until_complete(self._vendor.stop())
        self._loop.close()


def make(folder: Path) -> Target:
    return Handlers(folder)
