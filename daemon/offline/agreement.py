"""Which units both sides have: the data owner compares before it uses or makes any (docs/ledger.md).

Order everywhere: a unit becomes ready at the data owner first, and is spent at the data owner first. So whatever a
crash or a broken link leaves different, the data owner's list tells: a unit that one side lacks is burnt at the other.
The data owner holds a lock per peer while it compares, spends, begins a batch or tells that one is ready, so that no
unit is compared half way. Units in the making are never compared; but a batch that is finished at the model owner and
waits for the data owner's word learns from its lists whether that word was lost or will never come.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from mpcd.daemon.catalogue import is_digest
from mpcd.daemon.context import Context, aside
from mpcd.daemon.errors import NotFound, ProtocolViolation
from mpcd.daemon.library import Model
from mpcd.daemon.offline.ledger import Stock

MAX_UNITS = 50_000  # a call has at most 1 MiB


class Agreement:
    """Both ends of ``units.sync``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        # What the model owner does about batches that wait for the data owner's word, by what its lists say of them.
        self.settle: Callable[[Stock, set[bytes], set[bytes]], Awaitable[None]] | None = None
        self.handlers = {"units.sync": self._serve_sync}

    def lock(self, peer: str) -> asyncio.Lock:
        """The data owner's, around every step after which the two ledgers may differ."""
        return self._locks[peer]

    def stock(self, peer: str, model: Model) -> Stock:
        return Stock(self._context.peers.get(peer).id, model.commitment, model.network.digest)

    async def sync(self, peer: str, model: Model) -> list[bytes]:
        """Data owner: the units that are ready on both sides, oldest first; the others are burnt."""
        async with self.lock(peer):
            return await self._sync(peer, self.stock(peer, model))

    async def _sync(self, peer: str, stock: Stock) -> list[bytes]:
        ready = await aside(self._context.ledger.ready_units, stock)
        making = await aside(self._context.ledger.units_in_making, stock)
        lists = {"model": stock.model, "network": stock.network, "ready": ready, "making": making}
        answer = await self._context.net.call(peer, "units.sync", lists)
        common, alone = compare(ready, unit_ids(answer.get("ready")))
        await self._burn(alone)
        return common

    async def _serve_sync(self, peer: str, params: dict[str, Any]) -> dict[str, Any]:
        model, network = params.get("model"), params.get("network")
        if not is_digest(model) or not is_digest(network):
            raise ProtocolViolation("units.sync names no model")
        theirs = unit_ids(params.get("ready"))
        if str(model) not in await aside(self._own_models):
            # Only the model owner follows the other's list: were it the data owner, a vendor could burn all its units.
            raise NotFound("this daemon has no model of that commitment")
        stock = Stock(self._context.peers.get(peer).id, str(model), str(network))
        if self.settle is not None and "making" in params:
            await self.settle(stock, set(theirs), set(unit_ids(params["making"])))
        common, alone = compare(await aside(self._context.ledger.ready_units, stock), theirs)
        await self._burn(alone)
        return {"ready": common}

    def _own_models(self) -> set[str]:
        return {model.commitment for model in self._context.library.models()}

    async def _burn(self, units: list[bytes]) -> None:
        if units:
            burnt = await aside(self._context.ledger.burn, units, "only one side had it")
            await aside(self._context.store.remove, burnt)


def compare(ours: Sequence[bytes], theirs: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Both ends decide by this: what both have ready, in our order, and what only we have, to be burnt."""
    known = set(theirs)
    return [unit for unit in ours if unit in known], [unit for unit in ours if unit not in known]


def unit_ids(value: object, most: int = MAX_UNITS) -> list[bytes]:
    """A peer's list of unit ids, checked."""
    if not isinstance(value, list) or len(value) > most or len(set(map(repr, value))) != len(value):
        raise ProtocolViolation("the peer's list of units is malformed")
    if not all(isinstance(unit, bytes) and len(unit) == 16 for unit in value):
        raise ProtocolViolation("a unit's id has 16 bytes")
    return value
