import msgpack
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcd.protocol import wire
from mpcd.protocol.wire import WireError, array, blob, message


@message("test-wire-table")
class Table:
    wide: npt.NDArray[np.uint64] = array("uint64", 2)
    narrow: npt.NDArray[np.uint8] = array("uint8", 1)
    seed: bytes = blob(16)


@message("test-wire-empty")
class Empty:
    pass


@message("test-wire-all")
class AllTypes:
    a: npt.NDArray[np.uint64] = array("uint64", 1)
    b: npt.NDArray[np.uint32] = array("uint32", 1)
    c: npt.NDArray[np.uint16] = array("uint16", 1)
    d: npt.NDArray[np.uint8] = array("uint8", 3)


SHAPES = {"wide": (3, 2), "narrow": (5,)}


def table():
    rng = np.random.default_rng()
    return Table(rng.integers(0, 1 << 64, (3, 2), np.uint64), rng.integers(0, 256, 5, np.uint8), rng.bytes(16))


def joined(frame):
    return b"".join(frame.payload)


def repacked(frame, change):
    """The frame's header with its four parts changed."""
    parts = msgpack.unpackb(frame.header)
    change(parts)
    return msgpack.packb(parts)


def test_round_trip():
    sent = table()
    frame = wire.encode(sent, 7)
    got = wire.decode(Table, frame.header, joined(frame), 7, SHAPES)
    assert np.array_equal(got.wide, sent.wide)
    assert np.array_equal(got.narrow, sent.narrow)
    assert got.seed == sent.seed
    assert frame.payload_size == wire.expected_size(Table, SHAPES) == 3 * 2 * 8 + 5
    assert wire.decode(Empty, wire.encode(Empty(), 0).header, b"", 0, {}) == Empty()


@given(st.lists(st.integers(0, 65), min_size=6, max_size=6))
def test_round_trip_of_every_dtype_and_any_shape(sizes):
    a, b, c, *d = sizes
    rng = np.random.default_rng()
    sent = AllTypes(
        rng.integers(0, 1 << 64, a, np.uint64),
        rng.integers(0, 1 << 32, b, np.uint32),
        rng.integers(0, 1 << 16, c, np.uint16),
        rng.integers(0, 256, d, np.uint8),
    )
    shapes = {"a": (a,), "b": (b,), "c": (c,), "d": tuple(d)}
    frame = wire.encode(sent, 0)
    assert frame.payload_size == wire.expected_size(AllTypes, shapes)
    got = wire.decode(AllTypes, frame.header, joined(frame), 0, shapes)
    for name in "abcd":
        assert np.array_equal(getattr(got, name), getattr(sent, name))


def test_bytes_are_little_endian_c_order():
    frame = wire.encode(Table(np.array([[1, 2]], np.uint64).T.copy(order="F"), np.array([9], np.uint8), bytes(16)), 0)
    assert joined(frame) == b"\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\x09"
    assert msgpack.unpackb(frame.header) == ["test-wire-table", 0, [["<u8", [2, 1]], ["|u1", [1]]], {"seed": bytes(16)}]


def test_bulk_is_not_copied_either_way():
    sent = table()
    frame = wire.encode(sent, 0)
    assert np.shares_memory(np.frombuffer(frame.payload[0], np.uint8), sent.wide)
    payload = memoryview(bytearray(joined(frame)))
    got = wire.decode(Table, frame.header, payload, 0, SHAPES)
    assert np.shares_memory(got.wide, np.frombuffer(payload, np.uint8))
    assert got.wide.flags.writeable
    assert not wire.decode(Table, frame.header, joined(frame), 0, SHAPES).wide.flags.writeable


@pytest.mark.parametrize(
    ("cls", "args"),
    [
        (Table, (np.zeros((1, 1), np.int64), np.zeros(1, np.uint8), bytes(16))),
        (Table, (np.zeros((1, 1), ">u8"), np.zeros(1, np.uint8), bytes(16))),
        (Table, (np.zeros(1, np.uint64), np.zeros(1, np.uint8), bytes(16))),
        (Table, (np.zeros((1, 1), np.uint64), np.zeros(1, np.uint8), bytes(15))),
    ],
)
def test_encoder_refuses_what_the_class_does_not_declare(cls, args):
    with pytest.raises(TypeError):
        wire.encode(cls(*args), 0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda p: p.__setitem__(0, "test-wire-empty"), "expected a test-wire-table message, got 'test-wire-empty'"),
        (lambda p: p.__setitem__(0, "x" * 10_000), "expected a test-wire-table"),
        (lambda p: p.__setitem__(1, 4), "expected message number 3, got 4"),
        (lambda p: p.__setitem__(1, -1), "expected message number 3"),
        (lambda p: p.__setitem__(2, {}), "malformed"),
        (lambda p: p.__setitem__(3, []), "malformed"),
        (lambda p: p[2][0].__setitem__(0, "<i8"), "wide should be"),
        (lambda p: p[2][0].__setitem__(0, "|O"), "wide should be"),
        (lambda p: p[2][0].__setitem__(1, [2, 3]), "wide should be"),
        (lambda p: p[2][0].__setitem__(1, [6]), "wide should be"),
        (lambda p: p[2][0].__setitem__(1, [3, 1 << 62]), "wide should be"),
        (lambda p: p[2][0].__setitem__(1, [-3, -2]), "wide should be"),
        (lambda p: p[2].pop(), "narrow is missing"),
        (lambda p: p[2].append(["|u1", [0]]), "surplus"),
        (lambda p: p[3].pop("seed"), "seed must be 16 bytes"),
        (lambda p: p[3].__setitem__("seed", bytes(17)), "seed must be 16 bytes"),
        (lambda p: p[3].__setitem__("seed", "x" * 16), "seed must be 16 bytes"),
        (lambda p: p[3].__setitem__("more", b""), "surplus"),
        (lambda p: p.append(0), "does not decode"),
        (lambda p: p.pop(), "does not decode"),
    ],
)
def test_every_departure_from_the_header_is_refused(change, match):
    frame = wire.encode(table(), 3)
    with pytest.raises(WireError, match=match):
        wire.decode(Table, repacked(frame, change), joined(frame), 3, SHAPES)


@pytest.mark.parametrize("payload", [lambda p: p[:-1], lambda p: p[:0], lambda p: p[:10], lambda p: p + b"\0"])
def test_missing_and_surplus_payload_is_refused(payload):
    frame = wire.encode(table(), 0)
    with pytest.raises(WireError, match=r"truncated|surplus"):
        wire.decode(Table, frame.header, payload(joined(frame)), 0, SHAPES)


@given(st.binary(max_size=200))
def test_garbage_headers_are_refused(header):
    with pytest.raises(WireError):
        wire.decode(Table, header, b"", 0, SHAPES)


def test_oversized_header_is_refused_unread():
    with pytest.raises(WireError, match="at most 16384"):
        wire.decode(Table, bytes(wire.MAX_HEADER + 1), b"", 0, SHAPES)


def test_two_classes_cannot_share_a_kind():
    with pytest.raises(TypeError, match="defined twice"):

        @message("test-wire-table")
        class Another:
            pass


def test_only_types_with_a_wire_form_can_be_declared():
    with pytest.raises(TypeError, match="no wire form"):
        array("float64", 1)
