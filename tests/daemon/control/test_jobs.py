"""Progress: watchers see the stages, not every tick; a time left; one heavy job at a time."""

import asyncio

from mpcd.daemon.control.jobs import Job, Jobs


async def seen(job, tell):
    with job.watched() as progress:
        tell()
        job.end()
        return [(p.stage, p.done, p.text) async for p in progress]


def test_stages_and_the_end_are_told_and_ticks_are_thinned():
    async def main():
        job = Job()

        def tell():
            job.report("a", 0, 1000)
            for i in range(1, 1000):
                job.report("a", i, 1000)
            job.report("a", 1000, 1000)
            job.report("b", 0, 0, "now b")

        return await seen(job, tell)

    found = asyncio.run(main())
    assert found[0] == ("", 0, "")
    assert len(found) < 50
    assert found[-2:] == [("a", 1000, ""), ("b", 0, "now b")]


def test_time_left():
    async def main():
        job = Job()
        job.report("a", 0, 4)
        assert job.progress.eta_seconds is None
        await asyncio.sleep(0.25)
        job.report("a", 1, 4)
        assert 0.6 < job.progress.eta_seconds < 3

    asyncio.run(main())


def test_one_heavy_job_at_a_time():
    async def main():
        jobs, order = Jobs(), []

        async def work(name):
            with jobs.job("peer", name) as job:
                async with jobs.processor(job):
                    order.append(name)
                    await asyncio.sleep(0.01)
                    assert jobs.contended == (name == "x"), "y waits while x works"
                    order.append(name)
                return job.progress.stage

        stages = await asyncio.gather(work("x"), work("y"))
        assert not jobs.contended
        assert order == ["x", "x", "y", "y"]
        assert stages == ["", "queued"]
        assert not jobs.running

    asyncio.run(main())
