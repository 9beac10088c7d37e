"""The audit log's form, and what is wrong with a log that does not have it. Files and clocks are elsewhere.

A log is lines of ASCII. A line is an entry, a JSON object in one order of keys and without spaces:

    {"seq":7,"time":"2026-11-23T01:02:03.000004Z","event":"session.approved", ... ,"prev":P,"hash":H}

    H = SHA-256 of the line's bytes with ,"hash":"..." taken out
    P = the entry before's H; 64 zeros in the first entry

``seq`` counts from 1. A line that a crash left torn stays where it is, and the next entry, ``log.repaired``, carries
its size and SHA-256: so nothing is ever rewritten, and a torn line is told from a changed one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

GENESIS = "0" * 64
MAX_LINE = 64 * 1024
MOST_TORN = 16  # lines after each other: mending that was interrupted, again and again
REPAIRED = "log.repaired"  # a torn line stands before it
DAMAGED = "log.damaged"  # at its start the daemon missed entries, or found others, at the log's end
SHARED = ("session.approved", "session.denied", "session.over")  # both parties have an entry of these

_HASH = re.compile(rb',"hash":"([0-9a-f]{64})"\}\Z')


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One line that is whole: its hash is that of its bytes."""

    fields: Mapping[str, Any]
    hash: str

    @property
    def seq(self) -> int:
        return int(self.fields["seq"])

    @property
    def event(self) -> str:
        return str(self.fields["event"])


@dataclasses.dataclass(frozen=True, slots=True)
class Bad:
    """The first line that is wrong. ``line`` counts from 1 over the whole log."""

    line: int
    problem: str


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """``first`` and ``last``: the entries that the good lines begin and end with."""

    entries: int
    first: Entry | None
    last: Entry | None
    bad: Bad | None


def seal(fields: Mapping[str, Any]) -> tuple[bytes, str]:
    """The line of these fields, without its end, and its hash."""
    body = json.dumps(fields, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + b',"hash":"' + digest.encode() + b'"}', digest


def opened(line: bytes) -> Entry | None:
    """The entry of a line without its end; None where the line is not whole."""
    found = _HASH.search(line)
    if found is None or len(line) > MAX_LINE:
        return None
    body = line[: found.start()] + b"}"
    digest = found[1].decode()
    if hashlib.sha256(body).hexdigest() != digest:
        return None
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    wanted = {"seq": int, "time": str, "event": str, "prev": str}
    if not isinstance(fields, dict) or any(type(fields.get(name)) is not kind for name, kind in wanted.items()):
        return None
    return Entry(fields, digest)


def fragment(lines: Sequence[bytes]) -> dict[str, Any]:
    """What ``log.repaired`` says of what stands torn before it: one line, or more where mending was interrupted."""
    torn = b"\n".join(lines)
    return {"torn_bytes": len(torn), "torn_sha256": hashlib.sha256(torn).hexdigest()}


def lines_of(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Each line without its end, and whether it has one. Of a line that is too long to be ours only a part."""
    rest = b""
    for chunk in chunks:
        *whole, end = chunk.split(b"\n")
        if not whole:
            rest = (rest + end)[: MAX_LINE + 1]
            continue
        yield (rest + whole[0])[: MAX_LINE + 1], True
        for line in whole[1:]:
            yield line, True
        rest = end
    if rest:
        yield rest, False


def verify(chunks: Iterable[bytes], kept: Mapping[int, str] | None = None, part: bool = False) -> Verdict:
    """Read a log to the first line that is wrong. ``part``: it may begin with a later entry than the first.

    ``kept``: hashes of entries, by ``seq``, as they were noted elsewhere; the last of them is how far the log must go.
    """
    kept = kept or {}
    first: Entry | None = None
    last: Entry | None = None
    torn: list[bytes] = []
    count = number = 0
    for number, (line, ended) in enumerate(lines_of(chunks), 1):
        entry = opened(line) if ended else None
        if entry is None:
            torn.append(line)
            if len(torn) > MOST_TORN:
                break
            continue
        attested = {key: entry.fields.get(key) for key in ("torn_bytes", "torn_sha256")}
        if torn and (entry.event != REPAIRED or attested != fragment(torn)):
            return Verdict(count, first, last, Bad(number - len(torn), _CHANGED))
        if not torn and entry.event == REPAIRED:
            return Verdict(count, first, last, Bad(number, "the torn line that this entry speaks of is gone"))
        torn.clear()
        problem = _place(entry, last, kept)
        if last is None and entry.seq > 1 and not part:
            problem = f"the log begins with entry {entry.seq}: those before are missing"
        if problem:
            return Verdict(count, first, last, Bad(number, problem))
        first = first or entry
        last = entry
        count += 1
    if torn:
        return Verdict(count, first, last, Bad(number - len(torn) + 1, _CHANGED))
    end = last.seq if last else 0
    longest = max(kept, default=0)
    if longest > end:
        missing = f"entry {longest} was" if longest == end + 1 else f"entries {end + 1} to {longest} were"
        return Verdict(count, first, last, Bad(number + 1, f"the log ends here, but {missing} written"))
    return Verdict(count, first, last, None)


_CHANGED = "this line was changed, or is not whole: it does not have its own hash"


def _place(entry: Entry, last: Entry | None, kept: Mapping[int, str]) -> str:
    """What is wrong with an entry that is whole, where it stands; '' for nothing."""
    seq = entry.seq
    if last is not None and seq != last.seq + 1:
        if seq > last.seq + 1:
            return f"entries {last.seq + 1} to {seq - 1} are missing before this line"
        return f"entry {seq} stands after entry {last.seq}: lines were repeated, inserted or moved"
    if last is None and (seq < 1 or (seq == 1) != (entry.fields["prev"] == GENESIS)):
        return "this is not how a log begins"
    if last is not None and entry.fields["prev"] != last.hash:
        return "this entry does not follow the one before: one of them was exchanged"
    if kept.get(seq, entry.hash) != entry.hash:
        return f"entry {seq} is not the one that was written: the log was rewritten from here or before"
    if entry.event == DAMAGED:
        return (
            f"when the daemon started, entry {entry.fields.get('kept_seq')} was not at the end of the log any more:"
            " lines before this one were changed or cut off"
        )
    return ""


def references(entries: Iterable[Entry]) -> Iterator[tuple[str, str, int, str, int, str]]:
    """Of every ``peer.reference``: session, event, our entry's seq and hash, the peer's seq and hash."""
    for entry in entries:
        if entry.event == "peer.reference":
            given = entry.fields
            yield (
                given["session"],
                given["of"],
                given["entry"],
                given["entry_hash"],
                given["peer_seq"],
                given["peer_hash"],
            )


def match(ours: list[Entry], theirs: list[Entry]) -> tuple[int, list[str]]:
    """Two parties' logs against each other: references that are right, and what is wrong with the others, in words."""
    right, wrong = 0, []
    logs = (("the first log", ours, "the second", theirs), ("the second log", theirs, "the first", ours))
    for name, log, other, peers in logs:
        by_seq = {entry.seq: entry for entry in peers}
        own = {entry.seq: entry for entry in log}
        for session, event, seq, digest, peer_seq, peer_hash in references(log):
            mine, found = own.get(seq), by_seq.get(peer_seq)
            where = f"{event} of session {session[:12]}: entry {peer_seq} of {other}"
            if mine is None or mine.hash != digest:
                wrong.append(f"{event} of session {session[:12]}: entry {seq} of {name} is not there or another")
            elif found is None:
                wrong.append(f"{where}, which {name} refers to, is not there")
            elif found.hash != peer_hash:
                wrong.append(f"{where} is not the one that {name} refers to")
            elif (found.event, found.fields.get("session")) != (event, session):
                wrong.append(f"{where} is about something else")
            elif mine.fields.get("run") != found.fields.get("run"):
                wrong.append(f"{where} is about another run than entry {seq} of {name}")
            else:
                right += 1
    return right, wrong
