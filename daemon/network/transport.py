"""Frames over one TLS connection.

A frame on the wire, little endian: u32 header length | u64 payload length | header | payload. Two lengths of zero are a
keepalive, which a connection sends by itself when it has been quiet, and which no reader sees.

A payload is decrypted into the one buffer that the reader gets, and that buffer is made only once the reader has
named a limit. Until then at most the fixed part, the header and some ciphertext are kept, and the socket is not read:
TCP holds the peer back. TLS runs here, over memory BIOs, rather than in the event loop's transport: that one drops the
alert that tells a dialer why it was refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import Callable
from typing import cast

import numpy as np

from mpcd.daemon.config import Timeouts
from mpcd.daemon.errors import FrameTooLarge, LinkError, PeerClosed, PeerSilent, ProtocolViolation
from mpcd.daemon.network import tls
from mpcd.daemon.network.bandwidth import Bandwidth
from mpcd.daemon.network.proxy import Proxy
from mpcd.daemon.network.rate import Rate
from mpcd.daemon.tasks import seen
from mpcd.protocol import wire

PREFIX = struct.Struct("<IQ")
KEEPALIVE = PREFIX.pack(0, 0)
SLICE = 256 * 1024  # plaintext encrypted between two looks at the event loop
SMALL = 16 * 1024  # a payload that goes into one write with its header
SOCKET_READ = 256 * 1024
CIPHERTEXT_HELD = 256 * 1024  # more than this unread, and the socket is not read either
WRITE_HIGH, WRITE_LOW = 1024 * 1024, 256 * 1024
CLOSE_WAIT = 5.0
LEAST_RATE = 1024  # bytes a second that a frame must come with, once a reader has been patient
KEEPALIVES_A_SECOND, KEEPALIVES_AT_ONCE = 32.0, 128.0  # ten times what the shortest setting sends

_EMPTY = memoryview(b"")


class Connection(asyncio.BufferedProtocol):
    """One end. Create it through ``dial`` or as the protocol of a server; then ``await established()``.

    One reader and any number of writers; frames are written whole, in turn. An error is final: the connection is
    dropped, and every later call raises the same error.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        timeouts: Timeouts | None = None,
        admit: Callable[[Connection], bool] | None = None,
        server_name: str | None = None,
    ) -> None:
        """``admit`` is asked as soon as ``peer_address`` is known; False drops the connection unheard.

        ``server_name``: what a dialer asks for (SNI); None for nothing.
        """
        self._admit = admit
        self._loop = asyncio.get_running_loop()
        self.timeouts = timeouts or Timeouts()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name
        )
        self._transport: asyncio.Transport | None = None
        self._ciphertext = memoryview(bytearray(SOCKET_READ))
        self._open = False
        self._fingerprint = ""
        self.shown_fingerprint = ""  # of the certificate that this end showed
        self.peer_certificate = b""  # DER; empty if the other end showed none
        self._established: asyncio.Future[None] = self._loop.create_future()
        self._established.add_done_callback(seen)  # not everybody waits for it
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._failure: Exception | None = None
        self._deaf = False  # nothing that arrives counts any more
        self._watchdog: asyncio.TimerHandle | None = None
        # Reading: the part of a frame that is being filled, and how far.
        self._target = memoryview(bytearray(PREFIX.size))
        self._filled = 0
        self._header: bytes | None = None
        self._sizes: tuple[int, int] | None = None
        self._in_payload = False
        self._ready: tuple[bytes, memoryview] | None = None
        self._limit: int | None = None
        self._patience: float | None = None
        self._keepalives = Rate(KEEPALIVES_A_SECOND, KEEPALIVES_AT_ONCE, self._loop.time())
        self._reader: asyncio.Future[None] | None = None
        self._reading_paused = False
        self._bandwidth: Bandwidth | None = None
        self._throttled: asyncio.TimerHandle | None = None
        self._heard = self._waiting_since = self._wrote = self._ticked = self._loop.time()
        # Writing.
        self._write_lock = asyncio.Lock()
        self._drained: asyncio.Future[None] | None = None
        self._blocked_since = 0.0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.bytes_written = 0  # handed to TLS so far, parts of frames included

    # What users call.

    async def established(self) -> None:
        """Until the TLS handshake is done. Raises what it failed with."""
        await asyncio.shield(self._established)

    @property
    def peer_fingerprint(self) -> str:
        """Of the certificate at the other end; '' if it showed none."""
        return self._fingerprint

    @property
    def peer_address(self) -> str:
        """For logs."""
        name = self._transport.get_extra_info("peername") if self._transport else None
        return f"{name[0]}:{name[1]}" if name else "unknown address"

    @property
    def failure(self) -> Exception | None:
        """Why this connection is of no use any more; None while it is."""
        return self._failure

    @property
    def frame_waiting(self) -> bool:
        """The peer has begun a frame that nobody reads."""
        return self._reader is None and (self._header is not None or self._ready is not None)

    def limit_bandwidth(self, bandwidth: Bandwidth | None) -> None:
        """From now on this connection shares ``bandwidth`` with others."""
        self._bandwidth = bandwidth

    async def send_frame(self, frame: wire.Frame) -> None:
        """Returns when the frame is encrypted and all but the last part is with the operating system.

        If this is cancelled half way, the connection is lost: the peer could not find the next frame.
        """
        if not 0 < len(frame.header) <= wire.MAX_HEADER:
            raise ValueError(f"a header has 1 to {wire.MAX_HEADER} bytes, not {len(frame.header)}")
        async with self._write_lock:
            if self._failure is not None:
                raise self._failure
            size = frame.payload_size
            whole = False
            try:
                head = PREFIX.pack(len(frame.header), size) + frame.header
                # The operating system's turn comes before a part, not after the last: the peer may close then.
                if size <= SMALL:
                    if self._drained is not None:
                        await self._drain()
                    await self._take_turn(len(head) + size)
                    self._encrypt(b"".join((head, *frame.payload)))
                else:
                    self._encrypt(head)
                    for part in frame.payload:
                        piece = min(SLICE, self._bandwidth.piece) if self._bandwidth else SLICE
                        for start in range(0, len(part), piece):
                            await self._drain()
                            await self._take_turn(min(piece, len(part) - start))
                            self._encrypt(part[start : start + piece])
                whole = True
            finally:
                if not whole:
                    self._fail(LinkError("the connection was dropped in the middle of a frame"))
            self.bytes_sent += PREFIX.size + len(frame.header) + size

    async def recv_frame(self, limit: int, patience: float | None = None) -> tuple[bytes, memoryview]:
        """The peer's next frame, its payload at most ``limit`` bytes and writable. May be cancelled and called again.

        ``patience``: seconds for the frame to be here, and LEAST_RATE more for what has come of it; keepalives, which
        only say that the peer is there, do not lengthen it. None: for ever, while the peer is there.
        Raises PeerClosed, PeerSilent, FrameTooLarge, ProtocolViolation, LinkError.
        """
        if self._reader is not None:
            raise RuntimeError("a connection has one reader")
        self._reader = self._loop.create_future()
        self._limit, self._patience = limit, patience
        self._waiting_since = self._loop.time()
        try:
            self._pump()
            while self._ready is None:
                if self._failure is not None:
                    raise self._failure
                await self._reader
                self._reader = self._loop.create_future()
            if len(self._ready[1]) > limit:
                self._fail(_too_large(len(self._ready[1]), limit))
                raise self._failure or LinkError()
        finally:
            self._reader = None
            self._limit = self._patience = None
        frame, self._ready = self._ready, None
        return frame

    async def close(self, wait: float = CLOSE_WAIT) -> None:
        """Say goodbye, let what was sent arrive, then drop the connection; at once if the peer does not answer."""
        if self._transport is not None and not self._closed.done():
            # Reading goes on, into the void: closing over unread bytes would make TCP throw away what we sent.
            self._deaf = True
            self._incoming.read()
            self._report(LinkError("this connection was closed on this side"))
            try:
                with contextlib.suppress(ssl.SSLError):
                    self._tls.unwrap()
                self._flush()
                self._resume_reading()
                if self._transport.can_write_eof():
                    self._transport.write_eof()
                await asyncio.wait([self._closed], timeout=wait)
            finally:
                self.abort()

    def when_closed(self, forget: Callable[[Connection], None]) -> None:
        """``forget(self)`` soon after the connection is gone, also if it is already."""
        self._closed.add_done_callback(lambda _: forget(self))

    def abort(self, error: Exception | None = None) -> None:
        """Drop the connection now. ``error`` is what readers and writers get."""
        self._fail(error or LinkError("this connection was closed on this side"))

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        if self._admit is not None and not self._admit(self):
            self._fail(LinkError("too many connections from this address are waiting to show who they are"))
            return
        self._pump()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._ciphertext

    def buffer_updated(self, nbytes: int) -> None:
        self._heard = self._loop.time()
        if self._deaf:
            return
        self._incoming.write(self._ciphertext[:nbytes])
        if self._bandwidth is not None:
            self._bandwidth.receiving.book(nbytes, self._heard)
            if (debt := self._bandwidth.receiving.debt(self._heard)) > 0:
                self._pause_reading()
                self._throttled = self._loop.call_later(debt, self._unthrottle)
        self._pump()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closed.done():
            self._closed.set_result(None)
        self._ciphertext = memoryview(b"")
        for timer in (self._watchdog, self._throttled):
            if timer is not None:
                timer.cancel()
        # Frames that have arrived are still there for the reader.
        middle = "in the middle of a frame" if self._filled or self._sizes else ""
        self._report(PeerClosed(f"the peer closed the connection {middle}".strip()))

    def pause_writing(self) -> None:
        self._blocked_since = self._loop.time()
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # Reading.

    def _pump(self) -> None:
        """Take from the ciphertext what can be taken now."""
        if self._deaf:
            return
        try:
            if not self._open:
                self._tls.do_handshake()
                self._on_open()
            self._read()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._flush()  # the alert
            self._fail(tls.explain(error, established=self._open), flush=True)
        except (ProtocolViolation, PeerClosed) as error:
            self._fail(error)
        else:
            if self._incoming.pending >= CIPHERTEXT_HELD:
                self._pause_reading()
                return
        self._flush()
        if self._incoming.pending < CIPHERTEXT_HELD:
            self._resume_reading()

    def _on_open(self) -> None:
        self._open = True
        self._fingerprint = tls.peer_fingerprint(self._tls)  # OpenSSL forgets it when the connection fails
        self.peer_certificate = tls.peer_certificate(self._tls)
        self.shown_fingerprint = tls.shown_fingerprint(self._tls)
        self._ticked = self._loop.time()
        self._flush()
        if not self._established.done():
            self._established.set_result(None)
        self._tick()

    def _read(self) -> None:
        """Fill one part of a frame after the other; returns when somebody must read first, else SSLWantReadError."""
        while self._ready is None:
            if self._header is not None and not self._in_payload and not self._begin_payload():
                return
            if self._filled < len(self._target):
                if not (self._incoming.pending or self._tls.pending()):
                    raise ssl.SSLWantReadError  # cheaper than having OpenSSL find out
                n = self._tls.read(len(self._target) - self._filled, self._target[self._filled :])
                if not n:
                    middle = "in the middle of a frame" if self._filled or self._sizes else ""
                    raise PeerClosed(f"the peer closed the connection {middle}".strip())
                self._filled += int(n)
                if self._filled < len(self._target):
                    continue
            self._on_filled()

    def _on_filled(self) -> None:
        done = self._target
        if self._sizes is None:
            header, payload = PREFIX.unpack(done)
            self._filled = 0
            if not header:
                if payload:
                    raise ProtocolViolation("the peer sent a frame without a header")
                if not self._keepalives.take(self._loop.time()):
                    raise ProtocolViolation("the peer sent a flood of keepalives")
                return
            if header > wire.MAX_HEADER:
                raise FrameTooLarge(
                    f"the peer announced a header of {header} bytes, at most {wire.MAX_HEADER} are allowed"
                )
            if self._limit is not None and payload > self._limit:
                raise _too_large(payload, self._limit)
            self._sizes = (header, payload)
            self._target = memoryview(bytearray(header))
        elif self._header is None:
            self._header = bytes(done)
            if not self._sizes[1]:
                self._finish(_EMPTY)
        else:
            self._finish(done)

    def _begin_payload(self) -> bool:
        assert self._sizes is not None
        if self._limit is None:
            return False
        if self._sizes[1] > self._limit:
            raise _too_large(self._sizes[1], self._limit)
        self._target = np.empty(self._sizes[1], np.uint8).data
        self._filled = 0
        self._in_payload = True
        return True

    def _finish(self, payload: memoryview) -> None:
        assert self._header is not None
        self._ready = (self._header, payload)
        self.bytes_received += PREFIX.size + len(self._header) + len(payload)
        self._header = self._sizes = None
        self._in_payload = False
        self._target = memoryview(bytearray(PREFIX.size))
        self._filled = 0
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _unthrottle(self) -> None:
        self._throttled = None
        self._heard = self._loop.time()  # it was we who did not listen
        if self._incoming.pending < CIPHERTEXT_HELD or self._deaf:
            self._resume_reading()

    def _pause_reading(self) -> None:
        if self._transport is not None and not self._reading_paused and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        waits = self._throttled is not None and not self._deaf
        if self._transport is not None and self._reading_paused and not waits and not self._transport.is_closing():
            self._reading_paused = False
            self._transport.resume_reading()

    # Writing.

    async def _take_turn(self, size: int) -> None:
        """Until these bytes may go."""
        if self._bandwidth is not None:
            wait = self._bandwidth.sending.book(size, self._loop.time())
            if wait > 0:
                await asyncio.sleep(wait)
            if self._failure is not None:
                raise self._failure

    def _encrypt(self, data: bytes | memoryview) -> None:
        if self._failure is not None:
            raise self._failure
        self.bytes_written += len(data)
        try:
            while data:
                data = data[self._tls.write(data) :]
        except ssl.SSLError as error:
            raise tls.explain(error, established=True) from error
        self._wrote = self._loop.time()
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending and self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._outgoing.read())

    async def _drain(self) -> None:
        if self._drained is None:
            await asyncio.sleep(0)
        else:
            await self._drained
        if self._failure is not None:
            raise self._failure

    # Life and death.

    def _tick(self) -> None:
        """Every so often: speak if we were quiet, give up if the peer is."""
        now, t = self._loop.time(), self.timeouts
        if self._failure is not None:
            return
        if now - self._ticked > t.silence / 2:
            # It was we who slept (a stopped process, a paused machine): what came meanwhile has yet to be read.
            self._waiting_since = self._blocked_since = now
        self._ticked = now
        if self._throttled is not None:
            self._heard = now  # it is we who do not listen
        if self._reader is not None and now - max(self._heard, self._waiting_since) > t.silence:
            self._fail(PeerSilent(f"the peer has been silent for {t.silence:g} seconds"))
        elif self._patience is not None and now - self._waiting_since > self._patience + self._filled / LEAST_RATE:
            self._fail(PeerSilent(f"the peer is there, but sent no whole message for {self._patience:g} seconds"))
        elif self._drained is not None and now - self._blocked_since > t.stall:
            self._fail(PeerSilent(f"the peer has taken nothing we sent for {t.stall:g} seconds"))
        else:
            if now - self._wrote >= t.keepalive and self._drained is None and not self._write_lock.locked():
                try:
                    self._encrypt(KEEPALIVE)
                except LinkError as error:
                    self._fail(error)
                    return
            self._watchdog = self._loop.call_later(min(t.keepalive, t.silence) / 4, self._tick)

    def _report(self, error: Exception) -> None:
        """Everybody who waits gets to know; the first error stays."""
        if self._failure is None:
            self._failure = error
        if not self._established.done():
            self._established.set_exception(self._failure)
        self._wake_reader()
        self.resume_writing()

    def _fail(self, error: Exception, flush: bool = False) -> None:
        """The end on this side. ``flush``: what is already written (an alert) may still go out."""
        self._deaf = True
        self._report(error)
        for timer in (self._watchdog, self._throttled):
            if timer is not None:
                timer.cancel()
        if self._transport is not None:
            if flush:
                self._resume_reading()
                self._transport.close()
            else:
                self._transport.abort()


def _too_large(size: int, limit: int) -> FrameTooLarge:
    return FrameTooLarge(f"the peer announced {size} bytes where this step allows {limit}")


async def dial(
    host: str,
    port: int,
    context: ssl.SSLContext,
    timeouts: Timeouts,
    *,
    server_name: str | None = None,
    proxy: Proxy | None = None,
) -> Connection:
    """A connection whose TLS handshake is done.

    Raises OSError, TimeoutError, what the handshake failed with, or ProxyRefused.
    """
    loop = asyncio.get_running_loop()

    def create() -> Connection:
        return Connection(context, server_side=False, timeouts=timeouts, server_name=server_name)

    async with asyncio.timeout(timeouts.dial):
        if proxy is None or proxy.spares(host):
            _, connection = await loop.create_connection(create, host, port)
        else:
            tunnel = await proxy.connect(host, port)
            try:
                _, connection = await loop.create_connection(create, sock=tunnel)
            except BaseException:
                tunnel.close()
                raise
    try:
        async with asyncio.timeout(timeouts.handshake):
            await connection.established()
    except BaseException:
        connection.abort()
        raise
    return connection
