"""policy.toml: who may ask this daemon for what, how much, when, and what is told of the results. docs/policy.md.

Nothing is approved unasked unless a rule says so. A file with a mistake allows nothing at all: no work, no report. It
may hold the very line that forbids them.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import tomllib
from pathlib import Path
from typing import Any

from mpcd.daemon.errors import ConfigError, Refused

DEFAULT_MAX_UNITS = 2000
DAY = 86400
DEFAULT_EXPIRES = 30 * DAY
LONGEST = 366 * DAY
WEEK = 7 * 24 * 60  # minutes
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DURATION = re.compile(r"([1-9][0-9]{0,5})([mhdw])")
_UNITS = {"m": 60, "h": 3600, "d": DAY, "w": 7 * DAY}
_HOURS = re.compile(r"(?:([a-z,-]+) )?([0-2][0-9]):([0-5][0-9])-([0-2][0-9]):([0-5][0-9])")


class NotNow(Refused):
    """Not at this time; it goes on by itself."""

    code = "not_now"


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """What a peer's earlier sessions with a model amount to."""

    images: int = 0
    runs: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """Model owner: sessions to approve at once. ``per``: seconds that budget and runs count back; None: ever."""

    peer: str
    model: str
    max_images: int
    budget: int
    reveal: tuple[str, ...] = ("scores",)
    runs: int | None = None
    per: int | None = None

    def covers(self, peer: str, model: str, reveal: str, images: int) -> bool:
        return self.peer == peer and self.model in ("*", model) and reveal in self.reveal and images <= self.max_images

    def leaves_room(self, images: int, asked: Asked) -> bool:
        return asked.images + images <= self.budget and (self.runs is None or asked.runs < self.runs)


@dataclasses.dataclass(frozen=True, slots=True)
class Hours:
    """When work may run, in local time. ``spans``: minutes of the week, each (first, end); none: always."""

    spans: tuple[tuple[int, int], ...] = ()
    text: str = ""

    def open_for(self, now: datetime.datetime) -> float:
        """Seconds that work may go on from now; 0: not now; infinity: no hours are set."""
        if not self.spans:
            return float("inf")
        at, left = _minute(now), 0.0
        while left < WEEK:  # from one span into the next
            ends = [end for first, end in self.spans if first <= at < end]
            if not ends:
                break
            left += max(ends) - at
            at = max(ends) % WEEK
        return left * 60 if left < WEEK else float("inf")

    def opens(self, now: datetime.datetime) -> datetime.datetime:
        """When work may begin next; ``now`` where it may."""
        if self.open_for(now):
            return now
        wait = min((first - _minute(now)) % WEEK for first, _ in self.spans)
        return now + datetime.timedelta(minutes=wait)


@dataclasses.dataclass(frozen=True, slots=True)
class Cohort:
    """The least of which anything is told: images of a session, and of a finding those with it and those without."""

    min_images: int = 1
    min_positives: int = 0
    min_negatives: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """``mistake``: why the file cannot be used; empty where it can. ``expires``: None where the file does not say.

    ``offline_peers``: whose work on units is taken on without a session, None for every peer's.
    """

    rules: tuple[Rule, ...] = ()
    max_units: int = DEFAULT_MAX_UNITS
    offline_peers: tuple[str, ...] | None = None
    hours: Hours = Hours()
    cohort: Cohort = Cohort()
    expires: int | None = None
    same_software: bool = False
    approved_software: tuple[str, ...] = ()
    mistake: str = ""

    def check_usable(self) -> None:
        if self.mistake:
            raise NotNow(
                "the policy of this side has a mistake: nothing runs until it is mended",
                "mpcctl status at that side names it",
            )

    def open_for(self) -> float:
        """Seconds that work may go on. Raises NotNow."""
        self.check_usable()
        now = datetime.datetime.now()
        left = self.hours.open_for(now)
        if not left:
            opens = self.hours.opens(now)
            raise NotNow(
                f"this side's policy lets work run {self.hours.text} (its time, now {now:%a %H:%M}):"
                f" it goes on at {opens:%a %H:%M}"
            )
        return left

    def cohort_told(self) -> Cohort:
        """For a report. Raises NotNow."""
        self.check_usable()
        return self.cohort

    def check_offline(self, peer: str) -> None:
        self.check_usable()
        if self.offline_peers is not None and peer not in self.offline_peers:
            raise Refused(
                "this side's policy takes on no offline work of yours outside an approved session",
                "have its operator add you to [offline] peers in its policy.toml",
            )


def unusable(error: ConfigError) -> Policy:
    return Policy(mistake=str(error))


def seconds(text: object) -> int | None:
    """Of '90m', '12h', '7d' or '2w'; None for anything else, and for more than a year."""
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    length = int(found[1]) * _UNITS[found[2]] if found else LONGEST + 1
    return length if length <= LONGEST else None


def load(path: Path) -> Policy:
    """The policy in this file; no file, no rule. Raises ConfigError that names the key."""
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return Policy()
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    top = _Table(path, "the file", table, {"allow", "offline", "hours", "cohort", "expires", *_SOFTWARE_KEYS})
    rules = table.get("allow", [])
    if not isinstance(rules, list):
        raise ConfigError(f"{path}: write [[allow]] tables")
    offline = top.section("offline", {"max_units", "peers"})
    hours = top.section("hours", {"allow"})
    cohort = top.section("cohort", {"min_images", "min_positives", "min_negatives"})
    software = table.get("software", "compatible")
    if software not in ("compatible", "same"):
        raise ConfigError(f'{path}: software can be "compatible" or "same"')
    return Policy(
        rules=tuple(_rule(path, number, rule) for number, rule in enumerate(rules, 1)),
        max_units=offline.count("max_units", DEFAULT_MAX_UNITS),
        offline_peers=offline.texts("peers"),
        hours=_hours(hours),
        cohort=Cohort(
            max(1, cohort.count("min_images", 1)), cohort.count("min_positives", 0), cohort.count("min_negatives", 0)
        ),
        expires=top.duration("expires"),
        same_software=software == "same",
        approved_software=top.texts("approved_software") or (),
    )


_SOFTWARE_KEYS = ("software", "approved_software")


class _Table:
    """One table of the file. A misspelt key must not loosen or tighten anything in silence."""

    def __init__(self, path: Path, where: str, table: Any, known: set[str]) -> None:
        self.where = f"{path}: {where}"
        self._path = path
        if not isinstance(table, dict):
            raise ConfigError(f"{self.where} is not a table")
        self._table = table
        for key in table:
            if key not in known:
                raise ConfigError(f"{self.where} has {key!r}; known: {', '.join(sorted(known))}")

    def section(self, key: str, known: set[str]) -> _Table:
        return _Table(self._path, f"[{key}]", self._table.get(key, {}), known)

    def text(self, key: str) -> str:
        value = self._table.get(key)
        if not isinstance(value, str) or not value:
            raise ConfigError(f'{self.where} needs {key} = "..."')
        return value

    def texts(self, key: str) -> tuple[str, ...] | None:
        value = self._table.get(key)
        if value is not None and (not isinstance(value, list) or not all(isinstance(v, str) and v for v in value)):
            raise ConfigError(f'{self.where} needs {key} = ["...", ...]')
        return None if value is None else tuple(value)

    def count(self, key: str, default: int | None) -> int:
        value = self._table.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"{self.where} needs {key} = a whole number, 0 or more")
        return value

    def optional_count(self, key: str) -> int | None:
        return self.count(key, None) if key in self._table else None

    def duration(self, key: str) -> int | None:
        value = self._table.get(key)
        length = seconds(value)
        if value is not None and length is None:
            raise ConfigError(f'{self.where} needs {key} = "30d" or the like: m, h, d or w, up to 366d')
        return length


def _rule(path: Path, number: int, given: Any) -> Rule:
    known = {"peer", "model", "reveal", "max_images", "budget", "runs", "per"}
    table = _Table(path, f"[[allow]] number {number}", given, known)
    peer, model = table.text("peer"), table.text("model")
    reveal = table.texts("reveal")
    if reveal is not None and any(kind != "scores" for kind in reveal):
        raise ConfigError(f'{table.where}: reveal can be ["scores"]')
    max_images = table.count("max_images", None)
    return Rule(
        peer=peer,
        model=model,
        max_images=max_images,
        budget=table.count("budget", max_images),
        reveal=("scores",) if reveal is None else reveal,
        runs=table.optional_count("runs"),
        per=table.duration("per"),
    )


def _hours(table: _Table) -> Hours:
    spans: list[tuple[int, int]] = []
    texts = table.texts("allow")
    if texts == ():
        raise ConfigError(f"{table.where}: allow names no hours; leave [hours] out to allow all")
    texts = texts or ()
    for text in texts:
        found = _HOURS.fullmatch(text)
        days = _days(found[1]) if found else ()
        if found is None or not days:
            raise ConfigError(
                f"{table.where}: allow has {text!r};"
                ' write "19:00-07:00", "sat,sun 00:00-24:00" or "mon-fri 19:00-07:00"'
            )
        first, end = int(found[2]) * 60 + int(found[3]), int(found[4]) * 60 + int(found[5])
        if first >= 24 * 60 or end > 24 * 60 or first == end:
            raise ConfigError(f"{table.where}: allow has {text!r}, which is no span of time")
        for day in days:
            length = (end - first) % (24 * 60) or 24 * 60
            begin = day * 24 * 60 + first
            spans.append((begin, min(begin + length, WEEK)))
            if begin + length > WEEK:  # from Sunday into Monday
                spans.append((0, begin + length - WEEK))
    return Hours(tuple(spans), ", ".join(texts))


def _days(text: str | None) -> tuple[int, ...]:
    """Numbers of 'mon-fri' or 'sat,sun', a span being named by the day on which it begins; none: a mistake."""
    if text is None:
        return tuple(range(7))
    days: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            return ()
        at = DAYS.index(first)
        count = (DAYS.index(last) - at) % 7 + 1 if dash else 1
        days += [(at + i) % 7 for i in range(count)]
    return tuple(days)


def _minute(now: datetime.datetime) -> int:
    return now.weekday() * 24 * 60 + now.hour * 60 + now.minute
