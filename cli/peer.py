"""mpcctl peer add | list | remove."""

from __future__ import annotations

import time
from typing import Any

import click

from mpcd.cli import options, output


@click.group()
def peer() -> None:
    """The parties this daemon knows. Nothing is accepted from anybody else."""


@peer.command()
@click.argument("invite")
@click.option("--name", help="What to call the peer here; default: what it calls itself.")
@click.option("--address", metavar="HOST:PORT", help="Where to dial it; default: as in its invite.")
@options.common
def add(session: output.Session, invite: str, name: str | None, address: str | None) -> None:
    """Add the peer whose `mpcctl id` printed INVITE. Both sides must add each other."""
    result = session.call("peer.add", invite=invite, name=name, address=address)

    def render(result: dict[str, Any]) -> None:
        added = result["peer"]
        if added["known_by"] == "pin":
            click.echo(f"added {added['name']}; compare its fingerprint over the telephone:\n  {added['fingerprint']}")
        else:
            click.echo(f"added {added['name']}, known by the name {added['ca_name']} and your authority")

    session.show(result, render)


@peer.command("list")
@options.common
def list_peers(session: output.Session) -> None:
    """The peers and whether they are connected."""

    def render(result: dict[str, Any]) -> None:
        output.table(
            ("name", "connected", "address", "known by"),
            [
                (p["name"], "yes" if p["connected"] else "no", p["address"] or "dials us", known_by(p))
                for p in result["peers"]
            ],
            "no peers; `mpcctl peer add INVITE` adds one",
        )
        for p in result["peers"]:
            if not p["knows_key"]:
                click.echo(f"{p['name']}: has not heard of this daemon's new key yet; it is told when it connects")
            if p["error"]:
                click.echo(f"{p['name']}: {p['error']}" + (f"\n    {p['hint']}" if p["hint"] else ""))
                if p["retry"] is not None:
                    wait = max(0, round(p["retry"] - time.time()))
                    click.echo(f"    {p['attempts']} attempts failed; the next one is in {wait} s")

    session.show(session.call("peer.list"), render)


def known_by(row: dict[str, Any]) -> str:
    """The pinned fingerprint, or the name that an authority vouches for."""
    return str(row["fingerprint"]) if row["known_by"] == "pin" else f"authority and name {row['ca_name']}"


@peer.command()
@click.argument("name")
@options.common
def remove(session: output.Session, name: str) -> None:
    """Forget a peer and close its connections."""
    session.show(session.call("peer.remove", name=name), lambda result: click.echo(f"removed {result['peer']['name']}"))
