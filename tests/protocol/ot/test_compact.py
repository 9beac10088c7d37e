"""Seeds in place of correlations: the same bits later, alone, in any mixture of parties and units."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mpcd.protocol import lockstep
from mpcd.protocol.channel import Channel
from mpcd.protocol.correlations import AndNeed, CorrelationError, LeafNeed, Need, StringNeed
from mpcd.protocol.ot import compact, correlate, ferret
from mpcd.protocol.ot.extension import CHUNK
from mpcd.protocol.randomness import Prg

SESSION = b"a session's id.."
# Small ones and such as go through several iterations of the smallest set, also from the middle of one.
UNIT: tuple[Need, ...] = (
    LeafNeed(4, 1000),
    AndNeed(CHUNK + 65),
    StringNeed(33, 129, 0),
    LeafNeed(3, 500_001),
    StringNeed(21, 70, 1),
    AndNeed(1),
    LeafNeed(1, 64),
    LeafNeed(4, 1001, 3),
)


async def _units(party: int, seed: bytes, compacts: tuple[bool, ...], extension: correlate.Extension) -> list[Any]:
    channel = Channel(party, SESSION, Prg(seed))
    ots = await correlate.set_up(channel, extension)
    units: list[Any] = []
    for keep in compacts:
        if keep:
            told: list[Need] = []
            units.append(await compact.keep(channel, ots, UNIT, told.append))
            assert tuple(told) == UNIT
        else:
            units.append([await ots.make(channel, need) for need in UNIT])
            await ots.check(channel)
    return units


def _made(party: int, unit: Any) -> list[dict[str, Any]]:
    made = list(compact.expand(party, unit, UNIT)) if isinstance(unit, compact.Kept) else unit
    return [{f.name: getattr(c, f.name) for f in dataclasses.fields(c)} for c in made]


def _run(
    seeds: tuple[bytes, bytes], p0: tuple[bool, ...], p1: tuple[bool, ...], extension: correlate.Extension
) -> tuple[lockstep.Run, list[list[list[dict[str, Any]]]]]:
    run = lockstep.run(_units(0, seeds[0], p0, extension), _units(1, seeds[1], p1, extension))
    return run, [[_made(party, unit) for unit in run.results[party]] for party in (0, 1)]


@pytest.mark.parametrize("extension", ["silent", "silent17"])
def test_the_same_bits_and_the_same_bytes(extension: correlate.Extension) -> None:
    """Whoever keeps seeds for whichever units: correlations and traffic are those of making all at once."""
    seeds = Prg.fresh().seed(), Prg.fresh().seed()
    plain, expected = _run(seeds, (False,) * 3, (False,) * 3, extension)
    for p0, p1 in (((True,) * 3, (True,) * 3), ((False, True, False), (True, False, True))):
        run, made = _run(seeds, p0, p1, extension)
        assert run.traffic[0].digest.digest() == plain.traffic[0].digest.digest()
        assert run.traffic[1].digest.digest() == plain.traffic[1].digest.digest()
        for party in (0, 1):
            for ours, theirs in zip(made[party], expected[party], strict=True):
                for a, b in zip(ours, theirs, strict=True):
                    assert a.keys() == b.keys()
                    assert all((a[name] == b[name]).all() for name in a)


def test_units_do_not_share_pads() -> None:
    _, made = _run((Prg.fresh().seed(), Prg.fresh().seed()), (True, True), (True, True), "silent")
    assert not (made[0][0][0]["pads"] == made[0][1][0]["pads"]).all()
    assert not (made[1][0][3]["choices"] == made[1][1][3]["choices"]).all()


def test_kept_bytes_are_what_is_kept() -> None:
    run, _ = _run((Prg.fresh().seed(), Prg.fresh().seed()), (False, True), (False, True), "silent")
    for party, expected in enumerate(compact.kept_bytes(UNIT, "silent")):
        kept = run.results[party][1]
        size = 0
        for direction in (kept.sending, kept.receiving):
            size += direction.seeds.table.nbytes
            for trees in direction.seeds.trees:
                size += trees.roots.nbytes if hasattr(trees, "roots") else trees.siblings.nbytes + 2 * len(trees.points)
        one = (16 * 10 + 16 + 2) * ferret.SETS["2^16"].trees  # an iteration in each direction
        assert expected - one <= size <= expected


def test_talking_extensions_have_no_seeds() -> None:
    with pytest.raises(ValueError, match="silent"):
        lockstep.run(
            _units(0, Prg.fresh().seed(), (True,), "softspoken4"), _units(1, Prg.fresh().seed(), (True,), "softspoken4")
        )
    with pytest.raises(ValueError, match="silent"):
        compact.kept_bytes(UNIT, "iknp")


def test_nothing_is_sent_while_expanding() -> None:
    """Seeds that end too early would need the peer: an error, not another message."""
    run, _ = _run((Prg.fresh().seed(), Prg.fresh().seed()), (True,), (True,), "silent")
    kept = run.results[1][0]
    del kept.receiving.seeds.trees[1:]
    with pytest.raises(CorrelationError, match="seeds"):
        list(compact.expand(1, kept, UNIT))
