"""The log: structlog to stderr, for people on a terminal and as JSON for the journal.

What a log must not hold does not get there: bytes and arrays appear as their size, and values under the names below
are left out, whoever passes them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

SECRET = (
    "secret", "private", "password", "seed", "share", "weight", "threshold", "mask", "pad", "label", "score", "pixel",
    "image_data", "invite",
)  # fmt: skip
_MAX_TEXT = 2000

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def censor(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
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
        return str(value)
    return value


def configure(as_json: bool | None = None, level: str = "info") -> None:
    """Call once, at the start. ``as_json`` None: JSON unless stderr is a terminal."""
    if as_json is None:
        as_json = not sys.stderr.isatty()
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        censor,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if as_json:
        # A traceback as text, without the local variables, where the secrets are.
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        plain = structlog.dev.plain_traceback
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def get(name: str) -> Any:
    """The logger of one part of the daemon. It is configured at each call, so modules may ask for it early."""
    return structlog.get_logger(part=name)
