"""mpcctl peer add | list | remove."""

from __future__ import annotations

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
        click.echo(f"added {added['name']}; compare its fingerprint over the telephone:\n  {added['fingerprint']}")

    session.show(result, render)


@peer.command("list")
@options.common
def list_peers(session: output.Session) -> None:
    """The peers and whether they are connected."""

    def render(result: dict[str, Any]) -> None:
        output.table(
            ("name", "connected", "address", "fingerprint"),
            [
                (p["name"], "yes" if p["connected"] else "no", p["address"] or "dials us", p["fingerprint"])
                for p in result["peers"]
            ],
            "no peers; `mpcctl peer add INVITE` adds one",
        )
        for p in result["peers"]:
            if p["error"]:
                click.echo(f"{p['name']}: {p['error']}" + (f"\n    {p['hint']}" if p["hint"] else ""))

    session.show(session.call("peer.list"), render)


@peer.command()
@click.argument("name")
@options.common
def remove(session: output.Session, name: str) -> None:
    """Forget a peer and close its connections."""
    session.show(session.call("peer.remove", name=name), lambda result: click.echo(f"removed {result['peer']['name']}"))
