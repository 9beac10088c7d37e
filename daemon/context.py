"""What the parts of one daemon share."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mpcd.daemon import idle, log
from mpcd.daemon.audit.audit import Audit
from mpcd.daemon.audit.journal import Journal
from mpcd.daemon.config import Config, Paths
from mpcd.daemon.control.jobs import Jobs
from mpcd.daemon.errors import ConfigError
from mpcd.daemon.library import Library
from mpcd.daemon.network.keys import Keys
from mpcd.daemon.network.peers import Peers
from mpcd.daemon.offline.expansion import Expansion
from mpcd.daemon.offline.ledger import Ledger
from mpcd.daemon.offline.recovery import recover
from mpcd.daemon.offline.store import UnitStore
from mpcd.daemon.operations.meters import Meters
from mpcd.daemon.sessions import policy
from mpcd.daemon.sessions.records import Records
from mpcd.daemon.tasks import seen
from mpcd.daemon.version import software_digest
from mpcd.daemon.warm import Kernels

if TYPE_CHECKING:
    from mpcd.daemon.network.peer_network import PeerNetwork

R = TypeVar("R")

_log = log.get("daemon")


@dataclasses.dataclass
class Context:
    """``net`` is set once the network exists, before it starts."""

    paths: Paths
    config: Config
    identity: Keys
    peers: Peers
    ledger: Ledger
    store: UnitStore
    expansion: Expansion
    records: Records
    audit: Audit
    library: Library
    jobs: Jobs
    kernels: Kernels
    executor: ThreadPoolExecutor
    idle: ThreadPoolExecutor
    software: str
    threads: int
    meters: Meters = dataclasses.field(default_factory=Meters)
    net: PeerNetwork = dataclasses.field(init=False)

    @classmethod
    def open(cls, paths: Paths, config: Config, identity: Keys, peers: Peers) -> Context:
        """Open the state folder; what a crash left half-made is burnt and removed here."""
        audit = Audit(Journal(paths.state / "audit"), peers, lambda: identity.fingerprint)
        audit.started()
        ledger = Ledger(paths.state / "ledger.sqlite", audit.units)
        store = UnitStore(paths.state / "units")
        recover(ledger, store)
        threads = config.limits.threads or os.cpu_count() or 1
        return cls(
            paths=paths,
            config=config,
            identity=identity,
            peers=peers,
            ledger=ledger,
            store=store,
            expansion=Expansion(ledger, store, config.offline.ahead),
            records=Records(paths.state / "sessions.sqlite", audit),
            audit=audit,
            library=Library(paths.state),
            jobs=Jobs(),
            kernels=Kernels(),
            # A kernel runs in one thread, those of several images side by side; one more for what waits for the disk.
            executor=ThreadPoolExecutor(threads + 1, "kernel"),
            idle=idle.executor(threads + 1),
            software=software_digest(),
            threads=threads,
        )

    def close(self) -> None:
        self.expansion.close()
        self.executor.shutdown(wait=True, cancel_futures=True)
        self.idle.shutdown(wait=True, cancel_futures=True)
        self.ledger.close()
        self.records.close()
        self.audit.stopped()
        self.audit.close()

    @property
    def policy(self) -> policy.Policy:
        """Read anew each time: an edit counts from the next decision on. A mistake in it allows nothing."""
        self.audit.policy(self.policy_file)
        try:
            return policy.load(self.policy_file)
        except ConfigError as error:
            _log.error("the policy cannot be used", reason=str(error))
            return policy.unusable(error)

    @property
    def policy_file(self) -> Path:
        return self.paths.state / "policy.toml"


async def aside(function: Callable[..., R], *args: Any) -> R:
    """Run what waits for the disk in a thread, to its end even if the caller is cancelled meanwhile.

    The thread sees the caller's context variables: who asked (daemon/control/operator.py).
    """
    run = contextvars.copy_context().run
    future = asyncio.get_running_loop().run_in_executor(None, functools.partial(run, function, *args))
    future.add_done_callback(seen)  # a cancelled caller takes no error
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):  # cancelled once more
                await asyncio.wait([future])
        raise
