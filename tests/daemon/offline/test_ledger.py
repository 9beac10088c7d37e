"""The ledger: no way out of spent and burnt, by the API or by SQL, and across crashes."""

import os
import random
import sqlite3
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from mpcd.daemon.offline.ledger import Ledger, LedgerError, Spent, Stock

STOCK = Stock("aa" * 32, "bb" * 32, "cc" * 32)
BATCH = b"b" * 16


def unit(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


def make(ledger, number, state="ready"):
    ledger.begin(STOCK, BATCH, [unit(number)])
    if state != "making":
        ledger.ready([unit(number)], 100)
    return unit(number)


def test_the_stock_is_what_counting_would_give(tmp_path):
    """Also in a file of the format before, which has none."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    stocks = [Stock("p" * 64, model * 64, "n" * 64) for model in "ab"]
    rng = random.Random(7)
    units = []
    for number in range(40):
        made = [rng.randbytes(16) for _ in range(rng.randint(1, 5))]
        ledger.begin(stocks[number % 2], rng.randbytes(16), made)
        units += made
        some = rng.sample(made, rng.randint(0, len(made)))
        ledger.ready(some, rng.randint(1, 10**9))
        for unit in rng.sample(some, len(some) // 2):
            ledger.spend(unit, "s" * 32, 0).open()
        ledger.burn(rng.sample(units, 3), "why not")
    counted = ledger.counts()
    ready = ledger.ready_counts()
    ledger.close()
    db = sqlite3.connect(tmp_path / "ledger.sqlite")
    expected = {}
    rows = db.execute("SELECT peer, model, network, state, count(*), sum(bytes) FROM unit GROUP BY 1, 2, 3, 4")
    for peer, model, network, state, count, size in rows:
        empty = {"making": 0, "ready": 0, "spent": 0, "burnt": 0, "bytes": 0}
        entry = expected.setdefault(Stock(peer, model, network), empty)
        entry[state] = count
        entry["bytes"] += size * (state == "ready")
    assert counted == expected
    assert ready == {stock: entry["ready"] for stock, entry in expected.items()}
    for name in ("unit_counted", "unit_counted_anew"):
        db.execute(f"DROP TRIGGER {name}")
    db.execute("DROP TABLE stock")
    db.execute("DROP INDEX unit_by_session")
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert ledger.counts() == expected
    ledger.close()


def test_what_a_session_s_units_took(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    batches = (b"1" * 16, b"2" * 16)
    for number, batch in enumerate(batches):
        ledger.begin(STOCK, batch, [unit(2 * number), unit(2 * number + 1)])
        ledger.ready([unit(2 * number), unit(2 * number + 1)])
        ledger.made(batch, 2, 10.0 * (number + 1), 1000 * (number + 1))
    assert ledger.cost("run") == (0.0, 0)
    ledger.spend(unit(0), "run", 0)
    ledger.spend(unit(2), "run", 1)
    ledger.spend(unit(3), "another", 0)
    assert ledger.cost("run") == (15.0, 1500)


def test_life_of_a_unit(ledger):
    a = make(ledger, 1, "making")
    assert ledger.state(a) == "making"
    assert ledger.ready_units(STOCK) == []
    ledger.ready([a], 100)
    assert ledger.ready_units(STOCK) == [a]
    assert ledger.ready_units(Stock(STOCK.peer, STOCK.model, "other")) == []
    spent = ledger.spend(a, "session", 3)
    assert (spent.unit, spent.session, spent.image) == (a, "session", 3)
    assert ledger.state(a) == "spent"
    assert [(u.unit, u.session, u.image) for u in ledger.uses()] == [(a, "session", 3)]
    assert ledger.reuse_count() == 0


def test_counts(ledger):
    for number, state in enumerate(["making", "ready", "ready"]):
        make(ledger, number, state)
    ledger.spend(unit(1), "s", 0)
    make(ledger, 9)
    ledger.burn([unit(9)], "why")
    assert ledger.counts() == {STOCK: {"making": 1, "ready": 1, "spent": 1, "burnt": 1, "bytes": 100}}


@pytest.mark.parametrize("state", ["making", "spent", "burnt", None])
def test_only_ready_units_are_spent(ledger, state):
    if state is not None:
        make(ledger, 1, "making" if state == "making" else "ready")
    if state == "spent":
        ledger.spend(unit(1), "s", 0)
    if state == "burnt":
        ledger.burn([unit(1)], "why")
    with pytest.raises(LedgerError, match=state or "unknown"):
        ledger.spend(unit(1), "s", 0)
    assert ledger.state(unit(1)) == state


def test_a_spent_unit_is_opened_once(ledger, tmp_path):
    spent = ledger.spend(make(ledger, 1), "s", 0)
    spent.open()
    with pytest.raises(LedgerError, match="opened before"):
        spent.open()
    other = Ledger(tmp_path / "ledger.sqlite")
    with pytest.raises(LedgerError):
        other.spend(unit(1), "s", 0)
    other.close()


def test_only_the_ledger_makes_proofs(ledger):
    make(ledger, 1)
    with pytest.raises(LedgerError):
        Spent(ledger, unit(1), "s", 0, object())


def test_ids_are_never_taken_again(ledger):
    for number, end in enumerate(["making", "ready", "burnt", "spent"]):
        make(ledger, number, "making" if end == "making" else "ready")
        if end == "burnt":
            ledger.burn([unit(number)], "why")
        if end == "spent":
            ledger.spend(unit(number), "s", 0)
        with pytest.raises(LedgerError):
            ledger.begin(STOCK, BATCH, [unit(number)])


def test_all_or_nothing(ledger):
    make(ledger, 1, "making")
    with pytest.raises(LedgerError):
        ledger.ready([unit(1), unit(2)])
    assert ledger.state(unit(1)) == "making"
    with pytest.raises(LedgerError):
        ledger.begin(STOCK, BATCH, [unit(3), unit(1)])
    assert ledger.state(unit(3)) is None


def test_unfinished_units_are_burnt_at_start(ledger, tmp_path):
    make(ledger, 1, "making")
    make(ledger, 2)
    ledger.close()  # no more than a killed process would do
    again = Ledger(tmp_path / "ledger.sqlite")
    assert again.burn_unfinished() == [unit(1)]
    assert (again.state(unit(1)), again.state(unit(2))) == ("burnt", "ready")
    again.close()


def test_private_file_and_durable_mode(ledger, tmp_path):
    assert stat.S_IMODE(os.stat(tmp_path / "ledger.sqlite").st_mode) == 0o600
    with ledger._db.transaction() as db:
        assert tuple(db.execute("PRAGMA journal_mode").fetchone()) == ("wal",)
        assert tuple(db.execute("PRAGMA synchronous").fetchone()) == (2,)


ATTACKS = [
    "UPDATE unit SET state = 'ready'",
    "UPDATE unit SET state = 'making'",
    "UPDATE unit SET state = 'ready', session = NULL, image = NULL",
    "UPDATE unit SET session = 'other', image = 7",
    "UPDATE unit SET image = image + 1",
    "UPDATE unit SET opened = 0",
    "UPDATE unit SET id = randomblob(16)",
    "UPDATE unit SET model = 'other'",
    "DELETE FROM unit",
    "INSERT OR REPLACE INTO unit SELECT id, 'p', 'm', 'n', x'', 'making', NULL, NULL, 0, 0, '', 0, 0 FROM unit",
    "INSERT OR REPLACE INTO unit SELECT id, 'p', 'm', 'n', x'', 'ready', NULL, NULL, 0, 0, '', 0, 0 FROM unit",
    "INSERT INTO unit VALUES (randomblob(16), 'p', 'm', 'n', x'', 'ready', NULL, NULL, 0, 0, '', 0, 0)",
    "INSERT INTO unit VALUES (randomblob(15), 'p', 'm', 'n', x'', 'making', NULL, NULL, 0, 0, '', 0, 0)",
    "INSERT OR REPLACE INTO unit (rowid, id, peer, model, network, batch, state, created, changed) "
    "SELECT rowid, randomblob(16), 'p', 'm', 'n', x'', 'making', 1, 1 FROM unit LIMIT 1",
    "REPLACE INTO unit (rowid, id, peer, model, network, batch, state, created, changed) "
    "SELECT 999, id, 'p', 'm', 'n', x'', 'making', 1, 1 FROM unit LIMIT 1",
    "UPDATE OR REPLACE unit SET rowid = 999",
    "UPDATE OR REPLACE unit SET rowid = (SELECT max(rowid) FROM unit)",
    "UPDATE OR REPLACE unit SET state = 'ready', session = NULL, image = NULL",
    "INSERT OR REPLACE INTO step (number, unit, step, at) SELECT number, x'00', 'making', at FROM step LIMIT 1",
    "INSERT OR REPLACE INTO step SELECT number, unit, 'making', at FROM step ORDER BY number DESC LIMIT 1",
    "DELETE FROM step",
    "UPDATE step SET step = 'burnt'",
]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("end", ["spent", "burnt"])
def test_the_schema_itself_refuses(ledger, tmp_path, attack, end):
    make(ledger, 1)
    ledger.begin(STOCK, b"b" * 16, [unit(2)])
    if end == "spent":
        ledger.spend(unit(1), "s", 0).open()
    else:
        ledger.burn([unit(1)], "why")
    stranger = sqlite3.connect(tmp_path / "ledger.sqlite")
    stranger.execute("PRAGMA recursive_triggers = OFF")
    before = list(stranger.execute("SELECT rowid, * FROM unit")), list(stranger.execute("SELECT * FROM step"))
    with pytest.raises(sqlite3.IntegrityError):
        stranger.execute(attack)
    stranger.rollback()
    assert (list(stranger.execute("SELECT rowid, * FROM unit")), list(stranger.execute("SELECT * FROM step"))) == before
    stranger.close()
    assert ledger.reuse_count() == 0


def test_reuse_count_counts(ledger):
    """The proof query sees what it should see, were the triggers not there."""
    make(ledger, 1)
    ledger.spend(unit(1), "s", 0)
    with ledger._db.transaction() as db:
        db.execute("INSERT INTO step (unit, step, at) VALUES (?, 'spent', 0)", (unit(1),))
    assert ledger.reuse_count() == 1


class Life(RuleBasedStateMachine):
    """Any order of making, spending, burning, crashing: the ledger equals this dictionary, nothing comes back."""

    units = Bundle("units")

    @initialize(folder=st.uuids())
    def start(self, folder):
        self.path = LIFE_FOLDER / f"{folder}-{os.urandom(4).hex()}.sqlite"
        self.ledger = Ledger(self.path)
        self.states: dict[bytes, str] = {}
        self.uses: dict[bytes, int] = {}
        self.proofs: list[Spent] = []

    @rule(target=units)
    def begin(self):
        new = os.urandom(16)
        self.ledger.begin(STOCK, BATCH, [new])
        self.states[new] = "making"
        return new

    @rule(u=units)
    def ready(self, u):
        if self.states[u] == "making":
            self.ledger.ready([u])
            self.states[u] = "ready"
        else:
            with pytest.raises(LedgerError):
                self.ledger.ready([u])

    @rule(u=units, image=st.integers(0, 3))
    def spend(self, u, image):
        if self.states[u] == "ready":
            self.proofs.append(self.ledger.spend(u, "s", image))
            self.states[u] = "spent"
            self.uses[u] = image
        else:
            with pytest.raises(LedgerError):
                self.ledger.spend(u, "s", image)

    @rule(u=units)
    def burn(self, u):
        burnt = self.ledger.burn([u], "test")
        assert bool(burnt) == (self.states[u] in ("making", "ready"))
        if burnt:
            self.states[u] = "burnt"

    @rule(u=units)
    def begin_again(self, u):
        with pytest.raises(LedgerError):
            self.ledger.begin(STOCK, BATCH, [u])

    @rule()
    def crash(self):
        self.ledger.close()
        self.ledger = Ledger(self.path)
        for u in self.ledger.burn_unfinished():
            assert self.states[u] == "making"
            self.states[u] = "burnt"
        self.proofs.clear()

    @invariant()
    def agrees(self):
        if hasattr(self, "ledger"):
            assert {u: self.ledger.state(u) for u in self.states} == self.states
            assert {u.unit: u.image for u in self.ledger.uses()} == self.uses
            assert set(self.ledger.all_ready()) == {u for u, s in self.states.items() if s == "ready"}
            assert self.ledger.reuse_count() == 0

    def teardown(self):
        if hasattr(self, "ledger"):
            self.ledger.close()


def test_any_life(tmp_path):
    global LIFE_FOLDER
    LIFE_FOLDER = tmp_path
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
