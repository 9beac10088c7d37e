"""A daemon changes its key: two networks over real TLS, whoever dials, whoever is away, whoever lies."""

import asyncio
import contextlib

import pytest
import structlog

from mpcd.daemon.errors import CertificateChanged, MpcdError, PeerError, UnknownPeer
from mpcd.daemon.network import announcing, rotation, tls
from mpcd.daemon.network.keys import PREVIOUS_FILE, Keys
from mpcd.daemon.network.peers import Peers
from mpcd.daemon.network.transport import dial
from tests.daemon.network.sides import Side, linked, meet, until, up


class Keeper(Side):
    """A side whose key is in a state folder of its own."""

    def __init__(self, identity, name, folder, **settings):
        super().__init__(Keys(identity, identity.file.parent), name, folder, **settings)

    def restart(self):
        """As a new process would find it."""
        self.identity = Keys.open(self.identity.current.file.parent, self.name)
        self.peers = Peers(self.peers._file, self.identity.fingerprint)
        self.net = self.network()


@pytest.fixture
def sides(identities, tmp_path):
    a, b = identities
    return Keeper(a, "alpha", tmp_path), Keeper(b, "beta", tmp_path)


def pinned(side, peer):
    return side.peers.get(peer).fingerprint


async def on_new_keys(a, b):
    """Both ends of a link that shows nothing but current certificates."""

    def there():
        links = [a.net._records["beta"].link.current, b.net._records["alpha"].link.current]
        if None in links:
            return False
        ours, theirs = (link.connection for link in links)
        return (
            (ours.shown_fingerprint, ours.peer_fingerprint)
            == (a.identity.fingerprint, b.identity.fingerprint)
            == (
                theirs.peer_fingerprint,
                theirs.shown_fingerprint,
            )
        )

    await until(there)


@pytest.mark.parametrize("who_dials", ["a", "b", "both"])
def test_a_peer_that_is_connected_changes_over_at_once(run, sides, who_dials):
    a, b = sides
    meet(a, b, who_dials)

    async def main():
        async with up(a, b):
            await linked(a, b)
            old, id = a.identity.current, b.peers.get("alpha").id
            channel = await asyncio.gather(
                a.net.open_channel("beta", bytes(16)), b.net.open_channel("alpha", bytes(16))
            )
            await a.net.rotate_key()
            assert a.identity.fingerprint != old.fingerprint
            assert a.identity.rotation is None, "everybody has heard"
            assert not (old.file.parent / PREVIOUS_FILE).exists()
            assert pinned(b, "alpha") == a.identity.fingerprint
            assert b.peers.get("alpha").id == id == old.fingerprint
            await on_new_keys(a, b)
            assert await a.net.call("beta", "echo", {}) == {"from": "alpha"}
            assert all(end.failure is None for end in channel), "work goes on"
            assert ("down", "beta") not in a.events
            assert ("down", "alpha") not in b.events
            job = b"x" * 16
            await asyncio.gather(a.net.open_channel("beta", job), b.net.open_channel("alpha", job))

    run(main())


@pytest.mark.parametrize("who_dials", ["a", "b", "both"])
def test_a_peer_that_was_away_hears_when_it_comes_back(run, sides, who_dials):
    a, b = sides
    meet(a, b, who_dials)

    async def main():
        old = a.identity.current
        async with up(a):
            await a.net.rotate_key()
            assert a.identity.rotation.pending == (a.peers.get("beta").id,)
            assert pinned(b, "alpha") == old.fingerprint
        a.restart()  # nor is it forgotten meanwhile
        async with up(a, b):
            await linked(a, b)
            await until(lambda: a.identity.rotation is None)
            assert pinned(b, "alpha") == a.identity.fingerprint != old.fingerprint
            await on_new_keys(a, b)
            assert await b.net.call("alpha", "echo", {}) == {"from": "beta"}
        assert not (old.file.parent / PREVIOUS_FILE).exists()

    run(main())


def test_both_sides_change_while_apart(run, sides):
    a, b = sides
    meet(a, b, "a")

    async def main():
        for side in (a, b):
            async with up(side):
                await side.net.rotate_key()
        async with up(a, b):
            await linked(a, b)
            await until(lambda: a.identity.rotation is None and b.identity.rotation is None)
            await on_new_keys(a, b)

    run(main())


@pytest.mark.parametrize("who_dials", ["a", "b"])
def test_a_lost_answer_is_made_up_for(run, sides, who_dials, monkeypatch):
    """The peer has pinned the new key, and nobody here knows: it refuses the old one, and the new one is tried."""
    a, b = sides
    meet(a, b, who_dials)

    async def main():
        async with up(a, b):
            await linked(a, b)
            with monkeypatch.context() as patch:
                patch.setattr(a.identity, "acknowledge", lambda peer: None)
                await a.net.rotate_key()
            assert a.identity.rotation.pending
            await on_new_keys(a, b)
        a.restart()
        b.restart()
        async with up(a, b):
            await linked(a, b)
            await until(lambda: a.identity.rotation is None)
            await on_new_keys(a, b)

    run(main())


@pytest.mark.parametrize("who_dials", ["a", "b"])
def test_the_old_key_is_refused_after_the_change(run, sides, identities, who_dials, tmp_path):
    """A thief of the old key, in either direction."""
    a, b = sides
    meet(a, b, who_dials)
    stolen = tmp_path / "stolen"
    stolen.mkdir(mode=0o700)
    (stolen / "identity.pem").write_bytes(identities[0].file.read_bytes())
    (stolen / "identity.pem").chmod(0o600)

    async def main():
        async with up(a, b):
            await linked(a, b)
            await a.net.rotate_key()
            await on_new_keys(a, b)
        thief = Side(Keys.open(stolen, "alpha"), "alpha", stolen, port=a.port)
        thief.peers.add(b.identity.invite("beta"), address=f"127.0.0.1:{b.port}")
        async with up(thief, b):
            await until(lambda: thief.net.status("beta").code == UnknownPeer.code)
            if who_dials == "b":
                await until(lambda: b.net.status("alpha").code == CertificateChanged.code)
                assert "somebody sits between" in b.net.status("alpha").hint
            assert not b.net.connected("alpha")

    run(main())


def test_a_forged_announcement_is_refused(run, sides, make_identity):
    """By a peer that is what it says, of a key it does not have; and by one peer of another's key."""
    a, b = sides
    meet(a, b, "a")
    new, other = make_identity("new"), make_identity("other")

    async def main():
        async with up(a, b):
            await linked(a, b)
            for announced in (
                rotation.announcement(other, new),
                rotation.announcement(a.identity.current, new)[:-1] + b"\xff",
                rotation.announcement(b.identity.current, new),
                b"",
                None,
            ):
                with pytest.raises(PeerError) as caught:
                    await a.net.call("beta", rotation.METHOD, {"announcement": announced})
                assert caught.value.code == "forged_announcement"
            taken = rotation.announcement(a.identity.current, b.identity.current)
            with pytest.raises(PeerError) as caught:
                await a.net.call("beta", rotation.METHOD, {"announcement": taken})
            assert caught.value.code == "conflict", "nobody announces our own key, or another peer's"
            assert pinned(b, "alpha") == a.identity.fingerprint
            assert await a.net.call("beta", "echo", {}) == {"from": "alpha"}

    run(main())


def test_a_peer_that_announces_without_end_is_slowed_down(run, sides, make_identity):
    a, b = sides
    meet(a, b, "a")

    async def main():
        async with up(a, b):
            await linked(a, b)
            codes = []
            for _ in range(12):
                with pytest.raises(PeerError) as caught:
                    await a.net.call("beta", rotation.METHOD, {"announcement": b""})
                codes.append(caught.value.code)
            assert codes == ["forged_announcement"] * 10 + ["busy"] * 2

    run(main())


def test_a_stranger_announces_nothing(run, sides, make_identity):
    a, b = sides
    meet(a, b, "a")
    new, stranger = make_identity("new"), make_identity("stranger")

    async def main():
        async with up(b):
            context = tls.client_context(stranger, b.identity.certificate)
            connection = await dial("127.0.0.1", b.port, context, b.config.timeouts)
            with pytest.raises(UnknownPeer):
                await connection.recv_frame(9999)
            assert pinned(b, "alpha") == a.identity.fingerprint != new.fingerprint

    run(main())


def test_when_the_old_key_is_gone_a_peer_that_never_heard_is_told_what_to_do(run, sides):
    a, b = sides
    meet(a, b, "b")

    async def main():
        async with up(a):
            await a.net.rotate_key()
            await a.net.finish_key()
            assert a.identity.rotation is None
        async with up(a, b):
            await until(lambda: b.net.status("alpha").code == CertificateChanged.code)
            status = b.net.status("alpha")
            assert "mpcctl peer remove alpha" in status.hint
            id = b.peers.get("alpha").id
            b.peers.remove("alpha")
            b.knows(a)
            await linked(a, b)
            assert b.peers.get("alpha").id != id

    run(main())


def test_a_peer_that_was_added_by_an_old_invite_still_hears(run, sides):
    """Rotated for others, the old key still there; the new peer pinned the old one from an invite of last week."""
    a, b = sides
    invite = str(a.identity.invite("alpha", f"127.0.0.1:{a.port}"))

    async def main():
        async with up(a):
            a.knows(b, "")
            await a.net.rotate_key()
            b.peers.add(invite)
            async with up(b):
                await linked(a, b)
                await until(lambda: pinned(b, "alpha") == a.identity.fingerprint)

    run(main())


def test_an_old_key_that_cannot_be_removed_is_given_up_later(run, sides, monkeypatch):
    monkeypatch.setattr(announcing, "TIDY", 0.02)
    a, b = sides
    a.knows(b, "")
    kept = a.identity.current.file.parent / PREVIOUS_FILE

    async def main():
        a.identity.rotate("alpha", [a.peers.get("beta").id], keep=0)
        kept.unlink()
        kept.mkdir()  # no file: removing it fails
        async with up(a):
            await until(lambda: any("cannot be given up yet" in entry["event"] for entry in entries))
            assert a.identity.rotation is not None
            kept.rmdir()
            await until(lambda: a.identity.rotation is None)

    with structlog.testing.capture_logs() as entries:
        run(main())


def test_an_old_invite_of_a_peer_under_another_name(run, sides):
    a, b = sides
    meet(a, b, "a")
    invite = a.identity.invite("alpha")

    async def main():
        async with up(a, b):
            await linked(a, b)
            await a.net.rotate_key()
        with pytest.raises(MpcdError, match="old invite of 'alpha'"):
            b.peers.add(invite, name="gamma")

    run(main())


def test_a_peer_of_an_older_version_keeps_the_old_key(run, sides, monkeypatch):
    a, b = sides
    meet(a, b, "a")

    async def main():
        monkeypatch.delitem(b.net._handlers, rotation.METHOD)
        async with up(a, b):
            await linked(a, b)
            with contextlib.suppress(MpcdError):
                await a.net.rotate_key()
            assert a.identity.rotation.pending
            assert await a.net.call("beta", "echo", {}) == {"from": "alpha"}
        a.restart()
        async with up(a, b):
            await linked(a, b)
            assert await a.net.call("beta", "echo", {}) == {"from": "alpha"}
            assert a.identity.rotation.pending

    run(main())
