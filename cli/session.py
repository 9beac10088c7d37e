"""mpcctl session start | list | show | watch | cancel, mpcctl approve, mpcctl deny."""

from __future__ import annotations

import sys
from typing import Any

import click

from mpcd.cli import options, output
from mpcd.cli.offline import cost


@click.group()
def session() -> None:
    """Runs of a peer's model on our images."""


@session.command()
@click.option("--peer", required=True, help="The model owner.")
@click.option("--model", required=True, help="Its model.")
@click.option("--dataset", required=True, help="Our data set.")
@click.option("--images", type=click.IntRange(min=1), help="How many; default: all.")
@click.option("--reveal", type=click.Choice(["scores"]), default="scores", show_default=True)
@click.option("--estimate", is_flag=True, help="Only say what it would cost.")
@click.option("--detach", is_flag=True, help="Do not watch; the daemon goes on by itself either way.")
@options.common
def start(
    call: output.Session,
    peer: str,
    model: str,
    dataset: str,
    images: int | None,
    reveal: str,
    estimate: bool,
    detach: bool,
) -> None:
    """Propose a run to the model owner and watch it: approval, offline phase, images, done."""
    result = call.call(
        "session.start",
        peer=peer,
        model=model,
        dataset=dataset,
        images=images,
        reveal=reveal,
        estimate_only=True if estimate else None,
    )
    if estimate:
        call.show(result, lambda result: click.echo(cost(result["estimate"])))
        return
    click.echo(f"session {result['session']['id']}", err=True)
    click.echo(cost(result["estimate"]), err=True)
    if not detach:
        result = call.call("session.watch", session=result["session"]["id"])
    _finish(call, result)


@session.command("list")
@options.common
def list_sessions(call: output.Session) -> None:
    """All sessions, ours and those asked of us."""

    def render(result: dict[str, Any]) -> None:
        output.table(
            ("id", "state", "role", "peer", "model", "data set", "images", "created"),
            [
                (
                    s["id"][:12],
                    s["state"],
                    s["role"],
                    s["peer"],
                    s["model"],
                    s["dataset"] or "-",
                    f"{s['done']}/{s['images']}",
                    output.moment(s["created"]),
                )
                for s in result["sessions"]
            ],
            "no sessions",
        )

    call.show(call.call("session.list", all=True), render)


@session.command()
@click.argument("id")
@options.common
def show(call: output.Session, id: str) -> None:
    """Everything about a session that an approval binds, and how far it is."""
    call.show(call.call("session.show", session=id), _render)


@session.command()
@click.argument("id")
@options.common
def watch(call: output.Session, id: str) -> None:
    """Follow a session to its end. Stopping to watch does not stop it."""
    _finish(call, call.call("session.watch", session=id))


@session.command()
@click.argument("id")
@options.common
def cancel(call: output.Session, id: str) -> None:
    """End a session on both sides."""
    call.show(call.call("session.cancel", session=id), _render)


@click.command()
@click.argument("id")
@options.common
def approve(call: output.Session, id: str) -> None:
    """Allow exactly this session (see `mpcctl session show ID` for what it is)."""
    call.show(call.call("session.approve", session=id), _render)


@click.command()
@click.argument("id")
@click.option("--reason", help="Told to the peer.")
@options.common
def deny(call: output.Session, id: str, reason: str | None) -> None:
    """Refuse a session."""
    call.show(call.call("session.deny", session=id, reason=reason), _render)


def _finish(call: output.Session, result: dict[str, Any]) -> None:
    call.show(result, _render)
    if result["session"]["state"] in ("denied", "cancelled", "failed"):
        sys.exit(6 if result["session"]["state"] == "denied" else 1)


def _render(result: dict[str, Any]) -> None:
    s = result["session"]
    output.facts(
        [
            ("session", s["id"]),
            ("state", s["state"]),
            ("reason", s["reason"]),
            ("our role", s["role"]),
            ("peer", s["peer"]),
            ("model", s["model"]),
            ("data set", s["dataset"]),
            ("images", f"{s['done']} of {s['images']} done, {s['attempts']} units spent"),
            ("reveals", f"{s['reveal']}, to the data owner"),
            ("model commitment", s["model_commitment"]),
            ("data commitment", s["dataset_commitment"]),
            ("network digest", s["network_digest"]),
            ("recipe digest", s["recipe_digest"]),
            ("software", f"{s['software'][:16]} here, {s['peer_software'][:16]} there"),
            ("approved by", s["approved_by"]),
            ("offline", _phase(s["offline"])),
            ("online", _phase(s["online"])),
        ]
    )
    if s["state"] == "done" and s["role"] == "data-owner":
        click.echo(f"\nmpcctl report {s['id'][:12]} shows the result")


def _phase(phase: dict[str, Any]) -> str:
    return f"{output.duration(phase['seconds'])}, {output.size(phase['bytes'])}"
