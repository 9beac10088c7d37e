"""mpcctl id, mpcctl status."""

from __future__ import annotations

from typing import Any

import click

from mpcd.cli import doctor, key, options, output
from mpcd.cli.peer import known_by


@click.command("id")
@options.common
def show_id(session: output.Session) -> None:
    """This daemon's name, fingerprint and invite. Give the invite to the peer."""

    def render(result: dict[str, Any]) -> None:
        output.facts((fact, result[fact]) for fact in ("name", "fingerprint", "address"))
        if result["key"]["rotation"]:
            click.echo("\n" + key.about(result["key"]["rotation"]))
        click.echo(f"\nInvite, for the peer to add with `mpcctl peer add`:\n\n{result['invite']}")

    session.show(session.call("id"), render)


@click.command()
@options.common
def status(session: output.Session) -> None:
    """What the daemon is doing, what it has, and what is wrong."""

    def render(result: dict[str, Any]) -> None:
        kernels = result["kernels"]
        output.facts(
            [
                ("mpcd", f"{result['version']} (protocol {result['protocol_version']}), as {result['name']}"),
                ("fingerprint", result["fingerprint"]),
                ("listening", result["listen"]),
                ("state", result["state_dir"]),
                ("since", output.moment(result["started"])),
                ("kernels", "ready" if kernels["ready"] else f"compiling, {kernels['done']} of {kernels['total']}"),
                ("memory free", output.size(result["memory_available_bytes"])),
                ("disk free", output.size(result["disk_free_bytes"])),
            ]
        )
        for name, rows in (("peers", result["peers"]), ("sessions", result["sessions"]), ("units", result["units"])):
            click.echo(f"\n{name}: {len(rows) or 'none'}")
            for row in rows:
                click.echo("  " + _line(name, row))
        for job in result["jobs"]:
            click.echo("running: " + output.progress_text(job))
        click.echo("")
        doctor.render(result["health"])
        if not result["warnings"]:
            click.echo("\nnothing is wrong")

    session.show(session.call("status"), render)


def _line(kind: str, row: dict[str, Any]) -> str:
    if kind == "peers":
        return f"{row['name']}  {'connected' if row['connected'] else 'not connected'}  {known_by(row)}"
    if kind == "sessions":
        return f"{row['id'][:12]}  {row['state']}  {row['done']}/{row['images']} images  {row['peer']}  {row['model']}"
    return f"{row['peer']}  {row['model']}  {row['ready']} ready  {output.size(row['disk_bytes'])}"
