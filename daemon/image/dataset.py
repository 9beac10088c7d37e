"""A data set: the images of a folder that can be used, their labels, and a commitment to both.

``scan`` looks at every file once, decodes it, joins the labels and gives an index; the index is saved (private, mode
0600) and each image's hash is checked again whenever it is loaded, so that a run uses what was approved.

The commitment is SHA-256(tag, salt, digest of the index), with a random salt that never leaves this machine: a plain
hash would let the peer confirm a guess about images or labels. It covers SOPInstanceUIDs, file hashes and labels, not
paths: moving a folder does not change it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcd.daemon.errors import BadInput
from mpcd.daemon.files import write_private
from mpcd.daemon.image import dicom, labels, preprocess
from mpcd.daemon.image.recipe import Recipe

FORMAT = 1
SALT_BYTES = 32

_TAG = b"mpcd data set commitment, version 1\n"


class DatasetError(BadInput):
    """The data set cannot be used."""

    code = "dataset"
    private = True


class ImageChanged(DatasetError):
    """An image is no longer the one that was added."""

    code = "image_changed"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One usable image. ``path`` relative to the folder; ``sha256`` of the file; ``labels`` the known findings only."""

    uid: str
    path: str
    size: int
    sha256: str
    labels: Mapping[str, bool]


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A file that is not used. ``reason`` is a stable word: one of dicom's, "duplicate" or "unlabelled"."""

    path: str
    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What ``scan`` found. ``entries`` in the order of their SOPInstanceUIDs; ``salt`` is private.

    ``labels_file`` is empty, and so are all labels, where the scan had none.
    ``findings`` as the labels spell them; ``complete``: a finding that the labels do not know is negative everywhere;
    ``unmatched``: ids of label rows without an image; ``joined_by``: images joined by "uid" and by "file".
    """

    folder: str
    labels_file: str
    salt: bytes
    found: int
    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...]
    findings: tuple[str, ...]
    complete: bool
    ignored_columns: tuple[str, ...]
    unmatched: tuple[str, ...]
    joined_by: Mapping[str, int]

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the canonical index. Private: only the commitment may leave the machine."""
        return hashlib.sha256(index_bytes(self.complete, sorted(self.findings), self.rows())).hexdigest()

    def rows(self) -> list[list[Any]]:
        """What the digest covers of each image: uid, SHA-256 of the file, labels."""
        return [[e.uid, e.sha256, [list(label) for label in sorted(e.labels.items())]] for e in self.entries]

    @property
    def commitment(self) -> str:
        """SHA-256 (hexadecimal) over tag, salt and digest: binds this side, tells the other nothing."""
        return commitment(self.salt, self.digest)

    def labels_for(self, findings: tuple[str, ...] | list[str]) -> dict[str, dict[str, bool | None]]:
        """{uid: {finding: present, absent or None for unknown}} for the model's names of the findings."""
        spelled = {labels.normalise(f): f for f in self.findings}
        default = False if self.complete else None
        out: dict[str, dict[str, bool | None]] = {}
        for entry in self.entries:
            out[entry.uid] = {}
            for finding in findings:
                name = spelled.get(labels.normalise(finding))
                out[entry.uid][finding] = default if name is None else entry.labels.get(name)
        return out

    def missing_findings(self, findings: tuple[str, ...] | list[str]) -> tuple[str, ...]:
        """Those of the model's findings that the labels never mention."""
        known = {labels.normalise(f) for f in self.findings}
        return tuple(f for f in findings if labels.normalise(f) not in known)

    def check_recipe(self, recipe: Recipe) -> None:
        """Raise DatasetError where the recipe refuses what ``scan`` only skipped."""
        several = [s for s in self.skipped if s.reason == dicom.MultiFrame.reason]
        if several and recipe.multi_frame == "refuse":
            raise DatasetError(
                f"{len(several)} multi-frame files, such as {several[0].path}, and recipe {recipe.name} refuses them",
                "take them out of the folder and add the data set again",
            )

    def load_image(self, entry: Entry, recipe: Recipe) -> npt.NDArray[np.float32]:
        """The image as float32 (channels, size, size). Raises ImageChanged if a byte differs."""
        path = Path(self.folder, entry.path)
        try:
            data = dicom.read_bytes(path)
        except dicom.DicomError as error:
            raise ImageChanged(f"{error}, but was there when the data set was added", _AGAIN) from error
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise ImageChanged(f"{path}: has changed since the data set was added", _AGAIN)
        image = dicom.decode(data, str(path), window=recipe.range == "window")
        return preprocess.prepare(image, recipe)

    def summary(self) -> dict[str, Any]:
        """Counts to show, without any image's name: JSON with stable keys.

        files, decodable, images, labelled, skipped {reason: n}, unmatched_labels, joined_by {uid, file},
        ignored_columns, findings {finding: {n, positives}}, commitment.
        """
        reasons = Counter(s.reason for s in self.skipped)
        known = {f: [e.labels[f] for e in self.entries if f in e.labels] for f in self.findings}
        return {
            "files": self.found,
            "decodable": len(self.entries) + reasons["unlabelled"] + reasons["duplicate"],
            "images": len(self.entries),
            "labelled": sum(bool(e.labels) for e in self.entries),
            "skipped": dict(sorted(reasons.items())),
            "unmatched_labels": len(self.unmatched),
            "joined_by": dict(self.joined_by),
            "ignored_columns": list(self.ignored_columns),
            "findings": {f: {"n": len(v), "positives": sum(v)} for f, v in known.items()},
            "commitment": self.commitment,
        }

    def save(self, path: Path) -> None:
        """Write the index atomically, readable by this user only."""
        document = {"format": FORMAT, **dataclasses.asdict(self), "salt": self.salt.hex(), "digest": self.digest}
        write_private(path, json.dumps(document, ensure_ascii=False, indent=1).encode())


_AGAIN = "put the file back, or add the data set again under a new name"


def scan(
    folder: Path,
    labels_csv: Path | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    salt: bytes | None = None,
) -> Dataset:
    """Look at every file below ``folder`` (links to folders are not followed) and join the labels.

    ``progress(done, total)`` is called after each file, in this thread; raising from it stops the scan. Files that
    cannot be used are skipped with their reason; of files with one SOPInstanceUID the first by path is taken. Without
    ``labels_csv`` (calibration images) every decodable image is an entry, and no finding is known. Raises DatasetError
    or labels.LabelError where nothing could be used.
    """
    folder = folder.resolve()
    labels_csv = labels_csv.resolve() if labels_csv is not None else None
    if not folder.is_dir():
        raise DatasetError(f"{folder}: is not a folder")
    table = labels.read_labels(labels_csv) if labels_csv is not None else labels.Labels((), (), False, ())
    files = sorted(
        Path(parent, name).relative_to(folder).as_posix()
        for parent, _, names in os.walk(folder)
        for name in names
        if Path(parent, name).is_file() and Path(parent, name) != labels_csv
    )
    images: dict[str, Entry] = {}
    skipped: list[Skipped] = []
    for done, name in enumerate(files, 1):
        try:
            data = dicom.read_bytes(folder / name)
            uid = dicom.decode(data, name).uid
        except dicom.DicomError as error:
            skipped.append(Skipped(name, error.reason, error.detail))
        else:
            if uid in images:
                skipped.append(Skipped(name, "duplicate", f"same SOPInstanceUID as {images[uid].path}"))
            else:
                images[uid] = Entry(uid, name, len(data), hashlib.sha256(data).hexdigest(), {})
        progress(done, len(files))
    if not images:
        reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(s.reason for s in skipped).most_common())
        raise DatasetError(
            f"{folder}: none of {len(files)} files is a usable image" + (f" ({reasons})" if reasons else "")
        )
    pairs = [(e.uid, e.path) for e in images.values()]
    joined = labels.join(table, pairs) if labels_csv is not None else labels.Join({}, (), (), {})
    entries = []
    for uid, entry in sorted(images.items()):
        if labels_csv is None:
            entries.append(entry)
        elif known := joined.labels.get(uid):
            entries.append(dataclasses.replace(entry, labels=dict(known)))
        else:
            detail = "every finding is unknown" if uid in joined.labels else "no row in the labels"
            skipped.append(Skipped(entry.path, "unlabelled", detail))
    if not entries:
        raise DatasetError(f"{labels_csv}: no image has a known label")
    return Dataset(
        folder=str(folder),
        labels_file=str(labels_csv or ""),
        salt=os.urandom(SALT_BYTES) if salt is None else salt,
        found=len(files),
        entries=tuple(entries),
        skipped=tuple(skipped),
        findings=table.findings,
        complete=table.complete,
        ignored_columns=table.ignored_columns,
        unmatched=joined.unmatched,
        joined_by=joined.by,
    )


def load(path: Path) -> Dataset:
    """An index that ``save`` wrote. Raises DatasetError where it is missing, of another version or damaged."""
    try:
        document = json.loads(path.read_bytes())
        if document.pop("format") != FORMAT:
            raise DatasetError(f"{path}: written by another version of mpcd", "add the data set again")
        digest = document.pop("digest")
        document["salt"] = bytes.fromhex(document["salt"])
        document["entries"] = tuple(Entry(**e) for e in document["entries"])
        document["skipped"] = tuple(Skipped(**s) for s in document["skipped"])
        for key in ("findings", "ignored_columns", "unmatched"):
            document[key] = tuple(document[key])
        dataset = Dataset(**document)
        intact = dataset.digest == digest
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{path}: damaged index", "add the data set again") from error
    if not intact:
        raise DatasetError(f"{path}: damaged index", "add the data set again")
    return dataset


def commitment(salt: bytes, digest: str) -> str:
    return hashlib.sha256(_TAG + salt + bytes.fromhex(digest)).hexdigest()


def index_bytes(complete: bool, findings: list[str], rows: list[list[Any]]) -> bytes:
    """What the digest of a data set is taken of."""
    return _canonical([FORMAT, complete, findings, rows])


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
