"""What a model owner shows its paired peers: each model's public side."""

from __future__ import annotations

import json
from typing import Any

from mpcd.daemon.config import NAME
from mpcd.daemon.context import Context, aside
from mpcd.daemon.errors import BadInput, Mismatch, NotFound, ProtocolViolation
from mpcd.daemon.files import write_private
from mpcd.daemon.image import recipe as recipes
from mpcd.daemon.library import Model
from mpcd.protocol.network import Network, NetworkError


class Catalogue:
    """Both ends of ``catalogue.list`` and ``catalogue.get``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._file = context.paths.state / "seen.json"
        self.names: dict[str, str] = self._read_names()  # of every model a peer ever showed, by commitment
        self.handlers = {"catalogue.list": self._serve_list, "catalogue.get": self._serve_get}

    async def list(self, peer: str) -> list[Model]:
        """The models that ``peer`` offers."""
        answer = await self._context.net.call(peer, "catalogue.list", {})
        names = answer.get("models")
        if not isinstance(names, list) or not all(isinstance(name, str) and NAME.fullmatch(name) for name in names):
            raise ProtocolViolation("the peer's list of models is malformed")
        return [await self.get(peer, name) for name in names]

    async def get(self, peer: str, name: str) -> Model:
        """Its public side: checked as a network, its recipe parsed, the one fitting the other."""
        answer = await self._context.net.call(peer, "catalogue.get", {"name": name})
        data, recipe, commitment = answer.get("network"), answer.get("recipe"), answer.get("commitment")
        if not isinstance(data, bytes) or not isinstance(recipe, str) or not is_digest(commitment):
            raise ProtocolViolation(f"the peer's description of model {name} is malformed")
        try:
            network = await aside(Network.from_bytes, data)
        except NetworkError as error:
            raise BadInput(
                f"{peer}'s model {name}: {error}", "both sides should run the same version of mpcd"
            ) from error
        model = Model(name, network, recipes.parse(recipe, f"{peer}'s recipe"), str(commitment), peer=peer)
        await aside(model.check)
        if self.names.get(model.commitment) != name:
            self.names[model.commitment] = name
            await aside(write_private, self._file, json.dumps(self.names).encode())
        return model

    def _read_names(self) -> dict[str, str]:
        try:
            return {str(commitment): str(name) for commitment, name in json.loads(self._file.read_bytes()).items()}
        except (OSError, ValueError, AttributeError):
            return {}  # only for showing: it fills again

    async def _serve_list(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        models = await aside(self._context.library.models)
        return {"models": [model.name for model in models]}

    async def _serve_get(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        name = params.get("name")
        if not isinstance(name, str):
            raise NotFound("a model has a name")
        model = await aside(self._context.library.model, name)
        return {
            "network": model.network.to_bytes(),
            "recipe": model.recipe.to_toml(),
            "commitment": model.commitment,
        }


def is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and all(c in "0123456789abcdef" for c in value)


def same_model(model: Model, params: dict[str, Any]) -> None:
    """Raise Mismatch unless the peer means exactly this model."""
    for what, ours, theirs in (
        ("model commitment", model.commitment, params.get("model_commitment")),
        ("network digest", model.network.digest, params.get("network_digest")),
    ):
        if ours != theirs:
            raise Mismatch.of(f"{what} of {model.name}", ours, theirs)
