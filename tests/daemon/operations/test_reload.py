"""SIGHUP: what changes at once, what waits, and that a mistake changes nothing."""

from mpcd.daemon import log
from mpcd.daemon.config import Config
from mpcd.daemon.errors import ConfigError
from mpcd.daemon.operations.reload import LIVE, merged, reload
from mpcd.daemon.service import Daemon
from tests.daemon.two_daemons import HOSPITAL, config, paths

OLD = Config.parse({"name": "hospital"})


def test_what_can_change_does():
    wanted = {
        "name": "hospital", "limits": {"memory_gib": 8, "disk_reserve_gib": 1}, "log": {"level": "debug"},
        "offline": {"extension": "iknp"}, "online": {"in_flight": 3},
    }  # fmt: skip
    found, changed, waiting = merged(OLD, Config.parse(wanted))
    assert found == Config.parse(wanted)
    assert changed["limits.memory_gib"] == "4.0 -> 8.0"
    assert set(changed) <= LIVE
    assert waiting == []


def test_what_cannot_waits_and_stays():
    wanted = {"name": "other", "listen": {"port": 1}, "limits": {"threads": 3, "memory_gib": 8}}
    found, changed, waiting = merged(OLD, Config.parse(wanted))
    assert waiting == ["name", "listen.port", "limits.threads"]
    assert (found.name, found.listen, found.limits.threads, found.limits.memory_gib) == ("hospital", OLD.listen, 0, 8.0)
    assert list(changed) == ["limits.memory_gib"]


def test_every_live_setting_exists():
    for key in LIVE:
        section, _, name = key.partition(".")
        assert hasattr(getattr(OLD, section), name)


def test_a_mistake_changes_nothing(run, tmp_path):
    events, set_to = [], []

    def mistaken():
        raise ConfigError("mpcd.toml: unknown key limits.memry_gib", "did you mean limits.memory_gib?")

    async def main():
        log.configure(as_json=True)
        daemon = Daemon(paths(tmp_path, HOSPITAL), config(HOSPITAL))
        stop = log.listen(events.append)
        try:
            (daemon.context.paths.state / "policy.toml").write_text("[[alow]]")
            before = daemon.context.config
            await reload(daemon, mistaken, set_to.append)
            assert daemon.context.config is before
        finally:
            stop()
            daemon.context.close()

    run(main())
    assert not set_to
    errors = [event for event in events if event["level"] == "error"]
    assert [("memry_gib" in str(e), "alow" in str(e)) for e in errors] == [(True, False), (False, True)]
