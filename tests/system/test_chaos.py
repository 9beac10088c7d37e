"""The short form of `make chaos` (tests/chaos.py), and what can be foretold of single faults."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import chaos
from tests.daemon import two_daemons
from tests.daemon.two_daemons import MODEL
from tests.system.faults import Relay, WallClock
from tests.system.two_parties import HOSPITAL, VENDOR, Pair, free_port, until

KILLS = 8
MANY = 80  # units: several batches


def test_a_few_kills(tmp_path: Path) -> None:
    seed = int(os.environ.get("MPCD_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"MPCD_SEED={seed}")
    tally = chaos.run(tmp_path, KILLS, seed)
    assert tally.kills >= KILLS
    assert (tally.different, tally.reused, tally.unaccounted) == (0, 0, 0)
    assert tally.images == chaos.IMAGES * tally.sessions


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    root = tmp_path_factory.mktemp("stopped")
    made = Pair(root)
    two_daemons.install(root)
    for party in made.both:
        party.env["NUMBA_CACHE_DIR"] = ""  # beside the sources, where other tests' kernels are
    made.start()
    made.introduce()
    yield made
    assert made.stop() == [0, 0]


@pytest.mark.parametrize("who", [HOSPITAL, VENDOR])
def test_offline_make_is_stopped_and_taken_up_again(pair: Pair, who: str) -> None:
    """Ctrl-C of the command: whole batches stay, on both sides; giving it again makes the rest."""
    party, peer = (pair.hospital, VENDOR) if who == HOSPITAL else (pair.vendor, HOSPITAL)
    make = ("offline", "make", "--peer", peer, "--model", MODEL, "--images")

    def ready() -> list[set[bytes]]:
        query = "SELECT id FROM unit WHERE state = 'ready'"
        return [{row[0] for row in party.ledger(query)} for party in pair.both]

    before = ready()[0]
    command = party.mpcctl(*make, str(len(before) + MANY), "--json")
    until(lambda: min(map(len, ready())) > len(before), 120, "no batch was made", 0.01)
    command.send_signal(signal.SIGINT)
    assert command.wait(60) == 130
    making = "SELECT 1 FROM unit WHERE state = 'making'"
    until(lambda: not any(p.ledger(making) for p in pair.both), 60, "it does not stop")
    pair.hospital.ctl("offline", "make", "--peer", VENDOR, "--model", MODEL, "--images", "1", "--estimate")  # compares
    ours, theirs = ready()
    assert ours == theirs
    assert ours > before
    assert (len(ours) - len(before)) % 16 == 0, "whole batches"
    again = party.ctl(*make, str(len(ours) + 3))
    assert (again["made"], again["ready"]) == (3, len(ours) + 3), "what was made counts"
    assert ours < ready()[0] == ready()[1]


def test_the_relay_and_the_clock_do_what_they_say(tmp_path: Path) -> None:
    """A test of faults.py: a fault that does not happen proves nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        relay = Relay(free_port(), server.getsockname()[1])
        try:
            near = socket.create_connection(("127.0.0.1", relay.port), 5)
            far, _ = server.accept()
            far.settimeout(5)
            near.sendall(b"one")
            assert far.recv(9) == b"one"
            relay.garble()
            near.sendall(b"two")
            assert far.recv(9) == b"twn"
            relay.hold(True)
            time.sleep(0.2)
            near.sendall(b"held")
            far.settimeout(0.3)
            with pytest.raises(TimeoutError):
                far.recv(9)
            relay.hold(False)
            far.settimeout(5)
            assert far.recv(9) == b"held"
            relay.cut()
            near.settimeout(5)
            with pytest.raises(ConnectionResetError):
                near.recv(9)
            relay.refuse(True)
            with socket.create_connection(("127.0.0.1", relay.port), 5) as refused:
                refused.settimeout(5)
                with contextlib.suppress(ConnectionResetError):
                    assert refused.recv(9) == b""
        finally:
            relay.close()
    if WallClock.possible:
        clock = WallClock(tmp_path, "one")
        clock.jump(-86400)
        ask = "import time; print(time.time(), time.monotonic())"
        wall, steady = map(
            float, subprocess.check_output([sys.executable, "-c", ask], env={**os.environ, **clock.env}).split()
        )
        assert abs(wall - (time.time() - 86400)) < 60
        assert abs(steady - time.monotonic()) < 60
