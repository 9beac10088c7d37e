"""What Prometheus reads: true, and nothing that tells one patient from another."""

import asyncio
import socket
import struct
import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mpcd.daemon.config import Config, Metrics
from mpcd.daemon.errors import ConfigError, NotEnough, PeerError
from mpcd.daemon.operations import metrics
from mpcd.daemon.operations.meters import Meters
from mpcd.daemon.service import Daemon
from tests.daemon.network.sides import free_port
from tests.daemon.two_daemons import DATASET, HOSPITAL, IMAGES, MODEL, VENDOR, Client, config, daemons, paths


def scrape(listen):
    with urllib.request.urlopen(f"http://{listen}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return answer.read().decode()


def values(text):
    """By name and labels."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_session_is_seen(run, tmp_path):
    listen = f"127.0.0.1:{free_port()}"

    async def main():
        async with daemons(tmp_path, hospital={"metrics": Metrics(listen)}) as (vendor, hospital):
            client = Client(hospital.context.paths.control_socket)
            before = values(await asyncio.to_thread(scrape, listen))
            assert before["mpcd_peer_connected", VENDOR] == 1
            assert before["mpcd_images_done_total",] == 0
            session = (await client.call("session.start", peer=VENDOR, model=MODEL, dataset=DATASET))["session"]["id"]
            await Client(vendor.context.paths.control_socket).call("session.approve", session=session)
            assert (await client.call("session.watch", session=session))["session"]["state"] == "done"
            with pytest.raises(PeerError):
                await client.call("session.show", session="ffff")
            text = await asyncio.to_thread(scrape, listen)
            return text, values(text)

    text, found = run(main())
    assert found["mpcd_images_done_total",] == IMAGES
    assert found["mpcd_sessions", "data-owner", "done"] == 1
    assert found["mpcd_sessions", "model-owner", "done"] == 0
    assert found["mpcd_units", "spent"] == found["mpcd_image_online_seconds_count",] == IMAGES
    assert found["mpcd_batch_seconds_count",] == 1
    assert found["mpcd_units_reused",] == 0
    assert found["mpcd_errors_total", "not_found"] == 1
    assert found["mpcd_peer_sent_bytes_total", VENDOR] > 1000
    assert found["mpcd_peer_received_bytes_total", VENDOR] > 1000
    assert found["process_resident_memory_bytes",] > 10_000_000
    for secret in (MODEL, DATASET, HOSPITAL, "1.2.3.", "finding"):
        assert secret not in text


def test_clients_that_are_gone_or_silent_leave_no_traceback(run, tmp_path, monkeypatch, capfd):
    port = free_port()
    monkeypatch.setattr(metrics._Handler, "timeout", 0.1)

    def silent():
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert client.recv(1) == b"", "the server hangs up"

    def gone():
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close: a reset
            client.send(b"GE")

    async def main():
        async with daemons(tmp_path, hospital={"metrics": Metrics(f"127.0.0.1:{port}")}):
            await asyncio.to_thread(silent)
            await asyncio.to_thread(gone)
            assert "mpcd_build_info" in await asyncio.to_thread(scrape, f"127.0.0.1:{port}")

    run(main())
    assert "Traceback" not in capfd.readouterr().err


def test_a_loop_that_stands_still_is_a_status(run, tmp_path, monkeypatch, capfd):
    listen, answers = f"127.0.0.1:{free_port()}", []
    monkeypatch.setattr(metrics, "LOOP_TIMEOUT", 0.2)

    def ask():
        try:
            answers.append(scrape(listen))
        except urllib.error.HTTPError as error:
            answers.append(error.code)

    async def main():
        async with daemons(tmp_path, hospital={"metrics": Metrics(listen)}):
            asking = threading.Thread(target=ask)
            asking.start()
            asking.join()  # meanwhile the loop does nothing else
            assert answers == [503]
            assert "mpcd_build_info" in await asyncio.to_thread(scrape, listen)

    run(main())
    told = capfd.readouterr().err
    assert "metrics cannot be had" in told
    assert "Traceback" not in told


def test_off_by_default(run, tmp_path):
    async def main():
        async with daemons(tmp_path) as (vendor, _):
            assert vendor.operations._metrics._server is None

    run(main())


def test_an_address_that_is_taken(run, tmp_path):
    async def main():
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        daemon = Daemon(paths(tmp_path, HOSPITAL), config(HOSPITAL, metrics=Metrics(f"127.0.0.1:{port}")))
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            await daemon.start(warm=False)
        await daemon.stop()
        server.close()

    run(main())


@pytest.mark.parametrize("listen", ["0.0.0.0:9464", "192.0.2.1:9464", "[::]:9464", "localhost:9464", "example.org"])
def test_only_loopback_unless_told(listen):
    with pytest.raises(ConfigError, match="loopback"):
        Config.parse({"name": "x", "metrics": {"listen": listen}})
    allowed = Config.parse({"name": "x", "metrics": {"listen": listen, "allow_remote": True}})
    assert allowed.metrics == Metrics(listen, True)


@pytest.mark.parametrize("listen", ["127.0.0.1:9464", "127.0.0.1", "[::1]:9464", ""])
def test_loopback(listen):
    assert Config.parse({"name": "x", "metrics": {"listen": listen}}).metrics.listen == listen


def test_a_code_that_a_peer_made_up_is_no_label():
    meters = Meters()
    meters.error(NotEnough.code)
    meters.error("x" * 1000)
    meters.observe({"event": "e", "level": "warning", "code": "not_enough"})
    meters.observe({"event": "e", "level": "info", "code": "not_enough"})
    samples = [sample for metric in meters.registry.collect() for sample in metric.samples]
    found = {sample.labels["code"]: sample.value for sample in samples if sample.name == "mpcd_errors_total"}
    assert found == {"not_enough": 2, "other": 1}
