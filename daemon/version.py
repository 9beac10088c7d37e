"""Which software this is."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from pathlib import Path

import mpcd.daemon
import mpcd.kernels
import mpcd.protocol

# Of everything two daemons say to each other, raised with every change of it: the newest version that this daemon
# speaks, and the oldest. Two daemons take the highest that both speak (daemon/network/greeting.py).
PROTOCOL_VERSION = 2
OLDEST_PROTOCOL = 2


@functools.cache
def software_version() -> str:
    return importlib.metadata.version("mpcd")


@functools.cache
def software_digest() -> str:
    """SHA-256 over every source file of the installed kernels, protocol and daemon, by package and path."""
    digest = hashlib.sha256()
    for package in (mpcd.kernels, mpcd.protocol, mpcd.daemon):
        root = Path(package.__path__[0]).resolve()
        for file in sorted(root.rglob("*.py")):
            name = f"{package.__name__}/{file.relative_to(root).as_posix()}"
            digest.update(f"{len(name)}:{name}".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
