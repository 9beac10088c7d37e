"""Labels: a CSV file of anybody's making, joined to a few images."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from hypothesis import strategies as st

from mpcd.daemon.image import labels
from mpcd.daemon.image.labels import LabelError
from tests.fuzz.harness import Target

IMAGES = [("1.2.3", "a/x.dcm"), ("1.2.4", "b/x.dcm"), ("1.2.5", "c/y.dcm")]
CELLS = (
    "1", "0", "-1", "", " ",
    "1.0", "nan", "inf", "1e400", "yes", "1.2.3", "x.png", "a\\x.dcm", "A|B", "No Finding|A",
    "|",
    '"', '""', '"a\nb"', "SOPInstanceUID", "Image Index", "Finding Labels", "Effusion", "effusion ", "\0", "é",
    "9" * 400,
)  # fmt: skip


class Labels(Target):
    def __init__(self, folder: Path) -> None:
        self._file = folder / "labels.csv"

    def seeds(self) -> Sequence[bytes]:
        return [
            b"SOPInstanceUID,Effusion,Mass\n1.2.3,1,0\n1.2.4,-1,\n",
            b"Image Index;Finding Labels;Age\nx.png;Effusion|Mass;70\ny.png;No Finding;60\n",
            b"\xef\xbb\xbfPath\tEffusion\nc/y.jpg\t1.0\n",
        ]

    def structured(self) -> st.SearchStrategy[bytes]:
        def table(number: int) -> bytes:
            rng = random.Random(number)
            columns = rng.randrange(1, 5)
            rows = [["SOPInstanceUID", "Image Index", "Finding Labels", "Effusion", "Mass"][:columns]]
            rows += [[rng.choice(CELLS) for _ in range(columns)] for _ in range(rng.randrange(6))]
            if rng.random() < 0.3:
                rows[rng.randrange(len(rows))].append(rng.choice(CELLS))
            if rng.random() < 0.3:
                rng.shuffle(rows[0])
            return "\n".join(rng.choice(",,;\t").join(row) for row in rows).encode()

        return st.integers(0, 1 << 62).map(table)

    def one(self, data: bytes) -> None:
        self._file.write_bytes(data)
        try:
            found = labels.read_labels(self._file)
            joined = labels.join(found, IMAGES)
        except LabelError as error:
            str(error)
            return
        assert found.findings
        assert set(joined.labels) <= {uid for uid, _ in IMAGES}
        assert all(type(label) is bool for row in joined.labels.values() for label in row.values())


def make(folder: Path) -> Target:
    return Labels(folder)
