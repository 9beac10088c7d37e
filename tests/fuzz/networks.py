"""The peer's description of its network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgpack
from hypothesis import strategies as st

from mpcd.protocol.network import Network, NetworkError
from tests.fuzz.harness import Target, changed
from tests.protocol.small_networks import dense, residual


class Networks(Target):
    def __init__(self) -> None:
        self._valid = [make(1)[0].to_bytes() for make in (dense, residual)]

    def seeds(self) -> Sequence[bytes]:
        return self._valid

    def structured(self) -> st.SearchStrategy[bytes]:
        return st.sampled_from([msgpack.unpackb(valid) for valid in self._valid]).flatmap(changed).map(msgpack.packb)

    def one(self, data: bytes) -> None:
        try:
            network = Network.from_bytes(data)
        except NetworkError as error:
            str(error)
            return
        again = Network.from_bytes(network.to_bytes())
        assert again.digest == network.digest


def make(folder: Path) -> Target:
    return Networks()
