"""Units on disk: what goes in comes out, once, in order, for the stated use only."""

import contextlib
import errno
import functools
import os
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mpcd.daemon.errors import NotEnough
from mpcd.daemon.offline.expansion import Expansion
from mpcd.daemon.offline.ledger import Ledger, LedgerError, Stock
from mpcd.daemon.offline.recovery import recover
from mpcd.daemon.offline.store import UnitReader, UnitStore
from mpcd.protocol import lockstep, matrix_triple
from mpcd.protocol.channel import Channel
from mpcd.protocol.correlations import (
    AndNeed,
    AndTriples,
    CorrelationError,
    LeafNeed,
    LeafReceiver,
    LeafSender,
    MatrixClient,
    MatrixNeed,
    MatrixServer,
    StringNeed,
    StringReceiver,
    StringSender,
)
from mpcd.protocol.ot import compact, correlate

STOCK = Stock("peer", "model", "network")
UNIT = bytes(range(16))
SEED = bytes(range(16, 32))
MATRIX = MatrixNeed(1, 29, (3, 5, 5), (4, 3, 3))
PLAN = (
    MATRIX,
    *(LeafNeed(block, count, uses) for block in (1, 2, 3, 4) for count in (1, 63, 130) for uses in (1, 2, 3, 4)),
    AndNeed(1),
    AndNeed(129),
    StringNeed(1, 65, 0),
    MatrixNeed(5, 40, (4, 3, 3), (2, 1, 1)),
    StringNeed(17, 64, 1),
    StringNeed(64, 3, 0),
    LeafNeed(4, (1 << 20) + 77),
)


def bit_words(rng, n):
    packed = np.packbits(rng.integers(0, 2, n, dtype=np.uint8), bitorder="little").tobytes()
    return np.frombuffer(packed.ljust(8 * ((n + 63) // 64), b"\0"), np.uint64)


def ring(rng, shape, width):
    return rng.integers(0, (1 << width) - 1, shape, dtype=np.uint64, endpoint=True)


def correlation(need, party, rng):
    match need:
        case LeafNeed(block, n, uses) if party == 0:
            return LeafSender(rng.integers(0, 1 << (2 << block), (n, uses), dtype=np.uint64).astype(np.uint32))
        case LeafNeed(block, n, uses):
            pads = rng.integers(0, 4, (n, uses), dtype=np.uint8)
            return LeafReceiver(rng.integers(0, 1 << block, n, dtype=np.uint8), pads)
        case AndNeed(n):
            return AndTriples(*(bit_words(rng, n) for _ in range(5)))
        case StringNeed(width, n, sender) if party == sender:
            return StringSender(ring(rng, n, width), ring(rng, n, width))
        case StringNeed(width, n):
            return StringReceiver(bit_words(rng, n), ring(rng, n, width))
        case MatrixNeed(op, width, _, shape) if party == 0:
            return MatrixServer(matrix_triple.mask(SEED, op, shape, width))
        case MatrixNeed(op, width, input_shape, shape):
            return MatrixClient(matrix_triple.mask(SEED, op, input_shape, width), ring(rng, shape, width))


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


@pytest.fixture
def store(tmp_path):
    return UnitStore(tmp_path / "units")


def write(store, ledger, party, plan=PLAN, unit=UNIT):
    """The finished unit's correlations, by place in the plan."""
    rng = np.random.default_rng()
    made = {need: correlation(need, party, rng) for need in plan}
    ledger.begin(STOCK, b"b" * 16, [unit])
    writer = store.writer(unit, party, SEED, plan)
    for need in [n for n in plan if isinstance(n, MatrixNeed)] + [n for n in plan if not isinstance(n, MatrixNeed)]:
        writer.put(need, made[need])
    writer.finish()
    ledger.ready([unit], writer.bytes_written)
    return made, writer


@pytest.mark.parametrize("party", [0, 1])
def test_round_trip(store, ledger, party):
    made, writer = write(store, ledger, party)
    size = sum(f.stat().st_size for f in (store.root / UNIT.hex()).iterdir())
    assert writer.bytes_written < size < writer.bytes_written + 100 * len(PLAN)
    reader = store.open(ledger.spend(UNIT, "s", 0), party)
    for need in PLAN:
        got = reader.take(need)
        want = made[need]
        assert type(got) is type(want)
        for name in want.__dataclass_fields__:
            a, b = getattr(want, name), getattr(got, name)
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            np.testing.assert_array_equal(a, b)
    with pytest.raises(CorrelationError, match="no more"):
        reader.take(AndNeed(1))
    reader.close()
    with pytest.raises(CorrelationError, match="closed"):
        reader.take(PLAN[0])


def test_bits_not_blocks_on_disk(store, ledger):
    """What the estimate says is what is stored, but for rounding to words."""
    from mpcd.protocol.preprocessing import stored_bits

    for party in (0, 1):
        _, writer = write(store, ledger, party, unit=bytes([party]) * 16)
        bits = sum(stored_bits(need, party) for need in PLAN)
        assert 0 <= writer.bytes_written - bits // 8 <= 8 * 5 * len(PLAN)


def test_private_files(store, ledger):
    write(store, ledger, 0)
    folder = store.root / UNIT.hex()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(f.stat().st_mode) for f in folder.iterdir()} == {0o600}


def test_second_use_is_impossible(store, ledger):
    write(store, ledger, 0)
    spent = ledger.spend(UNIT, "s", 0)
    reader = store.open(spent, 0)
    assert not (store.root / UNIT.hex()).exists(), "the files are gone as soon as they are open"
    with pytest.raises(LedgerError, match="opened before"):
        store.open(spent, 0)
    with pytest.raises(LedgerError):
        ledger.spend(UNIT, "s", 0)
    reader.take(MATRIX)
    with pytest.raises(CorrelationError):
        reader.take(MATRIX)


@pytest.mark.parametrize("proof", [None, UNIT, object()])
def test_no_reading_without_proof(store, ledger, proof):
    write(store, ledger, 0)
    with pytest.raises(LedgerError, match="proof"):
        UnitReader(store.root / UNIT.hex(), proof, 0)
    assert store.complete(UNIT)


def test_reader_refuses_another_need(store, ledger):
    write(store, ledger, 1)
    reader = store.open(ledger.spend(UNIT, "s", 0), 1)
    with pytest.raises(CorrelationError, match="was asked for"):
        reader.take(MatrixNeed(1, 30, (3, 5, 5), (4, 3, 3)))


def test_writer_refuses_another_order(store):
    writer = store.writer(UNIT, 0, SEED, PLAN)
    with pytest.raises(CorrelationError, match="not what the plan has"):
        writer.put(PLAN[1], correlation(PLAN[1], 0, np.random.default_rng()))
    writer.discard()
    assert not list(store.root.iterdir())
    with pytest.raises(CorrelationError, match="given up"):
        writer.put(PLAN[0], None)


def test_writer_refuses_wrong_size_and_unfinished(store):
    writer = store.writer(UNIT, 0, SEED, (AndNeed(64),))
    with pytest.raises(CorrelationError, match="entries"):
        writer.put(AndNeed(64), correlation(AndNeed(65), 0, np.random.default_rng()))
    with pytest.raises(CorrelationError, match="only 0 of 1"):
        writer.finish()
    writer.discard()


def test_damage_is_noticed(store, ledger):
    need = AndNeed(640)
    write(store, ledger, 0, (need,))
    path = store.root / UNIT.hex() / "pads.bin"
    data = bytearray(path.read_bytes())
    data[-50] ^= 4
    path.write_bytes(data)
    reader = store.open(ledger.spend(UNIT, "s", 0), 0)
    with pytest.raises(CorrelationError, match="damaged"):
        reader.take(need)


@pytest.mark.parametrize("cut", [3, 45, 200])
def test_truncated_file(store, ledger, cut):
    need = AndNeed(640)
    write(store, ledger, 0, (need,))
    path = store.root / UNIT.hex() / "pads.bin"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CorrelationError, match=r"truncated|no more"):
        store.open(ledger.spend(UNIT, "s", 0), 0).take(need)


def test_swapped_units(store, ledger):
    other = bytes(16)
    write(store, ledger, 0, unit=other)
    write(store, ledger, 0)
    a, b = store.root / UNIT.hex(), store.root / other.hex()
    a.rename(store.root / "x")
    b.rename(a)
    with pytest.raises(CorrelationError, match="another unit"):
        store.open(ledger.spend(UNIT, "s", 0), 0)


@pytest.mark.parametrize("name", ["matrix.bin", "pads.bin"])
def test_a_unit_of_another_format_is_given_up_at_the_start(store, ledger, name):
    write(store, ledger, 0)
    with open(store.root / UNIT.hex() / name, "r+b") as file:
        file.write(b"mpcdunt2")
    assert not store.complete(UNIT)
    recover(ledger, store)
    assert ledger.state(UNIT) == "burnt"
    assert not list(store.root.iterdir())


def test_sweep(store, ledger):
    write(store, ledger, 0)
    store.writer(bytes(16), 0, SEED, PLAN).discard()
    store.writer(b"x" * 16, 0, SEED, PLAN)
    assert store.sweep([UNIT]) == 1
    assert store.complete(UNIT)
    store.remove([UNIT, b"y" * 16])
    assert not store.complete(UNIT)


def test_full_disk(store, monkeypatch):
    writer = store.writer(UNIT, 0, SEED, (LeafNeed(4, 1 << 20),))

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self):
            self.file.close()

    writer._files[1] = Full(writer._files[1])
    with pytest.raises(NotEnough, match="disk is full"):
        writer.put(LeafNeed(4, 1 << 20), correlation(LeafNeed(4, 1 << 20), 0, np.random.default_rng()))
    writer.discard()
    assert not list(store.root.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_really_full_disk(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=50", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no mounts here")
    try:
        store = UnitStore(small / "units")
        need = LeafNeed(4, 1 << 20)
        writer = store.writer(UNIT, 0, SEED, (need,))
        with pytest.raises(NotEnough, match="disk is full"):
            writer.put(need, correlation(need, 0, np.random.default_rng()))
        writer.discard()
        assert not list(store.root.iterdir())
        assert store.free_bytes() > 900_000
        with contextlib.suppress(OSError):  # no more files either
            for name in range(100):
                (small / str(name)).touch()
        with pytest.raises(NotEnough, match="disk is full"):
            store.writer(b"y" * 16, 0, SEED, (need,))
    finally:
        subprocess.run(["umount", str(small)], check=True)


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from mpcd.daemon.offline.expansion import Expansion
from mpcd.daemon.offline.ledger import Ledger, Stock
from mpcd.daemon.offline.store import UnitStore
from mpcd.protocol.correlations import AndNeed, AndTriples
root, step = Path(sys.argv[1]), int(sys.argv[2])
unit, need = bytes(range(16)), AndNeed(640)
steps = iter(range(100))
def here():
    if next(steps) == step:
        os.kill(os.getpid(), 9)
ledger, store = Ledger(root / "ledger.sqlite"), UnitStore(root / "units")
ledger.begin(Stock("peer", "model", "network"), b"b" * 16, [unit]); here()
writer = store.writer(unit, 0, bytes(16), [need]); here()
writer.put(need, AndTriples(*[np.arange(10, dtype=np.uint64)] * 5)); here()
writer.finish(); here()
ledger.ready([unit], 1); here()
spent = ledger.spend(unit, "s", 0); here()
reader = store.open(spent, 0); here()
reader.take(need); here()
"""


@pytest.mark.parametrize("step", range(8))
def test_killed_between_any_two_steps(tmp_path, step):
    """Before ``ready`` the unit is burnt; from ``spend`` on it is spent and unreadable; in between it is whole."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(step)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    ledger, store = Ledger(tmp_path / "ledger.sqlite"), UnitStore(tmp_path / "units")
    burnt = ledger.burn_unfinished()
    store.sweep(ledger.all_ready())
    if step < 4:
        assert burnt == [UNIT]
        assert ledger.state(UNIT) == "burnt"
    elif step == 4:
        assert ledger.state(UNIT) == "ready"
        assert store.complete(UNIT)
        store.open(ledger.spend(UNIT, "s", 0), 0).take(AndNeed(640))
    else:
        assert ledger.state(UNIT) == "spent"
    with pytest.raises(LedgerError):
        ledger.spend(UNIT, "s", 1)
    assert not list(store.root.iterdir())
    assert ledger.reuse_count() == 0
    ledger.close()


# Compact units

_OT_NEEDS = (LeafNeed(4, 3000), LeafNeed(3, 70, 4), AndNeed(129), StringNeed(17, 64, 1), StringNeed(33, 65, 0))


@functools.cache
def kept_units():
    """(seeds, correlations made at once) of both parties, from one run of the protocol."""

    async def party_run(party):
        channel = Channel(party, bytes(16))
        ots = await correlate.set_up(channel, "silent")
        return await compact.keep(channel, ots, _OT_NEEDS, lambda need: None)

    run = lockstep.run(party_run(0), party_run(1))
    return [(kept, list(compact.expand(party, kept, _OT_NEEDS))) for party, kept in enumerate(run.results)]


def write_compact(store, ledger, party, unit=UNIT):
    matrix = correlation(MATRIX, party, np.random.default_rng())
    ledger.begin(STOCK, b"b" * 16, [unit])
    writer = store.writer(unit, party, SEED, (MATRIX, *_OT_NEEDS), compact=True)
    with pytest.raises(CorrelationError, match="not what comes next"):
        writer.put_seeds(kept_units()[party][0])
    writer.put(MATRIX, matrix)
    with pytest.raises(CorrelationError, match="not what the plan has"):
        writer.put(_OT_NEEDS[0], kept_units()[party][1][0])
    writer.put_seeds(kept_units()[party][0])
    writer.finish()
    ledger.ready([unit], writer.bytes_written)


def read_all(store, ledger, party, unit=UNIT):
    reader = store.open(ledger.spend(unit, "s", 0), party)
    reader.take(MATRIX)
    for need, want in zip(_OT_NEEDS, kept_units()[party][1], strict=True):
        got = reader.take(need)
        for name in want.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    with pytest.raises(CorrelationError, match="no more"):
        reader.take(AndNeed(1))
    reader.close()


@pytest.mark.parametrize("party", [0, 1])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_compact_unit_gives_the_same(store, ledger, party, ahead):
    write_compact(store, ledger, party)
    assert store.complete(UNIT)
    assert store.is_compact(UNIT)
    if ahead:
        assert store.expand(UNIT, party, lambda: False)
        assert store.complete(UNIT)
        assert not store.is_compact(UNIT)
        assert {f.name for f in (store.root / UNIT.hex()).iterdir()} == {"matrix.bin", "pads.bin"}
        assert not store.expand(UNIT, party, lambda: False), "there are no seeds any more"
    read_all(store, ledger, party)
    assert not (store.root / UNIT.hex()).exists()


def test_expansion_that_is_given_up_changes_nothing(store, ledger):
    write_compact(store, ledger, 0)
    assert not store.expand(UNIT, 0, lambda: True)
    assert {f.name for f in (store.root / UNIT.hex()).iterdir()} == {"matrix.bin", "seeds.bin"}
    (store.root / UNIT.hex() / "pads.new").write_bytes(b"what a crash left")
    assert store.complete(UNIT)
    assert store.expand(UNIT, 0, lambda: False)
    read_all(store, ledger, 0)


def test_a_full_disk_leaves_a_unit_compact(store, ledger, monkeypatch):
    """Whether the file cannot be made or cannot be written; closing it meets the full disk a second time."""

    def no_inode(path, flags):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_compact(store, ledger, 0)
    for opener in (lambda path, flags: os.open("/dev/full", os.O_WRONLY), no_inode):
        with monkeypatch.context() as patched:
            patched.setattr("mpcd.daemon.offline.store._private", opener)
            with pytest.raises(NotEnough, match="disk is full"):
                store.expand(UNIT, 0, lambda: False)
    assert store.is_compact(UNIT)
    read_all(store, ledger, 0)


def test_a_unit_used_while_it_is_expanded(store, ledger):
    """Opened in the middle: the reader waits and finds pads. Removed in the middle: nothing is left."""
    write_compact(store, ledger, 0)
    begun = threading.Event()

    def never():
        begun.set()
        return False

    expanding = threading.Thread(target=store.expand, args=(UNIT, 0, never))
    expanding.start()
    begun.wait()
    read_all(store, ledger, 0)
    expanding.join()
    assert not (store.root / UNIT.hex()).exists()

    other = b"o" * 16
    write_compact(store, ledger, 0, other)

    def remove():
        store.remove([other])
        return False

    assert not store.expand(other, 0, remove)
    assert not (store.root / other.hex()).exists()


def test_damaged_seeds(store, ledger):
    write_compact(store, ledger, 1)
    path = store.root / UNIT.hex() / "seeds.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorrelationError, match="damaged"):
        store.expand(UNIT, 1, lambda: False)
    reader = store.open(ledger.spend(UNIT, "s", 0), 1)
    with pytest.raises(CorrelationError, match="damaged"):
        reader.take(_OT_NEEDS[0])
    reader.close()


def test_units_are_expanded_ahead(store, ledger):
    units = [bytes([n]) * 16 for n in range(3)]
    for unit in units:
        write_compact(store, ledger, 1, unit)
    expansion = Expansion(ledger, store, 2)
    expansion.ahead(STOCK, 1)
    expansion.ahead(STOCK, 1)
    deadline = time.monotonic() + 60
    while sum(store.is_compact(unit) for unit in units) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    expansion.close()
    expansion.ahead(STOCK, 1)
    assert [store.is_compact(unit) for unit in ledger.ready_units(STOCK)] == [False, False, True]
    for unit in units:
        read_all(store, ledger, 1, unit)
