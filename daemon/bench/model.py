"""A whole model: matrix triples for a batch, correlations from oblivious transfers, and the images online.

Units go through the daemon's own store and ledger, in this party's folder. Matrix triples are made for --batch images
at a time, of which --images go on: a figure is per image, whatever the batch.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcd.daemon.bench import networks
from mpcd.daemon.bench.options import Options
from mpcd.daemon.bench.ot import chosen
from mpcd.daemon.bench.party import Party
from mpcd.daemon.control.server import UsageError
from mpcd.daemon.model import artifact
from mpcd.daemon.offline.ledger import Ledger, Stock
from mpcd.daemon.offline.store import UnitStore, UnitWriter
from mpcd.daemon.warm import every_operation
from mpcd.protocol import executor, oracle, preprocessing
from mpcd.protocol.channel import DATA_OWNER, MODEL_OWNER, Channel
from mpcd.protocol.correlations import Need
from mpcd.protocol.network import Network, PrivateNumbers
from mpcd.protocol.ot import correlate
from mpcd.protocol.randomness import Prg

MATRIX, OTS, ONLINE = "matrix triples", "oblivious transfers", "online"
DERIVED = (("offline", (MATRIX, OTS)), ("offline + online", (MATRIX, OTS, ONLINE)))

Scores = npt.NDArray[np.int64]


async def once(party: Party, options: Options, small: bool) -> Callable[[], bool] | None:
    """The check: whether the first image's scores are the integer network's."""
    extension = _extension(options)
    if small:
        network, all_numbers = every_operation()
        numbers = all_numbers if party.number == MODEL_OWNER else None
        await _Model(party, network, numbers, extension, options.in_flight, 2).run(1, [_image(network)])
        return None
    network, numbers = await party.aside(load, options.model, party.number)
    await party.agree(network.digest, "network")
    model = _Model(party, network, numbers, extension, options.in_flight, options.batch)
    check: Callable[[], bool] | None = None
    for first in range(0, options.images, options.batch):
        images = [_image(network) for _ in range(min(options.batch, options.images - first))]
        scores = await model.run(len(images), images)
        if scores[0] is not None:
            check = functools.partial(_exact, options.model, images[0], scores[0])
    return check


def load(model: str, party: int) -> tuple[Network, PrivateNumbers | None]:
    """The model, its numbers only at the model owner."""
    folder = Path(model)
    if model in networks.BUILT_IN:
        network, numbers = networks.build(model)
    elif not (folder / "network.bin").is_file():
        raise UsageError(
            f"{model} is neither the folder of a compiled model nor one of {', '.join(networks.BUILT_IN)}",
            "compiled models are in models/ of the state folder of the daemon that has them",
        )
    elif party == DATA_OWNER:
        return Network.from_bytes((folder / "network.bin").read_bytes()), None
    else:
        found = artifact.load(folder)
        network, numbers = found.network, found.numbers
    return network, numbers if party == MODEL_OWNER else None


def _exact(model: str, image: Scores, scores: Scores) -> bool:
    """Whether the scores are the integer network's. For the data owner's process, after everything was measured."""
    network, numbers = load(model, MODEL_OWNER)
    assert numbers is not None
    return bool(np.array_equal(oracle.run(network, numbers, image), scores))


def _extension(options: Options) -> correlate.Extension:
    if len(options.extensions) > 1:
        raise UsageError("a model is measured with one OT extension at a time")
    return chosen(options)[0]


def _image(network: Network) -> Scores:
    """Random pixels, well inside the ring."""
    pixels = Prg.fresh().uniform(network.values[0].shape, 10).astype(np.int64)
    return pixels - 512


class _Model:
    """One network at one party. ``batch``: images whose matrix triples are made together."""

    def __init__(
        self,
        party: Party,
        network: Network,
        numbers: PrivateNumbers | None,
        extension: correlate.Extension,
        in_flight: int,
        batch: int,
    ) -> None:
        self._party = party
        self._network = network
        self._numbers = numbers
        self._extension = extension
        self._in_flight = in_flight
        self._batch = batch

    async def run(self, count: int, images: list[Scores]) -> list[Scores | None]:
        """Through both phases; the scores, at the data owner."""
        party = self._party
        store, ledger = UnitStore(party.folder / "units"), Ledger(party.folder / "ledger.db")
        units = [os.urandom(16) for _ in range(count)]
        try:
            await party.aside(ledger.begin, Stock("bench", "bench", self._network.digest), os.urandom(16), units)
            writers = await self._make(store, units)
            await party.aside(ledger.ready, units, sum(writer.bytes_written for writer in writers))
            party.say("model: online")
            async with party.measure(ONLINE, count, "image"):
                channels = [party.channel() for _ in units]
                lanes = range(self._in_flight)
                scores = await asyncio.gather(*(self._lane(i, store, ledger, units, channels, images) for i in lanes))
            return [scores[i % self._in_flight][i // self._in_flight] for i in range(count)]
        finally:
            ledger.close()
            store.remove(units)

    async def _make(self, store: UnitStore, units: list[bytes]) -> list[UnitWriter]:
        party, network = self._party, self._network
        plan = preprocessing.plan(network)
        seeds = [os.urandom(16) for _ in range(self._batch)]
        writers = [store.writer(unit, party.number, seed, plan) for unit, seed in zip(units, seeds, strict=False)]
        sinks = [_Sink(party, writer) for writer in writers]
        spare = [_Sink(party, None) for _ in range(self._batch - len(sinks))]
        try:
            party.say(f"model: matrix triples for {self._batch}")
            async with party.measure(MATRIX, self._batch, "image"):
                work = preprocessing.make_matrix_triples(
                    party.channel(), network, self._numbers, seeds, [*sinks, *spare], _nobody
                )
                await party.drive(work)
            party.say(f"model: oblivious transfers for {len(units)}, {self._extension}")
            async with party.measure(OTS, len(units), "image"):
                await party.drive(
                    preprocessing.make_ot_correlations(party.channel(), network, sinks, _nobody, self._extension)
                )
                for writer in writers:
                    await party.aside(writer.finish)
                party.mark("fsync")
        except BaseException:
            for writer in writers:
                writer.discard()
            raise
        return writers

    async def _lane(
        self,
        lane: int,
        store: UnitStore,
        ledger: Ledger,
        units: list[bytes],
        channels: list[Channel],
        images: list[Scores],
    ) -> list[Scores | None]:
        """Every in_flight-th image, one after the other."""
        party = self._party
        scores = []
        for i in range(lane, len(units), self._in_flight):
            spent = await party.aside(ledger.spend, units[i], "bench", i)
            reader = await party.aside(store.open, spent, party.number)
            try:
                scores.append(await party.drive(self._infer(channels[i], reader, images[i]), lane))
            finally:
                reader.close()
        return scores

    async def _infer(self, channel: Channel, source: Any, image: Scores) -> Scores | None:
        network = self._network

        def done(index: int, total: int) -> None:
            if self._in_flight == 1:
                self._party.mark(type(network.ops[index - 1]).__name__)

        own = image if self._party.number == DATA_OWNER else None
        share = await executor.infer(channel, network, self._numbers, source, own, done)
        return await executor.reveal_to_data_owner(channel, network, share)


class _Sink:
    """A unit's writer, or none; notes how long making and writing took."""

    def __init__(self, party: Party, writer: UnitWriter | None) -> None:
        self._party = party
        self._writer = writer

    def put(self, need: Need, correlation: Any) -> None:
        self._party.mark(type(need).__name__)
        if self._writer is not None:
            self._writer.put(need, correlation)
            self._party.mark("write")


def _nobody(work: int) -> None:
    """Progress nobody looks at."""
