"""mpcctl session start | list | show | watch | cancel, mpcctl approve, mpcctl deny."""

from __future__ import annotations

import re
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
@click.option(
    "--expires", metavar="TIME", help="When it is over, done or not: 12h, 7d, 2w. Default: the policy's, or 30d."
)
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
    expires: str | None,
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
        expires_seconds=None if expires is None else _seconds(expires),
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
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--approval", metavar="DIGEST", help="Only if this is what it binds, as `session show` said.")
@options.common
def approve(call: output.Session, id: str, yes: bool, approval: str | None) -> None:
    """Allow exactly this session. On a terminal it shows what that binds, and asks."""
    if not (yes or approval or call.as_json) and sys.stdin.isatty():
        shown = call.call("session.show", session=id)
        _render(shown)
        click.confirm("\nApprove exactly this?", abort=True)
        approval = (shown["session"]["approval"] or {}).get("digest")
    call.show(call.call("session.approve", session=id, approval=approval), _render)


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
            ("reveals", f"{s['reveal']}, to the data owner; the model owner learns no score"),
            ("expires", output.moment(s["expires"])),
            ("model commitment", s["model_commitment"]),
            ("data commitment", s["dataset_commitment"]),
            ("network digest", s["network_digest"]),
            ("recipe digest", s["recipe_digest"]),
            ("software", f"{s['software'][:16]} here, {s['peer_software'][:16]} there"),
            ("approved by", s["approved_by"]),
            *_bound(s["approval"]),
            ("offline", _phase(s["offline"])),
            ("online", _phase(s["online"])),
        ]
    )
    if s["state"] == "done" and s["role"] == "data-owner":
        click.echo(f"\nmpcctl report {s['id'][:12]} shows the result")


def _bound(approval: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Parties and software; the terms are shown already."""
    if approval is None:
        return []
    return [
        ("approval binds", f"{approval['digest']}, which is all of the above and:"),
        ("  data owner", f"{approval['data_owner']}, software {approval['data_owner_software'][:16]}"),
        ("  model owner", f"{approval['model_owner']}, software {approval['model_owner_software'][:16]}"),
    ]


def _seconds(text: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text)
    if found is None:
        raise click.BadParameter(f"{text!r} is no time: write 90m, 12h, 7d or 2w", param_hint="--expires")
    return int(found[1]) * {"m": 60, "h": 3600, "d": 86400, "w": 604800}[found[2]]


def _phase(phase: dict[str, Any]) -> str:
    return f"{output.duration(phase['seconds'])}, {output.size(phase['bytes'])}"
