"""What goes on of a session is ended once: a second end waits for the first one's cleaning up."""

import asyncio

import pytest

from mpcd.daemon.sessions.live import settle
from tests.daemon.two_daemons import DATASET, MODEL, VENDOR, Client, daemons


@pytest.mark.parametrize("how", ["stop", "settle"])
def test_what_is_cleaning_up_is_not_cancelled_again(run, tmp_path, how):
    async def main():
        async with daemons(tmp_path) as (_, hospital):
            client, live = Client(hospital.context.paths.control_socket), hospital.sessions._live
            started = await client.call("session.start", peer=VENDOR, model=MODEL, dataset=DATASET)
            session = hospital.context.records.get(started["session"]["id"])
            begun, cleaned = asyncio.Event(), asyncio.Event()

            async def work():
                try:
                    begun.set()
                    await asyncio.sleep(60)
                finally:
                    await asyncio.sleep(0.2)
                    cleaned.set()

            task = asyncio.create_task(work())
            live.attach(session.id, task)
            await begun.wait()
            task.cancel()
            await asyncio.sleep(0)
            await (live.stop() if how == "stop" else settle([task], 0))
            assert cleaned.is_set()

    run(main())
