"""DICOM files from anywhere: headers that lie, pixels that are cut, codecs that are fed garbage."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from mpcd.daemon.image import dicom
from mpcd.daemon.image.dicom import DicomError
from tests.fuzz.harness import Target

# Rows, Columns, BitsAllocated, BitsStored, HighBit, PixelRepresentation, SamplesPerPixel, NumberOfFrames.
TAGS = (0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280002, 0x00280008)
VALUES = (0, 1, 2, 7, 8, 9, 15, 16, 17, 32, 255, 4096, 32767, 65535)


class Dicoms(Target):
    def __init__(self, folder: Path) -> None:
        pixels = np.arange(64).reshape(8, 8)
        windows = {"WindowCenter": 30, "WindowWidth": 50, "RescaleSlope": 2, "RescaleIntercept": -3}
        self._files = []
        for index, syntax in enumerate(dicom.SYNTAXES):
            file = folder / f"{index}.dcm"
            bits = 12 if index % 2 else 8
            tags = windows if index % 3 == 0 else {}
            dicom.write(file, pixels, bits_stored=bits, syntax=syntax, instance_uid=f"1.2.{index + 1}", tags=tags)
            self._files.append(file.read_bytes())

    def seeds(self) -> Sequence[bytes]:
        return self._files

    def structured(self) -> st.SearchStrategy[bytes]:
        def lie(data: bytes, number: int) -> bytes:
            """A header's number changed to another."""
            rng = random.Random(number)
            out = bytearray(data)
            for _ in range(rng.choice((1, 1, 2, 3))):
                tag = rng.choice(TAGS)
                at = data.find(struct.pack("<HH", tag >> 16, tag & 0xFFFF), 132)
                if 0 < at < len(out) - 10:
                    struct.pack_into("<H", out, at + 8, rng.choice(VALUES))
                if rng.random() < 0.2:
                    del out[rng.randrange(132, len(out)) :]
            return bytes(out)

        return st.builds(lie, st.sampled_from(self._files), st.integers(0, 1 << 62))

    def one(self, data: bytes) -> None:
        for window in (False, True):
            try:
                image = dicom.decode(data, "file", window=window)
            except DicomError as error:
                assert error.reason
                continue
            assert image.pixels.dtype == np.float64
            assert image.pixels.ndim == 2
            assert image.pixels.min() >= 0
            assert image.pixels.max() <= 1
            assert 1 <= image.bits_stored <= 16


def make(folder: Path) -> Target:
    return Dicoms(folder)
