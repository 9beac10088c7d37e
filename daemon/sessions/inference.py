"""One image over one unit, at either party."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np
import numpy.typing as npt

from mpcd.daemon.context import Context
from mpcd.daemon.control.jobs import Job
from mpcd.daemon.network import driver
from mpcd.daemon.offline.store import UnitReader
from mpcd.protocol import executor
from mpcd.protocol.channel import Channel
from mpcd.protocol.network import Network, PrivateNumbers

OPEN_TIMEOUT = 60.0


def remove_spent(context: Context, unit: bytes) -> None:
    """Its files; not those of a unit that was not spent after all."""
    if context.ledger.state(unit) == "spent":
        context.store.remove([unit])


async def infer(
    context: Context,
    party: int,
    peer: str,
    unit_job: bytes,
    network: Network,
    numbers: PrivateNumbers | None,
    reader: UnitReader,
    image: npt.NDArray[np.int64] | None,
    job: Job,
    progress: Callable[[int, int], None],
    keep: Callable[[npt.NDArray[np.int64] | None], Awaitable[None]],
    before_reveal: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """The online protocol of one image; bytes both ways.

    ``keep`` gets the integers (at the data owner); ``before_reveal`` runs before the share of them goes out.
    """
    threads = context.executor
    try:
        connection = await context.net.open_channel(peer, unit_job, OPEN_TIMEOUT)
        try:
            await context.kernels.wait(job)
            channel = Channel(party, unit_job)
            work = executor.infer(channel, network, numbers, reader, image, driver.in_loop(progress))
            share = await driver.drive(work, connection, threads)
            if before_reveal is not None:
                await before_reveal()
            await keep(await driver.drive(executor.reveal_to_data_owner(channel, network, share), connection, threads))
            return connection.bytes_sent + connection.bytes_received
        finally:
            await connection.close()
    finally:
        reader.close()
