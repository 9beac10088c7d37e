"""Where the daemon keeps its things, and what ``mpcd.toml`` may say.

Every value has a default; an unknown key, a wrong type or a value out of range is an error that names the file, the
key and what is allowed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import ipaddress
import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from mpcd.daemon.errors import ConfigError

DEFAULT_PORT = 7443
SYSTEM_CONFIG = Path("/etc/mpcd/mpcd.toml")
FILE_NAME = "mpcd.toml"
NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
NAME_RULE = "1 to 63 of a-z, 0-9, '.', '_', '-', beginning and ending with a letter or digit"
# protocol/ot/correlate.py's, which this module must not import: numpy, numba and BLAS read their environment when they
# are first imported, and main.py sets it after it has read the configuration.
EXTENSIONS = (
    "iknp",
    "softspoken2",
    "softspoken4",
    "softspoken8",
    "silent",
    "silent17",
    "silent18",
    "silent19",
)
MAX_SOCKET_PATH = 107  # sun_path of Linux, without its final zero


@dataclasses.dataclass(frozen=True, slots=True)
class Paths:
    """The state, runtime and cache folders of one daemon."""

    state: Path
    runtime: Path
    cache: Path

    @classmethod
    def find(
        cls,
        state: str | os.PathLike[str] | None = None,
        runtime: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """Arguments first, then systemd's directories, MPCD_STATE and its kin, then XDG's under the home folder.

        A state folder named as an argument or by MPCD_STATE takes its runtime folder along (``run`` inside it), so
        that several daemons of one user keep apart; the cache may be shared.
        """
        env = os.environ if environ is None else environ
        home = Path(env.get("HOME") or Path.home())

        def choose(systemd: str, own: str) -> Path | None:
            value = env.get(systemd, "").split(":")[0] or env.get(own, "")
            return Path(value) if value else None

        def xdg(variable: str, fallback: str) -> Path:
            return Path(env.get(variable) or home / fallback) / "mpcd"

        found_state = (
            Path(state) if state else choose("STATE_DIRECTORY", "MPCD_STATE") or xdg("XDG_STATE_HOME", ".local/state")
        )
        if runtime:
            found_runtime = Path(runtime)
        elif state:
            found_runtime = found_state / "run"
        else:
            alone = env.get("MPCD_STATE") and not env.get("STATE_DIRECTORY")
            shared = env.get("XDG_RUNTIME_DIR") and not alone
            default = xdg("XDG_RUNTIME_DIR", "") if shared else found_state / "run"
            found_runtime = choose("RUNTIME_DIRECTORY", "MPCD_RUNTIME") or default
        found_cache = (
            Path(cache) if cache else choose("CACHE_DIRECTORY", "MPCD_CACHE") or xdg("XDG_CACHE_HOME", ".cache")
        )
        return cls(*(path.expanduser().absolute() for path in (found_state, found_runtime, found_cache)))

    @property
    def control_socket(self) -> Path:
        return self.runtime / "control.sock"

    @property
    def config(self) -> Path:
        """The configuration file: the one in the state folder, else the system's."""
        own = self.state / FILE_NAME
        return own if own.exists() or not SYSTEM_CONFIG.exists() else SYSTEM_CONFIG

    def create(self) -> None:
        """Make the folders, for this user only. Raises ConfigError naming the folder and why not."""
        if len(os.fsencode(self.control_socket)) > MAX_SOCKET_PATH:
            raise ConfigError(
                f"the path of the control socket is too long for a unix socket: {self.control_socket}",
                f"choose a runtime folder so that the whole path has at most {MAX_SOCKET_PATH} bytes",
            )
        for path in (self.state, self.runtime, self.cache):
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(
                    f"cannot create the folder {path}: {error.strerror}",
                    "name a folder that this user may write to, with --state, --runtime or --cache",
                ) from error


def split_address(text: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """(host, port) of 'host', 'host:port', '[v6]:port' or a bare IPv6 address. Raises ValueError in plain words."""
    host, port = text.strip(), ""
    if host.startswith("["):
        host, closed, rest = host[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not an address: write [IPv6 address]:port")
        port = rest[1:]
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
        if not port:
            raise ValueError(f"{text!r} is not an address: the port after ':' is missing")
    if not host or len(host) > 253 or re.search(r"[\s/\\@?#\[\]]", host):
        raise ValueError(f"{text!r} is not an address: write host:port, without http:// and the like")
    if port and (not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535):
        raise ValueError(f"{text!r} is not an address: a port is a number from 1 to 65535")
    return host, int(port) if port else default_port


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _number(default: float, least: float, most: float) -> Any:
    """A numeric setting and its range; an int default takes whole numbers only."""
    return dataclasses.field(default=default, metadata={"least": least, "most": most})


def split_proxy(url: str) -> tuple[str, str, str, int]:
    """Scheme ('http' or 'socks5'), user or '', host and port of a proxy. Raises ValueError saying what is wrong."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("http", "socks5"):
        raise ValueError("write http://host:port or socks5://host:port")
    user, _, place = rest.rstrip("/").rpartition("@")
    if ":" in user:
        raise ValueError("a password does not belong here; name a file that holds it, proxy.password_file")
    host, port = split_address(place, 0)
    if not port:
        raise ValueError(f"{place!r} has no port")
    return scheme, user, host, port


@dataclasses.dataclass(frozen=True, slots=True)
class Listen:
    """Where peers may dial this daemon. Not enabled, or an empty host: nowhere. Port 0: any free one."""

    enabled: bool = True
    host: str = "0.0.0.0"
    port: int = _number(DEFAULT_PORT, 0, 65535)

    @property
    def wanted(self) -> bool:
        return self.enabled and bool(self.host)


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What one daemon spends at most."""

    unauthenticated: int = _number(64, 1, 1024)  # connections that have not yet shown who they are
    unauthenticated_per_address: int = _number(8, 1, 1024)  # of these, from one address: a scanner is not everybody
    channels_per_peer: int = _number(16, 1, 256)  # data connections, waiting ones included
    calls_per_peer: int = _number(64, 1, 1024)  # a peer's calls at work at the same time
    threads: int = _number(0, 0, 1024)  # for kernels; 0: as many as there are processors
    memory_gib: float = _number(4.0, 0.5, 4096.0)  # what a session may need at most
    disk_reserve_gib: float = _number(2.0, 0.0, 4096.0)  # what the offline phase leaves free
    bandwidth_mbit_s: float = _number(0.0, 0.0, 1e6)  # all data connections together, each direction; 0: no limit


@dataclasses.dataclass(frozen=True, slots=True)
class Tls:
    """How this daemon shows who it is: a certificate of its own that peers pin, or one of the site's authority.

    ``ca_file`` (PEM) is also for a pinned daemon whose peers have certificates of an authority.
    """

    mode: str = dataclasses.field(default="pinned", metadata={"one_of": ("pinned", "ca")})
    ca_file: str = ""
    certificate: str = ""
    key: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Proxy:
    """What outgoing connections go through; '' for nothing. The environment's proxy variables do not count."""

    url: str = ""
    password_file: str = ""
    no_proxy: tuple[str, ...] = ()  # hosts, domains with a leading dot, networks


@dataclasses.dataclass(frozen=True, slots=True)
class Offline:
    """How the offline phase makes correlations (the data owner's setting counts), and how this side keeps them.

    ``store``: compact units take a third of the disk or less, and time before their use; ``ahead`` of those waiting
    for a running session are expanded already. Compact needs a silent extension; with another, units are expanded.
    """

    extension: str = dataclasses.field(default="auto", metadata={"one_of": ("auto", *EXTENSIONS)})
    store: str = dataclasses.field(default="expanded", metadata={"one_of": ("expanded", "compact")})
    ahead: int = _number(4, 0, 1000)


@dataclasses.dataclass(frozen=True, slots=True)
class Online:
    """How the online phase goes. The data owner's setting counts, up to the model owner's."""

    in_flight: str | int = dataclasses.field(default="auto", metadata={"one_of": ("auto", *range(1, 9))})  # images


@dataclasses.dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds."""

    handshake: float = _number(10.0, 0.1, 120.0)  # from the TCP connection to a known peer
    dial: float = _number(10.0, 0.1, 120.0)  # for the TCP connection itself
    keepalive: float = _number(5.0, 0.05, 300.0)  # after so long without a frame of ours, an empty one goes out
    silence: float = _number(20.0, 0.1, 3600.0)  # after so long without a byte of theirs, the link is dead
    stall: float = _number(300.0, 0.1, 86400.0)  # so long may a peer take no byte of a frame we send
    call: float = _number(30.0, 0.1, 3600.0)  # a peer's answer to a call
    step: float = _number(1800.0, 0.1, 86400.0)  # a peer's next message of a protocol; it may have much to compute
    retry_first: float = _number(0.5, 0.01, 60.0)  # pause before the second attempt to dial; doubles
    retry_most: float = _number(30.0, 0.01, 3600.0)  # and grows to this


@dataclasses.dataclass(frozen=True, slots=True)
class Log:
    """What the log looks like and how much of it there is. The command line's --log and --debug go before it."""

    format: str = dataclasses.field(default="auto", metadata={"one_of": ("auto", "json", "console")})
    level: str = dataclasses.field(default="info", metadata={"one_of": ("debug", "info", "warning", "error")})


@dataclasses.dataclass(frozen=True, slots=True)
class Metrics:
    """Where Prometheus may ask; empty: nowhere. There is no password: other than loopback must be allowed in words."""

    listen: str = ""
    allow_remote: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """One daemon's settings. ``advertise`` is the address written into invites, empty for a side that only dials."""

    name: str
    advertise: str = ""
    listen: Listen = dataclasses.field(default_factory=Listen)
    limits: Limits = dataclasses.field(default_factory=Limits)
    offline: Offline = dataclasses.field(default_factory=Offline)
    online: Online = dataclasses.field(default_factory=Online)
    tls: Tls = dataclasses.field(default_factory=Tls)
    proxy: Proxy = dataclasses.field(default_factory=Proxy)
    timeouts: Timeouts = dataclasses.field(default_factory=Timeouts)
    log: Log = dataclasses.field(default_factory=Log)
    metrics: Metrics = dataclasses.field(default_factory=Metrics)

    @classmethod
    def default(cls) -> Self:
        return cls(name=_host_name())

    @classmethod
    def load(cls, file: Path) -> Self:
        """The settings in ``file``; defaults when there is no such file."""
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            return cls.default()
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
        try:
            table = tomllib.loads(text.decode())
        except (ValueError, RecursionError) as error:  # TOMLDecodeError is one of the first
            raise ConfigError(f"{file}: not valid TOML: {error}") from error
        try:
            return cls.parse(table, str(file))
        except ValueError as error:  # a whole number of thousands of digits, which Python does not even print
            raise ConfigError(f"{file}: {error}") from error

    @classmethod
    def parse(cls, table: Mapping[str, Any], where: str = FILE_NAME) -> Self:
        """The settings in a TOML table. ``where`` names the file in errors."""
        allowed = [f.name for f in dataclasses.fields(cls)]
        _no_strangers(table, allowed, where, "")
        name = table.get("name", _host_name())
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ConfigError(f"{where}: name = {name!r} is not allowed: {NAME_RULE}")
        advertise = table.get("advertise", "")
        if not isinstance(advertise, str):
            raise ConfigError(f"{where}: advertise = {advertise!r} must be a string like 'vendor.example:7443'")
        if advertise:
            try:
                advertise = join_address(*split_address(advertise))
            except ValueError as error:
                raise ConfigError(f"{where}: advertise: {error}") from error
        config = cls(
            name,
            advertise,
            _section(Listen, table, "listen", where),
            _section(Limits, table, "limits", where),
            _section(Offline, table, "offline", where),
            _section(Online, table, "online", where),
            _section(Tls, table, "tls", where),
            _section(Proxy, table, "proxy", where),
            _section(Timeouts, table, "timeouts", where),
            _section(Log, table, "log", where),
            _section(Metrics, table, "metrics", where),
        )
        if config.timeouts.silence < 2 * config.timeouts.keepalive:
            raise ConfigError(
                f"{where}: timeouts.silence = {config.timeouts.silence} is not allowed:"
                f" at least twice timeouts.keepalive ({config.timeouts.keepalive})"
            )
        _check_metrics(config.metrics, where)
        _check_network(config, where)
        return config


def _check_metrics(metrics: Metrics, where: str) -> None:
    if not metrics.listen:
        return
    try:
        host, _ = split_address(metrics.listen, 9464)
    except ValueError as error:
        raise ConfigError(f"{where}: metrics.listen: {error}") from error
    if not metrics.allow_remote and not _is_loopback(host):
        raise ConfigError(
            f"{where}: metrics.listen = {metrics.listen!r} is not a loopback address",
            "write 127.0.0.1:9464; or allow_remote = true under [metrics], if everybody who can reach it may read it",
        )


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _check_network(config: Config, where: str) -> None:
    """What no setting shows by itself."""
    listen, tls, proxy = config.listen, config.tls, config.proxy
    if config.advertise and not listen.enabled:
        raise ConfigError(
            f"{where}: advertise = {config.advertise!r}, but listen.enabled is false: nobody could dial it"
        )
    if 0 < config.limits.bandwidth_mbit_s < 0.5:
        raise ConfigError(f"{where}: limits.bandwidth_mbit_s is not allowed: 0 (no limit), or at least 0.5")
    needed = ("ca_file", "certificate", "key") if tls.mode == "ca" else ()
    if missing := [key for key in needed if not getattr(tls, key)]:
        raise ConfigError(f"{where}: tls.mode = 'ca' needs tls.{' and tls.'.join(missing)}")
    if tls.mode != "ca" and (tls.certificate or tls.key):
        raise ConfigError(
            f"{where}: tls.certificate and tls.key are for tls.mode = 'ca'", "set tls.mode, or remove these two"
        )
    paths = {f"tls.{key}": getattr(tls, key) for key in ("ca_file", "certificate", "key")}
    for key, path in {**paths, "proxy.password_file": proxy.password_file}.items():
        if path and not Path(path).is_absolute():
            raise ConfigError(f"{where}: {key} = {path!r} must be an absolute path")
    if proxy.url:
        try:
            _, user, _, _ = split_proxy(proxy.url)
        except ValueError as error:
            raise ConfigError(f"{where}: proxy.url: {error}") from error
        if bool(user) != bool(proxy.password_file):
            raise ConfigError(
                f"{where}: a proxy that asks who we are needs both a user and a password",
                "proxy.url = 'http://user@host:port' and proxy.password_file",
            )


def _section(cls: type[Any], table: Mapping[str, Any], section: str, where: str) -> Any:
    given = table.get(section, {})
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: {section} must be a table, written [{section}]")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    _no_strangers(given, list(fields), where, section + ".")
    values: dict[str, Any] = {}
    for key, value in given.items():
        field = fields[key]
        kind = type(field.default)
        if kind is float and type(value) is int and abs(value) <= 1e18:
            value = float(value)
        if kind is tuple and type(value) is list and all(type(one) is str for one in value):
            value = tuple(value)
        what = {
            int: "a whole number",
            float: "a number",
            str: "a string",
            bool: "true or false",
            tuple: "a list of strings",
        }[kind]
        least: Any = field.metadata.get("least")
        most: Any = field.metadata.get("most")
        allowed = field.metadata.get("one_of")
        # Not isinstance, nor in: TOML's true must not pass for 1. No range has nan in it.
        if allowed:
            what = "one of " + ", ".join(map(str, allowed))
            right = any(type(value) is type(one) and value == one for one in allowed)
        else:
            what += f" from {least} to {most}" if field.metadata else ""
            right = type(value) is kind and (not field.metadata or least <= value <= most)
        if not right:
            raise ConfigError(f"{where}: {section}.{key} = {value!r} is not allowed: {what}")
        values[key] = value
    return cls(**values)


def _no_strangers(table: Mapping[str, Any], allowed: list[str], where: str, prefix: str) -> None:
    for key in table:
        if key not in allowed:
            close = difflib.get_close_matches(key, allowed, 1)
            hint = f"did you mean {prefix}{close[0]}?" if close else ""
            raise ConfigError(
                f"{where}: unknown key {prefix}{key}; allowed here: {', '.join(prefix + k for k in allowed)}", hint
            )


def _host_name() -> str:
    """This machine's name, made to fit NAME."""
    short = re.sub(r"[^a-z0-9-]", "-", socket.gethostname().split(".")[0].lower()).strip("-")[:63].strip("-")
    return short or "mpcd"
