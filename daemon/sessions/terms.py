"""What two parties agree to: the terms of a session, compared field by field, and as a peer proposes them."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from mpcd.daemon.errors import Mismatch, ProtocolViolation
from mpcd.daemon.library import Model, ring_text
from mpcd.daemon.network.greeting import printable
from mpcd.daemon.version import OLDEST_PROTOCOL, PROTOCOL_VERSION


@dataclasses.dataclass(frozen=True, slots=True)
class Terms:
    """What both parties agree to; an approval binds exactly this. Equal on both sides, byte for byte."""

    model: str
    images: int
    reveal: str
    model_commitment: str
    dataset_commitment: str
    network_digest: str
    recipe_digest: str
    ring: str
    protocol: int
    expires: int = (
        0  # Unix seconds, after which nothing of it is served; 0: never, of sessions from before there was one
    )

    @classmethod
    def of(cls, model: Model, images: int, reveal: str, dataset_commitment: str, protocol: int, expires: int) -> Terms:
        """Of a run of ``model`` as it is now, in the protocol version that both parties speak."""
        return cls(
            model=model.name,
            images=images,
            reveal=reveal,
            model_commitment=model.commitment,
            dataset_commitment=dataset_commitment,
            network_digest=model.network.digest,
            recipe_digest=model.recipe.digest,
            ring=ring_text(model.ring),
            protocol=protocol,
            expires=expires,
        )

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def check_same(self, theirs: Terms) -> None:
        """Raise Mismatch naming both values of the first difference."""
        for field in dataclasses.fields(Terms):
            a, b = getattr(self, field.name), getattr(theirs, field.name)
            if a != b:
                raise Mismatch.of(field.name.replace("_", " "), a, b)

    def check_model(self, model: Model) -> None:
        """Raise Mismatch unless ``model`` is still the one that was agreed, and we still speak the version agreed."""
        if not OLDEST_PROTOCOL <= self.protocol <= PROTOCOL_VERSION:
            spoken = f"{OLDEST_PROTOCOL} to {PROTOCOL_VERSION}"
            raise Mismatch(
                f"the session was agreed in protocol version {self.protocol}, this daemon speaks {spoken}",
                "start a new session",
            )
        now = Terms.of(model, self.images, self.reveal, self.dataset_commitment, self.protocol, self.expires)
        self.check_same(now)


@dataclasses.dataclass(frozen=True, slots=True)
class Proposal:
    """A peer's session id, terms and software digest, their types checked."""

    id: str
    terms: Terms
    software: str

    @classmethod
    def parse(cls, params: dict[str, Any]) -> Proposal:
        """Raises ProtocolViolation."""
        id: Any = params.get("session")
        given, software = params.get("terms"), params.get("software")
        if not isinstance(id, str) or not re.fullmatch(r"[0-9a-f]{32}", id) or not isinstance(software, str):
            raise ProtocolViolation("the proposal has no session id")
        fields: dict[str, type] = {f.name: int if f.type == "int" else str for f in dataclasses.fields(Terms)}
        if not isinstance(given, dict) or set(given) != set(fields):
            raise ProtocolViolation(f"the proposal's terms must be: {', '.join(fields)}")
        for name, kind in fields.items():
            text = str(given[name])
            if type(given[name]) is not kind or len(text) > 200 or not text.isprintable():
                raise ProtocolViolation(f"the proposal's {name} must be {kind.__name__}")
        return cls(id, Terms(**given), printable(software, 100))
