"""The log: structlog to stderr, for people on a terminal and as JSON for the journal.

What a log must not hold does not get there: bytes and arrays appear as their size, and values under the names below
are left out, whoever passes them. A line that repeats itself is written ``BURST`` times in a ``WINDOW``; then one line
says how often it was left out. The last lines are also kept in memory, for the bundle that goes to support.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from typing import Any, TextIO

import structlog

from mpcd.daemon.errors import for_log

SECRET = (
    "secret", "private", "password", "seed", "share", "weight", "threshold", "mask", "pad", "label", "score", "pixel",
    "image_data", "invite",
)  # fmt: skip
_MAX_TEXT = 2000

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
FORMATS = ("auto", "json", "console")
BURST = 10
WINDOW = 60.0  # seconds
KEPT = 1000  # lines in memory
_MOST_KINDS = 500  # kinds of line watched for repeats at a time

Event = MutableMapping[str, Any]
Listener = Callable[[Event], None]


def censor(_logger: Any, _method: str, event: Event) -> Event:
    """Structlog processor that keeps secrets and bulk out."""
    for key, value in event.items():
        if key in ("exc_info", "exception", "stack_info"):
            continue
        if any(word in key.lower() for word in SECRET) and not isinstance(value, (bool, int)):
            event[key] = "<not logged>"
        else:
            event[key] = _harmless(value)
    return event


def _harmless(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{len(value)} bytes>"
    if hasattr(value, "__array_interface__"):
        return f"<array {getattr(value, 'shape', '')}>"
    if isinstance(value, dict):
        return censor(None, "", {str(key): item for key, item in value.items()})
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_harmless(item) for item in value]
    if isinstance(value, str) and len(value) > _MAX_TEXT:
        return value[:_MAX_TEXT] + "..."
    if isinstance(value, BaseException):
        return for_log(value)
    return value


class Repeats:
    """Structlog processor that leaves out lines which say the same again and again. Numbers do not make them differ."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[Any, ...], tuple[float, int]] = {}  # when its window began, lines since

    def __call__(self, _logger: Any, _method: str, event: Event) -> Event:
        texts = sorted((key, value) for key, value in event.items() if isinstance(value, str) and key != "timestamp")
        kind, now = tuple(texts), self._clock()
        with self._lock:
            since, count = self._seen.get(kind, (now, 0))
            if now - since >= WINDOW:
                if count > BURST:
                    event["left_out_before"] = count - BURST
                since, count = now, 0
            if kind in self._seen or len(self._seen) < _MOST_KINDS:
                self._seen[kind] = since, count + 1
        if count >= BURST:
            raise structlog.DropEvent
        return event

    def ended(self) -> list[tuple[str, int]]:
        """(event, lines left out) of the windows that are over; they are forgotten."""
        now = self._clock()
        with self._lock:
            over = {kind: count for kind, (since, count) in self._seen.items() if now - since >= WINDOW}
            for kind in over:
                del self._seen[kind]
        return [(dict(kind).get("event", ""), count - BURST) for kind, count in over.items() if count > BURST]


_repeats = Repeats()
_kept: collections.deque[str] = collections.deque(maxlen=KEPT)
_listeners: list[Listener] = []


def _keep(_logger: Any, _method: str, event: Event) -> Event:
    _kept.append(json.dumps(event, default=str))
    return event


def _tell(_logger: Any, _method: str, event: Event) -> Event:
    for listener in _listeners:
        listener(event)
    return event


class _Forgiving:
    """A file whose full disk, or reader that is gone, is nobody's error: there is no other place to tell it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._file.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()


def configure(as_json: bool | None = None, level: str = "info") -> None:
    """Call at the start, and again when settings change. ``as_json`` None: JSON unless stderr is a terminal."""
    if as_json is None:
        as_json = not sys.stderr.isatty()
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        censor,
        structlog.processors.add_log_level,
        _tell,
        _repeats,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # A traceback as text, without the local variables, where the secrets are.
    traceback = structlog.processors.format_exc_info
    if as_json:
        processors += [traceback, _keep, structlog.processors.JSONRenderer(default=str)]
    else:
        # A copy for the memory: on the terminal, the traceback is the renderer's.
        processors += [
            lambda logger, method, event: (_keep(logger, method, traceback(logger, method, dict(event))), event)[1],
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(_Forgiving(sys.stderr)),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )


def get(name: str) -> Any:
    """The logger of one part of the daemon. It is configured at each call, so modules may ask for it early."""
    return structlog.get_logger(part=name)


def listen(listener: Listener) -> Callable[[], None]:
    """Call ``listener`` with every event, also those that repeat themselves; returns what ends that."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def tell_left_out() -> None:
    """A line for each kind of line that was left out; to be called now and then."""
    for event, count in _repeats.ended():
        get("log").info("lines left out", like=event, lines=count)


def last_lines() -> list[str]:
    """The newest lines as JSON, oldest first."""
    return list(_kept)
