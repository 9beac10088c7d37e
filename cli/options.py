"""The options that every command has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from mpcd.cli import output


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """--json and --socket; the command gets an ``output.Session`` as its first argument."""

    @click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; keys are stable.")
    @click.option("--socket", help="The daemon's control socket.", metavar="PATH")
    @functools.wraps(function)
    def wrapper(as_json: bool, socket: str | None, **params: Any) -> Any:
        return function(output.Session(socket, as_json), **params)

    return wrapper
