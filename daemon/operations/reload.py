"""SIGHUP: read mpcd.toml and policy.toml again. What can change while the daemon runs does; the rest is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from mpcd.daemon import log
from mpcd.daemon.config import Config
from mpcd.daemon.context import aside
from mpcd.daemon.errors import MpcdError
from mpcd.daemon.operations import folder
from mpcd.daemon.operations.checks import OK
from mpcd.daemon.service import Daemon

# Settings that are looked up each time they are needed. Those of the network are used as connections are made ready.
LIVE = frozenset(
    {"limits.memory_gib", "limits.disk_reserve_gib", "offline.extension", "online.in_flight", "log.format", "log.level"}
)

_log = log.get("reload")


async def reload(daemon: Daemon, load: Callable[[], Config], set_log: Callable[[Config], None]) -> None:
    """``load``: the settings as a start would find them. A mistake in a file changes nothing, and is logged."""
    try:
        wanted = await aside(load)
    except MpcdError as error:
        _log.error("the configuration is not used; the one from before stays", reason=str(error), hint=error.hint)
    else:
        old = daemon.context.config
        config, changed, waiting = merged(old, wanted)
        daemon.context.config = config
        set_log(config)
        if changed:
            _log.info("settings changed", changed=changed)
        if waiting:
            _log.warning("these settings change at the next start", waiting=waiting)
        if not changed and not waiting:
            _log.info("no setting changed")
    policy = await aside(folder.policy, daemon.context.paths)
    (_log.info if policy.level == OK else _log.error)("policy read", result=policy.text)


def merged(old: Config, wanted: Config) -> tuple[Config, dict[str, str], list[str]]:
    """The settings to go on with; what changed, as ``old -> new``; and what waits for a restart."""
    config, changed, waiting = old, {}, []
    for key, before, after in _differences(old, wanted):
        section, _, name = key.partition(".")
        if key in LIVE:
            part = dataclasses.replace(getattr(config, section), **{name: after})
            config = dataclasses.replace(config, **{section: part})
            changed[key] = f"{before} -> {after}"
        else:
            waiting.append(key)
    return config, changed, waiting


def _differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    found = []
    for field in dataclasses.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if dataclasses.is_dataclass(before):
            found += _differences(before, after, f"{prefix}{field.name}.")
        elif before != after:
            found.append((prefix + field.name, before, after))
    return found
