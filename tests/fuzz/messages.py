"""Protocol messages: whatever header and payload, the message that the step expects or WireError."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgpack
import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from mpcd.protocol import wire
from mpcd.protocol.wire import WireError, array, blob, message
from tests.fuzz.harness import Target, changed


@message("fuzz-table")
class Table:
    wide: npt.NDArray[np.uint64] = array("uint64", 2)
    narrow: npt.NDArray[np.uint8] = array("uint8", 1)
    seed: bytes = blob(16)


@message("fuzz-none")
class Nothing:
    pass


@message("fuzz-cube")
class Cube:
    a: npt.NDArray[np.uint32] = array("uint32", 3)
    b: npt.NDArray[np.uint16] = array("uint16", 1)


VALID = (
    (Table(np.ones((3, 2), np.uint64), np.zeros(5, np.uint8), bytes(16)), {"wide": (3, 2), "narrow": (5,)}),
    (Nothing(), {}),
    (Cube(np.ones((2, 1, 2), np.uint32), np.zeros(0, np.uint16)), {"a": (2, 1, 2), "b": (0,)}),
)
SEQUENCE = 7


def joined(which: int, header: bytes, payload: bytes) -> bytes:
    return bytes([which]) + len(header).to_bytes(2, "little") + header + payload


class Messages(Target):
    def seeds(self) -> Sequence[bytes]:
        frames = [wire.encode(valid, SEQUENCE) for valid, _ in VALID]
        return [joined(which, f.header, b"".join(f.payload)) for which, f in enumerate(frames)]

    def structured(self) -> st.SearchStrategy[bytes]:
        def headers(which: int) -> st.SearchStrategy[bytes]:
            frame = wire.encode(VALID[which][0], SEQUENCE)
            payload = b"".join(frame.payload)
            parts = changed(msgpack.unpackb(frame.header))
            return parts.map(lambda parts: joined(which, msgpack.packb(parts), payload))

        return st.sampled_from(range(len(VALID))).flatmap(headers)

    def one(self, data: bytes) -> None:
        if len(data) < 3:
            return
        valid, shapes = VALID[data[0] % len(VALID)]
        size = int.from_bytes(data[1:3], "little")
        header, payload = data[3 : 3 + size], data[3 + size :]
        try:
            got = wire.decode(type(valid), header, payload, SEQUENCE, shapes)
        except WireError:
            return
        again = wire.encode(got, SEQUENCE)
        assert b"".join(again.payload) == payload, "something else than the payload was taken"
        assert msgpack.unpackb(again.header) == msgpack.unpackb(header)
        for name, shape in shapes.items():
            assert getattr(got, name).shape == shape


def make(folder: Path) -> Target:
    return Messages()
