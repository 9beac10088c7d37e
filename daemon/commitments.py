"""Opening a commitment to an auditor: the salt and every part that was hashed, as one JSON file, and its check.

The other party has the commitment alone. Whoever has the opening can test guesses about what is in it: it goes to an
auditor, never over the link.

    what        "model" or "data set"
    commitment  as the other party has it
    salt        hexadecimal
    model       network (base64, public anyway), numbers (SHA-256 of the weights), recipe (base64, public)
    data set    complete, findings, images: [SOPInstanceUID, SHA-256 of the file, [[finding, present], ...]]
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpcd.daemon.errors import BadInput
from mpcd.daemon.image import dataset as datasets
from mpcd.daemon.image import dicom
from mpcd.daemon.library import Library, model_commitment
from mpcd.daemon.model import artifact

FORMAT = 1
MODEL, DATA_SET = "model", "data set"
MOST_BYTES = 1 << 30

Json = dict[str, Any]


class CommitmentError(BadInput):
    """The commitment is not opened by this."""

    code = "commitment"


def open_model(library: Library, name: str) -> Json:
    """Raises NotFound."""
    made = artifact.load(library.model_folder(name))
    return {
        "format": FORMAT,
        "what": MODEL,
        "name": name,
        "commitment": library.model(name).commitment,
        "salt": library.model_salt(name).hex(),
        "network": base64.b64encode(made.network.to_bytes()).decode(),
        "numbers": artifact.numbers_digest(made.numbers).hex(),
        "recipe": base64.b64encode(made.recipe.canonical()).decode(),
    }


def open_dataset(library: Library, name: str) -> Json:
    """Raises NotFound, DatasetError."""
    dataset = library.dataset(name)
    return {
        "format": FORMAT,
        "what": DATA_SET,
        "name": name,
        "commitment": dataset.commitment,
        "salt": dataset.salt.hex(),
        "complete": dataset.complete,
        "findings": sorted(dataset.findings),
        "images": dataset.rows(),
    }


def verify(
    file: Path, expected: str | None, path: Path | None, progress: Callable[[int, int], None] = lambda done, total: None
) -> Json:
    """Check an opening: that its parts and salt give its commitment, and ``expected`` where given; and that ``path``
    holds what was committed to: a compiled model's folder, or the DICOM files. Raises CommitmentError naming the part.
    """
    opening = _read(file)
    what, parts = opening["what"], _parts(opening)
    found = _commitment(opening, parts)
    if found != opening.get("commitment"):
        raise CommitmentError(f"{file} opens another commitment than it says: its parts give {found}")
    if expected not in (None, found):
        raise CommitmentError(f"{file} opens {found}, not {expected}", "it belongs to another model or data set")
    result: Json = {
        "what": what,
        "name": str(opening.get("name", "")),
        "commitment": found,
        "parts": {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()},
        "images": len(opening["images"]) if what == DATA_SET else None,
        "path": None if path is None else str(path),
    }
    if path is not None:
        (_check_model if what == MODEL else _check_files)(path, opening, parts, progress)
    return result


def _read(file: Path) -> Json:
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError("it is too large")
        opening = json.loads(file.read_bytes())
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CommitmentError(f"{file} is not an opening: {error}", _MADE_BY) from error
    if not isinstance(opening, dict) or opening.get("format") != FORMAT or opening.get("what") not in (MODEL, DATA_SET):
        raise CommitmentError(f"{file} is not an opening of this version of mpcd", _MADE_BY)
    return opening


_MADE_BY = "`mpcctl model open` and `mpcctl dataset open` write them"


def _parts(opening: Json) -> dict[str, bytes]:
    """The bytes that were hashed. Raises CommitmentError."""
    try:
        parts = {"salt": bytes.fromhex(opening["salt"])}
        if opening["what"] == MODEL:
            for name in ("network", "recipe"):
                parts[name] = base64.b64decode(opening[name], validate=True)
            parts["numbers"] = bytes.fromhex(opening["numbers"])
        else:
            parts["index"] = datasets.index_bytes(opening["complete"], opening["findings"], opening["images"])
            if any(
                len(bytes.fromhex(sha256)) != 32 or not isinstance(uid, str) for uid, sha256, _ in opening["images"]
            ):
                raise ValueError("an image has no SHA-256")
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise CommitmentError(f"the opening is malformed: {error}") from error
    return parts


def _commitment(opening: Json, parts: dict[str, bytes]) -> str:
    if opening["what"] == MODEL:
        return model_commitment(parts["salt"], parts["network"], parts["numbers"], parts["recipe"])
    return datasets.commitment(parts["salt"], hashlib.sha256(parts["index"]).hexdigest())


def _check_model(folder: Path, opening: Json, parts: dict[str, bytes], progress: Callable[[int, int], None]) -> None:
    made = artifact.load(folder)
    here = {
        "network": made.network.to_bytes(),
        "recipe": made.recipe.canonical(),
        "numbers": artifact.numbers_digest(made.numbers),
    }
    different = [name for name, part in here.items() if part != parts[name]]
    if different:
        raise CommitmentError(f"the model in {folder} has another {' and '.join(different)} than was committed to")


def _check_files(folder: Path, opening: Json, parts: dict[str, bytes], progress: Callable[[int, int], None]) -> None:
    """Every image committed to is there, byte for byte. Other files may be: what could not be used was not counted."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder")
    files = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    there = set()
    for done, file in enumerate(files, 1):
        if file.is_file():
            with contextlib.suppress(dicom.DicomError):  # not one of its images, then
                there.add(hashlib.sha256(dicom.read_bytes(file)).hexdigest())
        progress(done, len(files))
    missing = [uid for uid, sha256, _ in opening["images"] if sha256 not in there]
    if missing:
        raise CommitmentError(
            f"{len(missing)} of {len(opening['images'])} images that were committed to are not in {folder},"
            f" such as {missing[0]}"
        )
