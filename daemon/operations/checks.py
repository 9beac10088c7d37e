"""One finding about this daemon or its machine: fine, or what is wrong and how to mend it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

OK, WARNING, PROBLEM = "ok", "warning", "problem"
LEVELS = (OK, WARNING, PROBLEM)


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """``level``: a warning costs something some day, a problem now. ``hint``: how to mend it; empty if all is well."""

    name: str
    level: str
    text: str
    hint: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As the control API has it (docs/control-api.md)."""
        return dataclasses.asdict(self)


def ok(name: str, text: str) -> Check:
    return Check(name, OK, text)


def warning(name: str, text: str, hint: str) -> Check:
    return Check(name, WARNING, text, hint)


def problem(name: str, text: str, hint: str) -> Check:
    return Check(name, PROBLEM, text, hint)


def worst(checks: Iterable[Check]) -> str:
    return max((check.level for check in checks), key=LEVELS.index, default=OK)


def of_error(name: str, error: Exception) -> Check:
    """What an exception with a message and a hint says."""
    return problem(name, str(error) or type(error).__name__, getattr(error, "hint", ""))
