"""The images of a session side by side: what the lanes do when none of them may begin."""

import asyncio
import time
from collections import deque

from mpcd.daemon.control.jobs import Job
from mpcd.daemon.sessions.lanes import Turn
from tests.daemon.two_daemons import DATASET, HOSPITAL, MODEL, VENDOR, Client, daemons


def test_lanes_end_when_it_is_too_late_for_the_first_image(run, tmp_path):
    """The hours ended while the session waited for the processor; the others wait for the first lane's image."""

    async def main():
        async with daemons(tmp_path) as (_, hospital):
            client = Client(hospital.context.paths.control_socket)
            started = await client.call("session.start", peer=VENDOR, model=MODEL, dataset=DATASET)
            session = hospital.context.records.get(started["session"]["id"])
            model = await hospital.offline._catalogue.get(VENDOR, MODEL)
            dataset = hospital.context.library.dataset(DATASET)
            missing = deque([0, 1, 2])
            turn = Turn(session, model, dataset, missing, Job(HOSPITAL), time.monotonic())
            async with asyncio.timeout(10):
                await hospital.sessions.lanes.run(turn, 2, careful=True)
            assert (list(missing), turn.begun) == ([0, 1, 2], 0)

    run(main())
