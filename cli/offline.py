"""mpcctl offline make | status."""

from __future__ import annotations

from typing import Any

import click

from mpcd.cli import options, output


@click.group()
def offline() -> None:
    """Correlated randomness, made ahead of the images that will use it up."""


@offline.command()
@click.option("--peer", required=True)
@click.option("--model", required=True)
@click.option("--images", required=True, type=click.IntRange(min=1), help="How many images to be ready for.")
@click.option("--estimate", is_flag=True, help="Only say what it would cost.")
@click.option(
    "--store",
    type=click.Choice(["expanded", "compact"]),
    help="How this side keeps them (data owner; else as [offline] store says).",
)
@click.option("--idle", is_flag=True, help="Compute, on both sides, only while nothing else wants the processor.")
@options.common
def make(
    session: output.Session, peer: str, model: str, images: int, estimate: bool, store: str | None, idle: bool
) -> None:
    """Go on until correlations for IMAGES images are ready. May be stopped and taken up again.

    Compact ones take a third of the disk or less, and time before they are used.
    """
    wanted = {"peer": peer, "model": model, "images": images, "store": store, "idle": True if idle else None}
    if not estimate and not session.as_json:
        before = session.call("offline.make", **wanted, estimate_only=True)
        click.echo(cost(before["estimate"]), err=True)
    result = session.call("offline.make", **wanted, estimate_only=True if estimate else None)

    def render(result: dict[str, Any]) -> None:
        if estimate:
            click.echo(cost(result["estimate"]))
        else:
            click.echo(
                f"{result['made']} made, {result['ready']} ready, "
                f"in {output.duration(result['seconds'])}, {output.size(result['bytes'])}"
            )

    session.show(result, render)


@offline.command("status")
@click.option("--peer")
@click.option("--model")
@options.common
def show_status(session: output.Session, peer: str | None, model: str | None) -> None:
    """What is ready, what was used, and that nothing was used twice."""

    def render(result: dict[str, Any]) -> None:
        output.table(
            ("peer", "model", "ready", "making", "spent", "burnt", "disk"),
            [
                (u["peer"], u["model"], u["ready"], u["making"], u["spent"], u["burnt"], output.size(u["disk_bytes"]))
                for u in result["units"]
            ],
            "nothing made yet",
        )
        for job in result["jobs"]:
            click.echo("running: " + output.progress_text(job))
        click.echo(f"used twice: {result['reuse_count']}")

    session.show(session.call("offline.status", peer=peer, model=model), render)


def cost(estimate: dict[str, Any]) -> str:
    """An estimate in words."""
    missing, ready = estimate["missing"], estimate["ready"]
    if not missing:
        made = f"{ready} ready, none missing"
    else:
        here, there = output.size(estimate["disk_bytes"]), output.size(estimate["peer_disk_bytes"])
        free = output.size(estimate["disk_free_bytes"])
        made = (
            f"{missing} to make ({ready} ready): {output.duration(estimate['seconds'])}, "
            f"{output.size(estimate['offline_bytes'])} over the link, "
            f"{here} of disk here ({free} free), {there} at the peer\n"
            f"an image on this disk: {_ways(estimate['image_disk_bytes'], estimate['store'])}; "
            f"on the peer's: {_ways(estimate['peer_image_disk_bytes'])}"
        )
    how = "measured with this peer" if estimate["measured"] else "a guess before the first run"
    return (
        f"offline: {made}\n"
        f"online: {estimate['images']} images, {output.duration(estimate['online_seconds'])}, "
        f"{output.size(estimate['online_bytes'])}\n"
        f"memory: {output.size(estimate['memory_bytes'])} a party; times are {how}"
    )


def _ways(sizes: dict[str, int], chosen: str = "") -> str:
    """Both ways of keeping a unit."""
    ways = [f"{output.size(sizes[way])} {way}{' (chosen)' * (way == chosen)}" for way in ("expanded", "compact")]
    return ", ".join(ways)
