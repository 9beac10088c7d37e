"""mpcctl key show | rotate | finish."""

from __future__ import annotations

from typing import Any

import click

from mpcd.cli import options, output


@click.group()
def key() -> None:
    """This daemon's key, by which its peers know it."""


@key.command()
@options.common
def show(session: output.Session) -> None:
    """The key's fingerprint, whether it ends, and who has not heard of a new one."""
    session.show(session.call("key.show"), _render)


@key.command()
@click.option("--keep-days", type=click.IntRange(1, 365), help="How long the old key is kept for peers that are away.")
@options.common
def rotate(session: output.Session, keep_days: int | None) -> None:
    """Make a new key and announce it to every peer.

    Peers that are connected change over at once, the others when they connect next; the old key is kept for them, at
    most for --keep-days (30). Sessions and units stay as they are. Nobody has to do anything at the peers.
    """
    session.show(session.call("key.rotate", keep_days=keep_days), _render)


@key.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.common
def finish(session: output.Session, yes: bool) -> None:
    """Give the old key up now; peers that have not heard of the new one then need a new invite."""
    rotation = session.call("key.show")["key"]["rotation"]
    pending = rotation["pending"] if rotation else []
    if pending and not yes:
        click.confirm(f"{', '.join(pending)} will need this daemon's new invite. Go on?", abort=True, err=True)
    session.show(session.call("key.finish"), _render)


def _render(result: dict[str, Any]) -> None:
    found = result["key"]
    output.facts(
        [
            ("key", "its own, pinned by peers" if found["mode"] == "pinned" else "certified by the site's authority"),
            ("fingerprint", found["fingerprint"]),
            ("expires", output.moment(found["expires"]) if found["expires"] else "never"),
        ]
    )
    if found["rotation"]:
        click.echo("\n" + about(found["rotation"]))


def about(rotation: dict[str, Any]) -> str:
    """Who has still to hear of a new key."""
    who = ", ".join(rotation["pending"]) or "nobody"
    return (
        f"the key is new since {output.moment(rotation['started'])}. To be told when they connect: {who}. For that the"
        f" old one ({rotation['previous'][:16]}...) is kept until {output.moment(rotation['until'])}."
    )
