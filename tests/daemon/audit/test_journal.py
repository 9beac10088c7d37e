"""The audit log's files: torn ends, full segments, logs that somebody changed while the daemon was not there."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mpcd.daemon.audit import chain, journal
from mpcd.daemon.audit.journal import Journal
from mpcd.daemon.errors import NotEnough


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def log(folder: Path) -> Iterator[Journal]:
    log = Journal(folder)
    yield log
    log.close()


def filled(folder: Path, entries: int, segment: int = journal.SEGMENT) -> Path:
    """A log's first segment, closed again."""
    log = Journal(folder, segment)
    for n in range(entries):
        log.append("test", {"n": n})
    log.close()
    return folder / "000000000001.jsonl"


def events(log: Journal) -> list[str]:
    return [entry.event for entry in log.entries()]


def check(log: Journal, entries: int) -> None:
    verdict, place = log.verify()
    assert (verdict.entries, verdict.bad, place) == (entries, None, "")
    assert verdict.last is None or (verdict.last.seq, verdict.last.hash) == log.head


def test_entries_follow_each_other(log: Journal, folder: Path) -> None:
    check(log, 0)
    assert log.head == (0, chain.GENESIS)
    for n in range(3):
        assert log.append("test", {"n": n})[0] == n + 1
    check(log, 3)
    assert [entry.fields["n"] for entry in log.entries()] == [0, 1, 2]
    assert {oct(file.stat().st_mode & 0o777) for file in folder.iterdir()} == {"0o600"}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_it_goes_on_after_a_restart(folder: Path) -> None:
    filled(folder, 3)
    log = Journal(folder)
    log.append("test", {"n": 3})
    check(log, 4)
    assert events(log) == ["test"] * 4
    log.close()


def test_on_the_disk_before_it_returns(log: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log.append("test", {})
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), fsync(fd)))
    log.append("test", {})
    assert synced[0] == (folder / "000000000001.jsonl").stat().st_size


def test_segments_stay_one_chain(folder: Path) -> None:
    filled(folder, 40, segment=1000)
    files = journal.segments(folder)
    assert len(files) > 5
    assert all(file.stat().st_size <= 1000 for file in files)
    log = Journal(folder, 1000)
    check(log, 40)
    assert log.append("test", {})[0] == 41
    check(log, 41)
    assert b"".join(log.read(0, log.size())) == b"".join(file.read_bytes() for file in journal.segments(folder))
    assert b"".join(log.read(900, 2100)) == b"".join(log.read(0, log.size()))[900:2100]
    middle = files[3]
    data = middle.read_bytes()
    lines = data.split(b"\n")
    middle.write_bytes(b"\n".join([lines[1], lines[0], *lines[2:]]))
    verdict, place = log.verify()
    assert verdict.bad is not None
    assert place == f"{middle.name} line 1"
    middle.unlink()
    verdict, place = log.verify()
    assert verdict.bad is not None
    assert "missing" in verdict.bad.problem
    assert place == f"{files[4].name} line 1"
    log.close()


def test_a_segment_begun_when_the_machine_stopped(folder: Path) -> None:
    filled(folder, 5, segment=1000)
    (folder / "000000000006.jsonl").touch()
    log = Journal(folder, 1000)
    log.append("test", {})
    check(log, 6)
    log.close()


@pytest.mark.parametrize("cut", [2, 30, 75, 76, 90])
def test_a_torn_end(folder: Path, cut: int) -> None:
    """The write of entry 4 was interrupted: kept is entry 3."""
    file = filled(folder, 3)
    line, _ = chain.seal({"seq": 4, "time": "t", "event": "test", "prev": Journal(folder).head[1]})
    whole = file.read_bytes()
    file.write_bytes(whole + (line + b"\n")[:-cut])
    log = Journal(folder)
    assert events(log) == ["test"] * 3 + ["log.repaired"]
    check(log, 4)
    assert file.read_bytes().startswith(whole + (line + b"\n")[:-cut]), "nothing was rewritten"
    log.append("test", {})
    log.close()
    log = Journal(folder)
    check(log, 5)
    log.close()


def test_an_entry_that_lacks_only_its_end(folder: Path) -> None:
    file = filled(folder, 3)
    file.write_bytes(file.read_bytes()[:-1])
    log = Journal(folder)
    check(log, 3)
    log.append("test", {})
    check(log, 4)
    log.close()


def test_an_end_torn_while_it_was_mended(folder: Path) -> None:
    file = filled(folder, 2)
    for torn in (b'{"seq":3,"ti', b'\n{"seq":3,"time":"', b"\0" * 700):
        file.write_bytes(file.read_bytes() + torn)
    log = Journal(folder)
    check(log, 3)
    log.close()


def test_a_log_torn_in_its_first_line(folder: Path) -> None:
    folder.mkdir()
    (folder / "000000000001.jsonl").write_bytes(b'{"seq":1')
    log = Journal(folder)
    assert events(log) == ["log.repaired"]
    check(log, 1)
    log.close()


def test_an_entry_that_was_written_but_not_kept(folder: Path) -> None:
    """The machine stopped between the log and the note of its head."""
    file = filled(folder, 3)
    log = Journal(folder)
    line, _ = chain.seal({"seq": 4, "time": "t", "event": "test", "prev": log.head[1]})
    log.close()
    file.write_bytes(file.read_bytes() + line + b"\n")
    log = Journal(folder)
    check(log, 4)
    log.close()


def cut_last(lines: list[bytes]) -> list[bytes]:
    return lines[:-1]


def cut_all(lines: list[bytes]) -> list[bytes]:
    return []


def edit_last(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-1], lines[-1].replace(b'"n":4', b'"n":5')]


def exchange_last(lines: list[bytes]) -> list[bytes]:
    prev = chain.opened(lines[-2])
    assert prev is not None
    return [*lines[:-1], chain.seal({"seq": 5, "time": "t", "event": "test", "prev": prev.hash})[0]]


@pytest.mark.parametrize("change", [cut_last, cut_all, edit_last, exchange_last])
def test_an_end_changed_while_the_daemon_was_away(folder: Path, change: object) -> None:
    """Said at the next start, and by every verification from then on, though the log has grown past it."""
    file = filled(folder, 5)
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"".join(line + b"\n" for line in change(lines)))  # type: ignore[operator]
    log = Journal(folder)
    assert "log.damaged" in events(log)
    for _ in range(5):
        log.append("test", {})
    verdict, place = log.verify()
    assert verdict.bad is not None
    assert "entry 5" in verdict.bad.problem
    assert place
    log.close()
    log = Journal(folder)
    assert events(log).count("log.damaged") == 1
    log.close()


def test_the_log_taken_away(folder: Path) -> None:
    file = filled(folder, 5)
    file.unlink()
    log = Journal(folder)
    assert log.verify()[0].bad is not None
    log.close()


def test_changed_while_the_daemon_runs(log: Journal, folder: Path) -> None:
    for n in range(5):
        log.append("test", {"n": n})
    file = folder / "000000000001.jsonl"
    data = file.read_bytes()
    for changed, line in (
        (data.replace(b'"n":2', b'"n":3'), 3),
        (b"".join(data.splitlines(keepends=True)[:-1]), 5),
        (b"".join(data.splitlines(keepends=True)[1:]), 1),
        (b"", 1),
    ):
        file.write_bytes(changed)
        verdict, place = log.verify()
        assert verdict.bad is not None
        assert verdict.bad.line == line
        assert place == f"{file.name} line {line}"
    file.write_bytes(data)
    check(log, 5)


def test_a_disk_that_is_full(log: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line, an error, then room again: what was not acknowledged is said to be torn."""
    log.append("test", {})
    write, calls = os.write, []

    def half(fd: int, data: bytes) -> int:
        calls.append(1)
        if len(calls) % 2 == 0:
            raise OSError(28, "No space left on device")
        return write(fd, data[:20])

    monkeypatch.setattr(os, "write", half)
    for _ in range(2):
        with pytest.raises(NotEnough, match="audit log"):
            log.append("test", {})
    assert log.head[0] == 1
    monkeypatch.undo()
    log.append("test", {})
    assert events(log) == ["test", "log.repaired", "test"]
    check(log, 3)


def test_many_threads(log: Journal) -> None:
    threads = [threading.Thread(target=lambda: [log.append("test", {}) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(log, 40)


def test_entries_are_bounded(log: Journal) -> None:
    with pytest.raises(ValueError, match="entry of"):
        log.append("test", {"long": "x" * chain.MAX_LINE})
    assert log.append("test", {})[0] == 1


def test_references(log: Journal, folder: Path) -> None:
    who = {"peer": "b"}
    for session in ("s1", "s2"):
        log.append("session.approved", {"who": who, "session": session})
        log.append("session.began", {"who": who, "session": session})
    assert [r.session for r in log.unmatched("b", 9)] == ["s2", "s1"]
    assert [r.session for r in log.unmatched("b", 1)] == ["s2"]
    assert log.unmatched("c", 9) == []
    assert log.append("session.approved", {"who": who, "session": "s1"})[0] == 5
    ours = log.reference("s1", "session.approved")
    assert ours is not None
    assert ours.seq == 1, "the first entry stays the one that the peer is told"
    log.matched(ours, 77, "a" * 64, who)
    log.matched(ours, 78, "b" * 64, who)
    assert [r.session for r in log.unmatched("b", 9)] == ["s2"]
    entries = list(log.entries())
    assert entries[-1].event == "peer.reference"
    assert list(chain.references(entries)) == [("s1", "session.approved", 1, ours.hash, 77, "a" * 64)]
    check(log, 6)
    assert log.reference("none", "session.over") is None
    log.note("policy", "x")
    log.note("policy", "y")
    assert (log.noted("policy"), log.noted("other")) == ("y", "")


def test_an_old_entry_rewritten_with_all_that_follow(log: Journal, folder: Path) -> None:
    """The head's note was forged along; the references still tell."""
    log.append("session.approved", {"who": {"peer": "b"}, "session": "s"})
    log.append("test", {})
    prev, lines = chain.GENESIS, []
    for seq in (1, 2):
        line, prev = chain.seal({"seq": seq, "time": "t", "event": "test", "prev": prev})
        lines.append(line + b"\n")
    (folder / "000000000001.jsonl").write_bytes(b"".join(lines))
    with log._kept.transaction() as db:
        db.execute("UPDATE head SET hash = ?", (prev,))
    verdict, _ = log.verify()
    assert verdict.bad is not None
    assert verdict.bad.line == 1


WRITER = """
import sys
from pathlib import Path
from mpcd.daemon.audit.journal import Journal
log = Journal(Path(sys.argv[1]), 4000)
while True:
    print(log.append("test", {"filler": "x" * 200})[0], flush=True)
"""


def test_a_writer_killed_again_and_again(folder: Path) -> None:
    """What was acknowledged is there, in one chain."""
    rng = np.random.default_rng(2)
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        acknowledged = [process.stdout.readline() for _ in range(int(rng.integers(1, 40)))]
        process.kill()
        acknowledged += process.stdout.readlines()
        process.wait(60)
        log = Journal(folder, 4000)
        verdict, _ = log.verify()
        assert verdict.bad is None
        assert verdict.entries >= int([line for line in acknowledged if line.endswith("\n")][-1])
        log.close()
