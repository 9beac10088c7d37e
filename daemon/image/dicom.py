"""DICOM files, in and out: the only module that knows pydicom and its codecs.

Reading gives the grey values that a radiologist's screen would start from, in this order and no other:

1. decode the stored values: bits HighBit-BitsStored+1 to HighBit, sign-extended where PixelRepresentation is 1;
2. modality LUT or rescale slope and intercept (PS3.3 C.11.1);
3. only where the caller asks for the window: VOI LUT, else the first window (PS3.3 C.11.2);
4. to [0, 1], where 0 and 1 are the ends of what the previous step can express (not what this image happens to hold);
5. MONOCHROME1 inversion, last: afterwards 1 is white.

Without a window, and with an identity or linear rescale, that is stored / (2^BitsStored - 1) for unsigned pixels.

Each transfer syntax has one decoder, whatever else is installed: the same file gives the same pixels everywhere.
They were chosen by fuzzing as well: GDCM, and the RLE decoder of imagecodecs, end the process on some damaged files.

Errors say why a file cannot be used; ``reason`` is the stable word that skipped files are counted under.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi

from mpcd.daemon.errors import BadInput

MAX_FILE_BYTES = 1 << 30
MAX_PIXELS = 1 << 26

_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
_JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
# Start of frame: Huffman sequential and lossless, and JPEG-LS.
_SOF = (0xC0, 0xC1, 0xC3, 0xF7)
_JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
# Stored words as they are, with HighBit and perhaps foreign bits around it; the codecs above give bare numbers.
_UNALIGNED = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
)


class DicomError(BadInput):
    """The file cannot be used as an image. ``path`` names it, ``reason`` is a stable word to count by."""

    code = "dicom"
    private = True
    reason = "unusable"

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.path = path
        self.detail = detail


class Unreadable(DicomError):
    """The operating system did not let us read the file."""

    reason = "unreadable"


class NotDicom(DicomError):
    """The file has no DICOM header."""

    reason = "not-dicom"


class NoInstanceUid(DicomError):
    """The file has no valid SOPInstanceUID, by which images are known."""

    reason = "no-sop-instance-uid"


class NoPixelData(DicomError):
    """The DICOM file carries no image."""

    reason = "no-pixel-data"


class MultiFrame(DicomError):
    """The DICOM file holds several frames."""

    reason = "multi-frame"


class UnsupportedPhotometric(DicomError):
    """The image is not one sample of grey a pixel."""

    reason = "unsupported-photometric-interpretation"


class TooLarge(DicomError):
    """The file or its image is larger than any radiograph."""

    reason = "too-large"


class Undecodable(DicomError):
    """The pixel data are damaged, or in an encoding that cannot be read."""

    reason = "undecodable"


@dataclasses.dataclass(frozen=True)
class Radiograph:
    """One decoded image.

    ``pixels``: float64 (rows, columns) in [0, 1], 1 white. ``bits_stored`` 1 to 16. ``windowed``: whether step 3 found
    a VOI LUT or window to apply. ``uid`` the SOPInstanceUID.
    """

    uid: str
    pixels: npt.NDArray[np.float64]
    bits_stored: int
    modality: str
    photometric: str
    transfer_syntax: str
    windowed: bool


def read_bytes(path: Path) -> bytes:
    """The file's bytes, when it starts as a DICOM file does (128 bytes, then ``DICM``); else NotDicom, read no further.

    Raises Unreadable, NotDicom, TooLarge (over MAX_FILE_BYTES).
    """
    try:
        with path.open("rb") as file:
            head = file.read(132)
            if head[128:] != b"DICM":
                raise NotDicom(str(path), "not a DICOM file (no DICM after 128 bytes)")
            rest = file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise Unreadable(str(path), f"cannot be read: {error.strerror or error}") from error
    if len(rest) == MAX_FILE_BYTES:
        raise TooLarge(str(path), f"larger than {MAX_FILE_BYTES >> 20} MiB")
    return head + rest


def decode(data: bytes, path: str, *, window: bool = False) -> Radiograph:
    """Decode one DICOM file's bytes by the five steps above; ``path`` only names it in errors.

    Raises a subclass of DicomError, nothing else, for any bytes at all.
    """
    try:
        with _quiet():
            return _decode(data, path, window)
    except DicomError:
        raise
    except MemoryError as error:
        raise TooLarge(path, "does not fit in memory") from error
    except Exception as error:
        # pydicom and the codecs raise nearly anything on damaged files; the reason is theirs.
        raise Undecodable(path, f"cannot be decoded: {_reason(error)}") from error


def read(path: Path, *, window: bool = False) -> Radiograph:
    """``decode`` of a file. Raises a subclass of DicomError."""
    return decode(read_bytes(path), str(path), window=window)


def _decode(data: bytes, path: str, window: bool) -> Radiograph:
    try:
        header = pydicom.dcmread(io.BytesIO(data))
    except InvalidDicomError as error:
        raise NotDicom(path, "not a DICOM file (no DICM after 128 bytes)") from error
    if not header:  # what pydicom leaves of a file that ends inside an element
        raise Undecodable(path, "the file is cut short")
    instance = str(header.get("SOPInstanceUID") or "").strip()
    if not instance or not uid.UID(instance).is_valid:
        raise NoInstanceUid(path, "has no valid SOPInstanceUID")
    if "PixelData" not in header or not header["PixelData"].value:
        raise NoPixelData(path, "has no pixel data")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames != 1:
        raise MultiFrame(path, f"holds {frames} frames; a radiograph is one")
    photometric = str(header.get("PhotometricInterpretation") or "").strip()
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or int(header.get("SamplesPerPixel") or 1) != 1:
        raise UnsupportedPhotometric(path, f"is {photometric or 'of unstated colour'}, not MONOCHROME1 or MONOCHROME2")
    if int(header.Rows) * int(header.Columns) > MAX_PIXELS:
        raise TooLarge(path, f"{header.Rows} x {header.Columns} pixels are more than {MAX_PIXELS}")
    syntax = header.file_meta.TransferSyntaxUID
    if syntax not in (*_JPEG, *_JPEG_LS, *_JPEG_2000, *_UNALIGNED):
        raise Undecodable(path, f"transfer syntax {syntax.name} ({syntax}) is not supported")

    stored, bits = _stored(header, path)
    low, high = _stored_range(bits, signed=int(header.PixelRepresentation) == 1)
    grey, windowed = _grey(header, stored, low, high, window)
    if photometric == "MONOCHROME1":
        grey = 1.0 - grey
    return Radiograph(
        uid=instance,
        pixels=grey,
        bits_stored=bits,
        modality=str(header.get("Modality") or ""),
        photometric=photometric,
        transfer_syntax=str(syntax.name),
        windowed=windowed,
    )


def _stored(header: Dataset, path: str) -> tuple[npt.NDArray[np.int32], int]:
    """Step 1: stored values as int32 (rows, columns), and BitsStored."""
    allocated, bits = int(header.BitsAllocated), int(header.BitsStored)
    high_bit = int(header.get("HighBit", bits - 1))
    signed = int(header.PixelRepresentation)
    if allocated not in (8, 16) or not 1 <= bits <= allocated or not bits - 1 <= high_bit < allocated:
        raise Undecodable(path, f"BitsAllocated {allocated}, BitsStored {bits}, HighBit {high_bit} do not fit together")
    if signed not in (0, 1):
        raise Undecodable(path, f"PixelRepresentation {signed} is neither 0 nor 1")
    values = _codes(header, allocated)
    if values.shape != (header.Rows, header.Columns):
        raise Undecodable(path, f"decodes to shape {values.shape}, not {header.Rows} x {header.Columns}")
    if header.file_meta.TransferSyntaxUID in _UNALIGNED:
        # Bits outside BitsStored may hold anything (PS3.5 8.1.1), and the codecs below know nothing of HighBit.
        values >>= high_bit + 1 - bits
    elif values.min() < -(1 << (bits - 1)) or values.max() >= 1 << bits:
        raise Undecodable(path, f"pixel values {values.min()} to {values.max()} exceed BitsStored {bits}")
    values &= (1 << bits) - 1
    if signed:
        values = (values ^ (1 << (bits - 1))) - (1 << (bits - 1))
    return values, bits


def _codes(header: Dataset, allocated: int) -> npt.NDArray[np.int32]:
    """What the transfer syntax encodes, before BitsStored is looked at."""
    syntax = header.file_meta.TransferSyntaxUID
    if syntax in _UNALIGNED:
        plugin = "pydicom" if syntax == uid.RLELossless else ""
        options: dict[str, Any] = {"correct_unused_bits": False, "decoding_plugin": plugin}
        array, _ = get_decoder(syntax).as_array(header, index=0, raw=True, **options)
        return np.asarray(array).astype(np.int32)
    frame = next(generate_frames(header.PixelData, number_of_frames=1)).rstrip(b"\0")
    if not frame.endswith(b"\xff\xd9"):  # EOI and EOC; the decoders would fill what is missing with grey
        raise ValueError("the compressed image is cut short")
    if _frame_size(frame) != (header.Rows, header.Columns, 1):
        raise ValueError(f"the compressed image is not {header.Rows} x {header.Columns} of one component")
    if syntax in _JPEG:
        decoded = imagecodecs.jpeg8_decode(frame)
    elif syntax in _JPEG_LS:
        decoded = imagecodecs.jpegls_decode(frame)
    else:
        decoded = imagecodecs.jpeg2k_decode(frame)
    return np.asarray(decoded).astype(np.int32)


def _frame_size(frame: bytes) -> tuple[int, int, int]:
    """(rows, columns, components) as the JPEG, JPEG-LS or JPEG 2000 codestream states them, before any allocation."""
    if frame[:4] == b"\xff\x4f\xff\x51":  # SOC, SIZ: ISO 15444-1 A.5.1
        right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
        return bottom - top, right - left, int(struct.unpack_from(">H", frame, 40)[0])
    at = 2
    while frame[at] == 0xFF and frame[at + 1] not in _SOF:
        at += 2 + int(struct.unpack_from(">H", frame, at + 2)[0])
    if frame[:2] != b"\xff\xd8" or frame[at] != 0xFF:
        raise ValueError("the compressed image has no frame header")
    rows, columns, components = struct.unpack_from(">HHB", frame, at + 5)  # ISO 10918-1 B.2.2
    return rows, columns, components


def _stored_range(bits: int, *, signed: bool) -> tuple[int, int]:
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def _grey(
    header: Dataset, stored: npt.NDArray[np.int32], low: int, high: int, window: bool
) -> tuple[npt.NDArray[np.float64], bool]:
    """Steps 2 to 4: [0, 1], and whether a window was applied."""
    table = bool(header.get("ModalityLUTSequence"))
    slope = float(header.get("RescaleSlope", 1) or 0)
    intercept = float(header.get("RescaleIntercept", 0) or 0)
    if not table and (slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept)):
        raise ValueError(f"rescale slope {slope} and intercept {intercept} are not usable")
    if window and header.get("VOILUTSequence"):
        values = np.rint(_modality(header, stored)).astype(np.int32)
        top = _table_top(header.VOILUTSequence[0])
        return np.clip(apply_voi(values, header).astype(np.float64) / top, 0.0, 1.0), True
    if window and header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        return _windowed(header, _modality(header, stored)), True
    if table:
        top = _table_top(header.ModalityLUTSequence[0])
        return np.clip(_modality(header, stored) / top, 0.0, 1.0), False
    # The rescale cancels against its own range; not computing it keeps the division exact.
    grey = (stored.astype(np.float64) - low) / (high - low)
    return (grey if slope > 0 else 1.0 - grey), False


def _modality(header: Dataset, stored: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    return np.asarray(apply_modality_lut(stored, header), dtype=np.float64)


def _table_top(item: Dataset) -> float:
    return float((1 << int(item.LUTDescriptor[2])) - 1)


def _windowed(header: Dataset, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The first window, to [0, 1]: PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.1 (SIGMOID), C.11.2.1.3.2 (LINEAR_EXACT)."""
    centre, width = _first(header.WindowCenter), _first(header.WindowWidth)
    function = str(header.get("VOILUTFunction") or "LINEAR").upper()
    narrowest = 1.0 if function == "LINEAR" else math.ulp(0.0)
    if not (math.isfinite(centre) and math.isfinite(width) and width >= narrowest):
        raise ValueError(f"window centre {centre}, width {width} are not usable")
    if function == "SIGMOID":
        return np.asarray(1.0 / (1.0 + np.exp(-4.0 * (values - centre) / width)), dtype=np.float64)
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1.0
    elif function != "LINEAR_EXACT":
        raise ValueError(f"VOI LUT function {function} is not known")
    if width == 0:
        return (values > centre).astype(np.float64)
    return np.asarray(np.clip((values - centre) / width + 0.5, 0.0, 1.0), dtype=np.float64)


def _first(value: Any) -> float:
    return float(value[0] if isinstance(value, (list, pydicom.multival.MultiValue)) else value)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # Where pydicom announces a list, the first thing on it is the reason.
    return (lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0])[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """pydicom warns through ``warnings`` and its logger about tags that do not matter here."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


SYNTAXES = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "rle": uid.RLELossless,
    "jpeg-lossless": uid.JPEGLosslessSV1,
    "jpeg-ls": uid.JPEGLSLossless,
    "jpeg-2000": uid.JPEG2000Lossless,
}


def make_uid(*entropy: str) -> str:
    """A UID that depends on the given words only."""
    return str(uid.generate_uid(entropy_srcs=list(entropy)))


def write(
    path: Path,
    stored: npt.NDArray[np.integer[Any]],
    *,
    bits_stored: int,
    syntax: str,
    photometric: str = "MONOCHROME2",
    modality: str = "DX",
    instance_uid: str,
    signed: bool = False,
    tags: dict[str, Any] | None = None,
) -> None:
    """Write stored values (rows, columns), which must fit ``bits_stored`` (1 to 16), as one DICOM file.

    ``syntax`` is a key of SYNTAXES, all lossless; ``modality`` DX or CR; ``tags`` are further attributes by keyword.
    Reading the file back gives the same stored values.
    """
    low, high = _stored_range(bits_stored, signed=signed)
    if stored.ndim != 2 or stored.min() < low or stored.max() > high:
        raise ValueError(f"stored values do not fit {bits_stored} bits")
    sop_class = uid.DigitalXRayImageStorageForPresentation if modality == "DX" else uid.ComputedRadiographyImageStorage
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = uid.UID(instance_uid)
    meta.TransferSyntaxUID = SYNTAXES[syntax]
    header = Dataset()
    header.file_meta = meta
    header.SOPClassUID = sop_class
    header.SOPInstanceUID = instance_uid
    header.Modality = modality
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = photometric
    header.Rows, header.Columns = stored.shape
    header.BitsAllocated = 8 if bits_stored <= 8 else 16
    header.BitsStored = bits_stored
    header.HighBit = bits_stored - 1
    header.PixelRepresentation = int(signed)
    for keyword, value in (tags or {}).items():
        setattr(header, keyword, value)
    kind = ("i" if signed else "u") + ("1" if header.BitsAllocated == 8 else "2")
    raw = np.ascontiguousarray(stored.astype(f"<{kind}")).tobytes()
    encoded = _encode(np.frombuffer(raw, f"<u{kind[1]}").reshape(stored.shape), header, syntax)
    header.PixelData = raw + b"\0" * (len(raw) % 2) if encoded is None else encapsulate([encoded])
    header["PixelData"].VR = "OW" if encoded is None and header.BitsAllocated == 16 else "OB"
    header.save_as(path, enforce_file_format=True)


def _encode(codes: npt.NDArray[Any], header: Dataset, syntax: str) -> bytes | None:
    """One encoded frame of unsigned codes, or None for an uncompressed syntax."""
    bits = header.BitsStored
    if syntax == "rle":
        return _rle_encode(codes)
    mask = np.array((1 << bits) - 1, dtype=codes.dtype)
    if syntax == "jpeg-lossless":
        return bytes(imagecodecs.jpeg8_encode(codes & mask, lossless=True, predictor=1, bitspersample=bits))
    if syntax == "jpeg-ls":
        return bytes(imagecodecs.jpegls_encode(codes & mask, level=0))
    if syntax == "jpeg-2000":
        return bytes(
            imagecodecs.jpeg2k_encode(codes & mask, level=0, reversible=True, codecformat="j2k", bitspersample=bits)
        )
    return None


def _rle_encode(codes: npt.NDArray[Any]) -> bytes:
    """PS3.5 annex G: a header of 16 offsets, then each byte plane by PackBits row by row, most significant first."""
    planes = codes.astype(codes.dtype.newbyteorder(">")).view(np.uint8).reshape(*codes.shape, -1)
    segments = []
    for plane in np.moveaxis(planes, -1, 0):
        packed = b"".join(imagecodecs.packbits_encode(row.tobytes()) for row in plane)
        segments.append(packed + b"\0" * (len(packed) % 2))
    offsets = [64 + sum(map(len, segments[:i])) for i in range(len(segments))]
    return struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)
