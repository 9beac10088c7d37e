"""Outgoing connections through real little proxies: HTTP CONNECT and SOCKS5, willing and unwilling."""

import asyncio
import base64
import contextlib

import pytest

from mpcd.daemon import config
from mpcd.daemon.errors import ConfigError
from mpcd.daemon.network.proxy import Proxy
from tests.daemon.network.sides import Side, free_port, linked, until, up


class Http:
    """Speaks CONNECT. ``answer``: bytes to say instead of opening a tunnel. ``dribble``: a byte at a time."""

    scheme = "http"

    def __init__(self, user="", password="", answer=b"", dribble=False):
        self.token = base64.b64encode(f"{user}:{password}".encode()).decode() if user else ""
        self.answer, self.dribble = answer, dribble
        self.asked = []

    async def open(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *fields = head.splitlines()
        method, target, _ = line.split()
        assert method == "CONNECT"
        assert f"Host: {target}" in fields
        self.asked.append(target)
        if self.token and f"Proxy-Authorization: Basic {self.token}" not in fields:
            self.answer = self.answer or b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"
        if self.answer:
            writer.write(self.answer)
            return None
        for byte in b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n":
            writer.write(bytes([byte]))
            if self.dribble:
                await writer.drain()
                await asyncio.sleep(0)
        host, _, port = target.rpartition(":")
        return host, int(port)


class Socks5:
    """RFC 1928 and 1929. ``reply``: the answer's code."""

    scheme = "socks5"

    def __init__(self, user="", password="", reply=0):
        self.user, self.password, self.reply = user, password, reply
        self.asked = []

    async def open(self, reader, writer):
        assert await reader.readexactly(1) == b"\x05"
        methods = await reader.readexactly((await reader.readexactly(1))[0])
        wanted = 2 if self.user else 0
        writer.write(bytes([5, wanted if wanted in methods else 255]))
        if wanted not in methods:
            return None
        if wanted:
            await reader.readexactly(1)
            user = await reader.readexactly((await reader.readexactly(1))[0])
            password = await reader.readexactly((await reader.readexactly(1))[0])
            right = (user.decode(), password.decode()) == (self.user, self.password)
            writer.write(bytes([1, 0 if right else 1]))
            if not right:
                return None
        _, command, _, kind = await reader.readexactly(4)
        assert command == 1
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        else:
            host = ".".join(str(byte) for byte in await reader.readexactly(4))
        port = int.from_bytes(await reader.readexactly(2), "big")
        self.asked.append(f"{host}:{port}")
        writer.write(bytes([5, self.reply, 0, 1, 0, 0, 0, 0, 0, 0]))
        return None if self.reply else (host, port)


@contextlib.asynccontextmanager
async def running(proxy):
    """Listens at ``proxy.port``. 'peer.test' is this machine, as only the proxy knows."""
    tasks = set()

    async def pump(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def handle(reader, writer):
        tasks.add(asyncio.current_task())
        target = await proxy.open(reader, writer)
        if target is None:
            writer.close()
            return
        host = "127.0.0.1" if target[0] == "peer.test" else target[0]
        onward = await asyncio.open_connection(host, target[1])
        await asyncio.gather(pump(reader, onward[1]), pump(onward[0], writer))

    server = await asyncio.start_server(handle, "127.0.0.1", proxy.port)
    try:
        yield proxy
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def behind(identities, tmp_path):
    """``behind(proxy, ...)``: alpha, which dials beta as 'peer.test' through it, and beta."""

    def make(proxy, user="", password="", **more):
        proxy.port = free_port()
        at = f"{user}@" if user else ""
        settings = {"url": f"{proxy.scheme}://{at}127.0.0.1:{proxy.port}", **more}
        if user:
            file = tmp_path / "proxy.password"
            file.write_text(password + "\n")
            file.chmod(0o600)
            settings["password_file"] = str(file)
        alpha = Side(identities[0], "alpha", tmp_path, proxy=settings)
        beta = Side(identities[1], "beta", tmp_path)
        alpha.peers.add(beta.identity.invite("beta"), address=f"peer.test:{beta.port}")
        beta.peers.add(alpha.identity.invite("alpha"))
        return alpha, beta

    return make


WILLING = [
    (Http(), {}),
    (Http(dribble=True), {}),
    (Http("site", "s3:cret ü"), {"user": "site", "password": "s3:cret ü"}),
    (Socks5(), {}),
    (Socks5("site", "s3:cret"), {"user": "site", "password": "s3:cret"}),
]


@pytest.mark.parametrize(("proxy", "given"), WILLING)
def test_control_link_and_data_connections_go_through_it(run, behind, proxy, given):
    alpha, beta = behind(proxy, **given)
    proxy.asked.clear()

    async def main():
        async with running(proxy), up(beta, alpha):
            await linked(alpha, beta)
            assert await alpha.net.call("beta", "echo", {"x": bytes(300_000)}) == {"from": "alpha", "x": bytes(300_000)}
            await asyncio.gather(alpha.net.open_channel("beta", bytes(16)), beta.net.open_channel("alpha", bytes(16)))
        assert proxy.asked == [f"peer.test:{beta.port}"] * 2, "the proxy looks the name up"

    run(main())


UNWILLING = [
    (Http("site", "right"), {"user": "site", "password": "wrong"}, "answered: 407 Proxy Auth", "proxy.password_file"),
    (
        Http(answer=b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\nproxy-authenticate: Negotiate\r\n\r\n"),
        {},
        "answered: 407 No",
        "it asks for NTLM, Negotiate, which mpcd does not speak",
    ),
    (Http(answer=b"HTTP/1.1 403 Forbidden by policy\r\n\r\n<html>"), {}, "403 Forbidden by policy", "ask IT to let"),
    (Http(answer=b"HTTP/1.0 502 Bad Gateway\r\n\r\n"), {}, "502 Bad Gateway", "the proxy is reached"),
    (Http(answer=b"SSH-2.0-OpenSSH_9.6\r\n"), {}, "did not answer as an HTTP proxy", "proxy.url"),
    (Http(answer=b"HTTP/1.1 200 OK\r\n"), {}, "did not answer as an HTTP proxy", "proxy.url"),
    (Http(answer=b"x" * 100_000), {}, "did not answer as an HTTP proxy", "proxy.url"),
    (Http(answer=b"HTTP/1.1 500 \x1b[31mred\r\n\r\n"), {}, "answered: 500 [31mred", "the proxy is reached"),
    (Socks5("site", "right"), {"user": "site", "password": "wrong"}, "authentication failure", "proxy.password_file"),
    (Socks5("site", "right"), {}, "answered: No acceptable authentication", "proxy.password_file"),
    (Socks5(reply=2), {}, "ruleset", "ask IT to let"),
    (Socks5(reply=4), {}, "answered: Host unreachable", "the proxy is reached"),
]


@pytest.mark.parametrize(("proxy", "given", "error", "hint"), UNWILLING)
def test_a_refusal_names_the_proxy_and_its_answer(run, behind, proxy, given, error, hint):
    alpha, beta = behind(proxy, **given)

    async def main():
        async with running(proxy), up(beta, alpha):
            await until(lambda: alpha.net.status("beta").error)
            status = alpha.net.status("beta")
            assert status.code == "proxy"
            assert f"the proxy 127.0.0.1:{proxy.port}" in status.error
            assert error in status.error
            assert hint in status.hint
            assert "right" not in status.error + status.hint

    run(main())


@pytest.mark.parametrize("kind", [Http, Socks5])
def test_a_proxy_that_is_not_there_or_says_nothing(run, behind, kind):
    async def silent(reader, writer):
        await reader.read()

    async def main():
        alpha, beta = behind(kind())
        async with up(beta, alpha):
            await until(lambda: alpha.net.status("beta").error)
            assert "cannot be reached" in alpha.net.status("beta").error
            assert alpha.net.status("beta").code == "proxy"
            port = int(alpha.net.dialler.proxy.place.rpartition(":")[2])
            server = await asyncio.start_server(silent, "127.0.0.1", port)
            await until(lambda: "does not answer through the proxy" in alpha.net.status("beta").error)
            server.close()

    run(main())


def test_some_are_dialled_without_it(run, behind):
    proxy = Http()
    alpha, beta = behind(proxy, no_proxy=["127.0.0.0/8"])
    alpha.peers.add(beta.identity.invite("beta"), address=f"127.0.0.1:{beta.port}")

    async def main():
        async with up(beta, alpha):
            await linked(alpha)

    run(main())
    assert proxy.asked == []


@pytest.mark.parametrize(
    ("host", "spared"),
    [
        ("vendor.example", True),
        ("VENDOR.example.", True),
        ("a.vendor.example", False),
        ("x.inside.example", True),
        ("inside.example", False),
        ("xinside.example", False),
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("2001:db8::7", True),
        ("2001:db9::7", False),
        ("192.0.2.7", True),
    ],
)
def test_whom_no_proxy_spares(host, spared):
    listed = ("vendor.example", ".inside.example", "10.0.0.0/8", "2001:db8::/32", "192.0.2.7")
    assert Proxy(config.Proxy(url="http://proxy:8080", no_proxy=listed)).spares(host) == spared


def test_the_environment_does_not_count(run, identities, tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert Side(identities[0], "alpha", tmp_path).net.dialler.proxy is None


def test_a_password_file_that_cannot_be_used(tmp_path):
    file = tmp_path / "password"
    settings = config.Proxy(url="http://site@proxy:8080", password_file=str(file))
    with pytest.raises(ConfigError, match="cannot be read"):
        Proxy(settings)
    file.write_text("")
    with pytest.raises(ConfigError, match="can be read by others"):
        Proxy(settings)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="is empty"):
        Proxy(settings)
