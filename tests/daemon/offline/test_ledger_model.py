"""The ledgers' protocol (docs/ledger.md), exhaustively: every interleaving within the bounds, and that it can fail."""

from pathlib import Path

import pytest

from mpcd.daemon.offline.ledger import Ledger, Spent
from tests.daemon.offline.ledger_model import USER, Model, State, Violation, answers, calling, swapped, with_task
from tests.daemon.two_daemons import DATASET, MODEL, VENDOR, Client, daemons

BOUNDS = [(2, 0, 2), (2, 1, 2), (1, 2, 1)]  # units, faults, images that can be done with them


@pytest.mark.parametrize(("units", "faults", "images"), BOUNDS)
def test_every_state(tmp_path: Path, units: int, faults: int, images: int) -> None:
    states = Model(tmp_path, units, faults).explore()
    print(f"{units} units, {faults} faults: {len(states)} states")
    for used in range(faults + 1):
        assert max(len(s.done) for s in states if s.faults <= used) == images, "the model does something at all"
    assert {s.faults for s in states} == set(range(faults + 1))


class ForgetsToBurn(Ledger):
    def burn_unfinished(self) -> list[bytes]:
        return []


class ForgetsToWrite(Ledger):
    def spend(self, unit: bytes, session: str, image: int) -> Spent:
        from mpcd.daemon.offline import ledger

        return Spent(self, unit, session, image, ledger._KEY)


class KeepsWhatThePeerLacks(Model):
    def compare(self, ours, theirs):
        return ours, ()


class ComparesWithoutTheLock(Model):
    def _syncer(self, s, task):
        yield from super()._syncer(s._replace(lock=None) if task == ("idle",) else s, task)


class ReadsBeforeTheAnswer(Model):
    def _user(self, s, at, task):
        if task[0] == "ask":
            after = with_task(s._replace(lock=None), at, ("open", task[1]))
            yield "P1 calls session.image", calling(after, at, "image", task[1], at - USER)
        else:
            yield from super()._user(s, at, task)


class VendorSpendsFirst(Model):
    def _user(self, s, at, task):
        if task[0] == "spend":
            yield (
                "P1 calls session.image",
                calling(with_task(s, at, ("asked", task[1])), at, "image", task[1], at - USER),
            )
        elif task[0] == "asked":
            for ok, after in answers(s, at):
                if ok:
                    ledger = self._do(s.ledger1, "spend", task[1], at - USER)
                    yield "P1 spends", with_task(after._replace(ledger1=ledger, lock=None), at, ("open", task[1]))
                else:
                    yield "P1 hears", with_task(after._replace(lock=None), at, ("idle",))
        else:
            yield from super()._user(s, at, task)


class ResumesABatch(Model):
    """The broken batch goes on, the data owner with fresh seeds."""

    def nonce(self, s, side, unit):
        return 2 * unit + side + 10 * len(s.paired)

    def _maker(self, s, task):
        yield from super()._maker(s, task)
        for other in s.tasks0:
            if task[0] == "lock" and other[:2] == ("finish", task[1]) and s.faults < self._faults:
                after = swapped(s, other, ("run", *other[1:]))
                yield "P1 resumes", with_task(after._replace(faults=s.faults + 1), 0, ("write", task[1]))


WRONG = [
    (Model, ForgetsToBurn, "unaccounted"),
    (Model, ForgetsToWrite, "ledger refuses: open"),
    (KeepsWhatThePeerLacks, Ledger, "do not agree"),
    (ComparesWithoutTheLock, Ledger, "there was no fault"),
    (ReadsBeforeTheAnswer, Ledger, "before both ledgers"),
    (VendorSpendsFirst, Ledger, "the model owner spent"),
    (ResumesABatch, Ledger, "met two"),
]


@pytest.mark.parametrize(("model", "ledger", "finds"), WRONG, ids=lambda value: getattr(value, "__name__", None))
def test_what_is_wrong_is_found(tmp_path: Path, model: type[Model], ledger: type[Ledger], finds: str) -> None:
    with pytest.raises(Violation, match=finds):
        model(tmp_path, 1, 1, ledger).explore()


LEDGER = {"begin": "begins", "ready": "is ready", "spend": "spends", "_open": "opens", "burn": "burns"}


def test_two_daemons_do_what_the_model_does(run, tmp_path: Path) -> None:
    """The order of ledger steps and calls of a batch and an image, as it happens, is one that the model has."""
    seen: list[str] = []

    def note(owner, method, what):
        original = getattr(owner, method)

        def noting(*args, **kwargs):
            seen.append(what(args) if callable(what) else what)
            return original(*args, **kwargs)

        setattr(owner, method, noting)

    async def main():
        async with daemons(tmp_path / "daemons", 1) as (vendor, hospital):
            for side, daemon in (("P0", vendor), ("P1", hospital)):
                for method, step in LEDGER.items():
                    note(daemon.context.ledger, method, f"{side} {step}")
            note(hospital.net, "call", lambda args: f"P1 calls {args[1]}")
            note(hospital.context.records, "image_done", "P1 keeps the result")
            ours, theirs = (Client(daemon.context.paths.control_socket) for daemon in (vendor, hospital))
            await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=1)
            began = await theirs.call("session.start", peer=VENDOR, model=MODEL, dataset=DATASET, reveal="scores")
            await ours.call("session.approve", session=began["session"]["id"])
            watched = await theirs.call("session.watch", session=began["session"]["id"])
            assert watched["session"]["state"] == "done"

    run(main())
    (tmp_path / "model").mkdir()
    model = Model(tmp_path / "model", 1, 0)
    calls = ("offline.begin", "offline.ready", "units.sync", "session.image")
    known = {f"{side} {step}" for side in ("P0", "P1") for step in LEDGER.values()}
    known |= {"P1 keeps the result", *(f"P1 calls {call}" for call in calls)}
    trace = [what for what in seen if what in known]
    assert [what for what in trace if what != "P1 calls units.sync"] == [
        "P1 begins", "P1 calls offline.begin", "P0 begins", "P1 is ready", "P1 calls offline.ready", "P0 is ready",
        "P1 spends", "P1 calls session.image", "P0 spends", "P0 opens", "P1 opens", "P1 keeps the result",
    ]  # fmt: skip
    possible = {State()}
    for what in trace:
        after: set[State] = set()
        seen_states, edge = set(possible), list(possible)
        while edge:
            for step, state in model.steps(edge.pop()):
                if step == what:
                    after.add(state)
                elif step not in known - {"P0 burns"} and state not in seen_states:  # P0 burns: of nothing, too
                    seen_states.add(state)
                    edge.append(state)
        assert after, f"the model has no {what!r} here: {trace}"
        possible = after
    assert any(state.done for state in possible)
