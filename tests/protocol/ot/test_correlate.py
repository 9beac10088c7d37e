"""From base OTs to correlations: relations, costs, freshness, refusals, and the bytes of a seeded run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpcd.protocol import bit_triples, lockstep
from mpcd.protocol.channel import Channel, Compute, Recv, Send
from mpcd.protocol.correlations import (
    AndNeed,
    LeafNeed,
    LeafReceiver,
    LeafSender,
    MatrixNeed,
    Need,
    StringNeed,
    StringReceiver,
    StringSender,
)
from mpcd.protocol.ot import base, consistency, correlate, pads
from mpcd.protocol.ot.extension import CHUNK
from mpcd.protocol.randomness import Prg
from mpcd.protocol.wire import WireError

SESSION = b"a session's id.."
BASELINE = Path(__file__).with_name("wire_baseline.json")
# Bytes that 128 COTs take, and those that a set-up takes besides the base OTs.
BLOCK_BYTES = {"iknp": 2048, "softspoken2": 1008, "softspoken4": 496, "softspoken8": 240}
TREE_BYTES = {"iknp": 0, "silent": 0, "softspoken2": 4096, "softspoken4": 4096, "softspoken8": 4096}
ANSWER_BYTES = 2064
SILENT: tuple[correlate.Extension, ...] = ("silent", "silent17", "silent18", "silent19")
TALKING = tuple(extension for extension in correlate.EXTENSIONS if extension not in SILENT)
COUNTS = (0, 1, 63, 64, 65, 1000)
NEEDS = [
    *(LeafNeed(block, count) for block in (1, 2, 3, 4) for count in COUNTS),
    *(LeafNeed(block, 1000, uses) for block in (1, 4) for uses in (2, 3, 4)),
    LeafNeed(1, CHUNK + 1),
    LeafNeed(3, 2 * (CHUNK // 3) + 77),
    LeafNeed(4, CHUNK // 4),
    *(AndNeed(count) for count in COUNTS),
    AndNeed(CHUNK),
    AndNeed((bit_triples.RUN_AHEAD + 1) * CHUNK + 65),
    *(StringNeed(bits, count, sender) for bits in (1, 21, 64) for count in COUNTS for sender in (0, 1)),
    StringNeed(33, CHUNK + 129, 0),
    StringNeed(64, 2 * CHUNK, 1),
]


def bits_of(words: Any, count: int) -> Any:
    """uint8 (count,), with the words' number and tail checked."""
    assert words.dtype == np.uint64
    assert len(words) == (count + 63) // 64
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    assert not bits[count:].any()
    return bits[:count]


def check_leaves(need: LeafNeed, sender: LeafSender, receiver: LeafReceiver) -> None:
    assert sender.pads.dtype == np.uint32
    assert receiver.choices.dtype == receiver.pads.dtype == np.uint8
    assert len(sender.pads) == len(receiver.choices) == len(receiver.pads) == need.count
    assert (sender.pads.astype(np.uint64) < 1 << (2 << need.block)).all()
    assert (receiver.choices < 1 << need.block).all()
    assert sender.pads.shape == receiver.pads.shape == (need.count, need.uses)
    assert ((sender.pads >> (2 * receiver.choices[:, None].astype(np.uint32)) & 3) == receiver.pads).all()


def check_triples(need: AndNeed, parts: Sequence[Any]) -> None:
    a, b, b2, c, c2 = (
        bits_of(getattr(parts[0], name), need.count) ^ bits_of(getattr(parts[1], name), need.count)
        for name in ("a", "b", "b2", "c", "c2")
    )
    assert (c == (a & b)).all()
    assert (c2 == (a & b2)).all()


def check_strings(need: StringNeed, sender: StringSender, receiver: StringReceiver) -> None:
    assert sender.m0.dtype == sender.m1.dtype == receiver.m.dtype == np.uint64
    assert len(sender.m0) == len(sender.m1) == len(receiver.m) == need.count
    assert all(int(m.max(initial=0)) < 1 << need.bits for m in (sender.m0, sender.m1))
    choices = bits_of(receiver.choices, need.count)
    assert (receiver.m == np.where(choices == 1, sender.m1, sender.m0)).all()


def check_relation(need: Need, parts: Sequence[Any]) -> None:
    match need:
        case LeafNeed():
            check_leaves(need, *parts)
        case AndNeed():
            check_triples(need, parts)
        case StringNeed():
            check_strings(need, *(parts if need.sender == 0 else parts[::-1]))


async def party(channel: Channel, needs: Sequence[Need], extension: correlate.Extension = "iknp") -> list[Any]:
    ots = await correlate.set_up(channel, extension)
    made = [await ots.make(channel, need) for need in needs]
    await ots.check(channel)
    return made


def run(
    needs: Sequence[Need], extension: correlate.Extension = "iknp", seeds: tuple[bytes, bytes] | None = None
) -> lockstep.Run:
    prgs = [Prg(seed) for seed in seeds] if seeds else [None, None]
    return lockstep.run(*(party(Channel(i, SESSION, prgs[i]), needs, extension) for i in (0, 1)))


def ends(extension: correlate.Extension) -> tuple[correlate.OtPair, correlate.OtPair]:
    return lockstep.run(*(correlate.set_up(Channel(i, SESSION), extension) for i in (0, 1))).results


@pytest.fixture(scope="module", params=[*TALKING, "silent"])
def extension(request: pytest.FixtureRequest) -> correlate.Extension:
    return request.param


@pytest.fixture(scope="module")
def pair(extension: correlate.Extension) -> tuple[correlate.OtPair, correlate.OtPair]:
    """Both ends of one set-up, so that every test goes on with the streams where another left them."""
    return ends(extension)


def make(pair: tuple[correlate.OtPair, correlate.OtPair], need: Need, peer_need: Need | None = None) -> lockstep.Run:
    async def checked(i: int, need: Need) -> Any:
        channel = Channel(i, SESSION)
        made = await pair[i].make(channel, need)
        await pair[i].check(channel)
        return made

    return lockstep.run(checked(0, need), checked(1, peer_need or need))


@pytest.mark.parametrize("need", NEEDS, ids=str)
def test_relation_and_cost(
    need: Need, extension: correlate.Extension, pair: tuple[correlate.OtPair, correlate.OtPair]
) -> None:
    outcome = make(pair, need)
    check_relation(need, outcome.results)
    if extension in SILENT:
        return  # its bytes do not go with the need: see below
    block = BLOCK_BYTES[extension]
    check = correlate.check_by_party([need], extension)
    assert check[::-1] == tuple((block + ANSWER_BYTES) * (cots > 0) for cots in correlate.cots(need))
    sent = tuple(traffic.payload_bytes - each for traffic, each in zip(outcome.traffic, check, strict=True))
    assert sent == correlate.bytes_by_party(need, extension)
    assert sum(sent) == correlate.bytes_sent(need, extension)
    assert correlate.total_by_party([need], extension) == tuple(np.add(sent, check))
    # A COT's bytes go from its receiver; whole blocks cost at most 127 COTs more in each chunk.
    for i, cots in enumerate(correlate.cots(need)):
        messages = outcome.traffic[1 - i].messages
        assert block * cots <= 128 * sent[1 - i] <= block * (cots + 127 * messages)
        assert messages >= -(-cots // CHUNK)
    if need.count == 0:
        assert outcome.flows == 0
    elif isinstance(need, AndNeed):
        fits = need.count <= bit_triples.RUN_AHEAD * CHUNK
        assert outcome.flows == 5 if fits else outcome.flows >= 5
    else:
        assert outcome.flows == 3


def test_counts_by_direction() -> None:
    assert correlate.cots(LeafNeed(4, 10)) == (40, 0)
    assert correlate.cots(AndNeed(10)) == (10, 10)
    assert correlate.cots(StringNeed(20, 10, 0)) == (10, 0)
    assert correlate.cots(StringNeed(20, 10, 1)) == (0, 10)
    assert correlate.bytes_by_party(LeafNeed(4, 32)) == (0, 2048)
    assert correlate.bytes_by_party(StringNeed(20, 129, 1)) == (4096, 0)
    assert correlate.bytes_by_party(LeafNeed(4, 32), "softspoken8") == (0, 240)
    assert correlate.bytes_by_party(StringNeed(20, 129, 1), "softspoken4") == (992, 0)


def test_set_up_cost(extension: correlate.Extension) -> None:
    outcome = run((), extension)
    assert outcome.flows == (3 if extension.startswith("softspoken") else 2)
    sent = base.BYTES_SENT + TREE_BYTES[extension]
    assert [traffic.payload_bytes + 32 for traffic in outcome.traffic] == [sent] * 2
    assert correlate.set_up_bytes_sent(extension) == sent


def test_iknp_unless_another_is_named() -> None:
    need = LeafNeed(2, 1000)
    made = correlate.bytes_sent(need, "iknp") + correlate.check_by_party([need], "iknp")[1]
    assert run([need]).traffic[1].payload_bytes == base.BYTES_SENT - 32 + made
    assert correlate.bytes_sent(need) == correlate.bytes_sent(need, "iknp")
    assert correlate.set_up_bytes_sent() == correlate.set_up_bytes_sent("iknp")


@pytest.mark.parametrize("extension", TALKING)
def test_a_party_runs_ahead_as_far_as_stated(extension: correlate.Extension) -> None:
    """Before its first read a party has sent what drivers are told to hold, and no more."""
    block = BLOCK_BYTES[extension]
    for count, sent in ((8 * CHUNK, bit_triples.BYTES_AHEAD * block // 2048), (100, 2 * block)):
        first, _ = ends(extension)
        assert bytes_before_first_read(first.make(Channel(0, SESSION), AndNeed(count))) == sent
    assert bit_triples.BYTES_AHEAD == (4 << 20) + 2048


def bytes_before_first_read(coroutine: Any) -> int:
    total, reply = 0, None
    while not isinstance(effect := coroutine.send(reply), Recv):
        reply = effect.function(*effect.args) if isinstance(effect, Compute) else None
        total += effect.frame.payload_size if isinstance(effect, Send) else 0
    coroutine.close()
    return total


def test_nothing_repeats_in_a_session(extension: correlate.Extension) -> None:
    """64-bit strings of one set-up, over chunks, calls and both directions, are all different."""
    needs = [StringNeed(64, CHUNK + 300, 0), StringNeed(64, 5000, 1), StringNeed(64, 5000, 0)]
    p0, p1 = run(needs, extension).results
    strings = [p0[0].m0, p0[0].m1, p1[1].m0, p1[1].m1, p0[2].m0, p0[2].m1]
    everything = np.concatenate(strings)
    assert len(np.unique(everything)) >= len(everything) - 1  # two of 64 bits may be equal by chance, but no two pairs
    pairs = np.stack([np.concatenate(strings[::2]), np.concatenate(strings[1::2])], axis=1)
    assert len(np.unique(pairs, axis=0)) == len(pairs)


def test_sessions_share_nothing(extension: correlate.Extension) -> None:
    need = StringNeed(64, 2000, 0)
    strings = []
    for _ in range(2):
        sender = run([need], extension).results[0][0]
        strings += [sender.m0, sender.m1]
    assert len(np.unique(np.concatenate(strings))) == 8000


def test_correlation_is_broken(extension: correlate.Extension) -> None:
    """Unhashed rows would give m0 ^ m1 the same in every OT, and linear relations between OTs."""
    sender = run([StringNeed(64, 4096, 0)], extension).results[0][0]
    difference = sender.m0 ^ sender.m1
    assert len(np.unique(difference)) == 4096
    assert rank(difference) == 64


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_leaf_pads_are_linearly_independent(block: int, pair: tuple[correlate.OtPair, correlate.OtPair]) -> None:
    """No XOR of an OT's pads is fixed: with a plain XOR of keys those of four entries would cancel."""
    sender, receiver = make(pair, LeafNeed(block, 20_000, 2)).results
    both = sender.pads.astype(np.uint64)
    assert rank(both[:, 0] | both[:, 1] << np.uint64(32)) == 2 * (2 << block), "nor of another use's"
    # Nor is a pad fixed by the receiver's view: for every choice, all pads but the known one vary freely.
    for choice in range(1 << block):
        mine = sender.pads[receiver.choices == choice, 1].astype(np.uint64)
        known = (mine >> np.uint64(2 * choice)) & np.uint64(3)
        for value in range(4):
            rows = mine[known == value]
            assert rank(rows ^ rows[0]) == (2 << block) - 2


def test_balance(pair: tuple[correlate.OtPair, correlate.OtPair]) -> None:
    """Choices, operands and pads are balanced, to ten standard deviations."""
    n = 60_000
    slack = 10 * np.sqrt(n) / 2
    leaf_sender, leaf_receiver = make(pair, LeafNeed(4, n)).results
    for bit in range(32):
        assert abs(int((leaf_sender.pads >> np.uint32(bit) & 1).sum()) - n / 2) < slack
    for bit in range(4):
        assert abs(int((leaf_receiver.choices >> np.uint8(bit) & 1).sum()) - n / 2) < slack
    triples = make(pair, AndNeed(n)).results
    for share in triples:
        for name in ("a", "b", "b2", "c", "c2"):
            assert abs(int(bits_of(getattr(share, name), n).sum()) - n / 2) < slack
    b, b2 = (bits_of(getattr(triples[0], name), n) for name in ("b", "b2"))
    assert abs(int((b ^ b2).sum()) - n / 2) < slack
    for sender in (0, 1):
        parts = make(pair, StringNeed(9, n, sender)).results
        assert abs(int(bits_of(parts[1 - sender].choices, n).sum()) - n / 2) < slack


def test_hash_keys_and_tweaks_are_given_out_once() -> None:
    keys = [pads.HashKeys(bytes([s]) * 16, d) for s in (0, 1) for d in (0, 1)]
    for each in keys:
        assert [each.take(rows)[1] for rows in (5, 1, 70_000, 2)] == [0, 5, 6, 70_006]
    taken = [each.take(1)[0].tobytes() for each in keys for _ in range(3)]
    assert len(set(taken)) == 12
    # Both ends of a direction have the same, by whichever calls of the same sizes.
    again = pads.HashKeys(bytes(16), 0)
    again.take(70_008)
    assert again.take(1)[0].tobytes() == taken[0]


@pytest.mark.parametrize(
    "need",
    [
        LeafNeed(0, 5),
        LeafNeed(5, 5),
        LeafNeed(2, -1),
        AndNeed(-1),
        StringNeed(0, 5, 0),
        StringNeed(65, 5, 0),
        StringNeed(8, -1, 0),
        StringNeed(8, 5, 2),
        MatrixNeed(0, 30, (1, 1, 1), (1, 1, 1)),
    ],
    ids=str,
)
def test_bad_needs_are_refused(need: Need, pair: tuple[correlate.OtPair, correlate.OtPair]) -> None:
    for function in (correlate.cots, correlate.bytes_by_party, correlate.bytes_sent):
        with pytest.raises(ValueError, match="do not make"):
            function(need)
    with pytest.raises(ValueError, match="do not make"):
        make(pair, need)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (LeafNeed(2, 1000), LeafNeed(2, 2000)),
        (LeafNeed(4, 1000), LeafNeed(1, 1000)),
        (StringNeed(8, 1000, 0), StringNeed(8, 100, 0)),
        (AndNeed(1000), AndNeed(500)),
    ],
    ids=str,
)
@pytest.mark.parametrize("extension", TALKING)
def test_different_needs_are_refused(ours: Need, theirs: Need, extension: correlate.Extension) -> None:
    with pytest.raises(WireError):
        lockstep.run(party(Channel(0, SESSION), [ours], extension), party(Channel(1, SESSION), [theirs], extension))


@pytest.mark.parametrize("theirs", correlate.EXTENSIONS)
def test_different_extensions_are_refused(theirs: correlate.Extension, extension: correlate.Extension) -> None:
    need = LeafNeed(1, 512)
    if theirs == extension:
        return
    with pytest.raises(WireError):
        lockstep.run(party(Channel(0, SESSION), [need], extension), party(Channel(1, SESSION), [need], theirs))


@pytest.mark.parametrize("name", ["IKNP", "softspoken", "softspoken1", "softspoken3", "softspoken16", "silent16", ""])
def test_unknown_extensions_are_refused(name: Any) -> None:
    for function in (correlate.bytes_by_party, correlate.bytes_sent):
        with pytest.raises(
            ValueError, match="not an OT extension: iknp, softspoken2, softspoken4, softspoken8, silent,"
        ):
            function(LeafNeed(1, 1), name)
    with pytest.raises(ValueError, match="not an OT extension"):
        correlate.set_up_bytes_sent(name)
    with pytest.raises(ValueError, match="not an OT extension"):
        correlate.set_up(Channel(0, SESSION), name).send(None)


def test_another_message_is_refused(extension: correlate.Extension) -> None:
    async def confused(channel: Channel) -> None:
        await correlate.set_up(channel, extension)
        await channel.send(consistency.Challenge(bytes(16)))

    kind = "iknp" if extension == "silent" else extension.rstrip("248")
    with pytest.raises(WireError, match=f"expected a {kind} message"):
        lockstep.run(party(Channel(0, SESSION), [LeafNeed(1, 1 << 13)], extension), confused(Channel(1, SESSION)))


def test_wire_baseline() -> None:
    """The bytes of a seeded run, and what comes out: a change here is a change of the protocol's version."""
    everything = [LeafNeed(3, 1000), AndNeed(1000), StringNeed(20, 1000, 0), StringNeed(20, 1000, 1)]
    rows: dict[str, tuple[correlate.Extension, list[Need]]] = {
        "ot set-up": ("iknp", []),
        "ot leaves": ("iknp", [LeafNeed(block, 1000) for block in (1, 2, 3, 4)]),
        "ot triples": ("iknp", [AndNeed(1000)]),
        "ot strings": ("iknp", [StringNeed(20, 1000, 0), StringNeed(20, 1000, 1)]),
        "softspoken2": ("softspoken2", everything),
        "softspoken4": ("softspoken4", everything),
        "softspoken8": ("softspoken8", everything),
        "silent": ("silent", everything),
    }
    found = {}
    for name, (extension, needs) in rows.items():
        outcome = run(needs, extension, seeds=(b"seed of party 0.", b"seed of party 1."))
        results = hashlib.sha256()
        for correlation in (part for parts in outcome.results for part in parts):
            for field in dataclasses.fields(correlation):
                results.update(getattr(correlation, field.name).tobytes())
        sent = [traffic.digest.hexdigest() for traffic in outcome.traffic]
        found[name] = {"from P0": sent[0], "from P1": sent[1], "results": results.hexdigest()}
    assert found == json.loads(BASELINE.read_text())


@pytest.mark.parametrize("extension", SILENT)
def test_silent_totals(extension: correlate.Extension) -> None:
    """Needs of both directions, at paces of their own, through several iterations: exact totals, nothing left over."""
    needs: list[Need] = [LeafNeed(2, 100), AndNeed(1000), StringNeed(64, 65, 1), AndNeed(1)]
    if extension == "silent":
        needs += [LeafNeed(4, 150_000), AndNeed(500_000), StringNeed(20, 400_000, 1), AndNeed(400_000), LeafNeed(3, 9)]
        needs += [StringNeed(9, 300_000, 0), AndNeed(260_000)]
    pair = ends(extension)
    sent = np.zeros(2, int)
    for i, need in enumerate(needs, start=1):
        outcome = make(pair, need)
        check_relation(need, outcome.results)
        sent += [traffic.payload_bytes for traffic in outcome.traffic]
        assert tuple(sent) == correlate.total_by_party(needs[:i], extension)
        for inbox in (pair[0].inbox, pair[1].inbox):
            assert not inbox._unread


def test_totals_of_the_others_add_up() -> None:
    needs = [LeafNeed(2, 100), AndNeed(1000), StringNeed(64, 65, 1)]
    each = np.array([correlate.bytes_by_party(need, "softspoken4") for need in needs])
    check = correlate.check_by_party(needs, "softspoken4")
    assert check == (496 + ANSWER_BYTES,) * 2
    assert correlate.total_by_party(needs, "softspoken4") == tuple(each.sum(axis=0) + check)
    assert correlate.total_by_party([], "silent") == (0, 0)


@pytest.mark.parametrize("extension", SILENT)
def test_silent_average(extension: correlate.Extension) -> None:
    """A need's share is what it adds to the total in the long run."""
    for need in (LeafNeed(4, 1 << 24), AndNeed(1 << 26), StringNeed(20, 1 << 26, 1)):
        share = np.array(correlate.bytes_by_party(need, extension))
        one, ten = (np.array(correlate.total_by_party([need] * n, extension)) for n in (1, 11))
        assert ten - one == pytest.approx(10 * share, rel=0.05)
    assert correlate.bytes_by_party(LeafNeed(1, 1), extension) < (20, 2)


def rank(rows: Any) -> int:
    """Rank over GF(2) of uint64 rows."""
    basis: dict[int, int] = {}
    for row in np.unique(rows).tolist():
        while row and row.bit_length() in basis:
            row ^= basis[row.bit_length()]
        if row:
            basis[row.bit_length()] = row
    return len(basis)
