"""Faults from outside: a link that is cut, held up or garbled, and a wall clock that jumps."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHUNK = 64 * 1024


class Relay:
    """TCP from a port of its own on loopback to another, in a thread: the link that faults happen to."""

    def __init__(self, port: int, to: int) -> None:
        self.port = port
        self._to = to
        self._joined: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refuse = False
        self._garble = False
        self._loop = asyncio.new_event_loop()
        self._through = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    async def _listen(self) -> asyncio.Server:
        self._through.set()
        return await asyncio.start_server(self._join, "127.0.0.1", self.port)

    def cut(self) -> None:
        """Every connection is reset; new ones are taken."""
        self._do(self._cut)

    def refuse(self, whether: bool) -> None:
        """New connections are reset."""
        self._refuse = whether

    def hold(self, whether: bool) -> None:
        """No byte comes through and no connection ends, as behind a firewall that drops packets."""
        self._do(self._through.clear if whether else self._through.set)

    def garble(self) -> None:
        """One bit of the next bytes that come through is flipped."""
        self._garble = True

    def close(self) -> None:
        async def close() -> None:
            self._server.close()
            self._cut()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(10)
        self._do(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, what: Callable[[], Any]) -> None:
        self._loop.call_soon_threadsafe(what)

    def _cut(self) -> None:
        for writer in self._joined:
            at_once = struct.pack("ii", 1, 0)  # a reset, not an orderly end
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            writer.transport.abort()
        self._joined.clear()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._joined.add(writer)
        try:
            await self._through.wait()
            if self._refuse:
                return
            far_reader, far = await asyncio.open_connection("127.0.0.1", self._to)
            self._joined.add(far)
            try:
                await asyncio.gather(self._carry(reader, far), self._carry(far_reader, writer))
            finally:
                self._joined.discard(far)
                far.transport.abort()
        except OSError:
            pass  # nobody listens there at the moment
        finally:
            self._joined.discard(writer)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._through.wait()
                if self._garble:
                    self._garble = False
                    data = data[:-1] + bytes([data[-1] ^ 1])
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()


# What Python, SQLite and OpenSSL ask for the time of day; the monotonic clock is left alone, as by a real jump.
_CLOCK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset;

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("WALL_CLOCK_OFFSET");
    int file = name ? open(name, O_RDONLY) : -1;
    void *at = file < 0 ? MAP_FAILED : mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    if (at != MAP_FAILED) offset = at;
}

int clock_gettime(clockid_t which, struct timespec *out) {
    int failed = syscall(SYS_clock_gettime, which, out);
    if (!failed && offset && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) out->tv_sec += *offset;
    return failed;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec now;
    (void) zone;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


class WallClock:
    """The time of day of one process and its children, moved while they run. Needs a C compiler: see ``possible``."""

    possible = shutil.which("cc") is not None

    def __init__(self, folder: Path, name: str) -> None:
        library = folder / "wall_clock.so"
        if not library.exists():
            source = folder / "wall_clock.c"
            source.write_text(_CLOCK)
            subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        offset = folder / f"{name}.offset"
        offset.write_bytes(bytes(8))
        self.env = {"LD_PRELOAD": str(library), "WALL_CLOCK_OFFSET": str(offset)}
        with offset.open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), 8)

    def jump(self, seconds: int) -> None:
        """To so many seconds from the true time."""
        self._offset[:] = struct.pack("<q", seconds)
