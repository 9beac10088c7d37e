"""mpcctl bench: what this machine and this link take. Starts the measuring programs; no daemon is needed."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from mpcd.cli import client, output

WORKER = ("-m", "mpcd.daemon.bench")
SHOWN_KERNELS = 8
PARTIES = ("model owner", "data owner")

Row = dict[str, Any]


@click.group()
def bench() -> None:
    """Measure what this machine and link take: both parties here, two processes, over real TLS.

    Seconds are wall time, CPU seconds each party's own: they tell more on a busy machine.
    """


def _common(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every measurement; the command returns its own as words for the worker, or None: it is done."""

    @click.option("--runs", type=click.IntRange(min=1), help="Measured runs: median, least and most (default 3).")
    @click.option("--pin", metavar="A,B", help="The cores of the model owner's and the data owner's process.")
    @click.option(
        "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of each party's kernels."
    )
    @click.option(
        "--folder", type=click.Path(exists=True, path_type=Path), help="For temporary files; default: system's."
    )
    @click.option("--link", metavar="MBIT,MS", help="Imitate a link of this rate and round-trip time, such as 100,40.")
    @click.option("--party", type=click.Choice(["0", "1"]), help="Only the model owner's (0) or data owner's (1) end.")
    @click.option("--listen", metavar="HOST:PORT", help="With --party 0.")
    @click.option("--connect", metavar="HOST:PORT", help="With --party 1.")
    @click.option("--compare", type=click.Path(exists=True, path_type=Path), help="Show ratios to a saved --json.")
    @click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; keys are stable.")
    @functools.wraps(function)
    def wrapper(compare: Path | None, as_json: bool, **given: Any) -> None:
        common = {
            key: given.pop(key) for key in ("runs", "pin", "threads", "folder", "link", "party", "listen", "connect")
        }
        saved = None if compare is None else _load(compare)
        words = function(**given)
        if words is None:
            return
        result = _measure([*words, *_words(common)])
        if result is None:  # the model owner's end alone: the figures are at the other
            return
        if saved is not None:
            result["compared"] = compared(result, saved)
        if as_json:
            click.echo(json.dumps(result, indent=1, sort_keys=True))
        else:
            for one in _each(result):
                _render(one)
            if saved is not None:
                _render_ratios(result["compared"], str(compare))

    return wrapper


def _words(options: dict[str, Any]) -> list[str]:
    words = []
    for key, value in options.items():
        if value not in (None, "", ()):
            words += ["--" + key.replace("_", "-"), str(value)]
    return words


_extensions = click.option("--extensions", metavar="NAME,...", help="OT extensions; default: all there are.")


@bench.command()
@_extensions
@click.option("--cots", type=click.IntRange(min=1), help="Correlated OTs a run (default 8,388,608).")
@_common
def ot(**options: Any) -> list[str]:
    """Random correlated OTs, and the comparisons' leaves made of them: a second, and bits each."""
    return ["ot", *_words(options)]


@bench.command()
@_extensions
@click.option("--elements", type=click.IntRange(min=1), help="ReLUs a run (default 262,144).")
@_common
def relu(**options: Any) -> list[str]:
    """Exact ReLU, truncation and growth as in DenseNet-121, offline and online apart."""
    return ["relu", *_words(options)]


@bench.command()
@click.option("--layers", metavar="NAME,...", help="Such as '3x3 128-32 28'; default: nine of DenseNet-121's.")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Images.")
@_common
def linear(**options: Any) -> list[str]:
    """Matrix triples and the online product, per layer shape."""
    return ["linear", *_words(options)]


@bench.command()
@click.argument("model", default="densenet121")
@click.option("--images", type=click.IntRange(min=1), default=1, show_default=True, help="Images that go all the way.")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Images to a matrix triple.")
@click.option("--extension", "extensions", help="The OT extension; default: iknp.")
@click.option("--in-flight", type=click.IntRange(min=1), default=1, show_default=True, help="Images at once, online.")
@click.option("--no-check", is_flag=True, help="Do not compare an image's scores with the integer network's.")
@_common
def model(no_check: bool, **options: Any) -> list[str]:
    """A whole model: a compiled one's folder, or densenet121 with random weights (densenet-small, densenet-tiny)."""
    folder = Path(options.pop("model"))
    name = str(folder.resolve()) if folder.is_dir() else str(folder)
    return ["model", "--model", name, *_words(options), *(["--no-check"] if no_check else [])]


@bench.command()
@click.option("--peer", help="To this peer, through the daemon, which must be connected to it.")
@click.option("--socket", help="The daemon's control socket, with --peer.", metavar="PATH")
@click.option("--megabytes", type=click.IntRange(min=1), default=256, show_default=True, help="Sent each way, a run.")
@_common
def link(peer: str | None, socket: str | None, **options: Any) -> list[str] | None:
    """TLS throughput each way and both ways at once, and the round trip."""
    if peer is None:
        return ["link", *_words(options)]
    session = output.Session(socket, click.get_current_context().params["as_json"])
    session.show(session.call("peer.measure", name=peer), _render_link)
    return None


def _render_link(found: dict[str, Any]) -> None:
    output.facts(
        [
            ("to", found["peer"]),
            ("there", f"{found['sent_bytes_per_second'] * 8 / 1e6:.0f} Mbit/s"),
            ("back", f"{found['received_bytes_per_second'] * 8 / 1e6:.0f} Mbit/s"),
            ("round trip", _time(found["round_trip_seconds"])),
            ("OT extension", found["extension"]),
        ]
    )


@bench.command("all")
@_common
def measure_all(**options: Any) -> list[str]:
    """Everything above with its defaults, one after the other: what a baseline file holds."""
    return ["all", *_words(options)]


def _measure(words: Sequence[str]) -> dict[str, Any] | None:
    """The worker's result; its progress goes to stderr as it comes."""
    process = subprocess.Popen([sys.executable, *WORKER, *words], stdout=subprocess.PIPE, text=True)
    try:
        printed, _ = process.communicate()
    except KeyboardInterrupt:
        process.wait()  # it got the same signal
        raise
    if process.returncode:
        raise client.ControlError("bench", "the measurement failed", "its reason is above", process.returncode)
    if not printed.startswith("{"):
        return None
    result: dict[str, Any] = json.loads(printed)
    return result


def _load(path: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = json.loads(path.read_text("utf-8"))
        for one in _each(saved):
            _ = _same(one), one["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise client.ControlError("bad_input", f"{path} is no saved result of mpcctl bench --json", "", 9) from error
    return saved


def _each(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A result, or those of a collection."""
    return list(result["results"]) if "results" in result else [result]


def compared(now: dict[str, Any], saved: dict[str, Any]) -> list[Row]:
    """For every row that both have, saved over now: above 1 is faster, or less.

    Of models, only those of the same name, extension and batch.
    """
    before = {(_same(one), row["name"]): row for one in _each(saved) for row in one["rows"]}
    ratios = []
    for one in _each(now):
        for row in one["rows"]:
            old = before.get((_same(one), row["name"]))
            if old is not None:
                ratios.append(
                    {
                        "what": one["what"],
                        "name": row["name"],
                        "seconds": _ratio(old["seconds_each"], row["seconds_each"]),
                        "cpu_seconds": [
                            _ratio(*pair) for pair in zip(old["cpu_seconds_each"], row["cpu_seconds_each"], strict=True)
                        ],
                        "bytes": _ratio(old["bytes_each"], row["bytes_each"]),
                    }
                )
    return ratios


def _same(result: dict[str, Any]) -> tuple[Any, ...]:
    """What must be equal for rows to be comparable."""
    options = result["options"]
    if result["what"] != "model":
        return (result["what"],)
    return "model", Path(options["model"]).name, tuple(options["extensions"] or ["iknp"]), options["batch"]


def _ratio(old: float, new: float) -> float | None:
    return old / new if new else None


def _render(result: dict[str, Any]) -> None:
    machine = result["parties"][1]["machine"]
    load = ", ".join(f"{x:.1f}" for x in result["load"]["before"])
    pins = [party["machine"]["pinned"] for party in result["parties"]]
    output.facts(
        [
            ("measured", f"{result['what']}, {result['started']}, load before {load}"),
            ("CPU", f"{machine['cpu']}, {machine['cores']} cores, AES by {machine['aes_path']}"),
            ("instructions", ", ".join(machine["features"])),
            ("libraries", ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())),
            (
                "threads",
                f"{machine['threads']['NUMBA_NUM_THREADS']} a party, " + ("pinned" if all(pins) else "not pinned"),
            ),
            ("peak memory", " / ".join(output.size(party["peak_memory_bytes"]) for party in result["parties"])),
            ("bit-exact", {True: "yes", False: "NO: this is a bug"}.get(result["exact"])),
        ]
    )
    output.table(
        ("", "a second", "each", "least to most", "CPU each, 0 / 1", "bytes each", "flows"),
        [
            (
                row["name"],
                _rate(row),
                _time(row["seconds_each"]),
                f"{_time(row['seconds']['min'] / row['count'])} - {_time(row['seconds']['max'] / row['count'])}",
                " / ".join(_time(cpu) for cpu in row["cpu_seconds_each"]),
                output.size(row["bytes_each"]) if row["bytes_each"] >= 1000 else f"{row['bytes_each']:.2f} B",
                row["flows"],
            )
            for row in result["rows"]
        ],
    )
    if result["what"] == "model":
        for row in result["rows"]:
            _render_costs(row)


def _link(result: dict[str, Any]) -> str | None:
    imitated = result.get("link") or {}
    return (
        f"imitated: {imitated['megabits']:g} Mbit/s, {imitated['round_trip_ms']:g} ms"
        if imitated.get("megabits")
        else None
    )


def _render_costs(row: Row) -> None:
    """Where a row's time went, by step and by kernel, an item of its unit."""
    for party, who in enumerate(PARTIES):
        if row["kernels"][party]:
            total = row["cpu_seconds"][party] or 1
            known = sum(cost["cpu_seconds"] for cost in row["kernels"][party])
            loop = row["loop_cpu_seconds"][party]
            click.echo(
                f"{row['name']}, {who}: CPU {_time(row['cpu_seconds_each'][party])} an {row['unit']}, "
                f"{100 * known / total:.0f} % in kernels, {100 * loop / total:.0f} % in the event loop (TLS), "
                f"{max(0, 100 * (1 - (known + loop) / total)):.0f} % between them; "
                f"waits {_time(row['waiting_seconds'][party] / row['count'])} for the peer"
            )
            for title in ("steps", "kernels"):
                output.table(
                    (title, "calls", "CPU", "% of CPU", "wall"),
                    _costs(row[title][party], row["count"], total),
                )


def _costs(costs: Iterable[Row], count: int, total: float) -> list[tuple[Any, ...]]:
    return [
        (
            cost["name"],
            cost["calls"],
            _time(cost["cpu_seconds"] / count),
            f"{100 * cost['cpu_seconds'] / total:.1f}",
            _time(cost["seconds"] / count),
        )
        for cost in list(costs)[:SHOWN_KERNELS]
    ]


def _render_ratios(ratios: list[Row], path: str) -> None:
    click.echo(f"{path} over now: above 1 is faster, or less")

    def shown(ratio: float | None) -> str:
        return "-" if ratio is None else f"{ratio:.2f}"

    output.table(
        ("", "", "seconds", "CPU, 0 / 1", "bytes"),
        [
            (
                r["what"],
                r["name"],
                shown(r["seconds"]),
                " / ".join(shown(x) for x in r["cpu_seconds"]),
                shown(r["bytes"]),
            )
            for r in ratios
        ],
        "nothing in common",
    )


def _rate(row: Row) -> str:
    rate, unit = row["per_second"], row["unit"]
    if unit == "byte":
        return output.size(rate)
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate >= size:
            return f"{rate / size:.2f} {letter} {unit}s"
    return f"{rate:.3g} {unit}s"


def _time(seconds: float) -> str:
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
