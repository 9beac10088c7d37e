"""Session records: states move one way, results are written once, both survive a restart."""

import contextlib
import dataclasses
import itertools
import json
import sqlite3
import time

import pytest

from mpcd.daemon.errors import Conflict, NotFound, Refused
from mpcd.daemon.sessions.binding import Binding
from mpcd.daemon.sessions.records import FINAL, MOST_AGAIN, MOST_REPEATS, RANK, Records
from mpcd.daemon.sessions.terms import Terms

TERMS = Terms("m", 3, "scores", "c" * 64, "d" * 64, "n" * 64, "r" * 64, "k=17 f=12 l=29", 1)
A, B = "ab" * 16, "ac" + "ab" * 15

ALLOWED = {
    "proposed": {"approved", "denied", "failed", "cancelled"},
    "approved": {"offline", "online", "done", "failed", "cancelled"},
    "offline": {"online", "done", "failed", "cancelled"},
    "online": {"offline", "done", "failed", "cancelled"},
    **{state: set() for state in FINAL},
}
WAYS = {
    "proposed": [],
    "approved": ["approved"],
    "offline": ["approved", "offline"],
    "online": ["approved", "online"],
    "done": ["approved", "online", "done"],
    "denied": ["denied"],
    "failed": ["failed"],
    "cancelled": ["cancelled"],
}


def asked(records, peer="hospital", peer_id="", model="m", model_commitment="c" * 64, since=0.0):
    found = records.asked(peer, peer_id, model, model_commitment, since)
    return found.images, found.runs


@pytest.fixture
def records(tmp_path):
    records = Records(tmp_path / "sessions.sqlite")
    yield records
    records.close()


@pytest.mark.parametrize(("before", "after"), list(itertools.product(ALLOWED, ALLOWED)))
def test_states(records, before, after):
    records.add(A, "data-owner", "vendor", TERMS, {}, "")
    for state in WAYS[before]:
        records.move(A, state)
    if after == before or after in ALLOWED[before]:
        assert records.move(A, after, "why").state == after
    else:
        with pytest.raises(Conflict, match=before):
            records.move(A, after)
        assert records.get(A).state == before


def test_survives(records, tmp_path):
    records.add(A, "data-owner", "vendor", TERMS, {"dataset": "site"}, "soft")
    records.move(A, "approved", approved_by="policy")
    records.move(A, "online")
    records.attempt(A)
    records.attempt(A)
    records.image_done(A, 1, [-5, 7])
    records.image_done(A, 1, [0, 0])
    records.spent_time(A, "online", 1.5, 100)
    records.close()
    again = Records(tmp_path / "sessions.sqlite")
    session = again.get(A)
    assert (session.terms, session.own, session.state, session.approved_by) == (
        TERMS,
        {"dataset": "site"},
        "online",
        "policy",
    )
    assert (session.done, session.attempts, session.online_seconds, session.online_bytes) == (1, 2, 1.5, 100)
    assert again.results(A) == {1: [-5, 7]}
    again.close()


def test_find(records):
    records.add(A, "data-owner", "vendor", TERMS, {}, "")
    records.add(B, "data-owner", "vendor", TERMS, {}, "")
    assert records.find("ab").id == A
    assert records.find(B).id == B
    with pytest.raises(Conflict, match="2 sessions"):
        records.find("a")
    for wrong in ("", "ff", "x", "%"):
        with pytest.raises(NotFound):
            records.find(wrong)


def test_budget_counts_what_was_approved(records):
    records.add(A, "model-owner", "hospital", TERMS, {}, "")
    assert asked(records) == (0, 0)
    records.move(A, "approved")
    records.move(A, "cancelled")
    assert asked(records) == (3, 1)
    assert asked(records, peer="other") == (0, 0)
    assert asked(records, model="other") == (3, 1), "by its commitment"
    assert asked(records, model_commitment="other") == (3, 1), "added again under the same name"
    assert asked(records, model="other", model_commitment="other") == (0, 0)
    assert asked(records, since=time.time() + 1) == (0, 0)
    records.add(B, "model-owner", "hospital", TERMS, {}, "", "id of its key")
    assert asked(records) == (3, 1)
    records.move(B, "approved")
    assert asked(records) == (6, 2)
    assert asked(records, since=time.time() + 1) == (3, 1), "it goes on"
    assert asked(records, peer="renamed", peer_id="id of its key") == (3, 1)


def test_rates(records):
    assert records.rate("p", "offline") is None
    records.learn_rate("p", "offline", 100.0)
    records.learn_rate("p", "offline", 300.0)
    assert records.rate("p", "offline") == 200.0


def test_reveals_are_counted_and_repeats_bounded(records, tmp_path):
    records.add(A, "model-owner", "hospital", TERMS, {}, "")
    records.move(A, "approved")
    for number in range(3):
        records.reveal(A, number)
    assert asked(records) == (3, 1)
    for _ in range(MOST_AGAIN):
        records.reveal(A, 0)
    with pytest.raises(Refused, match="image 0"):
        records.reveal(A, 0)
    with pytest.raises(Refused, match="image 0"):
        records.check_reveal(A, 0)
    records.check_reveal(A, 1)
    assert asked(records) == (3 + MOST_AGAIN, 1), "repeats are queries, too"
    for sql in ("DELETE FROM reveal", "UPDATE reveal SET number = 7"):
        with pytest.raises(sqlite3.IntegrityError, match="revealed stays"), records._db.transaction() as db:
            db.execute(sql)


def test_repeats_of_a_session_are_bounded(records):
    images = 50
    records.add(A, "model-owner", "hospital", dataclasses.replace(TERMS, images=images), {}, "")
    allowed = 0
    for _ in range(6):
        for number in range(images):
            try:
                records.reveal(A, number)
                allowed += 1
            except Refused:
                assert allowed >= images
    assert allowed == images + MOST_REPEATS + images // 10


def test_what_the_peer_is_told_survives(records, tmp_path):
    records.add(A, "data-owner", "vendor", TERMS, {}, "")
    assert records.told(A) == ""
    records.set_told(A, "The input cannot be used.")
    assert Records(tmp_path / "sessions.sqlite").told(A) == "The input cannot be used."


BOUND = Binding("h" * 64, "v" * 64, "soft 1", "soft 2")


def test_what_an_approval_binds_stays(records, tmp_path):
    records.add(A, "model-owner", "hospital", TERMS, {}, "", "id")
    records.bind(A, BOUND)
    records.bind(A, dataclasses.replace(BOUND, data_owner_software="soft 3"))
    records.bind(A, BOUND)
    records.move(A, "approved")
    records.bind(A, BOUND)
    with pytest.raises(Conflict, match="something else"):
        records.bind(A, dataclasses.replace(BOUND, data_owner_software="soft 3"))
    assert Records(tmp_path / "sessions.sqlite").get(A).bound == BOUND
    with pytest.raises(sqlite3.IntegrityError, match="agreed stays"), records._db.transaction() as db:
        db.execute("UPDATE session SET peer_id = 'other'")


@pytest.mark.parametrize(("ours", "theirs"), list(itertools.product(FINAL, FINAL)))
def test_different_ends_become_one(records, tmp_path, ours, theirs):
    """Each side takes the other's where it ranks higher: both have the same then."""
    other = Records(tmp_path / "other.sqlite")
    for side, end in ((records, ours), (other, theirs)):
        side.add(A, "model-owner", "hospital", TERMS, {}, "")
        for state in WAYS[end]:
            side.move(A, state)
    for side, heard in ((records, theirs), (other, ours)):
        with contextlib.suppress(Conflict):
            side.outrank(A, heard, "the other side says so")
    assert records.get(A).state == other.get(A).state == max(ours, theirs, key=RANK.get)
    other.close()


def test_terms_from_before_there_was_an_expiry(records):
    old = {key: value for key, value in TERMS.as_dict().items() if key != "expires"}
    records.add(A, "data-owner", "vendor", TERMS, {}, "")
    with records._db.transaction() as db:
        db.execute("DROP TRIGGER terms_stay")
        db.execute("UPDATE session SET terms = ?", (json.dumps(old),))
    assert records.get(A).terms.expires == 0
