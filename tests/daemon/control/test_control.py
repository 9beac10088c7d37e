"""The control socket: framing, types, progress, errors, and a client that goes away."""

import asyncio
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
from pathlib import Path

import msgpack
import pytest

from mpcd.daemon.control.server import ControlServer, Params, UsageError
from mpcd.daemon.errors import Conflict, NotFound, PeerError
from tests.daemon.two_daemons import DATASET, HOSPITAL, MODEL, VENDOR, Client, Process, daemons


def served(run, tmp_path, methods, use):
    async def main():
        server = ControlServer(tmp_path / "control.sock", methods)
        await server.start()
        try:
            return await use(Client(tmp_path / "control.sock"), server)
        finally:
            await server.stop()

    return run(main())


async def echo(params, job):
    value = params.text("value")
    params.end()
    job.report("working", 1, 2, "half way")
    return {"value": value}


async def fail(params, job):
    raise NotFound("no such thing", "look elsewhere")


async def bug(params, job):
    raise ZeroDivisionError("secret detail")


METHODS = {"echo": echo, "fail": fail, "bug": bug}


def test_result_with_progress(run, tmp_path):
    async def use(client, server):
        assert stat.S_IMODE(os.stat(tmp_path / "control.sock").st_mode) == 0o600
        assert await client.call("echo", value="x", other=None) == {"value": "x"}
        assert client.progress[-1] == {
            "stage": "working",
            "done": 1,
            "total": 2,
            "text": "half way",
            "eta_seconds": None,
        }

    served(run, tmp_path, METHODS, use)
    assert not (tmp_path / "control.sock").exists()


@pytest.mark.parametrize(
    ("method", "params", "code", "status", "named"),
    [
        ("fail", {}, "not_found", 4, "no such thing"),
        ("bug", {}, "internal", 70, "ZeroDivisionError"),
        ("nothing", {}, "usage", 2, "nothing"),
        ("echo", {}, "usage", 2, "value"),
        ("echo", {"value": 3}, "usage", 2, "text"),
        ("echo", {"value": "x", "more": 1}, "usage", 2, "more"),
    ],
)
def test_errors(run, tmp_path, method, params, code, status, named):
    async def use(client, server):
        with pytest.raises(PeerError, match=named) as error:
            await client.call(method, **params)
        assert (error.value.code, error.value.exit_status) == (code, status)
        assert "secret" not in error.value.message
        assert await client.call("echo", value="still there")

    served(run, tmp_path, METHODS, use)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<I", 1 << 31),
        struct.pack("<I", 3) + b"\xc1\xc1\xc1",
        struct.pack("<I", 1) + b"\x07",
        struct.pack("<I", 100) + b"short",
        struct.pack("<I", len(msgpack.packb({"id": "x", "method": "echo"})))
        + msgpack.packb({"id": "x", "method": "echo"}),
        struct.pack("<I", len(msgpack.packb({"method": "echo"}))) + msgpack.packb({"method": "echo"}),
    ],
)
def test_nonsense_costs_only_its_connection(run, tmp_path, data):
    async def use(client, server):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
        writer.write(data)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        assert await client.call("echo", value="still there")

    served(run, tmp_path, METHODS, use)


def test_requests_side_by_side_and_a_client_that_goes(run, tmp_path):
    started, cancelled = [], []

    async def slow(params, job):
        started.append(1)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    async def use(client, server):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
        for number, method in ((1, "slow"), (2, "echo")):
            body = msgpack.packb({"id": number, "method": method, "params": {"value": "x"} if method == "echo" else {}})
            writer.write(struct.pack("<I", len(body)) + body)
        (size,) = struct.unpack("<I", await reader.readexactly(4))
        assert msgpack.unpackb(await reader.readexactly(size))["id"] == 2, "the slow one does not hold the other up"
        writer.close()
        async with asyncio.timeout(5):
            while not cancelled:
                await asyncio.sleep(0.01)

    served(run, tmp_path, {**METHODS, "slow": slow}, use)
    assert (started, cancelled) == ([1], [1])


def test_a_stop_while_a_client_that_went_is_cleared_up(run, tmp_path):
    begun, ended, errors = asyncio.Event(), [], []

    async def slow(params, job):
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.2)
            ended.append(True)

    async def use(client, server):
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        call = asyncio.create_task(client.call("slow"))
        await begun.wait()
        call.cancel()
        await asyncio.sleep(0.05)
        await server.stop()
        await asyncio.sleep(0.3)

    served(run, tmp_path, {"slow": slow}, use)
    assert (ended, errors) == ([True], [])


def test_one_server_a_socket(run, tmp_path):
    async def use(client, server):
        with pytest.raises(Conflict, match="another daemon"):
            await ControlServer(tmp_path / "control.sock", METHODS).start()
        assert await client.call("echo", value="still there")

    served(run, tmp_path, METHODS, use)


def test_a_socket_left_by_a_crash_is_replaced(run, tmp_path):
    (tmp_path / "control.sock").touch()

    async def use(client, server):
        assert await client.call("echo", value="x")

    served(run, tmp_path, METHODS, use)


@pytest.mark.parametrize(
    ("take", "given"),
    [
        ("count", 0),
        ("count", True),
        ("count", "3"),
        ("count", None),
        ("flag", 1),
        ("path", "relative/path"),
        ("path", None),
        ("text", ""),
        ("text", 7),
        ("optional_texts", "x"),
        ("optional_texts", [1]),
    ],
)
def test_params(take, given):
    with pytest.raises(UsageError, match="key"):
        getattr(Params({"key": given}), take)("key")


def test_every_documented_method_is_there(run, tmp_path):
    """And no other: docs/control-api.md is the contract."""
    text = Path(__file__).parents[3] / "docs" / "control-api.md"
    documented = set()
    for line in text.read_text().splitlines():
        if line.startswith(("| `", "`")):
            name = line.split("`")[1].split(" ")[0]
            documented.add(name)

    async def main():
        async with daemons(tmp_path) as (vendor, _):
            return set(vendor.api.methods)

    methods = run(main())
    assert methods <= documented
    assert {name for name in documented if "." in name} <= methods


def test_looking_around(run, tmp_path):
    """Every listing has the keys that docs/control-api.md names."""

    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            ours, theirs = Client(vendor.context.paths.control_socket), Client(hospital.context.paths.control_socket)
            status = await theirs.call("status")
            assert set(status) >= {
                "version", "protocol_version", "software", "name", "fingerprint", "listen", "state_dir", "started",
                "threads", "memory_available_bytes", "disk_free_bytes", "kernels", "peers", "units", "sessions",
                "jobs", "warnings",
            }  # fmt: skip
            assert (status["name"], status["listen"]) == (HOSPITAL, None)
            me = await ours.call("id")
            assert (me["name"], me["invite"][:6]) == (VENDOR, "mpcd1:")
            peers = (await ours.call("peer.list"))["peers"]
            assert [(p["name"], p["connected"], p["address"]) for p in peers] == [(HOSPITAL, True, None)]
            mine = (await ours.call("model.list"))["models"]
            offered = (await theirs.call("model.list", peer=VENDOR))["models"]
            assert [m["name"] for m in mine] == [m["name"] for m in offered] == [MODEL]
            assert (mine[0]["peer"], offered[0]["peer"]) == (None, VENDOR)
            assert mine[0]["commitment"] == offered[0]["commitment"]
            assert mine[0]["ring"] == {"activation": 11, "fraction": 6, "wide": 17}
            shown = await theirs.call("model.show", name=MODEL, peer=VENDOR)
            assert shown["report"] is None
            assert shown["estimate"]["offline_bytes"] > shown["estimate"]["online_bytes"] > 0
            here = await ours.call("model.show", name=MODEL)
            assert here["report"] == {"layers": []}
            assert here["estimate"]["disk_bytes"] == shown["estimate"]["peer_disk_bytes"]
            found = (await theirs.call("dataset.list"))["datasets"]
            assert (found[0]["name"], found[0]["images"], found[0]["findings"]["finding 0"]["positives"]) == (
                DATASET,
                6,
                3,
            )
            assert (await theirs.call("dataset.show", name=DATASET))["skipped_files"] == []
            session = (await theirs.call("session.start", peer=VENDOR, model=MODEL, dataset=DATASET))["session"]
            for client, method, name in (
                (theirs, "dataset.remove", DATASET),
                (theirs, "peer.remove", VENDOR),
                (ours, "model.remove", MODEL),
            ):
                with pytest.raises(PeerError, match=session["id"][:12]) as error:
                    await client.call(method, name=name)
                assert error.value.code == "conflict"
            await theirs.call("session.cancel", session=session["id"])
            async with asyncio.timeout(10):
                while (await ours.call("session.show", session=session["id"]))["session"]["state"] != "cancelled":
                    await asyncio.sleep(0.02)
            await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=1)
            await ours.call("model.remove", name=MODEL)
            assert (await ours.call("offline.status"))["units"][0]["burnt"] == 1
            await theirs.call("dataset.remove", name=DATASET)
            assert not (await theirs.call("peer.remove", name=VENDOR))["peer"]["connected"]
            for client, method in ((ours, "model.list"), (theirs, "dataset.list"), (theirs, "peer.list")):
                assert next(iter((await client.call(method)).values())) == []

    run(main())


class Held:
    """A function that waits, in its thread, until it may go on."""

    def __init__(self, function):
        self._function = function
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, *given):
        self.reached.set()
        assert self.go_on.wait(30)
        return self._function(*given)


async def break_off(call, held):
    """As Ctrl-C of ``mpcctl`` while the daemon is at ``held``."""
    asked = asyncio.create_task(call)
    await asyncio.to_thread(held.reached.wait, 30)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await asyncio.sleep(0.1)  # the daemon sees that its client is gone
    held.go_on.set()


def events(daemon, event):
    return [e for e in daemon.context.audit.journal.entries() if e.event == event]


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


def test_a_removal_that_is_broken_off_goes_to_its_end(run, tmp_path, monkeypatch):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            ours = Client(vendor.context.paths.control_socket)
            theirs = Client(hospital.context.paths.control_socket)
            await theirs.call("offline.make", peer=VENDOR, model=MODEL, images=1)
            for daemon, name in ((vendor, "remove_model"), (hospital, "remove_dataset")):
                held = Held(getattr(daemon.context.library, name))
                monkeypatch.setattr(daemon.context.library, name, held)
                method, thing = (("model.remove", MODEL), ("dataset.remove", DATASET))[daemon is hospital]
                await break_off(Client(daemon.context.paths.control_socket).call(method, name=thing), held)
            await until(lambda: not vendor.context.library.has_model(MODEL) and not hospital.context.library.datasets())
            assert (await ours.call("offline.status"))["units"][0]["burnt"] == 1
            assert not list(vendor.context.store.root.iterdir())
            assert len(events(vendor, "model.removed")) == len(events(hospital, "dataset.removed")) == 1

    run(main())


def test_what_was_added_is_in_the_audit_log_whoever_waits(run, tmp_path, monkeypatch):
    async def main():
        async with daemons(tmp_path) as (_, hospital):
            theirs, library = Client(hospital.context.paths.control_socket), hospital.context.library
            held = Held(library.add_dataset)
            monkeypatch.setattr(library, "add_dataset", held)
            images = tmp_path / "images"
            more = {"path": str(images / "dicom"), "labels": str(images / "labels.csv")}
            await break_off(theirs.call("dataset.add", name="more", **more), held)
            await until(lambda: events(hospital, "dataset.added"))
            assert "more" in library.datasets()

    run(main())


def test_the_program(run, tmp_path):
    """Two daemons cannot share a state folder; SIGTERM ends one cleanly; a wrong option is named."""
    daemon = Process(tmp_path, HOSPITAL, 0, 1)

    async def main():
        assert (await daemon.answers())["name"] == HOSPITAL

    try:
        run(main())
        command = [sys.executable, "-m", "mpcd.daemon.main", "--listen", "none", "--state", str(daemon.paths.state)]
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (second.returncode, "another daemon uses" in second.stderr) == (5, True)
        elsewhere = [*command[:-1], str(tmp_path / "other"), "--runtime", str(daemon.paths.runtime)]
        third = subprocess.run(elsewhere, capture_output=True, text=True, check=False)
        assert third.returncode == 5, third.stderr
    finally:
        assert daemon.kill(signal.SIGTERM) == 0
    assert not daemon.paths.control_socket.exists()
    wrong = subprocess.run([*command, "--name", "No Name"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "No Name" in wrong.stderr) == (9, True)
