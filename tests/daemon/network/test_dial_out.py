"""Daemons that listen on no port, and what is said while a peer cannot be reached."""

import asyncio
import time

import pytest

from mpcd.daemon.errors import PeerUnreachable
from mpcd.daemon.network.peers import Peers
from tests.daemon.network.sides import QUICK, Side, linked, until, up


@pytest.fixture
def sides(identities, tmp_path):
    """Alpha only dials out."""
    a, b = identities
    return Side(a, "alpha", tmp_path, listen={"enabled": False}), Side(b, "beta", tmp_path)


def test_one_side_listens_and_data_goes_both_ways(run, sides):
    a, b = sides
    a.knows(b)
    b.knows(a, "")

    async def main():
        async with up(a, b):
            assert a.net.port == 0
            await linked(a, b)
            await asyncio.gather(a.net.open_channel("beta", bytes(16)), b.net.open_channel("alpha", bytes(16)))
            assert await b.net.call("alpha", "echo", {}) == {"from": "beta"}

    run(main())


def test_neither_listens_and_both_say_so(run, sides, tmp_path, identities):
    a, _ = sides
    b = Side(identities[1], "beta", tmp_path, listen={"enabled": False})
    a.knows(b, "")
    b.knows(a, "")

    async def main():
        async with up(a, b):
            for side, other in ((a, "beta"), (b, "alpha")):
                status = side.net.status(other)
                assert status.code == "peer_unreachable"
                assert "this side has no address for it and listens on no port, so neither dials" in status.error
                assert "one of the two must listen" in status.hint
                with pytest.raises(PeerUnreachable, match="so neither dials"):
                    await side.net.call(other, "echo", {})

    run(main())


def test_an_address_that_cannot_be_a_name_is_told_in_words(run, sides):
    """As a daemon of before that refused none has kept it."""
    a, b = sides
    a.knows(b)
    file = a.peers._file
    file.write_text(file.read_text().replace(f"127.0.0.1:{b.port}", "foo..bar:900"))
    a.peers = Peers(file, a.identity.fingerprint)
    a.net = a.network()

    async def main():
        async with up(a):
            await until(lambda: a.net.status("beta").attempts >= 3)
            status = a.net.status("beta")
            assert status.code == "peer_unreachable"
            assert "'foo..bar' cannot be a host's name" in status.error
            assert "mpcctl peer add" in status.hint

    run(main())


def test_the_next_attempt_is_told_and_comes_ever_later(run, sides):
    a, b = sides
    a.knows(b)

    async def main():
        async with up(a):
            await until(lambda: a.net.status("beta").attempts >= 4)
            status = a.net.status("beta")
            assert "cannot be reached" in status.error
            assert -0.1 < status.retry - time.time() <= QUICK["retry_most"]
            async with up(b):
                b.knows(a, "")
                await linked(a)
                assert (a.net.status("beta").attempts, a.net.status("beta").retry) == (0, 0.0)

    run(main())
