"""Daemons of sites with their own PKI: a chain and a name, and still nothing connects that was not added."""

import asyncio
import os

import pytest
import structlog

from mpcd.daemon.config import Config, Tls
from mpcd.daemon.errors import BadInput, ConfigError, Conflict, PeerError
from mpcd.daemon.network import authority
from mpcd.daemon.network.identity import IdentityError, Invite
from mpcd.daemon.network.keys import Keys
from tests.daemon.network.pki import Authority
from tests.daemon.network.sides import Side, linked, until, up


@pytest.fixture
def root(tmp_path):
    return Authority(tmp_path / "pki")


def side(name, folder, tls, **settings):
    """In CA mode if ``tls`` says so, else with a key of its own."""
    state = folder / f"state-{name}"
    state.mkdir(mode=0o700, exist_ok=True)
    return Side(Keys.open(state, name, Config.parse({"name": name, "tls": tls}).tls), name, folder, tls=tls, **settings)


def knows(one, other, address=None):
    at = f"127.0.0.1:{other.port}" if address is None else address
    one.peers.add(str(other.identity.invite(other.name)), address=at)


def pair(tmp_path, ours, theirs, who_dials="a"):
    a, b = side("alpha", tmp_path, ours), side("beta", tmp_path, theirs)
    knows(a, b, None if who_dials == "a" else "")
    knows(b, a, None if who_dials == "b" else "")
    return a, b


async def refused(a, b):
    """What each side then says of the other, as soon as the one that dials knows."""
    await until(lambda: a.net.status("beta").code not in ("", "peer_unreachable"))
    assert not a.net.connected("beta")
    assert not b.net.connected("alpha")
    return a.net.status("beta")


@pytest.mark.parametrize("who_dials", ["a", "b"])
def test_both_in_ca_mode(run, tmp_path, root, who_dials):
    a, b = pair(tmp_path, root.issue("a.klinik.example"), root.issue("b.klinik.example", "10.0.0.7"), who_dials)

    async def main():
        async with up(a, b):
            await linked(a, b)
            assert await a.net.call("beta", "echo", {}) == {"from": "alpha"}
            assert a.peers.get("beta").known_by == "ca"
            assert a.peers.get("beta").ca_name == "b.klinik.example"
            assert a.peers.get("beta").fingerprint == ""
            assert a.net.status("beta").expires == b.identity.expires

    run(main())


@pytest.mark.parametrize("who_dials", ["a", "b"])
def test_one_pinned_and_one_in_ca_mode(run, tmp_path, root, who_dials):
    """Each side's entry says how it knows the other."""
    a, b = pair(tmp_path, root.issue("a.klinik.example"), {"ca_file": str(root.file)}, who_dials)

    async def main():
        async with up(a, b):
            await linked(a, b)
            assert await b.net.call("alpha", "echo", {}) == {"from": "beta"}
            assert (a.peers.get("beta").known_by, b.peers.get("alpha").known_by) == ("pin", "ca")
            await b.net.rotate_key()  # and the pinned side's key can change
            await until(lambda: a.peers.get("beta").fingerprint == b.identity.fingerprint)

    run(main())


def test_an_intermediate_authority(run, tmp_path, root):
    between = Authority(tmp_path / "between", "Klinik Devices CA", parent=root)
    a, b = pair(tmp_path, between.issue("a.example"), root.issue("b.example"))

    async def main():
        async with up(a, b):
            await linked(a, b)

    run(main())


def test_an_address_as_the_name(run, tmp_path, root):
    a, b = pair(tmp_path, root.issue("192.0.2.1"), root.issue("2001:db8::1"))

    async def main():
        async with up(a, b):
            await linked(a, b)

    run(main())


def test_being_signed_is_not_enough(run, tmp_path, root):
    """A certificate of the right authority whose name nobody added; after an acquaintance was removed, too."""
    a, b = pair(tmp_path, root.issue("a.example"), root.issue("b.example"))
    c = side("gamma", tmp_path, root.issue("c.example"))
    knows(c, b)

    async def main():
        async with up(a, b, c):
            await linked(a)
            await until(lambda: c.net.status("beta").code not in ("", "peer_unreachable"))
            status = c.net.status("beta")
            assert status.code == "unknown_peer"
            assert "beta does not know this daemon's certificate" in status.error
            b.peers.remove("alpha")
            await until(lambda: a.net.status("beta").code == "unknown_peer")
            assert not b.net.connected("alpha")

    run(main())


def test_a_wrong_name(run, tmp_path, root):
    """Another daemon of the same authority answers at the peer's address."""
    a, b = pair(tmp_path, root.issue("a.example"), root.issue("b.example"))
    c = side("beta", tmp_path / "pki", root.issue("c.example"), port=b.port)
    knows(c, a, "")

    async def main():
        async with up(a, c):
            status = await refused(a, b)
            assert status.code == "wrong_name"
            assert f"the certificate at 127.0.0.1:{b.port} is for c.example" in status.error
            assert "beta is known by the name 'b.example'" in status.error

    run(main())


def test_names_are_compared_whole(root):
    """No wildcards, no parts, no common name."""
    tls = root.issue("*.klinik.example", "b.klinik.example", common_name="cn.klinik.example")
    der = authority.load(Tls(**tls)).certificate
    assert authority.is_for(der, "b.klinik.example")
    assert authority.is_for(der, "B.Klinik.example")
    for name in ("x.klinik.example", "klinik.example", "cn.klinik.example", "bb.klinik.example", ""):
        assert not authority.is_for(der, name)


@pytest.mark.parametrize("which", ["dialled", "dialler"])
def test_an_unknown_authority(run, tmp_path, root, which):
    other = Authority(tmp_path / "other", "Somebody CA")
    a_tls, b_tls = root.issue("a.example"), root.issue("b.example")
    a, b = pair(tmp_path, a_tls, b_tls)
    wrong = other.issue("b.example" if which == "dialled" else "a.example")
    if which == "dialled":
        b = side("beta", tmp_path, {**wrong, "ca_file": str(root.file)}, port=b.port)
    else:
        a = side("alpha", tmp_path, {**wrong, "ca_file": str(root.file)}, port=a.port)

    async def main():
        async with up(a, b):
            status = await refused(a, b)
            if which == "dialled":
                assert status.code == "unknown_authority"
                assert "was issued by 'CN=Somebody CA,O=Klinik'" in status.error
                assert "no authority in this side's tls.ca_file" in status.error
            else:
                assert status.code == "unknown_peer"
                assert "beta does not know this daemon's certificate" in status.error

    run(main())


@pytest.mark.parametrize("which", ["dialled", "dialler"])
def test_an_expired_certificate(run, tmp_path, root, which, monkeypatch):
    a, b = pair(tmp_path, root.issue("a.example"), root.issue("b.example"))
    expired = root.issue("b.example" if which == "dialled" else "a.example", since=-10, until=-1, folder=tmp_path / "x")
    if which == "dialled":
        b = side("beta", tmp_path, expired, port=b.port)
        knows(b, a, "")
    else:
        a = side("alpha", tmp_path, expired, port=a.port)

    async def main():
        async with up(a, b):
            status = await refused(a, b)
            assert status.code == "certificate_expired"
            if which == "dialled":
                assert "the peer's certificate has expired" in status.error
            else:
                assert "this daemon's certificate expired on" in status.error
                # The other side would refuse it anyhow.
                monkeypatch.setattr(a.net.dialler, "_check_own", lambda: None)
                await until(lambda: "the peer says that this daemon's certificate has expired" in refusal(a))

    def refusal(one):
        return one.net.status("beta").error

    run(main())


def test_a_data_connection_waits_for_one_to_be_renewed(run, tmp_path, root, monkeypatch):
    """A session that is running does not fail for it."""
    a, b = pair(tmp_path, root.issue("a.example"), root.issue("b.example"))
    refusals = []

    async def main():
        async with up(a, b):
            await linked(a, b)
            check = a.net.dialler._check_own

            def expired_twice():
                if len(refusals) < 2:
                    refusals.append(authority.CertificateExpired("this daemon's certificate expired"))
                    raise refusals[-1]
                check()

            monkeypatch.setattr(a.net.dialler, "_check_own", expired_twice)
            await asyncio.gather(a.net.open_channel("beta", bytes(16)), b.net.open_channel("alpha", bytes(16)))
            assert len(refusals) == 2

    run(main())


@pytest.mark.parametrize("who_dials", ["a", "b"])
def test_one_that_expires_under_an_open_link(run, tmp_path, root, who_dials):
    """The link ends with it, and none comes in its place."""
    a, b = pair(tmp_path, root.issue("a.example"), root.issue("b.example", until=5 / 86400), who_dials)

    async def main():
        async with up(a, b):
            await linked(a, b)
            assert await a.net.call("beta", "echo", {}) == {"from": "alpha"}
            await until(lambda: not a.net.connected("beta"))
            await until(lambda: not b.net.connected("alpha"))
            if who_dials == "a":
                await until(lambda: "certificate has expired" in a.net.status("beta").error)
            else:
                assert "certificate expired on" in a.net.status("beta").error
                await until(lambda: "this daemon's certificate expired on" in b.net.status("alpha").error)

    run(main())


def test_one_that_is_not_valid_yet(run, tmp_path, root):
    a, b = pair(tmp_path, root.issue("a.example"), root.issue("b.example"))
    b = side("beta", tmp_path, root.issue("b.example", since=2, folder=tmp_path / "x"), port=b.port)

    async def main():
        async with up(a, b):
            status = await refused(a, b)
            assert "not valid yet" in status.error
            assert "clocks" in status.hint

    run(main())


def test_a_pinned_certificate_of_the_right_name_is_not_of_an_authority(run, tmp_path, root):
    """The peer went back to pinned mode: said so."""
    a, b = pair(tmp_path, root.issue("a.example"), root.issue("b.example"))
    b = side("beta", tmp_path, {}, port=b.port)

    async def main():
        async with up(a, b):
            status = await refused(a, b)
            assert status.code == "unknown_authority"
            assert "no authority issued" in status.error

    run(main())


def test_a_peer_of_an_authority_needs_one_here(tmp_path, root):
    a, b = side("alpha", tmp_path, root.issue("a.example")), side("beta", tmp_path, {})
    invite = Invite.parse(str(a.identity.invite("alpha", "a.example:7443")))
    assert (invite.certificate, invite.ca_name, invite.address) == (b"", "a.example", "a.example:7443")
    with pytest.raises(ConfigError, match=r"no tls\.ca_file"):
        b.net.dialler.check_invite(invite)


def test_ones_own_invite(tmp_path, root):
    a = side("alpha", tmp_path, root.issue("a.example", "a2.example"))
    for name in ("a.example", "A2.example"):
        with pytest.raises(Conflict, match="this daemon itself"):
            a.net.dialler.check_invite(Invite("alpha", "", b"", name))


def test_an_authority_cannot_be_pinned(root):
    """It would vouch for others."""
    from cryptography.hazmat.primitives.serialization import Encoding

    for der in (root.certificate.public_bytes(Encoding.DER), authority.load(Tls(**root.issue("x"))).certificate):
        with pytest.raises(BadInput, match="not one that mpcd makes"):
            Invite.parse(str(Invite("alpha", "", der)))


def test_renewed_files_are_read_again(run, tmp_path, root):
    tls = root.issue("b.example", until=5)
    a, b = pair(tmp_path, root.issue("a.example"), tls)

    async def main():
        async with up(a, b):
            await linked(a, b)
            soon = b.identity.expires
            root.issue("b.example", folder=root.folder / "b.example")
            os.utime(tls["certificate"], (1, 1))
            a.net._records["beta"].link.current.connection.abort()
            await until(lambda: a.net.connected("beta") and a.net.status("beta").expires > soon)
            assert b.identity.expires > soon
            (root.folder / "b.example" / "key.pem").write_text("nonsense")
            a.net._records["beta"].link.current.connection.abort()
            await until(lambda: a.net.connected("beta"))  # with what it had

    run(main())


def spoil_renewal(root, tls, how):
    """A new certificate whose key is not there, or is another's."""
    other = root.issue("other.example")
    root.issue("b.example", folder=root.folder / "b.example")
    if how == "no key":
        os.unlink(tls["key"])
    else:
        os.replace(other["key"], tls["key"])


def no_traceback(entries):
    return not any(entry.get("exc_info") for entry in entries)


@pytest.mark.parametrize("how", ["no key", "another's key"])
def test_a_bad_renewal_does_not_end_the_listening(run, tmp_path, root, how):
    tls = root.issue("b.example")
    a, b = pair(tmp_path, root.issue("a.example"), tls)
    c = side("gamma", tmp_path, root.issue("c.example"))
    knows(c, b)

    async def main():
        async with up(a, b, c):
            await linked(a, b)
            spoil_renewal(root, tls, how)
            knows(b, c, "")  # others are to be let in
            await asyncio.sleep(0)
            a.net._records["beta"].link.current.connection.abort()
            await until(lambda: not a.net.connected("beta"))
            await linked(a, b)  # with what it had
            root.issue("b.example", folder=root.folder / "b.example")
            await linked(a, c)

    with structlog.testing.capture_logs() as entries:
        run(main())
    assert any("what was read before stays" in entry.get("hint", "") for entry in entries)
    assert no_traceback(entries)


@pytest.mark.parametrize("how", ["no key", "another's key"])
def test_files_spoiled_before_anybody_came(run, tmp_path, root, how):
    """Whoever connects is turned away, until they are put right."""
    tls = root.issue("b.example")
    a, b = pair(tmp_path, root.issue("a.example"), tls)
    spoil_renewal(root, tls, how)

    async def main():
        async with up(a, b):
            await until(lambda: a.net.status("beta").attempts >= 3)
            assert not a.net.connected("beta")
            root.issue("b.example", folder=root.folder / "b.example")
            await linked(a, b)

    with structlog.testing.capture_logs() as entries:
        run(main())
    turned_away = [entry for entry in entries if "everybody is turned away" in entry.get("hint", "")]
    assert len(turned_away) == 1
    assert no_traceback(entries)


@pytest.mark.parametrize(
    ("how", "why"), [("no key", "No such file"), ("another's key", "damaged or do not belong together")]
)
def test_a_bad_renewal_of_who_dials_is_told_in_words(run, tmp_path, root, how, why):
    tls = root.issue("b.example")
    a, b = pair(tmp_path, root.issue("a.example"), tls, "b")
    spoil_renewal(root, tls, how)

    async def main():
        async with up(a, b):
            await until(lambda: b.net.status("alpha").attempts >= 3)
            status = b.net.status("alpha")
            assert status.code == "config"
            assert why in status.error
            assert tls["key"] in status.error
            root.issue("b.example", folder=root.folder / "b.example")
            await linked(a, b)

    with structlog.testing.capture_logs() as entries:
        run(main())
    assert no_traceback(entries)


def test_a_ca_daemon_has_no_key_to_rotate(run, tmp_path, root):
    a = side("alpha", tmp_path, root.issue("a.example"))

    async def main():
        with pytest.raises(Conflict, match="the site's own authority"):
            await a.net.rotate_key()

    run(main())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda tls, root: tls | root.issue("x", folder=root.folder / "other") | {"key": tls["key"]},
            "does not belong",
        ),
        (lambda tls, root: root.issue(), "no subject alternative name"),
        (lambda tls, root: root.issue("s", usages=[authority.ExtendedKeyUsageOID.SERVER_AUTH]), "TLS clients"),
        (lambda tls, root: tls | {"key": tls["key"] + "x"}, "cannot be read"),
        (lambda tls, root: tls | {"certificate": tls["key"]}, "do not hold a certificate"),
    ],
)
def test_files_that_cannot_be_used(root, spoil, message):
    with pytest.raises(IdentityError, match=message):
        authority.load(Tls(**spoil(root.issue("a.example"), root)))


def test_a_key_that_others_can_read_is_refused(root):
    tls = root.issue("a.example")
    os.chmod(tls["key"], 0o644)
    with pytest.raises(IdentityError, match="can be read by others") as caught:
        authority.load(Tls(**tls))
    assert "chmod 600" in caught.value.hint


def test_an_authoritys_file_without_one(tmp_path):
    file = tmp_path / "ca.pem"
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys.open(tmp_path, "alpha", Tls(ca_file=str(file)))
    file.write_text("nothing")
    with pytest.raises(ConfigError, match="holds no certificate"):
        Keys.open(tmp_path, "alpha", Tls(ca_file=str(file)))


def test_errors_of_calls_name_nobody(run, tmp_path, root):
    a, b = pair(tmp_path, root.issue("a.example"), root.issue("b.example"))

    async def main():
        async with up(a, b):
            await linked(a, b)
            with pytest.raises(PeerError) as caught:
                await a.net.call("beta", "key.rotated", {"announcement": b""})
            assert "by an authority and a name" in caught.value.message

    run(main())
