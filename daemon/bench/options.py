"""What to measure, the same at both parties. An option that does not concern what is measured is ignored."""

from __future__ import annotations

import dataclasses
from typing import Any

from mpcd.daemon.control.server import UsageError

SUBJECTS = ("link", "ot", "relu", "linear", "model")
RUNS = {"model": 1}
DEFAULT_RUNS = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """``model``: a built-in network's name, or the folder of a compiled model. Empty tuples: all there are."""

    what: str
    runs: int = 0
    extensions: tuple[str, ...] = ()
    cots: int = 1 << 23
    elements: int = 1 << 18
    layers: tuple[str, ...] = ()
    batch: int = 16
    images: int = 1
    in_flight: int = 1
    model: str = "densenet121"
    check: bool = True
    megabytes: int = 256

    def __post_init__(self) -> None:
        if self.what not in SUBJECTS:
            raise UsageError(f"{self.what!r} cannot be measured: {', '.join(SUBJECTS)}")
        for name in ("cots", "elements", "batch", "images", "in_flight", "megabytes"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1")

    @property
    def measured_runs(self) -> int:
        return self.runs or RUNS.get(self.what, DEFAULT_RUNS)

    def to_wire(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
