"""What a person or a script sees. Rules:

- data on stdout, everything else (progress, errors, hints) on stderr; with --json stdout is exactly one JSON object
- an error is ``mpcctl: what is wrong`` and, indented, the way out; its exit status is in ``mpcctl --help``
- progress redraws one line on a terminal, and is a line every few seconds otherwise
- colour only on a terminal
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from mpcd.cli import client

PLAIN_INTERVAL = 10.0  # seconds between progress lines where stderr is no terminal


class Session:
    """One invocation: where the daemon is, how to print."""

    def __init__(self, socket: str | None, as_json: bool) -> None:
        self.socket = client.socket_path(socket)
        self.as_json = as_json

    def call(self, method: str, **params: Any) -> Any:
        """The daemon's result, with its progress shown meanwhile; parameters that are None are left out."""
        given = {key: value for key, value in params.items() if value is not None}
        line = ProgressLine()
        try:
            return client.call(self.socket, method, given, line.show)
        finally:
            line.end()

    def show(self, result: Any, render: Callable[[Any], None]) -> None:
        if self.as_json:
            click.echo(json.dumps(result, indent=2, sort_keys=True))
        else:
            render(result)


class ProgressLine:
    """One line on stderr that says how far the work is and when it will be done."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._stage = ""
        self._last = 0.0
        self._open = False

    def show(self, record: dict[str, Any]) -> None:
        now = time.monotonic()
        news = record["stage"] != self._stage or (record["total"] and record["done"] >= record["total"])
        if not news and now - self._last < (0.1 if self._terminal else PLAIN_INTERVAL):
            return
        self._stage, self._last = record["stage"], now
        text = progress_text(record)
        if self._terminal:
            sys.stderr.write("\r\033[K" + text[: shutil.get_terminal_size().columns - 1])
            self._open = True
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self._open:
            sys.stderr.write("\n")
            self._open = False


def progress_text(record: dict[str, Any]) -> str:
    parts = [record["stage"]]
    if record["total"]:
        parts.append(f"{100 * record['done'] / record['total']:3.0f} %")
    if record.get("text"):
        parts.append(record["text"])
    if record.get("eta_seconds") is not None:
        parts.append(f"{duration(record['eta_seconds'])} left")
    return "  ".join(parts)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float | None) -> str:
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def moment(timestamp: float | None) -> str:
    return "-" if timestamp is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(timestamp))


def short(digest: str | None) -> str:
    return "-" if not digest else digest[:16]


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]], empty: str = "none") -> None:
    """A table on stdout; numbers to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = [[("" if cell is None else cell) for cell in row] for row in rows]
    if not rows:
        click.echo(empty)
        return
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, heading in enumerate(headings):
        numeric = all(isinstance(row[column], (int, float)) for row in rows)
        drawn.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(str(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(drawn)


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """Name and value, one a line."""
    shown = [(name, value) for name, value in pairs if value not in (None, "")]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{name:<{width}}  {value}")
