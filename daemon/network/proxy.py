"""Outgoing connections through the site's proxy: HTTP CONNECT (RFC 9110, 9.3.6) or SOCKS5 (RFC 1928).

Only the configuration counts, never the environment. The proxy looks names up; inside its tunnel TLS runs from daemon
to daemon as ever. HTTP is spoken here, in a few lines: python-socks, which speaks SOCKS5, takes an HTTP answer that
comes in two packets for a whole one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import re
import socket
from pathlib import Path

from python_socks import ProxyError, ProxyType
from python_socks.async_.asyncio import Proxy as Socks

from mpcd.daemon import config
from mpcd.daemon.config import join_address, split_proxy
from mpcd.daemon.errors import BadInput, ConfigError, LinkError
from mpcd.daemon.files import check_secret

MOST_ANSWER = 16 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([^\r\n]*))?\r?\n")
_ASKS = re.compile(rb"^proxy-authenticate:[ \t]*([!-~]+)", re.IGNORECASE | re.MULTILINE)


class ProxyRefused(LinkError):
    """The proxy did not open a connection."""

    code = "proxy"


class Proxy:
    """One proxy. ``place`` is host:port."""

    def __init__(self, settings: config.Proxy) -> None:
        """Raises ConfigError if the password cannot be read."""
        self._scheme, self._user, self._host, self._port = split_proxy(settings.url)
        self._password = _password(settings.password_file) if settings.password_file else ""
        self._spared = settings.no_proxy
        self.place = join_address(self._host, self._port)

    @classmethod
    def of(cls, settings: config.Proxy) -> Proxy | None:
        return cls(settings) if settings.url else None

    def spares(self, host: str) -> bool:
        """Whether ``host`` is dialled without the proxy: proxy.no_proxy has it, its domain or its network."""
        host = host.lower().rstrip(".")
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(host)
            for one in self._spared:
                with contextlib.suppress(ValueError):
                    if address in ipaddress.ip_network(one, strict=False):
                        return True
            return False
        wanted = [one.lower().rstrip(".") for one in self._spared]
        return any(host == one or (one.startswith(".") and host.endswith(one)) for one in wanted)

    async def connect(self, host: str, port: int) -> socket.socket:
        """A connected, non-blocking socket. Raises ProxyRefused; the caller minds the time."""
        try:
            if self._scheme == "http":
                return await self._connect_http(host, port)
            socks = Socks(ProxyType.SOCKS5, self._host, self._port, self._user or None, self._password or None, True)
            return await socks.connect(host, port, timeout=3600.0)
        except ProxyError as error:
            raise self._refused(f"answered: {_printable(str(error))}", _hint(str(error))) from error
        except OSError as error:
            raise self._refused(
                f"cannot be reached: {_reason(error)}", "check proxy.url in mpcd.toml, and that the proxy runs"
            ) from error

    def _refused(self, what: str, hint: str) -> ProxyRefused:
        return ProxyRefused(f"the proxy {self.place} {what}", hint)

    async def _connect_http(self, host: str, port: int) -> socket.socket:
        target = join_address(host, port)
        request = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self._user:
            token = base64.b64encode(f"{self._user}:{self._password}".encode()).decode()
            request.append(f"Proxy-Authorization: Basic {token}")
        loop = asyncio.get_running_loop()
        tunnel = await _open(self._host, self._port)
        try:
            await loop.sock_sendall(tunnel, "\r\n".join([*request, "", ""]).encode())
            answer = b""
            while b"\r\n\r\n" not in answer:
                more = await loop.sock_recv(tunnel, 4096)
                answer += more
                if not more or len(answer) > MOST_ANSWER:
                    break
            self._check(answer)
        except BaseException:
            tunnel.close()
            raise
        return tunnel

    def _check(self, answer: bytes) -> None:
        """Raises ProxyRefused unless the proxy's answer is that the tunnel is open."""
        status = _STATUS.match(answer)
        head, end, early = answer.partition(b"\r\n\r\n")
        if status is None or (not end and status[1].startswith(b"2")) or (status[1] == b"200" and early):
            raise self._refused("did not answer as an HTTP proxy", "is proxy.url in mpcd.toml an HTTP proxy's address?")
        if status[1].startswith(b"2"):
            return
        code, words = status[1].decode(), _printable((status[2] or b"").decode("latin-1"))
        asks = sorted({_printable(scheme.decode("latin-1")) for scheme in _ASKS.findall(head)})
        hint = _hint(code)
        if code == "407" and asks and "basic" not in [scheme.lower() for scheme in asks]:
            hint = (
                f"it asks for {', '.join(asks)}, which mpcd does not speak: ask IT to let this machine through"
                " without, or to offer Basic"
            )
        raise self._refused(f"answered: {code} {words}".rstrip(), hint)


async def _open(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    error: OSError | None = None
    for family, kind, number, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        found = socket.socket(family, kind, number)
        found.setblocking(False)
        try:
            await loop.sock_connect(found, address)
            return found
        except OSError as failed:
            found.close()
            error = failed
        except BaseException:
            found.close()
            raise
    raise error or OSError(f"{host} has no address")


def _hint(answer: str) -> str:
    if answer.startswith("407") or "authentication" in answer.lower():
        return "set the user in proxy.url (http://user@host:port) and proxy.password_file, or correct them"
    if answer.startswith("403") or "ruleset" in answer.lower():
        return "ask IT to let this machine connect to the peer's host and port through the proxy"
    return "the proxy is reached; it cannot, or may not, reach the peer: ask who runs it"


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:200]).strip()


def _password(name: str) -> str:
    file = Path(name)
    try:
        check_secret(file, "the proxy's password")
        lines = file.read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"proxy.password_file: {file} cannot be read: {error.strerror}") from error
    except BadInput as error:
        raise ConfigError(f"proxy.password_file: {error.message}", error.hint) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"proxy.password_file: {file} is not text") from error
    if not lines or not lines[0]:
        raise ConfigError(f"proxy.password_file: {file} is empty")
    return lines[0]
