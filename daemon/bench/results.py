"""Both parties' samples as one table. Keys are stable: scripts and saved baselines depend on them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

FORMAT = 1

# A party's: all its threads, the event loop's thread (TLS, the protocol's own steps); waiting for messages, for room.
_TIMES = ("cpu_seconds", "loop_cpu_seconds", "waiting_seconds", "sending_seconds")

Rows = dict[str, dict[str, Any]]


def rows_of(rows: Any) -> Rows:
    """A party's rows as they travel."""
    return {name: {"count": row.count, "unit": row.unit, "samples": row.samples} for name, row in rows.items()}


def merged(both: Sequence[Rows], derived: Iterable[tuple[str, tuple[str, ...]]]) -> list[dict[str, Any]]:
    """A row for every measurement, seconds those of the slower party; and for each of ``derived`` the sum, for one
    unit, of the rows it names."""
    rows = [_row(name, both) for name in both[0]]
    by_name = {row["name"]: row for row in rows}
    for name, parts in derived:
        if all(part in by_name for part in parts):
            rows.append(_sum(name, [by_name[part] for part in parts]))
    return rows


def _row(name: str, both: Sequence[Rows]) -> dict[str, Any]:
    count, unit = both[0][name]["count"], both[0][name]["unit"]
    samples = [rows[name]["samples"] for rows in both]
    seconds = [max(pair) for pair in zip(*([s["seconds"] for s in own] for own in samples), strict=True)]
    sent = [int(statistics.median(s["sent"] for s in own)) for own in samples]
    middle = [_middle(own) for own in samples]
    return _finished(
        {
            "name": name,
            "unit": unit,
            "count": count,
            "runs": len(seconds),
            "seconds": {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)},
            **{key: [statistics.median(s[key] for s in own) for own in samples] for key in _TIMES},
            "sent": sent,
            "flows": max(own[0]["flows"] for own in samples),
            "kernels": [own["kernels"] for own in middle],
            "steps": [own["steps"] for own in middle],
        }
    )


def _middle(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """The run whose time is the median, whose kernels are shown."""
    return sorted(samples, key=lambda s: float(s["seconds"]))[(len(samples) - 1) // 2]


def _sum(name: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    def each(key: str, party: int) -> float:
        return float(sum(part[key][party] / part["count"] for part in parts))

    return _finished(
        {
            "name": name,
            "unit": parts[0]["unit"],
            "count": 1,
            "runs": min(part["runs"] for part in parts),
            "seconds": {
                key: sum(part["seconds"][key] / part["count"] for part in parts) for key in ("median", "min", "max")
            },
            **{key: [each(key, 0), each(key, 1)] for key in _TIMES},
            "sent": [round(each("sent", 0)), round(each("sent", 1))],
            "flows": sum(part["flows"] for part in parts),
            "kernels": [[], []],
            "steps": [[], []],
        }
    )


def _finished(row: dict[str, Any]) -> dict[str, Any]:
    """With what follows from the rest."""
    median = max(row["seconds"]["median"], 1e-9)
    row["bytes"] = sum(row["sent"])
    row["per_second"] = row["count"] / median
    row["seconds_each"] = median / row["count"]
    row["cpu_seconds_each"] = [cpu / row["count"] for cpu in row["cpu_seconds"]]
    row["bytes_each"] = row["bytes"] / row["count"]
    return row
