"""The short form of `make soak` (tests/soak.py)."""

from __future__ import annotations

from pathlib import Path

from tests.soak import AT_ONCE, Soak

PEERS, FILES, SESSIONS, MINUTES = 2, 300, 30, 0.2
MORE_MEMORY = 200_000_000  # bytes that no phase of this may add to a daemon


def test_many_peers_sessions_and_files(tmp_path: Path) -> None:
    found = Soak(tmp_path, PEERS, print).run(FILES, SESSIONS, MINUTES)
    assert found["files"]["files"] == FILES
    assert abs(found["files"]["daemon_growth_bytes"]) < MORE_MEMORY
    assert len(found["peers"]["shares"]) == PEERS
    assert found["peers"]["images"] == PEERS * AT_ONCE
    assert all(growth < MORE_MEMORY for growth in found["sessions"]["growth_bytes"].values())
    for growth in found["minutes"]["daemons"].values():
        assert growth["memory_growth"] < MORE_MEMORY
        assert growth["descriptors_growth"] < 50
        assert growth["threads_growth"] < 20
    assert found["reuse_count"] == 0
    assert found["units_spent"] >= PEERS * AT_ONCE + SESSIONS
