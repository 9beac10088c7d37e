"""A compiled model's private numbers, damaged on the disk or exchanged."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import strategies as st

from mpcd.daemon.model import artifact
from mpcd.daemon.model.nodes import ModelError
from tests.fuzz.harness import Target
from tests.protocol.small_networks import residual

HEADERS = (
    "{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (1 << 40,), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999, 99999999999), }",
    "{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (), }",
    "{'descr': '<M8[s]', 'fortran_order': True, 'shape': (2, 0), }",
    "__import__('os').abort()",
    "(" * 300,
)


class Numbers(Target):
    def __init__(self) -> None:
        self._network, numbers = residual(1)
        self._numbers = numbers
        self._valid = artifact.numbers_to_bytes(numbers)

    def seeds(self) -> Sequence[bytes]:
        return [self._valid, _archive({"0.LinearNumbers.weight": _array(HEADERS[0], bytes(16))})]

    def structured(self) -> st.SearchStrategy[bytes]:
        names = st.sampled_from(
            [
                "1.LinearNumbers.weight",
                "1.LinearNumbers.bias",
                "1.Other.weight",
                "x.y.z",
                "1",
                "../x",
                "1.ReluNumbers.x",
            ]
        )
        member = st.builds(_array, st.sampled_from(HEADERS), st.binary(max_size=64))
        return st.dictionaries(names, member, max_size=4).map(_archive)

    def one(self, data: bytes) -> None:
        try:
            numbers = artifact.numbers_from_bytes(data)
            artifact.verify(self._network, numbers)
        except ModelError as error:
            str(error)


def _array(header: str, body: bytes) -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


def _archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def make(folder: Path) -> Target:
    return Numbers()
