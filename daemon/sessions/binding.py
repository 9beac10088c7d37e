"""What an approval binds: the terms, both parties, and the software that each of them ran when it was given."""

from __future__ import annotations

import dataclasses
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
        both = {"terms": terms.as_dict(), **dataclasses.asdict(self)}
        text = json.dumps(both, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(_TAG + text.encode()).hexdigest()

    def told(self, terms: Terms) -> dict[str, Any]:
        """For the peer, and for the control API."""
        return {"digest": self.digest(terms), **dataclasses.asdict(self)}

    @classmethod
    def parse(cls, given: object, terms: Terms) -> Binding:
        """What the peer told. Raises ProtocolViolation, or Mismatch where it binds other terms."""
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(given, dict) or not all(isinstance(given.get(name), str) for name in [*names, "digest"]):
            raise ProtocolViolation("the peer's approval does not say what it binds")
        binding = cls(**{name: printable(given[name], MOST) for name in names})
        if binding.digest(terms) != given["digest"]:
            raise Mismatch.of("approval", binding.digest(terms), printable(given["digest"], MOST))
        return binding
