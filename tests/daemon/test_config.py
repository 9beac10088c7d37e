import socket
import subprocess
import sys

import pytest

from mpcd.daemon.config import EXTENSIONS, NAME, Config, Paths, join_address, split_address
from mpcd.daemon.errors import ConfigError
from mpcd.protocol.ot import correlate


def test_arguments_come_before_systemd_before_own_variables_before_xdg(tmp_path):
    env = {
        "HOME": str(tmp_path),
        "STATE_DIRECTORY": "/var/lib/mpcd:/var/lib/other",
        "MPCD_STATE": "/own",
        "MPCD_CACHE": "/own-cache",
        "XDG_CACHE_HOME": "/xdg",
        "XDG_RUNTIME_DIR": "/run/user/7",
    }
    found = Paths.find(environ=env)
    assert str(found.state) == "/var/lib/mpcd"
    assert str(found.cache) == "/own-cache"
    assert str(found.control_socket) == "/run/user/7/mpcd/control.sock"
    del env["STATE_DIRECTORY"], env["MPCD_CACHE"]
    assert str(Paths.find(environ=env).state) == "/own"
    assert str(Paths.find(environ=env).runtime) == "/own/run", "two daemons of one user keep apart"
    assert str(Paths.find(environ=env).cache) == "/xdg/mpcd"
    given = Paths.find(state=tmp_path / "s", environ=env)
    assert given.state == tmp_path / "s"
    assert given.runtime == tmp_path / "s" / "run"
    bare = Paths.find(environ={"HOME": str(tmp_path)})
    assert bare.state == tmp_path / ".local/state/mpcd"
    assert bare.cache == tmp_path / ".cache/mpcd"


def test_folders_are_private(tmp_path):
    paths = Paths.find(tmp_path / "s", tmp_path / "r", tmp_path / "c")
    paths.create()
    assert {p.stat().st_mode & 0o777 for p in (paths.state, paths.runtime, paths.cache)} == {0o700}


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=str(tmp_path / "file")):
        Paths.find(tmp_path / "file" / "s").create()


def test_socket_path_too_long_for_unix(tmp_path):
    with pytest.raises(ConfigError, match="too long for a unix socket"):
        Paths.find(tmp_path / "s", tmp_path / ("r" * 100)).create()


def test_no_file_means_defaults_and_a_usable_name(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "-Röntgen_7.Example")
    config = Config.load(tmp_path / "mpcd.toml")
    assert NAME.fullmatch(config.name)
    assert config.listen.port == 7443


def test_a_full_file(tmp_path):
    file = tmp_path / "mpcd.toml"
    file.write_text(
        'name = "site-a"\nadvertise = "vendor.example"\n[listen]\nhost = "127.0.0.1"\nport = 0\n'
        "[online]\nin_flight = 4\n[limits]\nmemory_gib = 8\n[timeouts]\nkeepalive = 1\nsilence = 4.5\n"
    )
    config = Config.load(file)
    assert config.advertise == "vendor.example:7443"
    assert config.limits.memory_gib == 8.0
    assert config.online.in_flight == 4
    assert Config.parse({}).online.in_flight == "auto"
    assert (config.timeouts.keepalive, config.timeouts.silence) == (1.0, 4.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nam = 'x'", r"unknown key nam; allowed here: name"),
        ("[listen]\nprot = 1", r"unknown key listen\.prot; allowed here: listen\.enabled, listen\.host, listen\.port"),
        ("name = 'Not Allowed'", "name = 'Not Allowed' is not allowed: 1 to 63"),
        ("name = 7", "name = 7 is not allowed"),
        ("listen = 1", r"listen must be a table, written \[listen\]"),
        ("[listen]\nport = 70000", r"listen\.port = 70000 is not allowed: a whole number from 0 to 65535"),
        ("[listen]\nport = true", r"listen\.port = True is not allowed"),
        ("[listen]\nport = 1.5", r"listen\.port = 1\.5 is not allowed: a whole number"),
        ("[listen]\nhost = 1", r"listen\.host = 1 is not allowed: a string"),
        ("[online]\nin_flight = 0", r"online\.in_flight = 0 is not allowed: one of auto, 1, 2, 3"),
        ("[online]\nin_flight = true", r"online\.in_flight = True is not allowed"),
        ("[online]\nin_flight = 1.0", r"online\.in_flight = 1\.0 is not allowed"),
        ("[online]\nin_flight = 'all'", r"online\.in_flight = 'all' is not allowed"),
        ("[timeouts]\nsilence = nan", r"timeouts\.silence = nan is not allowed"),
        ("[timeouts]\nsilence = 6", r"at least twice timeouts\.keepalive"),
        ("advertise = 'http://x'", "advertise: 'http://x' is not an address"),
        ("advertise = '[:[1]:7443'", "is not an address"),
        ("advertise = 1", "advertise = 1 must be a string"),
        ("advertise = 'x:1'\n[listen]\nenabled = false", "listen.enabled is false"),
        ("[listen]\nenabled = 0", r"listen\.enabled = 0 is not allowed: true or false"),
        ("[limits]\nbandwidth_mbit_s = 0.1", "0 \\(no limit\\), or at least 0.5"),
        ("[tls]\nmode = 'both'", r"tls\.mode = 'both' is not allowed: one of pinned, ca"),
        ("[tls]\nmode = 'ca'\nca_file = '/ca'", r"needs tls\.certificate and tls\.key"),
        ("[tls]\nkey = '/key'", "are for tls.mode = 'ca'"),
        ("[tls]\nca_file = 'ca.pem'", r"tls\.ca_file = 'ca\.pem' must be an absolute path"),
        ("[proxy]\nurl = 'proxy:8080'", "proxy.url: write http://host:port"),
        ("[proxy]\nurl = 'https://proxy:8080'", "proxy.url: write http://host:port"),
        ("[proxy]\nurl = 'http://proxy'", "has no port"),
        ("[proxy]\nurl = 'http://me:secret@proxy:8080'", "a password does not belong here"),
        ("[proxy]\nurl = 'http://me@proxy:8080'", "needs both a user and a password"),
        ("[proxy]\nno_proxy = 'x'", r"proxy\.no_proxy = 'x' is not allowed: a list of strings"),
        ("[proxy]\nno_proxy = [1]", r"proxy\.no_proxy = \[1\] is not allowed: a list of strings"),
        ("name =", "not valid TOML"),
        ("name = " + "[" * 3000, "not valid TOML"),
        ("name = " + "9" * 5000, "not valid TOML"),
        ("name = 0x" + "f" * 5000, "digits"),
        ("[limits]\nmemory_gib = " + "9" * 400, "limits.memory_gib"),
    ],
)
def test_errors_name_file_key_and_what_is_allowed(tmp_path, text, message):
    file = tmp_path / "mpcd.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        Config.load(file)
    assert caught.value.message.startswith(str(file))
    assert caught.value.exit_status == 9


def test_a_typing_slip_is_met_with_a_proposal():
    with pytest.raises(ConfigError) as caught:
        Config.parse({"listen": {"prot": 1}})
    assert caught.value.hint == "did you mean listen.port?"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("a.example", "a.example", 7443), ("a:1", "a", 1), ("[::1]:65535", "::1", 65535), ("fe80::1", "fe80::1", 7443)],
)
def test_addresses(text, host, port):
    assert split_address(text) == (host, port)
    assert split_address(join_address(host, port)) == (host, port)


@pytest.mark.parametrize(
    "text", ["", "a:", "a:0", "a:65536", "a:x", "a:²", "[::1", "[::1]x", "a b", "https://a", "a/b", "u@a"]
)
def test_not_addresses(text):
    with pytest.raises(ValueError, match="not an address"):
        split_address(text)


def test_the_extensions_are_those_that_there_are():
    assert correlate.EXTENSIONS == EXTENSIONS


@pytest.mark.parametrize("module", ["mpcd.daemon.main", "mpcd.daemon.bench.__main__"])
def test_numpy_is_not_imported_before_its_environment_is_set(module):
    """It would start a BLAS thread for every processor, and Numba would compile into another cache."""
    program = f"import sys, {module}; sys.exit('numpy' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
