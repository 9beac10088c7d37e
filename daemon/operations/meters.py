"""What is counted while the daemon works, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram

from mpcd.daemon import log
from mpcd.daemon.errors import MpcdError

OTHER = "other"
_IMAGE = (0.1, 0.3, 1, 3, 10, 20, 30, 60, 120, 300, 600, 1800)
_BATCH = (1, 3, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)


class Meters:
    """Of one daemon. Nothing here tells one patient, image, model or data set from another."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.image_seconds = Histogram(
            "mpcd_image_online_seconds", "Online phase of one image.", buckets=_IMAGE, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "mpcd_batch_seconds", "Offline phase of one batch of units.", buckets=_BATCH, registry=self.registry
        )
        self._errors = Counter(
            "mpcd_errors", "Errors, by their code (docs/control-api.md).", ("code",), registry=self.registry
        )
        self._known: frozenset[str] = frozenset()

    def error(self, code: str) -> None:
        """``code`` may come from a peer: one that is not ours is counted as ``other``."""
        if code not in self._known:
            self._known = frozenset(_codes(MpcdError))
        self._errors.labels(code if code in self._known else OTHER).inc()

    def observe(self, event: log.Event) -> None:
        """A listener of the log: warnings and errors that name a code."""
        code = event.get("code")
        if isinstance(code, str) and event.get("level") in ("warning", "error"):
            self.error(code)


def _codes(kind: type[MpcdError]) -> Iterator[str]:
    yield kind.code
    for below in kind.__subclasses__():
        yield from _codes(below)
