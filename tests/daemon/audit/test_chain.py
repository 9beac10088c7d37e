"""Whatever happens to one line of an audit log, verification names the line."""

from __future__ import annotations

import hashlib
import json

from hypothesis import given
from hypothesis import strategies as st

from mpcd.daemon.audit import chain
from mpcd.daemon.audit.chain import GENESIS


def log_of(count: int, start: int = 1, prev: str = GENESIS) -> list[bytes]:
    lines = []
    for seq in range(start, start + count):
        line, prev = chain.seal({"seq": seq, "time": f"t{seq}", "event": "test", "n": seq * 7, "prev": prev})
        lines.append(line)
    return lines


def text(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def head(lines: list[bytes]) -> dict[int, str]:
    entry = chain.opened(lines[-1])
    assert entry is not None
    return {entry.seq: entry.hash}


def verified(data: bytes, kept: dict[int, str] | None = None) -> chain.Verdict:
    return chain.verify([data], kept)


def bad_line(data: bytes, kept: dict[int, str] | None = None) -> int:
    verdict = verified(data, kept)
    assert verdict.bad is not None
    assert verdict.bad.problem
    return verdict.bad.line


def test_an_auditor_needs_only_sha256() -> None:
    """The form as the documentation has it, without this program's help."""
    first, second = log_of(2)
    body, _, rest = first.rpartition(b',"hash":"')
    digest = hashlib.sha256(body + b"}").hexdigest()
    assert rest == digest.encode() + b'"}'
    assert json.loads(second)["prev"] == digest
    assert json.loads(first)["prev"] == "0" * 64


def test_a_whole_log() -> None:
    lines = log_of(9)
    verdict = verified(text(lines), head(lines))
    assert (verdict.entries, verdict.bad) == (9, None)
    assert verdict.first is not None
    assert verdict.last is not None
    assert (verdict.first.seq, verdict.last.seq) == (1, 9)
    assert verified(b"") == chain.Verdict(0, None, None, None)
    assert bad_line(text(lines[3:]), head(lines)) == 1
    assert chain.verify([text(lines[3:])], head(lines), part=True).entries == 6


@given(st.integers(1, 8), st.integers(0, 7), st.lists(st.integers(1, 400), max_size=5))
def test_chunks_do_not_matter(count: int, cut: int, sizes: list[int]) -> None:
    data = text(log_of(count))
    chunks, at = [], 0
    for size in sizes:
        chunks.append(data[at : at + size])
        at += size
    chunks.append(data[at:])
    assert chain.verify(chunks).entries == count


LOG = log_of(7)
DATA = text(LOG)
KEPT = head(LOG)


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_any_byte_changed(at: int, by: int) -> None:
    """Also the line ends, and the last line."""
    changed = DATA[:at] + bytes([DATA[at] ^ by]) + DATA[at + 1 :]
    assert bad_line(changed, KEPT) == DATA[:at].count(b"\n") + 1
    assert verified(changed).bad is not None, "without what is kept, too"


@given(st.integers(0, 6), st.dictionaries(st.sampled_from(["time", "event", "n", "new"]), st.integers(), min_size=1))
def test_a_line_edited_by_one_who_knows_the_form(index: int, change: dict[str, int]) -> None:
    """With a hash that is right again: the next line tells, or what is kept."""
    fields = {k: v for k, v in json.loads(LOG[index]).items() if k != "hash"}
    edited, _ = chain.seal({**fields, **{k: str(v) for k, v in change.items()}})
    lines = [*LOG[:index], edited, *LOG[index + 1 :]]
    found = verified(text(lines), KEPT)
    if edited == LOG[index]:
        assert found.bad is None
    else:
        assert found.bad is not None
        assert found.bad.line in (index + 1, index + 2)


@given(st.integers(0, 6))
def test_any_line_missing(index: int) -> None:
    lines = LOG[:index] + LOG[index + 1 :]
    assert bad_line(text(lines), KEPT) == index + 1


@given(st.integers(0, 6), st.integers(0, 6))
def test_any_two_lines_exchanged(i: int, j: int) -> None:
    lines = list(LOG)
    lines[i], lines[j] = lines[j], lines[i]
    if i == j:
        assert verified(text(lines), KEPT).bad is None
    else:
        assert verified(text(lines), KEPT).bad is not None
        assert bad_line(text(lines), KEPT) <= min(i, j) + 2


@given(st.integers(0, 6), st.integers(0, 7))
def test_any_line_repeated(index: int, to: int) -> None:
    lines = list(LOG)
    lines.insert(to, LOG[index])
    assert verified(text(lines), KEPT).bad is not None


@given(st.integers(0, 7), st.integers(1, 9))
def test_any_line_inserted(to: int, seq: int) -> None:
    prev = json.loads(LOG[to - 1])["hash"] if to else GENESIS
    forged, _ = chain.seal({"seq": seq, "time": "t", "event": "test", "prev": prev})
    lines = [*LOG[:to], forged, *LOG[to:]]
    assert verified(text(lines), KEPT).bad is not None or (to, seq) == (7, 8), "a log may have grown since"


@given(st.integers(0, len(DATA) - 1))
def test_any_end_cut_off(size: int) -> None:
    """At every byte; against the entry that is known to be the last."""
    assert bad_line(DATA[:size], KEPT) == DATA[:size].count(b"\n") + 1


@given(st.integers(1, 6))
def test_a_log_made_anew(index: int) -> None:
    """The whole chain from some line on, every hash right: only an entry noted elsewhere tells."""
    prev = json.loads(LOG[index - 1])["hash"]
    anew = []
    for seq in range(index + 1, 8):
        line, prev = chain.seal({"seq": seq, "time": "later", "event": "test", "prev": prev})
        anew.append(line)
    data = text(LOG[:index] + anew)
    assert verified(data).bad is None
    assert bad_line(data, KEPT) == 7
    middle = chain.opened(LOG[index])
    assert middle is not None
    assert bad_line(data, {middle.seq: middle.hash}) == index + 1


@given(st.binary(min_size=1, max_size=300))
def test_a_torn_line_is_told_from_a_changed_one(torn: bytes) -> None:
    if torn.endswith(b"\n") or torn.count(b"\n") >= chain.MOST_TORN:
        torn = b"x"
    prev = json.loads(LOG[-1])["hash"]
    says = chain.fragment(torn.split(b"\n"))
    mended, _ = chain.seal({"seq": 8, "time": "t", "event": chain.REPAIRED, **says, "prev": prev})
    whole = DATA + torn + b"\n" + mended + b"\n"
    assert verified(whole, KEPT).bad is None
    at = 8 + torn.count(b"\n")
    assert bad_line(DATA + mended + b"\n") == 8, "the torn line was taken away"
    assert verified(DATA + torn + b"?\n" + mended + b"\n").bad is not None
    assert bad_line(DATA + torn + b"\n") == 8, "nothing says that it was torn"
    other, _ = chain.seal({"seq": 8, "time": "t", "event": "test", "prev": prev})
    assert bad_line(DATA + torn + b"\n" + other + b"\n") == 8
    assert at >= 8


@given(st.binary(max_size=2000))
def test_anything_at_all(data: bytes) -> None:
    verdict = verified(data)
    assert verdict.entries == 0
    assert (verdict.bad is None) == (data == b"")


def test_lines_that_are_no_entries() -> None:
    for fields in (
        {"seq": True, "time": "t", "event": "e", "prev": GENESIS},
        {"seq": "1", "time": "t", "event": "e", "prev": GENESIS},
        {"seq": 1, "time": 1, "event": "e", "prev": GENESIS},
        {"seq": 1, "time": "t", "prev": GENESIS},
        {"seq": 0, "time": "t", "event": "e", "prev": GENESIS},
        {"seq": 1, "time": "t", "event": "e", "prev": "f" * 64},
    ):
        line, _ = chain.seal(fields)
        assert bad_line(line + b"\n") == 1
    deep = b"[" * 5000 + b"]" * 5000
    body = b'{"seq":1,"time":"t","event":"e","prev":"' + GENESIS.encode() + b'","deep":' + deep + b"}"
    line = body[:-1] + b',"hash":"' + hashlib.sha256(body).hexdigest().encode() + b'"}'
    assert chain.opened(line) is None
    long, _ = chain.seal({"seq": 1, "time": "t", "event": "e", "long": "x" * chain.MAX_LINE, "prev": GENESIS})
    assert bad_line(long + b"\n") == 1


def two_logs(peer_hash: str = "", run: object = 1, event: str = "session.over") -> tuple[list, list]:
    theirs, digest = chain.seal({"seq": 1, "time": "t", "event": event, "session": "s", "run": 1, "prev": GENESIS})
    first, ours = chain.seal(
        {"seq": 1, "time": "t", "event": "session.over", "session": "s", "run": run, "prev": GENESIS}
    )
    says = {"session": "s", "of": "session.over", "entry": 1, "entry_hash": ours, "peer_seq": 1}
    second, _ = chain.seal(
        {"seq": 2, "time": "t", "event": "peer.reference", **says, "peer_hash": peer_hash or digest, "prev": ours}
    )
    return [chain.opened(line) for line in (first, second)], [chain.opened(theirs)]


def test_two_logs_match() -> None:
    ours, theirs = two_logs()
    assert chain.match(ours, theirs) == chain.match(theirs, ours) == (1, [])
    for pair, word in (
        (two_logs(peer_hash="0" * 64), "not the one"),
        (two_logs(run=2), "another run"),
        (two_logs(event="session.denied"), "something else"),
        ((ours, []), "not there"),
        ((ours[1:], theirs), "not there"),
    ):
        right, wrong = chain.match(*pair)
        assert right == 0
        assert len(wrong) == 1
        assert word in wrong[0]
