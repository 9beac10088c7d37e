import asyncio
import ssl

import pytest

from mpcd.daemon.config import Timeouts
from mpcd.daemon.errors import LinkError, MpcdError, ProtocolViolation, UnknownPeer
from mpcd.daemon.network import tls
from mpcd.daemon.network.tls import NotPinned
from mpcd.daemon.network.transport import Connection, dial


async def meet(server_context, client_context):
    """What each end's handshake came to: None or its error, and the connections."""
    loop = asyncio.get_running_loop()
    accepted = loop.create_future()

    def accept():
        connection = Connection(server_context, server_side=True)
        accepted.set_result(connection)
        return connection

    listener = await loop.create_server(accept, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        client = client_error = server_error = None
        try:
            client = await dial("127.0.0.1", port, client_context, Timeouts(handshake=5))
        except MpcdError as error:
            client_error = error
        server = await accepted
        try:
            await server.established()
        except MpcdError as error:
            server_error = error
        if client is not None and server_error is not None:
            # TLS 1.3: the client's handshake is over before the server has looked at its certificate.
            with pytest.raises(MpcdError) as caught:
                await client.recv_frame(0)
            client_error = caught.value
        return server, server_error, client, client_error
    finally:
        listener.close()


def test_pinned_both_ways(run, identities):
    a, b = identities
    server, server_error, client, client_error = run(
        meet(tls.server_context(a, [b.certificate]), tls.client_context(b, a.certificate))
    )
    assert server_error is None
    assert client_error is None
    assert server._tls.version() == client._tls.version() == "TLSv1.3"
    assert server.peer_fingerprint == b.fingerprint
    assert client.peer_fingerprint == a.fingerprint


def test_server_tells_its_peers_apart(run, identities, make_identity):
    (a, b), c = identities, make_identity("gamma")
    for dialer in (b, c):
        context = tls.server_context(a, [b.certificate, c.certificate])
        server, *_ = run(meet(context, tls.client_context(dialer, a.certificate)))
        assert server.peer_fingerprint == dialer.fingerprint


def test_unknown_dialer_is_refused_and_told(run, identities, make_identity):
    (a, b), stranger = identities, make_identity("stranger")
    for trusted in ([], [b.certificate]):
        _, server_error, _, client_error = run(
            meet(tls.server_context(a, trusted), tls.client_context(stranger, a.certificate))
        )
        assert isinstance(server_error, NotPinned)
        assert isinstance(client_error, UnknownPeer)
        assert not isinstance(client_error, NotPinned)
        assert "mpcctl peer add" in client_error.hint


def test_another_server_certificate_is_refused_by_the_dialer(run, identities, make_identity):
    (a, b), impostor = identities, make_identity("impostor")
    _, _, client, client_error = run(
        meet(tls.server_context(impostor, [b.certificate]), tls.client_context(b, a.certificate))
    )
    assert client is None
    assert isinstance(client_error, NotPinned)


def test_a_peer_cannot_vouch_for_another(run, identities, tmp_path, make_identity):
    """A certificate signed by a pinned peer's key is not pinned itself."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from mpcd.daemon.network.identity import Identity

    (a, b), pem = identities, serialization.Encoding.PEM
    signer = serialization.load_pem_private_key(b.file.read_bytes(), None)
    issuer = x509.load_der_x509_certificate(b.certificate).subject
    key, now = Ed25519PrivateKey.generate(), datetime.datetime.now(datetime.UTC)
    minted = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "minted")]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
        .sign(signer, None)
    )
    file = tmp_path / "minted.pem"
    file.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + minted.public_bytes(pem)
    )
    file.chmod(0o600)
    _, server_error, _, client_error = run(
        meet(tls.server_context(a, [b.certificate]), tls.client_context(Identity.load(file), a.certificate))
    )
    assert isinstance(server_error, NotPinned)
    assert isinstance(client_error, (UnknownPeer, LinkError))


def test_without_a_certificate_one_is_nobody(run, identities):
    a, b = identities
    server, server_error, *_ = run(meet(tls.server_context(a, [b.certificate]), tls.knock_context(a.certificate)))
    assert server_error is None
    assert server.peer_fingerprint == ""


def test_probe_sees_who_is_there(run, identities):
    a, b = identities
    _, _, client, _ = run(meet(tls.server_context(a, [b.certificate]), tls.probe_context()))
    assert client.peer_fingerprint == a.fingerprint


def test_tls_1_2_is_refused(run, identities):
    a, b = identities
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_cert_chain(b.file)
    _, server_error, client, client_error = run(meet(tls.server_context(a, [b.certificate]), old))
    assert client is None
    assert isinstance(server_error, ProtocolViolation)
    assert "TLS 1.3" in server_error.message
    assert isinstance(client_error, ProtocolViolation)


def test_no_session_is_ever_resumed(run, identities):
    a, b = identities
    context = tls.client_context(b, a.certificate)
    for _ in range(2):
        server, _, client, _ = run(meet(tls.server_context(a, [b.certificate]), context))
        assert not server._tls.session_reused
        assert client._tls.session is None or not client._tls.session.has_ticket


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 100, b"hello mpcd\n" * 10])
def test_plaintext_is_refused_in_plain_words(run, identities, data):
    a, b = identities

    async def main():
        loop = asyncio.get_running_loop()
        accepted = loop.create_future()

        def accept():
            accepted.set_result(Connection(tls.server_context(a, [b.certificate]), server_side=True))
            return accepted.result()

        listener = await loop.create_server(accept, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname()[:2])
        writer.write(data)
        with pytest.raises(ProtocolViolation, match="does not speak TLS"):
            await (await accepted).established()
        await asyncio.wait_for(reader.read(), 5)  # and the connection is closed
        writer.close()
        listener.close()

    run(main())


def test_dialling_something_that_is_not_tls(run, identities):
    a, b = identities

    async def main():
        def greet(_reader, writer):
            writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")

        listener = await asyncio.start_server(greet, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(ProtocolViolation, match="does not speak TLS"):
            await dial("127.0.0.1", port, tls.client_context(b, a.certificate), Timeouts())
        listener.close()

    run(main())


def test_silent_handshake_times_out(run, identities):
    a, b = identities

    async def main():
        listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(TimeoutError):
            await dial("127.0.0.1", port, tls.client_context(b, a.certificate), Timeouts(handshake=0.2))
        listener.close()

    run(main())


def test_a_failed_connection_still_says_who_it_was(run, identities, make_identity):
    """The dialer's handshake ends before the server refuses it; OpenSSL then forgets the server's certificate."""
    (a, b), stranger = identities, make_identity("stranger")

    async def main():
        loop = asyncio.get_running_loop()
        context = tls.server_context(a, [b.certificate])
        listener = await loop.create_server(lambda: Connection(context, server_side=True), "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        client = await dial("127.0.0.1", port, tls.client_context(stranger, a.certificate), Timeouts())
        while client.failure is None:
            await asyncio.sleep(0.01)
        listener.close()
        assert isinstance(client.failure, UnknownPeer)
        assert client.peer_fingerprint == a.fingerprint

    run(asyncio.wait_for(main(), 10))
