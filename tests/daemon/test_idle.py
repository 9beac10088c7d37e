"""Work that is asked for with ``idle`` is computed by threads that the kernel runs last, on both sides; no other is."""

import os
import threading

import pytest

from mpcd.daemon import idle
from tests.daemon.two_daemons import HOSPITAL, MODEL, VENDOR, Client, daemons

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="SCHED_IDLE is Linux's")


def policies(prefix):
    """Scheduling policies of this process's living threads whose names begin so."""
    return [os.sched_getscheduler(t.native_id) for t in threading.enumerate() if t.name.startswith(prefix)]


def test_its_threads_and_no_others():
    with idle.executor(2) as executor:
        assert executor.submit(os.sched_getscheduler, 0).result() == os.SCHED_IDLE
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_where_the_policy_is_forbidden(monkeypatch):
    def forbidden(*args):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    with idle.executor(1) as executor:
        assert executor.submit(os.getpriority, os.PRIO_PROCESS, 0).result() == 19
    assert os.getpriority(os.PRIO_PROCESS, 0) == 0
    monkeypatch.setattr(os, "nice", forbidden)
    with idle.executor(1) as executor:
        assert executor.submit(os.getpriority, os.PRIO_PROCESS, 0).result() == 0, "the work is done all the same"


@pytest.mark.parametrize("asks", [HOSPITAL, VENDOR])
def test_units_are_made_by_them(run, tmp_path, asks):
    async def main():
        async with daemons(tmp_path) as (vendor, hospital):
            client = Client((vendor if asks == VENDOR else hospital).context.paths.control_socket)
            peer = HOSPITAL if asks == VENDOR else VENDOR
            made = await client.call("offline.make", peer=peer, model=MODEL, images=1, idle=True)
            assert made["made"] == 1
            for daemon in (vendor, hospital):
                assert daemon.context.idle._threads, "its kernels ran there"
            assert policies("idle")
            assert set(policies("idle")) == {os.SCHED_IDLE}
            assert os.SCHED_IDLE not in policies("kernel") + policies("MainThread")

    run(main())
