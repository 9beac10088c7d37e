"""What is kept and said of those who knock: bounded, however many come."""

import pytest
import structlog

from mpcd.daemon.network import strangers
from mpcd.daemon.network.greeting import KNOCK, Hello
from mpcd.daemon.network.peers import Peers
from mpcd.daemon.network.strangers import Strangers


@pytest.fixture
def peers(tmp_path):
    return Peers(tmp_path / "peers.json")


def knock(name, number):
    return Hello(name, "", purpose=KNOCK, fingerprint=f"{number:064x}")


def test_the_last_of_many_are_shown_and_each_once(peers):
    found = Strangers(peers, lambda event: None)
    for number in range(3 * strangers.REMEMBERED):
        found.knocked(knock("gamma", number), f"192.0.2.1:{1000 + number}")
        found.knocked(knock("delta", 0), "192.0.2.2:1000")
    shown = [(one.name, int(one.fingerprint, 16)) for one in found.lately()]
    assert len(shown) == strangers.REMEMBERED
    assert shown[-2:] == [("gamma", 3 * strangers.REMEMBERED - 1), ("delta", 0)]
    assert shown.count(("delta", 0)) == 1
    assert found.lately()[-1].address == "192.0.2.2"


def test_a_kind_of_event_is_told_once_in_a_while(peers, monkeypatch):
    told = []
    found = Strangers(peers, told.append)
    with structlog.testing.capture_logs() as logged:
        for number in range(100):
            found.report("one", number=number)
            found.report("another", number=number)
        monkeypatch.setattr(strangers, "LOG_PAUSE", 0.0)
        found.report("one", number=100)
    assert told == [entry["event"] for entry in logged] == ["one", "another", "one"]
    assert [entry["number"] for entry in logged] == [0, 0, 100]


def test_one_who_uses_the_name_of_a_peer_is_told_from_it(peers, identities):
    _, beta = identities
    peers.add(beta.invite("beta"), address="")
    with structlog.testing.capture_logs() as logged:
        Strangers(peers, lambda event: None).knocked(knock("beta", 7), "192.0.2.1:1000")
    assert "'beta' is pinned as" in logged[0]["hint"]
    assert "remove it first" in logged[0]["hint"]
