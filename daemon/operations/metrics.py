"""Prometheus metrics over HTTP, on loopback, where mpcd.toml says so: ``[metrics] listen = "127.0.0.1:9464"``.

Served by a thread of its own, one request at a time; what belongs to the event loop is read on the event loop.
"""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import psutil
from prometheus_client import ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from mpcd.daemon import log
from mpcd.daemon.config import split_address
from mpcd.daemon.context import Context
from mpcd.daemon.errors import ConfigError, MpcdError
from mpcd.daemon.operations import folder
from mpcd.daemon.operations.pulse import Pulse
from mpcd.daemon.sessions.records import DATA_OWNER_ROLE, FINAL, MODEL_OWNER_ROLE, RUNNING
from mpcd.daemon.version import PROTOCOL_VERSION, software_version

DEFAULT_PORT = 9464
REQUEST_TIMEOUT = 5.0  # for a request's next byte
LOOP_TIMEOUT = 5.0

_log = log.get("metrics")


class Metrics:
    """Serves between ``start`` and ``stop``; nothing where nothing is configured."""

    def __init__(self, context: Context, pulse: Pulse) -> None:
        self._context = context
        self._pulse = pulse
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Raises ConfigError if the address cannot be had."""
        listen = self._context.config.metrics.listen
        if not listen:
            return
        host, port = split_address(listen, DEFAULT_PORT)
        registry = self._context.meters.registry
        registry.register(_Snapshot(self._context, self._pulse, asyncio.get_running_loop()))
        ProcessCollector(registry=registry)
        kind = _Server6 if ":" in host else _Server
        try:
            self._server = make_server(host, port, _or_unavailable(make_wsgi_app(registry)), kind, _Handler)
        except OSError as error:
            raise ConfigError(
                f"metrics cannot be served on {listen}: {error.strerror or error}",
                "choose another metrics.listen in mpcd.toml, or stop what uses it",
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        _log.info("serving metrics", listen=listen)

    def stop(self) -> None:
        """Blocks until the thread has ended."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


def _or_unavailable(application: WSGIApplication) -> WSGIApplication:
    """503 where the application fails: it is the next scrape that counts."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            return application(environ, start_response)
        except Exception as error:
            known = isinstance(error, (MpcdError, OSError, sqlite3.Error))
            _log.warning("metrics cannot be had", reason=error, exc_info=None if known else error)
            start_response("503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"The metrics cannot be had now; the daemon's log says why.\n"]

    return answer


class _Server(WSGIServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):  # a client that is gone, or silent
            _log.error("a request for metrics failed", reason=error, exc_info=error)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Snapshot(Collector):
    """What there is, at the moment when it is asked for."""

    def __init__(self, context: Context, pulse: Pulse, loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._pulse = pulse
        self._loop = loop

    def describe(self) -> list[Any]:
        return []  # registering does not ask

    def collect(self) -> Iterator[Any]:
        context = self._context
        build = GaugeMetricFamily("mpcd_build_info", "Which software.", labels=("version", "protocol", "software"))
        build.add_metric((software_version(), str(PROTOCOL_VERSION), context.software), 1)
        yield build
        yield from self._of_records()
        yield from self._of_units()
        try:
            yield from asyncio.run_coroutine_threadsafe(self._of_the_loop(), self._loop).result(LOOP_TIMEOUT)
        except TimeoutError:
            raise TimeoutError(f"the event loop did not come to it in {LOOP_TIMEOUT:g} seconds") from None
        yield GaugeMetricFamily("mpcd_disk_free_bytes", "Where units are kept.", value=context.store.free_bytes())
        yield GaugeMetricFamily("mpcd_threads", "Threads of the daemon.", value=psutil.Process().num_threads())

    def _of_records(self) -> Iterator[Any]:
        with closing(folder.read(self._context.paths.state / folder.RECORDS)) as db:
            rows = db.execute("SELECT role, state, count(*) FROM session GROUP BY role, state").fetchall()
            done = db.execute("SELECT count(*) FROM image").fetchone()[0]
        counts = {(role, name): count for role, name, count in rows}
        sessions = GaugeMetricFamily("mpcd_sessions", "Sessions by state.", labels=("role", "state"))
        for role in (DATA_OWNER_ROLE, MODEL_OWNER_ROLE):
            for name in ("proposed", *RUNNING, *FINAL):
                sessions.add_metric((role, name), counts.get((role, name), 0))
        yield sessions
        yield CounterMetricFamily("mpcd_images_done", "Images finished.", value=done)

    def _of_units(self) -> Iterator[Any]:
        with closing(folder.read(self._context.paths.state / folder.LEDGER)) as db:
            rows = db.execute("SELECT state, sum(units), sum(bytes) FROM stock GROUP BY state").fetchall()
        found = {name: (count, size) for name, count, size in rows}
        units = GaugeMetricFamily("mpcd_units", "Units of correlated randomness by state.", labels=("state",))
        for name in folder.UNIT_STATES:
            units.add_metric((name,), found.get(name, (0, 0))[0])
        yield units
        size = found.get("ready", (0, 0))[1]
        yield GaugeMetricFamily("mpcd_units_disk_bytes", "Disk taken by ready units.", value=size)
        reused = self._context.ledger.reuse_count()
        yield GaugeMetricFamily("mpcd_units_reused", "Units that were used twice: 0.", value=reused)

    async def _of_the_loop(self) -> list[Any]:
        context, net = self._context, self._context.net
        connected = GaugeMetricFamily("mpcd_peer_connected", "1 while the peer is connected.", labels=("peer",))
        sent = CounterMetricFamily("mpcd_peer_sent_bytes", "Payload to this peer since the start.", labels=("peer",))
        received = CounterMetricFamily("mpcd_peer_received_bytes", "Payload from this peer.", labels=("peer",))
        for peer in context.peers.list():
            moved = net.traffic(peer.name)
            connected.add_metric((peer.name,), net.connected(peer.name))
            sent.add_metric((peer.name,), moved.sent)
            received.add_metric((peer.name,), moved.received)
        return [
            connected,
            sent,
            received,
            GaugeMetricFamily("mpcd_jobs", "Jobs at work.", value=len(context.jobs.running)),
            GaugeMetricFamily("mpcd_loop_lag_seconds", "The event loop's worst in a minute.", value=self._pulse.lag),
        ]
