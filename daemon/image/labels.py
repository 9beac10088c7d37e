"""Labels from a CSV file, and which image each row belongs to.

The first row names the columns. Rows are joined to images by ``SOPInstanceUID`` where the file has that column, and by
file name (``Image Index``, ``File Name``, ``Path``, ...) where it has that; by UID first where it has both. File
names are compared without their folder and image extension, so ``00027438_000.png`` labels ``00027438_000.dcm``.

Findings come in one of two forms:

* one column ``Finding Labels``, findings separated by ``|`` and ``No Finding`` where there is none. The list is
  complete: a finding that is not listed is negative.
* a column per finding: 1 present, 0 absent, -1 uncertain, blank unknown (``1.0`` and so on are read as well). Uncertain
  and unknown are the same to us: the image is left out of that finding's AUROC. Columns with anything else in them
  (age, view, ...) are no findings; they are listed as ignored. A stray word in a column that is otherwise a finding's
  (more than nine cells in ten) is an error: the finding would vanish without a word.

Names of columns and findings are compared without case, and with space, ``-`` and ``_`` alike.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from mpcd.daemon.errors import BadInput

MAX_BYTES = 256 << 20
UID_COLUMNS = ("sopinstanceuid", "sop_instance_uid", "instance_uid", "dicom_id")
FILE_COLUMNS = ("image_index", "file_name", "filename", "file", "path", "image", "image_id", "image_path", "dicom_path")
LIST_COLUMNS = ("finding_labels", "findings", "labels")
NOT_FINDINGS = ("patient_id", "study_id", "subject_id", "series_id", "age", "patient_age", "sex", "follow_up_#")
NO_FINDING = "no_finding"

_VALUES = {1.0: True, 0.0: False, -1.0: None}
_EXTENSIONS = (".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".tif", ".tiff")


class LabelError(BadInput):
    """The labels cannot be used."""

    code = "labels"
    private = True


@dataclasses.dataclass(frozen=True)
class Row:
    """One labelled image: ``uid`` or ``file`` may be empty; ``labels`` holds the known findings only."""

    line: int
    uid: str
    file: str
    labels: Mapping[str, bool]


@dataclasses.dataclass(frozen=True)
class Labels:
    """``findings`` as spelled in the file; ``complete``: what is not listed is negative (``Finding Labels``)."""

    rows: tuple[Row, ...]
    findings: tuple[str, ...]
    complete: bool
    ignored_columns: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Join:
    """``labels`` by SOPInstanceUID, for the images that a row was found for.

    ``unlabelled``: images (file names) without a row; ``unmatched``: rows (their id) without an image; ``by``: how many
    were joined by "uid" and by "file".
    """

    labels: Mapping[str, Mapping[str, bool]]
    unlabelled: tuple[str, ...]
    unmatched: tuple[str, ...]
    by: Mapping[str, int]


def normalise(name: str) -> str:
    """How names of columns and findings are compared."""
    return "_".join(name.strip().casefold().replace("-", " ").replace("_", " ").split())


def read_labels(path: Path) -> Labels:
    """Labels from a CSV file of at most MAX_BYTES, UTF-8 with or without a mark. Raises LabelError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise LabelError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise LabelError(f"{path}: larger than {MAX_BYTES >> 20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabelError(f"{path}: not UTF-8 text at byte {error.start}", "save the table as CSV in UTF-8") from error
    return parse_labels(text, str(path))


def parse_labels(text: str, source: str = "labels") -> Labels:
    """Labels from CSV text; ``source`` names it in errors. Raises LabelError."""
    try:
        table = [(i, row) for i, row in _rows(text) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise LabelError(f"{source}: not CSV: {error}") from error
    if not table:
        raise LabelError(f"{source}: is empty")
    header = [cell.strip() for cell in table[0][1]]
    columns = [normalise(cell) for cell in header]
    twice = [name for name, count in Counter(c for c in columns if c).items() if count > 1]
    if twice:
        raise LabelError(f"{source}: column {header[columns.index(twice[0])]} occurs twice")
    uid_at, file_at, list_at = (_find(columns, names) for names in (UID_COLUMNS, FILE_COLUMNS, LIST_COLUMNS))
    if uid_at is None and file_at is None:
        raise LabelError(
            f"{source}: no column says which image a row is about",
            "name one SOPInstanceUID, or one Image Index with file names",
        )
    body = table[1:]
    for line, row in body:
        if len(row) != len(header):
            raise LabelError(f"{source}: line {line} has {len(row)} columns, the first line {len(header)}")
    if list_at is not None:
        findings, known = _listed([row[list_at] for _, row in body])
        ignored = [c for i, c in enumerate(header) if i not in (uid_at, file_at, list_at)]
    else:
        others = [i for i in range(len(header)) if i not in (uid_at, file_at) and header[i]]
        values = {i: _column(source, header[i], [(line, row[i].strip()) for line, row in body]) for i in others}
        dropped = (*NOT_FINDINGS, NO_FINDING)
        found = {i: column for i, column in values.items() if column is not None and columns[i] not in dropped}
        findings = [header[i] for i in found]
        known = [
            {header[i]: label for i, column in found.items() if (label := column[r]) is not None}
            for r in range(len(body))
        ]
        ignored = [header[i] for i in others if i not in found]
    if not findings:
        raise LabelError(
            f"{source}: no findings",
            "give one column Finding Labels (A|B), or a column per finding with 1, 0, -1 or blank",
        )
    rows = [
        Row(
            line,
            row[uid_at].strip() if uid_at is not None else "",
            row[file_at].strip() if file_at is not None else "",
            labels,
        )
        for (line, row), labels in zip(body, known, strict=True)
    ]
    return Labels(_once(rows, source), tuple(findings), list_at is not None, tuple(ignored))


def join(labels: Labels, images: Iterable[tuple[str, str]]) -> Join:
    """Find each image's row. ``images``: (SOPInstanceUID, file path) pairs, UIDs distinct.

    A file name that several images, or several rows, share joins nothing. Raises LabelError when no row matches any
    image.
    """
    images = list(images)
    by_uid = {row.uid: row for row in labels.rows if row.uid}
    row_stems = Counter(_stem(row.file) for row in labels.rows if row.file)
    uids = {uid for uid, _ in images}
    # A row whose UID is another image's is not about this file, whatever it is called.
    free = [row for row in labels.rows if row.file and row.uid not in uids]
    by_stem = {s: row for row in free if row_stems[s := _stem(row.file)] == 1}
    image_stems = Counter(_stem(file) for _, file in images)
    joined: dict[str, Mapping[str, bool]] = {}
    unlabelled = []
    used = set()
    by: Counter[str] = Counter()
    for uid, file in images:
        stem = _stem(file)
        row, how = by_uid.get(uid), "uid"
        if row is None and image_stems[stem] == 1:
            row, how = by_stem.get(stem), "file"
        if row is None:
            unlabelled.append(file)
            continue
        joined[uid] = row.labels
        used.add(row.line)
        by[how] += 1
    unmatched = tuple(row.uid or row.file for row in labels.rows if row.line not in used)
    if images and not joined:
        example = labels.rows[0].uid or labels.rows[0].file if labels.rows else "nothing"
        raise LabelError(
            f"the labels match none of the {len(images)} images",
            f"the labels name {example}, the images are {images[0][0]} in {images[0][1]}",
        )
    return Join(joined, tuple(unlabelled), unmatched, dict(by))


def _rows(text: str) -> Iterable[tuple[int, list[str]]]:
    first = text.splitlines()[0] if text.strip() else ""
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    for row in reader:
        yield reader.line_num, row


def _find(columns: list[str], names: tuple[str, ...]) -> int | None:
    return next((columns.index(name) for name in names if name in columns), None)


def _listed(cells: list[str]) -> tuple[list[str], list[dict[str, bool]]]:
    """The ``Finding Labels`` form. A blank cell says nothing; ``No Finding`` says that all are absent."""
    spelled: dict[str, str] = {}
    rows = []
    for cell in cells:
        parts = [part.strip() for part in cell.split("|") if part.strip()]
        rows.append({normalise(part) for part in parts} if parts else None)
        for part in parts:
            if normalise(part) != NO_FINDING:
                spelled.setdefault(normalise(part), part)
    names = sorted(spelled)
    known = [{} if row is None else {spelled[n]: n in row for n in names} for row in rows]
    return [spelled[n] for n in names], known


def _column(source: str, name: str, cells: list[tuple[int, str]]) -> list[bool | None] | None:
    """A finding's column, or None if it holds anything but 1, 0, -1 and blanks, or blanks only."""
    numbers = [_number(cell) for _, cell in cells]
    words = [(line, cell) for (line, cell), number in zip(cells, numbers, strict=True) if cell and number is None]
    labels = sum(number in _VALUES for number in numbers if number is not None)
    if words:
        if labels > 9 * len(words):
            raise LabelError(
                f"{source}: line {words[0][0]} has {words[0][1]!r} for {name}", "allowed: 1, 0, -1 or blank"
            )
        return None
    if labels == 0 or labels < sum(number is not None for number in numbers):
        return None
    return [None if number is None else _VALUES[number] for number in numbers]


def _number(cell: str) -> float | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return None


def _once(rows: list[Row], source: str) -> tuple[Row, ...]:
    """Rows without repeats. Raises LabelError where an image is labelled twice and not alike, or not named."""
    seen: dict[tuple[str, str], Row] = {}
    for row in rows:
        if not row.uid and not row.file:
            raise LabelError(f"{source}: line {row.line} does not say which image it is about")
        key = ("uid", row.uid) if row.uid else ("file", row.file)
        other = seen.setdefault(key, row)
        if other.labels != row.labels:
            raise LabelError(f"{source}: lines {other.line} and {row.line} label {key[1]} differently")
    return tuple(seen.values())


def _stem(file: str) -> str:
    name = PurePosixPath(file.replace("\\", "/")).name
    for extension in _EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return name
