"""A box between that opens TLS to look inside: what is said of it, and that nothing gets through it."""

import asyncio
import contextlib
import ssl

import pytest

from mpcd.daemon.network import inspection
from mpcd.daemon.network.peers import Peer
from tests.daemon.network.pki import Authority
from tests.daemon.network.sides import Side, free_port, linked, until, up


@contextlib.asynccontextmanager
async def box(folder, target, newest=ssl.TLSVersion.TLSv1_3):
    """Ends TLS with a certificate of its own authority, and begins TLS to the real peer. Yields it with ``port``."""
    made = Authority(folder, "Zscaler Intermediate Root CA").issue("vendor.example")
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(made["certificate"], made["key"])
    server_side.maximum_version = newest
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_side.check_hostname, client_side.verify_mode = False, ssl.CERT_NONE

    class Box:
        heard = b""

    async def pump(reader, writer, listen=False):
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := await reader.read(65536):
                if listen:
                    Box.heard += data
                writer.write(data)
                await writer.drain()
        writer.close()

    async def handle(reader, writer):
        try:
            onward = await asyncio.open_connection("127.0.0.1", target, ssl=client_side)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, onward[1], True), pump(onward[0], writer))

    Box.port = free_port()
    server = await asyncio.start_server(handle, "127.0.0.1", Box.port, ssl=server_side)
    try:
        yield Box
    finally:
        server.close()


@pytest.fixture
def sides(identities, tmp_path):
    a, b = identities
    return Side(a, "alpha", tmp_path), Side(b, "beta", tmp_path)


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
def test_a_box_that_inspects_is_told_from_a_changed_peer(run, sides, tmp_path, newest):
    a, b = sides

    async def main():
        async with up(b), box(tmp_path / "box", b.port, newest) as between:
            a.knows(b, f"127.0.0.1:{between.port}")
            b.knows(a, "")
            async with up(a):
                await until(lambda: a.net.status("beta").code == "tls_inspected")
                status = a.net.status("beta")
                assert "a TLS-inspecting proxy seems to sit between this daemon and beta" in status.error
                assert "was issued by 'CN=Zscaler Intermediate Root CA,O=Klinik', not by beta" in status.error
                assert f"ask IT to exempt 127.0.0.1:{between.port} from TLS inspection" in status.hint
                assert not b.net.connected("alpha")
                assert between.heard == b"", "nothing was sent through it"

    run(main())


def test_doctors_look_finds_it_too(run, sides, tmp_path):
    a, b = sides

    async def main():
        async with up(b), box(tmp_path / "box", b.port) as between:
            b.knows(a, "")
            for port in (b.port, between.port):
                a.knows(b, f"127.0.0.1:{port}")
                if port == b.port:
                    await a.net.dialler.reach(a.peers.get("beta"))
                    continue
                with pytest.raises(inspection.TlsInspected, match="issued by 'CN=Zscaler"):
                    await a.net.dialler.reach(a.peers.get("beta"))

    run(main())


def test_another_daemon_at_the_address_is_no_box(run, sides, make_identity, tmp_path):
    a, b = sides
    other = Side(make_identity("other"), "other", tmp_path)

    async def main():
        async with up(other):
            a.knows(b, f"127.0.0.1:{other.port}")
            async with up(a):
                await until(lambda: a.net.status("beta").code == "certificate_changed")
                assert "proxy" not in a.net.status("beta").error

    run(main())


def test_once_exempted_it_connects_by_itself(run, sides, tmp_path):
    a, b = sides
    b.knows(a, "")

    async def main():
        async with box(tmp_path / "box", b.port) as between:
            a.knows(b, f"127.0.0.1:{between.port}")
            async with up(a, b):
                await until(lambda: a.net.status("beta").code == "tls_inspected")
                a.knows(b)
                await linked(a)

    run(main())


def test_an_issuers_name_cannot_trick_a_terminal(tmp_path):
    from cryptography.hazmat.primitives.serialization import Encoding

    evil = Authority(tmp_path, "a\x1b[31mb\nc").certificate.public_bytes(Encoding.DER)
    peer = Peer("vendor", "vendor.example:7443", b"x", "", "")
    text = inspection.explain(peer, evil).message
    assert text.isprintable()
    assert inspection.issuer(b"no certificate") == "nobody known"
