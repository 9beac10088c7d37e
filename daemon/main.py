"""``mpcd``: the daemon's command line, environment and signals.

Numba and BLAS read their environment when they are first imported, so everything that imports them is imported after
the configuration is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import click
import uvloop

from mpcd.daemon import log
from mpcd.daemon.config import NAME, NAME_RULE, Config, Paths, split_address
from mpcd.daemon.errors import ConfigError, Conflict, MpcdError
from mpcd.daemon.files import CannotWrite
from mpcd.daemon.notify import notify
from mpcd.daemon.operations.pulse import keep_watchdog, watchdog_seconds

if TYPE_CHECKING:
    from mpcd.daemon.service import Daemon

STATUS_INTERVAL = 5.0
ASIDE = 32  # threads that wait for the disk (context.aside): every session's writes, and whoever asks meanwhile


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--state", type=click.Path(path_type=Path), help="State folder: identity, models, units, sessions.")
@click.option("--runtime", type=click.Path(path_type=Path), help="Folder of the control socket.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="Default: mpcd.toml in the state folder, else /etc/mpcd/mpcd.toml.",
)
@click.option("--listen", metavar="HOST:PORT", help="Where peers may dial; 'none' to only dial out.")
@click.option("--advertise", metavar="HOST:PORT", help="The address written into this daemon's invite.")
@click.option("--name", help="This daemon's name in its invite.")
@click.option("--log", "log_format", type=click.Choice(log.FORMATS), help="Default: as in mpcd.toml.")
@click.option("--debug", is_flag=True, help="Log more.")
@click.version_option(package_name="mpcd")
def main(
    state: Path | None,
    runtime: Path | None,
    config_file: Path | None,
    listen: str | None,
    advertise: str | None,
    name: str | None,
    log_format: str | None,
    debug: bool,
) -> None:
    """The mpcd daemon. Steer it with mpcctl."""

    def load() -> Config:
        return _with_options(Config.load(config_file or paths.config), listen, advertise, name)

    def set_log(config: Config) -> None:
        format = log_format or config.log.format
        log.configure(None if format == "auto" else format == "json", "debug" if debug else config.log.level)

    log.configure(None if log_format in (None, "auto") else log_format == "json", "debug" if debug else "info")
    try:
        paths = Paths.find(state, runtime)
        paths.create()
        config = load()
        set_log(config)
        with _lock(paths.state), _lock(paths.runtime):
            _prepare(paths, config)
            from mpcd.daemon.service import Daemon

            uvloop.run(_serve(Daemon(paths, config), load, set_log))
    except MpcdError as error:
        click.echo(f"mpcd: {error.message}" + (f"\n      {error.hint}" if error.hint else ""), err=True)
        sys.exit(error.exit_status)


def _with_options(config: Config, listen: str | None, advertise: str | None, name: str | None) -> Config:
    """What the command line says goes before the file."""
    try:
        if listen is not None:
            host, port = ("", 0) if listen == "none" else split_listen(listen)
            config = dataclasses.replace(config, listen=dataclasses.replace(config.listen, host=host, port=port))
        if advertise is not None:
            split_address(advertise)
            config = dataclasses.replace(config, advertise=advertise)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if name is not None:
        if not NAME.fullmatch(name):
            raise ConfigError(f"--name {name!r} is not allowed: {NAME_RULE}")
        config = dataclasses.replace(config, name=name)
    return config


def split_listen(text: str) -> tuple[str, int]:
    """As an address, but port 0 (any free one) is allowed."""
    if text.endswith(":0"):
        return split_address(text[:-2])[0], 0
    return split_address(text)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Two daemons on one ledger would be a disaster: the second one does not start."""
    path = folder / "lock"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotWrite.of(path, error) from error
    with open(fd, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another daemon uses {folder}", "stop it, or start this one with other --state and --runtime folders"
            ) from None
        yield


def _prepare(paths: Paths, config: Config) -> None:
    """The process's environment and limits."""
    threads = str(config.limits.threads or os.cpu_count() or 1)
    for variable in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, threads)
    os.environ.setdefault("NUMBA_CACHE_DIR", str(paths.cache / "numba"))
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold shares and weights


async def _serve(daemon: Daemon, load: Callable[[], Config], set_log: Callable[[Config], None]) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(ASIDE, "aside"))
    stop, again = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, again.set)
    await daemon.start()
    notify("READY=1", f"STATUS=listening on port {daemon.net.port}")
    tasks = [asyncio.create_task(_reload(daemon, again, load, set_log))]
    if seconds := watchdog_seconds():
        tasks.append(asyncio.create_task(keep_watchdog(seconds, lambda: daemon.operations.pulse.well)))
    try:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATUS_INTERVAL):
                    await stop.wait()
            notify(f"STATUS={_status(daemon)}")
            log.tell_left_out()
    finally:
        notify("STOPPING=1")
        await daemon.stop()
        for task in tasks:
            task.cancel()


async def _reload(
    daemon: Daemon, again: asyncio.Event, load: Callable[[], Config], set_log: Callable[[Config], None]
) -> None:
    """At each SIGHUP (ExecReload)."""
    from mpcd.daemon.operations.reload import reload

    while True:
        await again.wait()
        again.clear()
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notify("RELOADING=1", f"MONOTONIC_USEC={now}")
        try:
            await reload(daemon, load, set_log)
        except Exception:  # a bug of ours must not end the daemon, nor the next reload
            log.get("reload").exception("the reload failed")
        finally:
            notify("READY=1", f"STATUS={_status(daemon)}")


def _status(daemon: Daemon) -> str:
    """One line for systemctl status."""
    context = daemon.context
    peers = context.peers.list()
    connected = sum(context.net.connected(peer.name) for peer in peers)
    jobs = [f"{job.progress.stage} for {job.peer}: {job.progress.text}" for job in context.jobs.running]
    return "; ".join([f"{connected} of {len(peers)} peers connected", *jobs])


if __name__ == "__main__":
    main()
