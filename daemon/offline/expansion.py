"""Compact units' pads, made ahead of their use in one thread of low priority."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

from mpcd.daemon import log
from mpcd.daemon.errors import MpcdError
from mpcd.daemon.offline.ledger import Ledger, Stock
from mpcd.daemon.offline.store import UnitStore

_NICENESS = 10  # not SCHED_IDLE: the session that uses the units would leave it nothing of the processor

_log = log.get("offline")


class Expansion:
    """Keeps the next ``count`` units of a stock expanded while sessions use it."""

    def __init__(self, ledger: Ledger, store: UnitStore, count: int) -> None:
        self._ledger, self._store, self._count = ledger, store, count
        self._thread = ThreadPoolExecutor(1, "expand", initializer=_be_nice)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._asked: set[Stock] = set()

    def ahead(self, stock: Stock, party: int) -> None:
        """Units of this stock are being used: returns at once."""
        with self._lock:
            if self._count == 0 or stock in self._asked or self._stop.is_set():
                return
            self._asked.add(stock)
        self._thread.submit(self._expand, stock, party)

    def close(self) -> None:
        """Give up what is being expanded; it stays compact."""
        self._stop.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _expand(self, stock: Stock, party: int) -> None:
        try:
            for unit in self._ledger.ready_units(stock)[: self._count]:
                if self._stop.is_set():
                    return
                if self._store.is_compact(unit) and self._store.expand(unit, party, self._stop.is_set):
                    _log.debug("unit expanded", unit=unit.hex()[:12])
        except MpcdError as error:  # the disk is full: units are expanded as they are read
            _log.warning("units are not expanded ahead", reason=str(error))
        except Exception as error:
            _log.error("units are not expanded ahead", exc_info=error)
        finally:
            with self._lock:
                self._asked.discard(stock)


def _be_nice() -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
