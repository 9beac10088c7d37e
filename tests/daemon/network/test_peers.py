import json

import pytest

from mpcd.daemon.errors import BadInput, CertificateChanged, Conflict, InviteError, NotFound
from mpcd.daemon.files import CannotWrite, write_private
from mpcd.daemon.network.identity import Identity, Invite
from mpcd.daemon.network.peers import Peers, PeersError


def identity(folder, name):
    (folder / name).mkdir(exist_ok=True)
    return Identity.load_or_create(folder / name, name)


@pytest.fixture
def store(tmp_path):
    return Peers(tmp_path / "peers.json", identity(tmp_path, "self").fingerprint)


def test_added_listed_found_and_there_after_a_restart(store, tmp_path):
    vendor, lab = identity(tmp_path, "vendor"), identity(tmp_path, "lab")
    store.add(str(vendor.invite("vendor", "v.example:1")))
    store.add(lab.invite("lab"), name="lab-2", address="l.example")
    for peers in (store, Peers(tmp_path / "peers.json")):
        assert [peer.name for peer in peers.list()] == ["lab-2", "vendor"]
        assert peers.get("lab-2").address == "l.example:7443"
        assert peers.find(vendor.fingerprint) == peers.get("vendor")
        assert peers.find("00" * 32) is None
    assert (tmp_path / "peers.json").stat().st_mode & 0o777 == 0o600


def test_same_name_with_another_certificate_is_refused_with_both_fingerprints(store, tmp_path):
    old, new = identity(tmp_path, "old"), identity(tmp_path, "new")
    store.add(old.invite("vendor"))
    with pytest.raises(CertificateChanged, match="the certificate of 'vendor' changed") as caught:
        store.add(new.invite("vendor"))
    assert new.fingerprint[:4] in caught.value.message
    assert "mpcctl peer remove vendor" in caught.value.hint
    assert store.get("vendor").fingerprint == old.fingerprint
    store.add(new.invite("vendor"), name="vendor-2")


def test_same_certificate_under_another_name_is_refused(store, tmp_path):
    vendor = identity(tmp_path, "vendor")
    store.add(vendor.invite("vendor"))
    with pytest.raises(Conflict, match="already known as 'vendor'"):
        store.add(vendor.invite("vendor"), name="other")


def test_adding_again_changes_the_address_only(store, tmp_path):
    vendor = identity(tmp_path, "vendor")
    first = store.add(vendor.invite("vendor", "a:1"))
    second = store.add(vendor.invite("vendor", "b:2"))
    assert (second.address, second.added) == ("b:2", first.added)
    assert len(store.list()) == 1
    assert store.add(vendor.invite("vendor", "b:2"), address="").address == ""


def test_own_invite_bad_name_bad_address_bad_invite(store, tmp_path):
    vendor = identity(tmp_path, "vendor").invite("vendor")
    with pytest.raises(Conflict, match="itself"):
        store.add(identity(tmp_path, "self").invite("self"))
    with pytest.raises(BadInput, match="not allowed as a name"):
        store.add(vendor, name="../x")
    with pytest.raises(BadInput, match="not an address"):
        store.add(vendor, address="x:y")
    for name in ("foo..bar", "x" * 64 + ".example"):
        with pytest.raises(BadInput, match="cannot be a host's name"):
            store.add(vendor, address=f"{name}:900")
    with pytest.raises(InviteError):
        store.add(str(vendor)[:-3])
    assert store.list() == ()


def test_removed_is_gone_and_unknown_is_named(store, tmp_path):
    store.add(identity(tmp_path, "vendor").invite("vendor"))
    store.remove("vendor")
    assert Peers(tmp_path / "peers.json").list() == ()
    with pytest.raises(NotFound, match="no peer named 'vendor'"):
        store.remove("vendor")


def test_watchers_hear_of_changes_until_they_stop(store, tmp_path):
    heard = []
    unwatch = store.watch(lambda: heard.append(len(store.list())))
    store.add(identity(tmp_path, "vendor").invite("vendor"))
    store.remove("vendor")
    unwatch()
    store.add(identity(tmp_path, "vendor").invite("vendor"))
    assert heard == [1, 0]


@pytest.mark.parametrize(
    "damage", [lambda t: t[: len(t) // 2], lambda t: "[]", lambda t: t.replace('"format": 2', '"format": 0')]
)
def test_damaged_store_is_refused_not_emptied(store, tmp_path, damage):
    store.add(identity(tmp_path, "vendor").invite("vendor"))
    file = tmp_path / "peers.json"
    text = damage(file.read_text())
    file.write_text(text)
    with pytest.raises(PeersError, match=r"peers\.json is damaged"):
        Peers(file)
    assert file.read_text() == text


def test_exchanged_certificate_in_the_file_is_noticed(store, tmp_path):
    store.add(identity(tmp_path, "vendor").invite("vendor"))
    file = tmp_path / "peers.json"
    table = json.loads(file.read_text())
    table["peers"][0]["fingerprint"] = "00" * 32
    file.write_text(json.dumps(table))
    with pytest.raises(PeersError, match="contradicts itself"):
        Peers(file)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    file = tmp_path / "f"
    write_private(file, b"old")
    with pytest.raises(FileExistsError):
        write_private(file, b"new", replace=False)
    assert file.read_bytes() == b"old"
    with pytest.raises(CannotWrite, match="nowhere"):
        write_private(tmp_path / "nowhere" / "f", b"new")
    assert [f.name for f in tmp_path.iterdir()] == ["f"]


def test_a_store_of_the_first_format_is_read_and_kept(tmp_path):
    """Before peers had ids: the fingerprint was it, and units are kept by it."""
    store = Peers(tmp_path / "peers.json")
    peer = store.add(identity(tmp_path, "vendor").invite("vendor", "vendor.example:7443"))
    table = json.loads((tmp_path / "peers.json").read_text())
    table["format"] = 1
    for entry in table["peers"]:
        del entry["id"], entry["ca_name"], entry["former"]
    (tmp_path / "peers.json").write_text(json.dumps(table))
    again = Peers(tmp_path / "peers.json").get("vendor")
    assert again == peer
    assert again.id == again.fingerprint


def test_a_changed_key_keeps_the_peer(store, tmp_path):
    old, new = identity(tmp_path, "old"), identity(tmp_path, "new")
    before = store.add(old.invite("vendor", "vendor.example:7443"))
    after = store.change_key("vendor", new.certificate)
    assert (after.id, after.added, after.address) == (before.id, before.added, before.address)
    assert (after.fingerprint, after.former) == (new.fingerprint, (old.fingerprint,))
    assert Peers(tmp_path / "peers.json").get("vendor") == after
    assert store.find(old.fingerprint) is None
    with pytest.raises(CertificateChanged):
        store.add(old.invite("vendor"))
    assert store.add(new.invite("vendor"), address="else.example").id == before.id
    other = store.add(identity(tmp_path, "other").invite("other"))
    with pytest.raises(Conflict, match="belongs to somebody else"):
        store.change_key("vendor", other.certificate)


def test_a_peer_known_by_a_name(store, tmp_path):
    named = Invite("vendor", "", b"", "Vendor.Example")
    peer = store.add(str(named))
    assert (peer.known_by, peer.ca_name, peer.fingerprint) == ("ca", "vendor.example", "")
    assert Peers(tmp_path / "peers.json").get("vendor") == peer
    assert store.find("") is None
    with pytest.raises(Conflict, match="already known as 'vendor'"):
        store.add(named, name="again")
    with pytest.raises(CertificateChanged, match=r"known by the name 'vendor\.example' and an authority"):
        store.add(identity(tmp_path, "pinned").invite("vendor"))
    store.remove("vendor")
    assert store.add(named).id == peer.id, "its units are its own again"
