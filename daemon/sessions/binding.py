"""What an approval binds: the terms, both parties, and the software that each of them ran when it was given."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from typing import Any

from mpcd.daemon.errors import Mismatch, ProtocolViolation
from mpcd.daemon.network.greeting import printable
from mpcd.daemon.sessions.terms import Terms

_TAG = b"mpcd approval 1\n"
MOST = 200  # characters of a field


@dataclasses.dataclass(frozen=True, slots=True)
class Binding:
    """The parties by their certificates' fingerprints (or ``ca:NAME``), their software by its digest.

    Written down by the model owner when it approves, and by the data owner when it hears of it; never changed.
    """

    data_owner: str
    model_owner: str
    data_owner_software: str
    model_owner_software: str

    def digest(self, terms: Terms) -> str:
        """One number for all that is bound, the same on both sides: to be compared, and for logs."""
        return _digest(self, terms)

    def told(self, terms: Terms) -> dict[str, Any]:
        """For the peer, and for the control API."""
        return {"digest": self.digest(terms), **self.as_dict()}

    def as_dict(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in _FIELDS}

    @classmethod
    def parse(cls, given: object, terms: Terms) -> Binding:
        """What the peer told. Raises ProtocolViolation, or Mismatch where it binds other terms."""
        if not isinstance(given, dict) or not all(isinstance(given.get(name), str) for name in [*_FIELDS, "digest"]):
            raise ProtocolViolation("the peer's approval does not say what it binds")
        binding = cls(**{name: printable(given[name], MOST) for name in _FIELDS})
        if binding.digest(terms) != given["digest"]:
            raise Mismatch.of("approval", binding.digest(terms), printable(given["digest"], MOST))
        return binding


_FIELDS = [field.name for field in dataclasses.fields(Binding)]


@functools.lru_cache(1024)  # `mpcctl status` shows those of all open sessions
def _digest(binding: Binding, terms: Terms) -> str:
    both = {"terms": terms.as_dict(), **binding.as_dict()}
    text = json.dumps(both, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(_TAG + text.encode()).hexdigest()
