import asyncio

from mpcd.daemon.tasks import Tasks


def test_those_that_run_are_stopped_and_waited_for_whatever_the_others_ended_with(run, capfd):
    ended = []

    async def until_cancelled():
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append("cancelled")

    async def fail():
        raise ValueError

    async def main():
        tasks = Tasks()
        tasks.spawn(until_cancelled())
        failed = tasks.spawn(fail())
        await asyncio.wait([failed])
        await tasks.stop()
        assert isinstance(failed.exception(), ValueError)
        assert ended == ["cancelled"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())
    assert "what ran in the background failed" in "".join(capfd.readouterr())
