"""Reading DICOM: every encoding back to its stored values, the order of the grey pipeline, and hostile files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence

from mpcd.daemon.image import dicom

UID = dicom.make_uid("test")
CXR = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "cxr"


def stored_range(bits: int, signed: bool) -> tuple[int, int]:
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def picture(bits: int, signed: bool = False, shape: tuple[int, int] = (21, 34)) -> np.ndarray:
    low, high = stored_range(bits, signed)
    x = np.random.default_rng(bits).integers(low, high + 1, shape)
    x[0, 0], x[0, 1] = low, high
    return x


def file_of(tmp_path: Path, x: np.ndarray, **changes: Any) -> Dataset:
    """A written and re-read data set, to be changed and encoded again by ``encoded``."""
    dicom.write(tmp_path / "a.dcm", x, **{"bits_stored": 8, "syntax": "explicit", "instance_uid": UID, **changes})
    return pydicom.dcmread(tmp_path / "a.dcm")


def encoded(header: Dataset) -> bytes:
    out = io.BytesIO()
    header.save_as(out)
    return out.getvalue()


@pytest.mark.parametrize("syntax", sorted(dicom.SYNTAXES))
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 5, 7, 8, 9, 10, 12, 13, 14, 15, 16])
def test_every_syntax_depth_and_sign(tmp_path: Path, syntax: str, signed: bool, bits: int) -> None:
    x = picture(bits, signed)
    dicom.write(tmp_path / "a.dcm", x, bits_stored=bits, syntax=syntax, instance_uid=UID, signed=signed)
    image = dicom.read(tmp_path / "a.dcm")
    low, high = stored_range(bits, signed)
    assert np.array_equal(image.pixels, (x - low) / (high - low))
    assert (image.uid, image.bits_stored, image.windowed) == (UID, bits, False)


@pytest.mark.parametrize("syntax", sorted(dicom.SYNTAXES))
def test_odd_shapes(tmp_path: Path, syntax: str) -> None:
    x = picture(12, shape=(17, 9))
    dicom.write(tmp_path / "a.dcm", x, bits_stored=12, syntax=syntax, instance_uid=UID)
    assert np.array_equal(dicom.read(tmp_path / "a.dcm").pixels, x / 4095)


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    x = picture(12)
    dicom.write(
        tmp_path / "a.dcm", x, bits_stored=12, syntax="rle", photometric="MONOCHROME1", instance_uid=UID, modality="CR"
    )
    image = dicom.read(tmp_path / "a.dcm")
    assert np.array_equal(image.pixels, 1 - x / 4095)
    assert (image.modality, image.photometric) == ("CR", "MONOCHROME1")


@pytest.mark.parametrize("signed", [False, True])
def test_high_bit_and_foreign_bits(tmp_path: Path, signed: bool) -> None:
    x = picture(10, signed)
    header = file_of(tmp_path, picture(16), bits_stored=16)
    noise = np.random.default_rng(0).integers(0, 1 << 16, x.shape)
    header.BitsStored, header.HighBit, header.PixelRepresentation = 10, 13, int(signed)
    header.PixelData = ((noise & ~(0x3FF << 4)) | ((x & 0x3FF) << 4)).astype("<u2").tobytes()
    low, high = stored_range(10, signed)
    assert np.array_equal(dicom.decode(encoded(header), "x").pixels, (x - low) / (high - low))


def test_jpeg_baseline_and_extended(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(40), np.arange(64)) / 103
    for syntax, bits in ((uid.JPEGBaseline8Bit, 8), (uid.JPEGExtended12Bit, 12)):
        x = np.rint(smooth * ((1 << bits) - 1)).astype(np.uint8 if bits == 8 else np.uint16)
        header = file_of(tmp_path, x, bits_stored=bits)
        header.file_meta.TransferSyntaxUID = syntax
        header.PixelData = encapsulate([imagecodecs.jpeg8_encode(x, level=95, bitspersample=bits)])
        header["PixelData"].VR = "OB"
        assert np.abs(dicom.decode(encoded(header), "x").pixels - smooth).max() < 0.02


def test_rescale_keeps_the_stored_fraction(tmp_path: Path) -> None:
    x = picture(12)
    header = file_of(tmp_path, x, bits_stored=12)
    header.RescaleSlope, header.RescaleIntercept = "0.37", "-1024"
    assert np.array_equal(dicom.decode(encoded(header), "x").pixels, x / 4095)
    header.RescaleSlope = "-2"
    assert np.array_equal(dicom.decode(encoded(header), "x").pixels, 1 - x / 4095)
    header.RescaleSlope = "0"
    with pytest.raises(dicom.Undecodable, match="slope"):
        dicom.decode(encoded(header), "x")


def lut(entries: list[int], first: int, bits: int) -> Sequence:
    item = Dataset()
    item.add_new(0x00283002, "US", [len(entries), first, bits])
    item.add_new(0x00283006, "OW", np.array(entries, "<u2").tobytes())
    return Sequence([item])


def test_modality_lut_then_voi_lut_then_inversion(tmp_path: Path) -> None:
    x = np.arange(16).reshape(4, 4)
    header = file_of(tmp_path, x)
    header.PhotometricInterpretation = "MONOCHROME1"
    table = [(v * v) % 200 for v in range(16)]
    header.ModalityLUTSequence = lut(table, 0, 8)
    modality = np.array(table)[x]
    assert np.allclose(dicom.decode(encoded(header), "x").pixels, 1 - modality / 255)
    voi = [min(1023, 5 * v) for v in range(200)]
    header.VOILUTSequence = lut(voi, 0, 10)
    header.WindowCenter, header.WindowWidth = "1", "2"  # the table goes first
    image = dicom.decode(encoded(header), "x", window=True)
    assert image.windowed
    assert np.allclose(image.pixels, 1 - np.array(voi)[modality] / 1023)
    assert not dicom.decode(encoded(header), "x").windowed


def test_windows(tmp_path: Path) -> None:
    x = picture(12)
    header = file_of(tmp_path, x, bits_stored=12)
    header.RescaleSlope, header.RescaleIntercept = "2", "-100"
    header.WindowCenter, header.WindowWidth = ["3000", "1"], ["1001", "2"]
    v = 2.0 * x - 100
    assert np.allclose(dicom.decode(encoded(header), "x", window=True).pixels, np.clip((v - 2999.5) / 1000 + 0.5, 0, 1))
    header.VOILUTFunction = "LINEAR_EXACT"
    assert np.allclose(dicom.decode(encoded(header), "x", window=True).pixels, np.clip((v - 3000) / 1001 + 0.5, 0, 1))
    header.VOILUTFunction = "SIGMOID"
    assert np.allclose(dicom.decode(encoded(header), "x", window=True).pixels, 1 / (1 + np.exp(-4 * (v - 3000) / 1001)))
    header.VOILUTFunction = "LINEAR"
    header.WindowCenter, header.WindowWidth = "3000", "1"
    assert np.array_equal(dicom.decode(encoded(header), "x", window=True).pixels, (v > 2999.5).astype(float))
    header.WindowWidth = "0"
    with pytest.raises(dicom.Undecodable, match="window"):
        dicom.decode(encoded(header), "x", window=True)


def test_no_window_in_the_file_means_the_stored_range(tmp_path: Path) -> None:
    x = picture(8)
    image = dicom.decode(encoded(file_of(tmp_path, x)), "x", window=True)
    assert not image.windowed
    assert np.array_equal(image.pixels, x / 255)


def test_errors_name_the_file_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "letter.dcm"
    path.write_text("Dear colleague, " * 40)
    with pytest.raises(dicom.NotDicom, match=r"letter\.dcm: not a DICOM") as caught:
        dicom.read(path)
    assert (caught.value.reason, caught.value.path) == ("not-dicom", str(path))
    (tmp_path / "empty.dcm").touch()
    with pytest.raises(dicom.NotDicom):
        dicom.read(tmp_path / "empty.dcm")
    with pytest.raises(dicom.Unreadable):
        dicom.read(tmp_path / "absent.dcm")
    with pytest.raises(dicom.Unreadable):
        dicom.read(tmp_path)


def _drop(keyword: str) -> Any:
    return lambda header: delattr(header, keyword)


def _set(**values: Any) -> Any:
    def change(header: Dataset) -> None:
        for keyword, value in values.items():
            setattr(header, keyword, value)

    return change


def _syntax(header: Dataset) -> None:
    header.file_meta.TransferSyntaxUID = uid.MPEG2MPML
    header.PixelData = encapsulate([b"\0" * 64])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (_drop("PixelData"), dicom.NoPixelData),
        (_set(PixelData=b""), dicom.NoPixelData),
        (_drop("SOPInstanceUID"), dicom.NoInstanceUid),
        (_set(SOPInstanceUID=""), dicom.NoInstanceUid),
        (_set(NumberOfFrames=2), dicom.MultiFrame),
        (_set(PhotometricInterpretation="RGB", SamplesPerPixel=3, PlanarConfiguration=0), dicom.UnsupportedPhotometric),
        (_set(PhotometricInterpretation="PALETTE COLOR"), dicom.UnsupportedPhotometric),
        (_drop("PhotometricInterpretation"), dicom.UnsupportedPhotometric),
        (_set(Rows=60000, Columns=60000), dicom.TooLarge),
        (_set(Rows=22), dicom.Undecodable),
        (_set(Rows=0), dicom.Undecodable),
        (_set(BitsStored=9), dicom.Undecodable),
        (_set(BitsStored=0), dicom.Undecodable),
        (_set(HighBit=9), dicom.Undecodable),
        (_set(BitsAllocated=32), dicom.Undecodable),
        (_set(PixelRepresentation=2), dicom.Undecodable),
        (_drop("BitsStored"), dicom.Undecodable),
        (_syntax, dicom.Undecodable),
    ],
)
def test_unusable_files(tmp_path: Path, change: Any, error: type[dicom.DicomError]) -> None:
    header = file_of(tmp_path, picture(8))
    change(header)
    with pytest.raises(error, match="some/file"):
        dicom.decode(encoded(header), "some/file")


@pytest.mark.parametrize("syntax", sorted(dicom.SYNTAXES))
def test_truncated_files(tmp_path: Path, syntax: str) -> None:
    dicom.write(tmp_path / "a.dcm", picture(12), bits_stored=12, syntax=syntax, instance_uid=UID)
    data = (tmp_path / "a.dcm").read_bytes()
    # 8: an encapsulated file may lose its closing delimiter and still have the whole image.
    for length in [*range(132, len(data) - 8, 97), len(data) - 9]:
        with pytest.raises(dicom.DicomError):
            dicom.decode(data[:length], "x")


@pytest.mark.parametrize("syntax", ["jpeg-ls", "jpeg-lossless", "jpeg-2000"])
def test_codestream_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path, syntax: str) -> None:
    header = file_of(tmp_path, picture(8, shape=(16, 16)), syntax=syntax)
    header.Rows = 32
    with pytest.raises(dicom.Undecodable, match="32 x 16"):
        dicom.decode(encoded(header), "x")


def test_codestream_deeper_than_bits_stored_is_refused(tmp_path: Path) -> None:
    header = file_of(tmp_path, picture(16), bits_stored=16, syntax="jpeg-2000")
    header.BitsStored, header.HighBit = 12, 11
    with pytest.raises(dicom.Undecodable, match="exceed BitsStored 12"):
        dicom.decode(encoded(header), "x")


def test_image_cut_short_inside_a_whole_file(tmp_path: Path) -> None:
    for syntax in ("jpeg-ls", "jpeg-lossless", "jpeg-2000"):
        header = file_of(tmp_path, picture(8), syntax=syntax)
        frame = next(generate_frames(header.PixelData, number_of_frames=1))
        header.PixelData = encapsulate([frame[: len(frame) // 2]])
        with pytest.raises(dicom.Undecodable, match="cut short"):
            dicom.decode(encoded(header), "x")
    header = file_of(tmp_path, picture(8), syntax="rle")
    frame = next(generate_frames(header.PixelData, number_of_frames=1))
    header.PixelData = encapsulate([frame[:-10]])
    with pytest.raises(dicom.Undecodable, match="amount of decoded RLE"):
        dicom.decode(encoded(header), "x")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(dicom.SYNTAXES)),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_files_never_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, syntax: str, damage: list[tuple[float, int]]
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.dcm"
    dicom.write(path, picture(12), bits_stored=12, syntax=syntax, instance_uid=UID)
    data = bytearray(path.read_bytes())
    for where, value in damage:
        data[132 + int(where * (len(data) - 133))] = value
    try:
        image = dicom.decode(bytes(data), "x")
    except dicom.DicomError:
        return
    assert image.pixels.min() >= 0
    assert image.pixels.max() <= 1


@given(st.binary(max_size=400))
def test_any_bytes_after_the_mark(tail: bytes) -> None:
    with pytest.raises(dicom.DicomError):
        dicom.decode(b"\0" * 128 + b"DICM" + tail, "x")


def test_writing_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="8 bits"):
        dicom.write(tmp_path / "a.dcm", np.array([[256]]), bits_stored=8, syntax="rle", instance_uid=UID)


@pytest.mark.skipif(not CXR.is_dir(), reason="the real radiographs are not here")
def test_real_radiographs() -> None:
    files = sorted((CXR / "dicom").iterdir())
    images = [dicom.read(file) for file in files]
    assert len({image.uid for image in images}) == len(files) == 120
    for file, image in zip(files, images, strict=True):
        assert image.pixels.shape == (512, 512), file
        # A chest is darker at the border than in the middle once MONOCHROME1 is inverted, or at least not blank.
        assert image.pixels.std() > 0.05, file
    assert {image.photometric for image in images} == {"MONOCHROME1", "MONOCHROME2"}
