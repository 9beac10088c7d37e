import itertools
import json
import subprocess
import sys
import time

import pytest

from mpcd.daemon.errors import Conflict
from mpcd.daemon.network import keys as keys_module
from mpcd.daemon.network import rotation
from mpcd.daemon.network.identity import Identity, IdentityError
from mpcd.daemon.network.keys import PREVIOUS_FILE, ROTATION_FILE, Keys

# Does it, and dies by SIGKILL right before or right after the n-th system call that changes the disk.
KILLED = """
import os, pathlib, signal, sys
from mpcd.daemon.network import keys

state, at, when, what = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
opened = keys.Keys.open(state, "vendor")
calls = 0

def dying(real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        mine = calls
        if mine == at and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return real(*args, **kwargs)
        finally:
            if mine == at and when == "after":
                os.kill(os.getpid(), signal.SIGKILL)
    return call

for name in ("open", "replace", "fsync", "unlink"):
    setattr(os, name, dying(getattr(os, name)))
if what == "rotate":
    opened.rotate("vendor", ["p" * 64])
else:
    opened.finish()
"""


def killed(state, what):
    """Kills it at one step after the other, yielding where, until it gets through."""
    for step in itertools.count(1):
        for when in ("before", "after"):
            done = subprocess.run([sys.executable, "-c", KILLED, state, str(step), when, what], check=False)
            if done.returncode == 0:
                return
            assert done.returncode == -9
            yield f"{when} {step}"


@pytest.fixture
def opened(tmp_path):
    return Keys.open(tmp_path, "vendor")


def reopened(tmp_path):
    return Keys.open(tmp_path, "vendor")


def test_a_new_key_with_nobody_to_tell_leaves_nothing_of_the_old_one(opened, tmp_path):
    old = opened.fingerprint
    opened.rotate("vendor", [])
    assert opened.fingerprint != old
    assert opened.rotation is opened.previous is None
    assert {path.name for path in tmp_path.iterdir()} == {"identity.pem"}
    assert reopened(tmp_path).fingerprint == opened.fingerprint


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
    assert {path.name for path in tmp_path.iterdir()} == {"identity.pem"}


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
    assert {path.name for path in tmp_path.iterdir()} == {"identity.pem"}


def test_killed_at_any_step_of_a_rotation(tmp_path):
    """Either the old identity counts and nothing is left of the new one, or the new one does and can be announced."""
    old = Identity.load_or_create(tmp_path, "vendor").fingerprint
    seen = {"old": 0, "new": 0}
    for _ in killed(tmp_path, "rotate"):
        found = reopened(tmp_path)
        if found.fingerprint == old:
            seen["old"] += 1
            assert found.rotation is found.previous is None
            assert {path.name for path in tmp_path.iterdir()} == {"identity.pem"}
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
    for _ in killed(tmp_path, "finish"):
        steps += 1
        found = reopened(tmp_path)
        assert found.fingerprint == opened.fingerprint
        if found.previous is None:
            assert {path.name for path in tmp_path.iterdir()} == {"identity.pem"}
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
