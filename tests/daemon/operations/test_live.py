"""Health and doctor of two daemons that know each other."""

import asyncio
import dataclasses

import pytest

from mpcd.daemon.errors import PeerError
from mpcd.daemon.operations import live
from mpcd.daemon.operations.asking import Answer
from tests.daemon.two_daemons import HOSPITAL, VENDOR, Client, daemons


def by_name(checks):
    return {check["name"]: check for check in checks}


def test_both_sides_are_well(run, tmp_path):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            ours, theirs = Client(vendor.context.paths.control_socket), Client(hospital.context.paths.control_socket)
            status = await theirs.call("status")
            found = by_name(status["health"])
            assert [set(check) for check in status["health"]] == [{"name", "level", "text", "hint"}] * len(found)
            assert {check["level"] for check in found.values()} == {"ok"}, found
            assert status["warnings"] == []
            assert "1 of 1 connected" in found["peers"]["text"]
            seen = await theirs.call("doctor")
            about = by_name(seen["checks"])
            assert seen["worst"] in ("ok", "warning")
            assert "dialled by us" in about[f"{VENDOR}: link"]["text"]
            assert about[f"{VENDOR}: name"]["level"] == "ok"
            assert about[f"{VENDOR}: outbound"]["level"] == "ok"
            assert "waits for us to dial" in about[f"{VENDOR}: inbound"]["text"]
            assert about[f"{VENDOR}: clock"]["level"] == "ok"
            assert "the same software" in about[f"{VENDOR}: version"]["text"]
            there = by_name((await ours.call("doctor", peer=HOSPITAL))["checks"])
            assert f"{HOSPITAL} reaches us" in there[f"{HOSPITAL}: inbound"]["text"]
            assert "wait for" in there[f"{HOSPITAL}: outbound"]["text"]
            for check in about.values():
                assert bool(check["hint"]) == (check["level"] != "ok"), check
            with pytest.raises(PeerError) as error:
                await ours.call("doctor", peer="nobody")
            assert error.value.code == "not_found"

    run(main())


def test_a_peer_that_is_gone_and_a_policy_with_a_mistake(run, tmp_path):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            client = Client(hospital.context.paths.control_socket)
            (hospital.context.paths.state / "policy.toml").write_text("x = 1")
            await vendor.net.stop()
            async with asyncio.timeout(10):
                while not (warnings := (await client.call("status"))["warnings"]) or len(warnings) < 2:
                    await asyncio.sleep(0.05)
            assert any(f"{VENDOR} is not connected" in text for text in warnings)
            assert any("policy" in text for text in warnings)
            seen = await client.call("doctor", peer=VENDOR)
            about = by_name(seen["checks"])
            assert seen["worst"] == "problem"
            for name in (f"{VENDOR}: link", f"{VENDOR}: outbound", "policy"):
                assert about[name]["level"] == "problem"
                assert about[name]["hint"]
            assert about[f"{VENDOR}: name"]["level"] == "ok"

    run(main())


def test_a_peer_that_cannot_dial_back(run, tmp_path):
    """The vendor has an address of the hospital where nobody listens; the link stands all the same."""

    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            known = vendor.context.peers.get(HOSPITAL)
            vendor.context.peers.add(hospital.context.identity.invite(HOSPITAL, "127.0.0.1:9"), name=known.name)
            client = Client(hospital.context.paths.control_socket)
            about = by_name((await client.call("doctor", peer=VENDOR))["checks"])
            assert about[f"{VENDOR}: inbound"]["level"] == "warning"
            assert "peer_unreachable" in about[f"{VENDOR}: inbound"]["text"]

    run(main())


def test_an_older_peer_that_has_no_doctor(run, tmp_path):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            link = vendor.net._records[HOSPITAL].link.current
            link._handlers = {name: one for name, one in link._handlers.items() if name != "doctor.look"}
            about = by_name((await Client(hospital.context.paths.control_socket).call("doctor"))["checks"])
            assert about[f"{VENDOR}: answers"]["level"] == "ok"
            assert f"{VENDOR}: clock" not in about

    run(main())


def test_a_name_that_does_not_resolve(run, tmp_path):
    async def main():
        async with daemons(tmp_path) as (_, hospital):
            known = hospital.context.peers.get(VENDOR)
            gone = dataclasses.replace(known, address="no-such-host.invalid:7443")
            found = await hospital.operations._live._dns(gone)
            assert [check.level for check in found] == ["problem"]
            assert "no-such-host.invalid" in found[0].text

    run(main())


@pytest.mark.parametrize(("clock", "uncertainty", "level"), [(2.0, 0.1, "ok"), (-90.0, 1.0, "warning"), (35, 10, "ok")])
def test_clocks_apart(clock, uncertainty, level):
    found = live._clock(VENDOR, Answer(clock, uncertainty, None, ""))
    assert found.level == level
    assert ("behind" in found.text) == (clock < 0)
