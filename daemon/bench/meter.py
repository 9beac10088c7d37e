"""What a protocol does while it runs: the time of every kernel, of waiting for the peer, and the flows.

A kernel's CPU time is its thread's. What a process takes beyond its kernels is TLS, the event loop and the protocol's
own steps.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Coroutine
from typing import Any

from mpcd.protocol.channel import Compute, Recv, Send


@dataclasses.dataclass
class Cost:
    """Of one kernel or one kind of step."""

    calls: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def add(self, seconds: float, cpu_seconds: float) -> None:
        self.calls += 1
        self.seconds += seconds
        self.cpu_seconds += cpu_seconds


@dataclasses.dataclass
class Meter:
    """Sums over all protocols of this process. ``waiting``: for the peer's messages; ``sending``: for a full outbox."""

    kernels: dict[str, Cost] = dataclasses.field(default_factory=dict)
    steps: dict[str, Cost] = dataclasses.field(default_factory=dict)
    waiting: float = 0.0
    sending: float = 0.0
    flows: int = 0

    def kernel(self, name: str) -> Cost:
        return self.kernels.setdefault(name, Cost())

    def step(self, name: str) -> Cost:
        return self.steps.setdefault(name, Cost())


class Metered(Coroutine[Any, Any, Any]):
    """A protocol's coroutine that tells ``meter`` what it does. A flow: a run of messages one way, as seen here."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], meter: Meter) -> None:
        self._coroutine = coroutine
        self._meter = meter
        self._effect: Any = None
        self._since = 0.0
        self._direction: type | None = None

    def send(self, value: Any) -> Any:
        self._answered()
        return self._asked(self._coroutine.send(value))

    def throw(self, *error: Any) -> Any:
        self._answered()
        return self._asked(self._coroutine.throw(*error))

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Any:
        raise TypeError("a driver performs a protocol's effects")

    def _answered(self) -> None:
        taken = time.perf_counter() - self._since
        if isinstance(self._effect, Recv):
            self._meter.waiting += taken
        elif isinstance(self._effect, Send):
            self._meter.sending += taken

    def _asked(self, effect: Any) -> Any:
        if isinstance(effect, (Send, Recv)):
            if self._direction is not type(effect):
                self._meter.flows += 1
            self._direction = type(effect)
        self._effect = effect
        self._since = time.perf_counter()
        return Compute(_timed, (self._meter, effect.function, effect.args)) if isinstance(effect, Compute) else effect


def _timed(meter: Meter, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    wall, cpu = time.perf_counter(), time.thread_time()
    try:
        return function(*args)
    finally:
        meter.kernel(_name(function)).add(time.perf_counter() - wall, time.thread_time() - cpu)


def _name(function: Callable[..., Any]) -> str:
    """module.function, without packages; of a method module.Class.method."""
    module = str(getattr(function, "__module__", "") or "").rpartition(".")[2]
    bare = getattr(function, "py_func", function)  # a compiled kernel's qualified name carries its build
    name = bare.__name__ if bare is not function else getattr(function, "__qualname__", type(function).__name__)
    return f"{module}.{name}"
