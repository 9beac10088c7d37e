"""What the model owner lets run without being asked: policy.toml. Everything else waits for ``mpcctl approve``.

    [[allow]]
    peer = "hospital"          # required
    model = "chexnet"          # required; "*" for every model
    reveal = ["scores"]        # default
    max_images = 100           # of one session; required
    budget = 1000              # of all sessions of this peer with this model; default: max_images

    [offline]
    max_units = 2000           # unused units of one model that a peer may have this daemon make; default

Outputs give a model away bit by bit (extraction by many queries); a budget is the bound on that.
"""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from mpcd.daemon.errors import ConfigError

DEFAULT_MAX_UNITS = 2000


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    peer: str
    model: str
    max_images: int
    budget: int
    reveal: tuple[str, ...] = ("scores",)

    def allows(self, peer: str, model: str, reveal: str, images: int, used: int) -> bool:
        return (
            self.peer == peer
            and self.model in ("*", model)
            and reveal in self.reveal
            and images <= self.max_images
            and used + images <= self.budget
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    rules: tuple[Rule, ...] = ()
    max_units: int = DEFAULT_MAX_UNITS

    def approves(self, peer: str, model: str, reveal: str, images: int, used: int) -> bool:
        """Whether a session may start unasked. ``used``: images of this peer's earlier sessions with this model."""
        return any(rule.allows(peer, model, reveal, images, used) for rule in self.rules)


def load(path: Path) -> Policy:
    """The policy in this file; no file, no rule. Raises ConfigError that names the key."""
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return Policy()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    _known(path, "the file", table, {"allow", "offline"})
    rules = table.get("allow", [])
    offline = table.get("offline", {})
    if not isinstance(rules, list) or not isinstance(offline, dict):
        raise ConfigError(f"{path}: write [[allow]] tables and one [offline] table")
    _known(path, "[offline]", offline, {"max_units"})
    max_units = _count(path, "[offline]", offline, "max_units", DEFAULT_MAX_UNITS)
    return Policy(tuple(_rule(path, number, rule) for number, rule in enumerate(rules, 1)), max_units)


def _rule(path: Path, number: int, table: Any) -> Rule:
    where = f"[[allow]] number {number}"
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {where} is not a table")
    _known(path, where, table, {"peer", "model", "reveal", "max_images", "budget"})
    for key in ("peer", "model"):
        if not isinstance(table.get(key), str) or not table[key]:
            raise ConfigError(f'{path}: {where} needs {key} = "..."')
    reveal = table.get("reveal", ["scores"])
    if not isinstance(reveal, list) or any(kind != "scores" for kind in reveal):
        raise ConfigError(f'{path}: {where}: reveal can be ["scores"]')
    max_images = _count(path, where, table, "max_images", None)
    budget = _count(path, where, table, "budget", max_images)
    return Rule(table["peer"], table["model"], max_images, budget, tuple(reveal))


def _known(path: Path, where: str, table: dict[str, Any], known: set[str]) -> None:
    """A misspelt key must not loosen or tighten anything in silence."""
    for key in table:
        if key not in known:
            raise ConfigError(f"{path}: {where} has {key!r}; known: {', '.join(sorted(known))}")


def _count(path: Path, where: str, table: dict[str, Any], key: str, default: int | None) -> int:
    value = table.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{path}: {where} needs {key} = a whole number, 0 or more")
    return value
