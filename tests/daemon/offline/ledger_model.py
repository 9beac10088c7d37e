"""Both ledgers' steps as docs/ledger.md has them, with a crash, a failure or a lost message between any two of them.

Exhaustive: ``explore`` visits every state that can be reached and checks what must hold in each. What a step does to
a ledger is asked of the real ``Ledger`` (once for each ledger and operation), who burns what of the real ``compare``,
what a start does of the real ``recover``. The order of the steps is written down here again; test_ledger_model.py
compares it with what two daemons do.

Bounds: units made one at a time, one session of two images in flight, a number of faults. A fault is a crash of a
side, a failure of a task, or a call given up. A call that was given up may still arrive, at any time; one that never
arrives costs nothing more. Fewer bounds than in life: a task may end at any step without a reason being modelled.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mpcd.daemon.offline import ledger as real
from mpcd.daemon.offline.agreement import compare
from mpcd.daemon.offline.ledger import Ledger, LedgerError, Stock
from mpcd.daemon.offline.recovery import recover

STOCK = Stock("p" * 64, "m" * 64, "n" * 64)
SESSION = "s"
MAKER, SYNC, USER = 0, 1, 2  # the data owner's tasks; USER + image
IDLE: Task = ("idle",)

Task = tuple[Any, ...]
Key = tuple[tuple[int, str, int | None, int], ...]  # of a ledger: unit, state, image, opened; oldest first


class Violation(AssertionError):
    """Something that must never be."""


class State(NamedTuple):
    """``files``: (unit, nonce) of what is on the disk. ``net``: calls and answers on their way. ``paired``: nonces of
    the two sides whose material was made together. ``read``: (side, unit, image, nonce). ``done``: results kept."""

    ledger1: Key = ()
    files1: frozenset[tuple[int, int]] = frozenset()
    tasks1: tuple[Task, ...] = (IDLE,) * 4
    lock: int | None = None
    up1: bool = True
    ledger0: Key = ()
    files0: frozenset[tuple[int, int]] = frozenset()
    tasks0: frozenset[Task] = frozenset()
    up0: bool = True
    net: frozenset[Task] = frozenset()
    drawn: int = 0
    paired: frozenset[tuple[int, int]] = frozenset()
    read: frozenset[tuple[int, int, int, int]] = frozenset()
    done: frozenset[int] = frozenset()
    faults: int = 0


class Folder:
    """The store of one side as ``recover`` needs it; raises in the middle when told to."""

    class Broken(Exception):
        pass

    def __init__(self, files: frozenset[tuple[int, int]], breaks: bool) -> None:
        self.files, self._breaks = files, breaks

    def complete(self, unit: bytes) -> bool:
        if self._breaks:
            raise Folder.Broken
        return any(name(u) == unit for u, _ in self.files)

    def sweep(self, keep: Sequence[bytes]) -> int:
        if self._breaks:
            raise Folder.Broken
        self.files = frozenset(file for file in self.files if name(file[0]) in keep)
        return 0


def name(unit: int) -> bytes:
    return unit.to_bytes(16, "big")


class Ledgers:
    """The real ledger as a function: (what it holds, operation) -> what it then holds, and the result."""

    def __init__(self, folder: Path, kind: type[Ledger] = Ledger) -> None:
        self._folder, self._kind = folder, kind
        self._files: dict[Key, Path] = {(): folder / "0"}
        self._known: dict[tuple[Any, ...], tuple[Key, Any] | None] = {}
        Ledger(self._files[()]).close()

    def __call__(self, key: Key, operation: str, *values: Any) -> tuple[Key, Any] | None:
        """None: the ledger refuses."""
        asked = (key, operation, *values)
        if asked not in self._known:
            self._known[asked] = self._ask(key, operation, *values)
        return self._known[asked]

    def _ask(self, key: Key, operation: str, *values: Any) -> tuple[Key, Any] | None:
        path = self._folder / str(len(self._files))
        shutil.copyfile(self._files[key], path)
        ledger = self._kind(path)
        try:
            result = getattr(self, f"_{operation}")(ledger, *values)
        except LedgerError:
            result = LedgerError
        rows = ledger._db.query("SELECT id, state, image, opened FROM unit ORDER BY created, id")
        after = tuple((int.from_bytes(row[0], "big"), row[1], row[2], row[3]) for row in rows)
        if ledger.reuse_count():
            raise Violation(f"reused: {operation} {values} on {key}")
        ledger.close()  # puts everything into the one file
        self._files.setdefault(after, path)
        if result is LedgerError:
            if after != key:
                raise Violation(f"{operation} {values} was refused, and changed {key} to {after}")
            return None
        return after, result

    def _begin(self, ledger: Ledger, unit: int) -> None:
        ledger.begin(STOCK, b"b" * 16, [name(unit)])

    def _ready(self, ledger: Ledger, unit: int) -> None:
        ledger.ready([name(unit)])

    def _spend(self, ledger: Ledger, unit: int, image: int) -> None:
        ledger.spend(name(unit), SESSION, image)

    def _open(self, ledger: Ledger, unit: int, image: int) -> None:
        real.Spent(ledger, name(unit), SESSION, image, real._KEY).open()  # the proof lives in memory

    def _burn(self, ledger: Ledger, units: tuple[int, ...]) -> None:
        ledger.burn([name(unit) for unit in units], "model")

    def _list(self, ledger: Ledger) -> tuple[int, ...]:
        return tuple(int.from_bytes(unit, "big") for unit in ledger.ready_units(STOCK))

    def _recover(self, ledger: Ledger, files: frozenset[tuple[int, int]], breaks: bool) -> frozenset[tuple[int, int]]:
        folder = Folder(files, breaks)
        with contextlib.suppress(Folder.Broken):
            recover(ledger, folder)  # type: ignore[arg-type]
        return folder.files


class Model:
    """The steps. ``units`` are made at most, ``faults`` happen at most. Subclasses do something wrong on purpose."""

    def __init__(self, folder: Path, units: int, faults: int, ledger: type[Ledger] = Ledger) -> None:
        self.ledgers = Ledgers(folder, ledger)
        self._units, self._faults = units, faults
        self._settled: set[tuple[Any, ...]] = set()

    def explore(self) -> set[State]:
        """Every state. Raises Violation with the way to it."""
        start = State()
        came: dict[State, tuple[State, str] | None] = {start: None}
        edge = [start]
        while edge:
            ahead: list[State] = []
            for state in edge:
                try:
                    for what, after in self.steps(state):
                        if after not in came:
                            came[after] = (state, what)
                            ahead.append(after)
                    self.check(state)
                except Violation as violation:
                    way: list[str] = []
                    at: State | None = state
                    while at is not None and (before := came[at]) is not None:
                        at, what = before
                        way.append(what)
                    raise Violation(f"{violation}\nafter: {'; '.join(reversed(way))}") from None
            edge = ahead
        return set(came)

    # What must hold

    def check(self, s: State) -> None:
        spent1 = {unit: image for unit, state, image, _ in s.ledger1 if state == "spent"}
        spent0 = {unit: image for unit, state, image, _ in s.ledger0 if state == "spent"}
        _must(
            spent0.items() <= spent1.items(), "the model owner spent what the data owner did not, or for another image"
        )
        _must({row[0] for row in s.ledger0} <= {row[0] for row in s.ledger1}, "a unit that the data owner never began")
        for side, unit, image, nonce in s.read:
            _must(spent0.get(unit) == spent1.get(unit) == image, "a unit was read before both ledgers called it spent")
            others = [other for other in s.read if other[1] == unit and other[0] == side]
            _must(len(others) == 1, "a side read a unit twice")
            theirs = [other[3] for other in s.read if other[1] == unit and other[0] != side]
            pairs = [(nonce, other) if side else (other, nonce) for other in theirs]
            _must(all(pair in s.paired for pair in pairs), "the two sides read halves that were not made together")
        for one in (0, 1):
            halves = [pair[one] for pair in s.paired]
            _must(len(set(halves)) == len(halves), "one side's material met two of the other's")
        if not s.faults:
            _must(all(row[1] != "burnt" for row in s.ledger0 + s.ledger1), "a unit was burnt, and there was no fault")
        self._settles(s)

    def _settles(self, s: State) -> None:
        """A power cut now, then a comparison; and where nothing is under way, a comparison alone."""
        quiet = s.up0 and s.up1 and not s.tasks0 and not s.net and set(s.tasks1) == {IDLE}
        ends = (s.ledger1, s.files1, s.ledger0, s.files0)
        for cut in (True, False) if quiet else (True,):
            if (cut, ends) in self._settled:
                continue
            self._settled.add((cut, ends))
            sides = []
            for ledger, files in ((s.ledger1, s.files1), (s.ledger0, s.files0)):
                sides.append(self._recovered(ledger, files, False) if cut else (ledger, files))
            (ledger1, files1), (ledger0, files0) = sides
            ready = self._list(ledger1)
            kept, gone = self.compare(self._list(ledger0), ready)
            ledger0, files0 = self._do(ledger0, "burn", gone), _without(files0, gone)
            _, gone = self.compare(ready, kept)
            ledger1, files1 = self._do(ledger1, "burn", gone), _without(files1, gone)
            _must(self._list(ledger0) == self._list(ledger1), "the two sides do not agree after a comparison")
            theirs = {row[0]: row[1] for row in ledger0}
            for unit, state, _, _ in ledger1:
                both = (state, theirs.get(unit, "never begun"))
                known = {("ready", "ready"), ("spent", "spent"), ("spent", "burnt"), ("burnt", "burnt")}
                _must(both in known | {("burnt", "never begun")}, f"a unit is unaccounted for: {both}")
            for ledger, files in ((ledger1, files1), (ledger0, files0)):
                stored = {unit for unit, _ in files}
                _must(stored == set(self._list(ledger)), f"ready are {self._list(ledger)}, on the disk {stored}")

    # What may happen

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        if s.faults < self._faults:
            yield from self._crashes(s)
        if not s.up1:
            for ledger, files, broken in self._starts(s.ledger1, s.files1):
                after = s._replace(ledger1=ledger, files1=files, up1=not broken)
                yield f"P1 starts{', and dies of it' * broken}", after
        else:
            for at, task in enumerate(s.tasks1):
                yield from self._data_owner(s, at, task)
        if not s.up0:
            for ledger, files, broken in self._starts(s.ledger0, s.files0):
                after = s._replace(ledger0=ledger, files0=files, up0=not broken)
                yield f"P0 starts{', and dies of it' * broken}", after
        else:
            for task in s.tasks0:
                yield from self._model_owner(s, task)
            for message in s.net:
                if message[0] == "call":
                    yield from self._arrives(s, message)

    def _crashes(self, s: State) -> Iterator[tuple[str, State]]:
        faults = s.faults + 1
        if s.up1:
            net = frozenset(_orphan(m) for m in s.net if m[0] == "call")
            tasks0 = frozenset(_orphan(t) for t in s.tasks0)
            after = s._replace(up1=False, tasks1=(IDLE,) * 4, lock=None, net=net, tasks0=tasks0, faults=faults)
            yield "P1 crashes", after
        if s.up0:  # what is on the wire goes with it; the data owner sees the link break
            yield "P0 crashes", s._replace(up0=False, tasks0=frozenset(), net=frozenset(), faults=faults)

    def _starts(self, ledger: Key, files: frozenset[tuple[int, int]]) -> Iterator[tuple[Key, Any, bool]]:
        for broken in (False, True):
            after = self._recovered(ledger, files, broken)
            if not broken or after != (ledger, files):
                yield *after, broken

    def _recovered(
        self, ledger: Key, files: frozenset[tuple[int, int]], broken: bool
    ) -> tuple[Key, frozenset[tuple[int, int]]]:
        after = self.ledgers(ledger, "recover", files, broken)
        assert after is not None
        return after

    # The data owner, P1

    def _data_owner(self, s: State, at: int, task: Task) -> Iterator[tuple[str, State]]:
        if at == MAKER:
            yield from self._maker(s, task)
        elif at == SYNC:
            yield from self._syncer(s, task)
        else:
            yield from self._user(s, at, task)

    def _maker(self, s: State, task: Task) -> Iterator[tuple[str, State]]:
        def to(*after: Any, **changes: Any) -> State:
            return with_task(s._replace(**changes), MAKER, after)

        match task:
            case ("idle",):
                if s.drawn < self._units:
                    yield "P1 draws an id", to("begin", s.drawn + 1, drawn=s.drawn + 1)
            case ("begin", unit) if s.lock is None:
                yield "P1 begins", to("tell", unit, ledger1=self._do(s.ledger1, "begin", unit))
            case ("tell", unit):
                yield "P1 calls offline.begin", calling(to("told", unit), MAKER, "begin", unit)
            case ("told", unit):
                for ok, after in answers(s, MAKER):
                    yield "P1 hears of its batch", with_task(after, MAKER, ("write", unit) if ok else ("burn", unit))
            case ("write", unit):
                yield "P1 writes", to("run", unit, files1=s.files1 | {(unit, self.nonce(s, 1, unit))})
            case ("run", unit):
                for other in s.tasks0:
                    if other[:2] == ("run", unit):
                        after = swapped(to("lock", unit), other, ("finish", *other[1:]))
                        yield "the protocol runs", after._replace(paired=s.paired | {self._pair(s, unit)})
            case ("lock", unit) if s.lock is None:
                yield "P1 locks", to("ready", unit, lock=MAKER)
            case ("ready", unit):
                yield "P1 is ready", to("say", unit, ledger1=self._do(s.ledger1, "ready", unit))
            case ("say", unit):
                yield "P1 calls offline.ready", calling(to("said", unit), MAKER, "ready", unit)
            case ("said", unit):
                for _, after in answers(s, MAKER):  # an error changes nothing: the next comparison tells
                    yield "P1 ends its batch", with_task(after._replace(lock=None), MAKER, IDLE)
            case ("burn", unit):
                ledger = self._do(s.ledger1, "burn", (unit,))
                lock = None if s.lock == MAKER else s.lock
                yield "P1 burns its batch", to("remove", unit, ledger1=ledger, lock=lock)
            case ("remove", unit):
                yield "P1 removes files", to("idle", files1=_without(s.files1, (unit,)))
        yield from self._given_up(s, MAKER)
        if task[0] in ("tell", "write", "run", "lock", "ready", "say") and s.faults < self._faults:
            failed = to("burn", task[1], faults=s.faults + 1)
            yield "P1's half of the batch fails", failed._replace(lock=None if s.lock == MAKER else s.lock)

    def _syncer(self, s: State, task: Task) -> Iterator[tuple[str, State]]:
        match task:
            case ("idle",) if s.lock is None:
                ready = self._list(s.ledger1)
                making = tuple(unit for unit, state, _, _ in s.ledger1 if state == "making")
                after = with_task(s._replace(lock=SYNC), SYNC, ("compare", ready))
                yield "P1 calls units.sync", calling(after, SYNC, "sync", ready, making)
            case ("compare", ready):
                for kept, after in answers(s, SYNC):
                    _, gone = self.compare(ready, kept)
                    ledger = self._do(s.ledger1, "burn", gone)
                    if gone:
                        yield "P1 burns", with_task(after._replace(ledger1=ledger), SYNC, ("remove", gone))
                    else:
                        yield "P1 agrees", with_task(after._replace(lock=None), SYNC, IDLE)
            case ("remove", gone):
                after = s._replace(files1=_without(s.files1, gone), lock=None)
                yield "P1 removes files", with_task(after, SYNC, IDLE)
        yield from self._given_up(s, SYNC)

    def _user(self, s: State, at: int, task: Task) -> Iterator[tuple[str, State]]:
        image = at - USER

        def to(*after: Any, **changes: Any) -> State:
            return with_task(s._replace(**changes), at, after)

        match task:
            case ("idle",) if s.lock is None and image not in s.done and (ready := self._list(s.ledger1)):
                yield "P1 takes a unit", to("spend", ready[0], lock=at)
            case ("spend", unit):
                spent = self.ledgers(s.ledger1, "spend", unit, image)
                if spent is None:  # its batch was given up meanwhile
                    yield "P1's ledger refuses", to("idle", lock=None)
                else:
                    yield "P1 spends", to("ask", unit, ledger1=spent[0])
            case ("ask", unit):
                yield "P1 calls session.image", calling(to("asked", unit), at, "image", unit, image)
            case ("asked", unit):
                for ok, after in answers(s, at):
                    after = after._replace(lock=None)
                    yield "P1 hears of its image", with_task(after, at, ("open" if ok else "remove", unit))
            case ("open", unit):
                yield "P1 opens", to("read", unit, ledger1=self._do(s.ledger1, "open", unit, image))
            case ("read", unit):
                found = _reading(s, 1, unit, image)
                yield "P1 unlinks and reads", to("infer", unit, **found) if found else to("idle")
            case ("infer", unit):
                for other in s.tasks0:
                    if other[:3] == ("infer", unit, image):
                        after = swapped(to("keep", unit), other, None)
                        yield "the image is computed", after
                yield "P1's image fails", to("idle")
            case ("keep", unit):
                yield "P1 keeps the result", to("idle", done=s.done | {image})
            case ("remove", unit):
                yield "P1 removes files", to("idle", files1=_without(s.files1, (unit,)))
        yield from self._given_up(s, at)

    def _given_up(self, s: State, at: int) -> Iterator[tuple[str, State]]:
        """A call whose link broke or that took too long; it may still arrive, its answer counts no more."""
        task = s.tasks1[at]
        if task[0] not in ("told", "said", "compare", "asked"):
            return
        waits = any(t[-1] == at for t in s.tasks0) or any(m[1 if m[0] == "answer" else -1] == at for m in s.net)
        if waits and s.faults >= self._faults:
            return  # it will be answered
        net = frozenset(_orphan(m, at) for m in s.net if m[:2] != ("answer", at))
        tasks0 = frozenset(_orphan(t, at) for t in s.tasks0)
        after = s._replace(net=net, tasks0=tasks0, faults=s.faults + waits)
        then: Task = IDLE
        if task[0] == "told":
            then = ("burn", task[1])
        elif task[0] == "asked":
            then = ("remove", task[1])
        lock = None if s.lock == at else s.lock
        yield "P1 gives a call up", with_task(after._replace(lock=lock), at, then)

    # The model owner, P0

    def _arrives(self, s: State, message: Task) -> Iterator[tuple[str, State]]:
        _, kind, values, caller = message
        s = s._replace(net=s.net - {message})
        match kind:
            case "begin":
                begun = self.ledgers(s.ledger0, "begin", values[0])
                if begun is None:
                    yield "P0 refuses a batch", _answer(s, caller, False)
                else:
                    after = s._replace(ledger0=begun[0], tasks0=s.tasks0 | {("write", values[0], None)})
                    yield "P0 begins", _answer(after, caller, True)
            case "ready":
                for task in s.tasks0:
                    if task[:2] == ("wait", values[0]):
                        yield "P0 is told", swapped(s, task, ("ready", values[0], caller))
                if not any(t[0] in ("write", "run", "finish", "wait") and t[1] == values[0] for t in s.tasks0):
                    yield "P0 knows no such batch", _answer(s, caller, False)
            case "sync":
                yield "P0 hears the lists", s._replace(tasks0=s.tasks0 | {("settle", *values, caller)})
            case "image":
                if values[0] not in self._list(s.ledger0):
                    yield "P0 refuses a unit", _answer(s, caller, False)
                elif not any(t[0] in ("spend", "open", "read", "infer") and t[2] == values[1] for t in s.tasks0):
                    yield "P0 takes an image", s._replace(tasks0=s.tasks0 | {("spend", *values, caller)})

    def _model_owner(self, s: State, task: Task) -> Iterator[tuple[str, State]]:
        match task:
            case ("write", unit, caller):
                after = s._replace(files0=s.files0 | {(unit, self.nonce(s, 0, unit))})
                yield "P0 writes", swapped(after, task, ("run", unit, caller))
            case ("finish", unit, caller):
                yield "P0 finishes", swapped(s, task, ("wait", unit, caller))
            case ("ready", unit, caller):
                after = s._replace(ledger0=self._do(s.ledger0, "ready", unit))
                yield "P0 is ready", swapped(after, task, ("ended", unit, caller))
            case ("ended", _, caller):
                yield "P0 ends its batch", _answer(swapped(s, task, None), caller, True)
            case ("given up", unit, caller):
                yield (
                    "P0 removes files",
                    _answer(swapped(s._replace(files0=_without(s.files0, (unit,))), task, None), caller, False),
                )
            case ("settle", ready, making, caller):
                waits = [
                    other for other in s.tasks0 if other[0] == "wait" and (other[1] in ready or other[1] not in making)
                ]
                for other in waits:
                    then = "ready" if other[1] in ready else "fail"
                    yield "P0 settles a batch", swapped(s, other, (then, *other[1:]))
                settled = not any(other[0] in ("ready", "ended") and other[1] in ready for other in s.tasks0)
                if settled and not waits:
                    kept, gone = self.compare(self._list(s.ledger0), ready)
                    yield "P0 compares", swapped(s, task, ("burn", gone, kept, caller))
            case ("fail", unit, _):
                after = s._replace(ledger0=self._do(s.ledger0, "burn", (unit,)))
                yield "P0's half of the batch ends", swapped(after, task, ("given up", *task[1:]))
            case ("burn", gone, kept, caller):
                after = s._replace(ledger0=self._do(s.ledger0, "burn", gone))
                yield "P0 burns", swapped(after, task, ("remove", gone, kept, caller))
            case ("remove", gone, kept, caller):
                after = swapped(s._replace(files0=_without(s.files0, gone)), task, None)
                yield "P0 agrees", _answer(after, caller, kept)
            case ("spend", unit, image, caller):
                spent = self.ledgers(s.ledger0, "spend", unit, image)
                if spent is None:
                    yield "P0's ledger refuses", _answer(swapped(s, task, None), caller, False)
                else:
                    yield "P0 spends", swapped(s._replace(ledger0=spent[0]), task, ("open", unit, image, caller))
            case ("open", unit, image, caller):
                after = s._replace(ledger0=self._do(s.ledger0, "open", unit, image))
                yield "P0 opens", swapped(after, task, ("read", unit, image, caller))
            case ("read", unit, image, caller):
                found = _reading(s, 0, unit, image)
                then = ("infer", unit, image, None) if found else None
                yield "P0 unlinks and reads", _answer(swapped(s._replace(**found), task, then), caller, bool(found))
        yield from self._fails(s, task)

    def _fails(self, s: State, task: Task) -> Iterator[tuple[str, State]]:
        """Half a batch, or an image: because the data owner's half did, or by itself, which is a fault."""
        if task[0] in ("write", "run", "finish", "wait", "ready", "ended"):
            alone = s.tasks1[MAKER] == IDLE or s.tasks1[MAKER][1] != task[1] or s.tasks1[MAKER][0] == "remove"
            if s.faults < self._faults or alone:
                after = s._replace(ledger0=self._do(s.ledger0, "burn", (task[1],)), faults=s.faults + (not alone))
                yield "P0's half of the batch fails", swapped(after, task, ("given up", *task[1:]))
        elif task[0] == "infer":
            alone = s.tasks1[USER + task[2]][:2] not in [(pc, task[1]) for pc in ("asked", "open", "read", "infer")]
            if s.faults < self._faults or alone:
                yield "P0's image fails", swapped(s._replace(faults=s.faults + (not alone)), task, None)
        elif task[0] in ("open", "read") and s.faults < self._faults:  # its finally removes the files
            after = s._replace(files0=_without(s.files0, (task[1],)), faults=s.faults + 1)
            yield "P0's image fails", _answer(swapped(after, task, None), task[-1], False)

    # Mutations change these

    def compare(self, ours: tuple[int, ...], theirs: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        both, gone = compare([name(unit) for unit in ours], [name(unit) for unit in theirs])
        return tuple(int.from_bytes(u, "big") for u in both), tuple(int.from_bytes(u, "big") for u in gone)

    def nonce(self, s: State, side: int, unit: int) -> int:
        """What a side draws afresh when it begins to write."""
        return 2 * unit + side

    def _pair(self, s: State, unit: int) -> tuple[int, int]:
        return tuple(max(n for u, n in files if u == unit) for files in (s.files1, s.files0))  # type: ignore[return-value]

    # Ledgers

    def _do(self, ledger: Key, operation: str, *values: Any) -> Key:
        """A step that the protocol takes for granted."""
        after = self.ledgers(ledger, operation, *values)
        if after is None:
            raise Violation(f"the ledger refuses: {operation} {values} on {ledger}")
        return after[0]

    def _list(self, ledger: Key) -> tuple[int, ...]:
        found = self.ledgers(ledger, "list")
        assert found is not None
        units: tuple[int, ...] = found[1]
        return units


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)


def _without(files: frozenset[tuple[int, int]], units: Sequence[int]) -> frozenset[tuple[int, int]]:
    return frozenset(file for file in files if file[0] not in units)


def _reading(s: State, side: int, unit: int, image: int) -> dict[str, Any]:
    """What changes; nothing where a batch that failed late took the files along."""
    files = s.files1 if side else s.files0
    found = frozenset((side, unit, image, nonce) for u, nonce in files if u == unit)
    if not found:
        _must(s.faults > 0, f"the files of unit {unit} are missing at P{side}, and there was no fault")
        return {}
    return {"read": s.read | found, "files1" if side else "files0": _without(files, (unit,))}


def with_task(s: State, at: int, task: Task) -> State:
    return s._replace(tasks1=(*s.tasks1[:at], task, *s.tasks1[at + 1 :]))


def swapped(s: State, old: Task, new: Task | None) -> State:
    return s._replace(tasks0=s.tasks0 - {old} | ({new} if new else frozenset()))


def calling(s: State, caller: int, kind: str, *values: Any) -> State:
    """To nobody when the peer is down: then the caller gives up."""
    return s._replace(net=s.net | {("call", kind, values, caller)}) if s.up0 else s


def _answer(s: State, caller: int | None, result: Any) -> State:
    if caller is None:
        return s
    return s._replace(net=s.net | {("answer", caller, result)})


def answers(s: State, caller: int) -> Iterator[tuple[Any, State]]:
    for message in s.net:
        if message[:2] == ("answer", caller):
            yield message[2], s._replace(net=s.net - {message})


def _orphan(task: Task, caller: int | None = None) -> Task:
    """A call or a task whose answer nobody waits for any more."""
    if task[0] == "answer":
        return task
    return task if caller is not None and task[-1] != caller else (*task[:-1], None)
