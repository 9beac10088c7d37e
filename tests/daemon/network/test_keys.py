import itertools
import json
import os
import signal
import time

import pytest

from mpcd.daemon.errors import Conflict
from mpcd.daemon.network import keys as keys_module
from mpcd.daemon.network import rotation
from mpcd.daemon.network.identity import Identity, IdentityError
from mpcd.daemon.network.keys import FORMER_FILE, PREVIOUS_FILE, ROTATION_FILE, Keys


def killed(state, act):
    """Acts in processes of their own that are killed at one change of the disk after the other, until one gets through.

    Yields each time, for a look at what is left.
    """
    for step in itertools.count(1):
        for when in ("before", "after"):
            child = os.fork()
            if not child:
                _act_and_die(state, act, step, when)
            _, status = os.waitpid(child, 0)
            if status == 0:
                return
            assert os.WTERMSIG(status) == signal.SIGKILL
            yield


def _act_and_die(state, act, at, when):
    """By SIGKILL right before or right after the system call of this number."""
    calls = itertools.count(1)

    def dying(real):
        def call(*args, **kwargs):
            mine = next(calls)
            if (mine, when) == (at, "before"):
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(*args, **kwargs)
            finally:
                if (mine, when) == (at, "after"):
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    status = 1
    try:
        opened = Keys.open(state, "vendor")
        for name in ("open", "replace", "fsync", "unlink"):
            setattr(os, name, dying(getattr(os, name)))
        act(opened)
        status = 0
    finally:
        os._exit(status)


@pytest.fixture
def opened(tmp_path):
    return Keys.open(tmp_path, "vendor")


def left(tmp_path):
    return {path.name for path in tmp_path.iterdir()} - {FORMER_FILE}


def reopened(tmp_path):
    return Keys.open(tmp_path, "vendor")


def test_a_new_key_with_nobody_to_tell_leaves_nothing_of_the_old_one(opened, tmp_path):
    old = opened.fingerprint
    opened.rotate("vendor", [])
    assert opened.fingerprint != old
    assert opened.rotation is opened.previous is None
    assert left(tmp_path) == {"identity.pem"}
    again = reopened(tmp_path)
    assert (again.fingerprint, again.former) == (opened.fingerprint, (old,))
    again.rotate("vendor", [])
    assert reopened(tmp_path).former == again.former == (old, opened.fingerprint)


def test_the_old_key_stays_until_everybody_has_heard(opened, tmp_path):
    old = opened.current
    opened.rotate("vendor", ["a", "b"])
    again = reopened(tmp_path)
    assert again.rotation == opened.rotation
    assert again.rotation.pending == ("a", "b")
    assert (again.previous.fingerprint, again.fingerprint) == (old.fingerprint, opened.fingerprint)
    for name in ("identity.pem", PREVIOUS_FILE, ROTATION_FILE):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert [i.fingerprint for i in again.to_show("a")] == [old.fingerprint, opened.fingerprint]
    again.acknowledge("a")
    assert [i.fingerprint for i in again.to_show("a")] == [opened.fingerprint, old.fingerprint]
    assert reopened(tmp_path).rotation.pending == ("b",)
    again.acknowledge("b")
    assert [i.fingerprint for i in again.to_show("a")] == [opened.fingerprint]
    assert left(tmp_path) == {"identity.pem"}


def test_a_second_rotation_waits_for_the_first(opened):
    opened.rotate("vendor", ["a"])
    with pytest.raises(Conflict, match="still to hear") as caught:
        opened.rotate("vendor", ["a"])
    assert "mpcctl key finish" in caught.value.hint
    opened.finish()
    opened.rotate("vendor", ["a"])


def test_the_old_key_goes_when_its_time_is_over_or_its_peers_are_removed(opened, tmp_path, monkeypatch):
    opened.rotate("vendor", ["a", "b"], keep=100.0)
    opened.tidy(["b"])
    assert opened.rotation.pending == ("b",)
    now = time.time()
    monkeypatch.setattr(keys_module.time, "time", lambda: now + 101)
    opened.tidy(["b"])
    assert opened.rotation is None
    assert left(tmp_path) == {"identity.pem"}


def test_killed_at_any_step_of_a_rotation(tmp_path):
    """Either the old identity counts and nothing is left of the new one, or the new one does and can be announced."""
    old = Identity.load_or_create(tmp_path, "vendor").fingerprint
    seen = {"old": 0, "new": 0}
    for _ in killed(tmp_path, lambda keys: keys.rotate("vendor", ["p" * 64])):
        found = reopened(tmp_path)
        if found.fingerprint == old:
            seen["old"] += 1
            assert found.rotation is found.previous is None
            assert left(tmp_path) == {"identity.pem"}
        else:
            seen["new"] += 1
            assert found.previous.fingerprint == old
            assert found.rotation.pending == ("p" * 64,)
            assert rotation.verify(found.announcement(), found.previous.certificate) == found.certificate
            assert reopened(tmp_path).fingerprint == found.fingerprint
            found.finish()
            old = found.fingerprint  # and on with the next step
    assert seen["old"] >= 10
    assert seen["new"] >= 2


def test_killed_while_the_old_key_is_given_up(tmp_path):
    opened = Keys.open(tmp_path, "vendor")
    opened.rotate("vendor", ["a"])
    steps = 0
    for _ in killed(tmp_path, Keys.finish):
        steps += 1
        found = reopened(tmp_path)
        assert found.fingerprint == opened.fingerprint
        if found.previous is None:
            assert left(tmp_path) == {"identity.pem"}
            found.rotate("vendor", ["a"])
            opened = found
    assert steps == 4


def test_a_damaged_rotation_file_is_said_not_guessed(opened, tmp_path):
    opened.rotate("vendor", ["a"])
    file = tmp_path / ROTATION_FILE
    text = file.read_text()
    for damaged in (text[:40], "[]", json.dumps({**json.loads(text), "format": 9})):
        file.write_text(damaged)
        with pytest.raises(IdentityError, match="is damaged") as caught:
            reopened(tmp_path)
        assert PREVIOUS_FILE in caught.value.hint


def test_a_previous_key_that_others_can_read_is_refused(opened, tmp_path):
    opened.rotate("vendor", ["a"])
    (tmp_path / PREVIOUS_FILE).chmod(0o644)
    with pytest.raises(IdentityError, match="can be read by others"):
        reopened(tmp_path)
