"""Labels: both forms, the join both ways, and tables that are wrong."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcd.daemon.image.labels import LabelError, join, parse_labels, read_labels

COLUMNS = """SOPInstanceUID,File Name,Age,Cardiomegaly,Pleural Thickening,No Finding,Edema
1.1,a.dcm,58,1,0,,
1.2,b.dcm,33,0.0,-1,1,
1.3,c.dcm,41, ,1.0,,
"""
LISTED = """Image Index,Finding Labels,Patient ID
a.png,Mass|Nodule,1
b.png,No Finding,2
c.png,,3
d.png, mass ,4
"""


def test_a_column_per_finding() -> None:
    labels = parse_labels(COLUMNS)
    assert labels.findings == ("Cardiomegaly", "Pleural Thickening")
    assert labels.ignored_columns == ("Age", "No Finding", "Edema")
    assert not labels.complete
    assert [dict(row.labels) for row in labels.rows] == [
        {"Cardiomegaly": True, "Pleural Thickening": False},
        {"Cardiomegaly": False},
        {"Pleural Thickening": True},
    ]


def test_finding_labels() -> None:
    labels = parse_labels(LISTED)
    assert labels.complete
    assert labels.findings == ("Mass", "Nodule")
    assert [dict(row.labels) for row in labels.rows] == [
        {"Mass": True, "Nodule": True},
        {"Mass": False, "Nodule": False},
        {},
        {"Mass": True, "Nodule": False},
    ]


def test_separators_marks_and_line_ends(tmp_path: Path) -> None:
    expected = parse_labels(COLUMNS)
    for text in (
        COLUMNS.replace(",", ";"),
        COLUMNS.replace(",", "\t"),
        COLUMNS.replace("\n", "\r\n"),
        COLUMNS + "\n,,,,,,\n",
    ):
        assert parse_labels(text) == expected
    path = tmp_path / "labels.csv"
    path.write_bytes(b"\xef\xbb\xbf" + COLUMNS.encode())
    assert read_labels(path) == expected


def test_join_by_uid_then_by_file() -> None:
    labels = parse_labels("SOPInstanceUID,Image Index,Mass\n1.1,x.png,1\n,b.png,0\n9.9,c.png,1\n1.5,d.png,1\n")
    images = [
        ("1.1", "deep/other.dcm"),
        ("1.2", "deep/b.dcm"),
        ("1.3", "c.DCM"),
        ("1.4", "e"),
        ("1.5", "f"),
        ("1.6", "d"),
    ]
    joined = join(labels, images)
    # Row d belongs to image 1.5, so the file that is called d gets no label.
    assert {uid: dict(known) for uid, known in joined.labels.items()} == {
        "1.1": {"Mass": True},
        "1.2": {"Mass": False},
        "1.3": {"Mass": True},
        "1.5": {"Mass": True},
    }
    assert joined.by == {"uid": 2, "file": 2}
    assert joined.unlabelled == ("e", "d")
    assert joined.unmatched == ()


def test_unmatched_rows_are_named() -> None:
    joined = join(parse_labels("File,Mass\na,1\nb,0\nc,1\n"), [("1.1", "a.dcm")])
    assert joined.unmatched == ("b", "c")


def test_shared_file_names_join_nothing() -> None:
    labels = parse_labels("path,Mass\nsite1/IM1,1\nsite2/IM1,0\nIM2,1\nIM3,0\n")
    joined = join(labels, [("1.1", "a/IM1"), ("1.2", "b/IM2"), ("1.3", "c/IM2"), ("1.4", "IM3")])
    assert set(joined.labels) == {"1.4"}
    assert joined.unlabelled == ("a/IM1", "b/IM2", "c/IM2")


def test_no_match_at_all_says_what_each_side_has() -> None:
    with pytest.raises(LabelError, match="match none of the 1 images") as caught:
        join(parse_labels(COLUMNS), [("7.7", "z.dcm")])
    assert "1.1" in caught.value.hint
    assert "7.7" in caught.value.hint


def test_repeats_must_agree() -> None:
    assert len(parse_labels("File,Mass\na,1\na,1\nb,0\n").rows) == 2
    with pytest.raises(LabelError, match="lines 2 and 4 label a differently"):
        parse_labels("File,Mass\na,1\nb,0\na,0\n")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("Patient,Mass\n1,1\n", "no column says which image"),
        ("File,Age\na,50\n", "no findings"),
        ("File,Mass\n", "no findings"),
        ("File\na\n", "no findings"),
        ("File,Finding Labels\na,No Finding\n", "no findings"),
        ("File,Mass,mass\na,1,1\n", "mass occurs twice|Mass occurs twice"),
        ("File,Mass\na,1\nb\n", "line 3 has 1 columns"),
        ("File,Mass\na,1\n,0\n", "line 3 does not say which image"),
        ("File,Mass\n" + "".join(f"{i},1\n" for i in range(20)) + "z,maybe\n", "line 22 has 'maybe' for Mass"),
        ('File,Mass\n"a,1\n', "not CSV"),
    ],
)
def test_tables_that_are_wrong(text: str, match: str) -> None:
    with pytest.raises(LabelError, match=match):
        parse_labels(text)


def test_files_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")
    (tmp_path / "x.csv").write_bytes(b"File,Mass\n\xff,1\n")
    with pytest.raises(LabelError, match="not UTF-8 text at byte 10"):
        read_labels(tmp_path / "x.csv")


@given(st.text(alphabet=st.sampled_from('FileMassUID,;|"\n\r\t 01-.aé\x00'), max_size=120))
def test_any_text_is_labels_or_refused(text: str) -> None:
    for prefix in ("", "File,Mass\n", "File,Finding Labels\n"):
        try:
            labels = parse_labels(prefix + text)
        except LabelError:
            continue
        assert labels.findings
        assert all(set(row.labels) <= set(labels.findings) for row in labels.rows)


cells = st.sampled_from([("1", True), ("0", False), ("-1", None), ("", None), ("1.0", True), (" 0 ", False)])


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=12))
def test_values_come_through(rows: list[tuple[tuple[str, bool | None], tuple[str, bool | None]]]) -> None:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["SOPInstanceUID", "Mass", "Edema", "Known"])
    for i, (mass, edema) in enumerate(rows):
        writer.writerow([f"1.{i}", mass[0], edema[0], "1"])
    labels = parse_labels(out.getvalue())
    joined = join(labels, [(f"1.{i}", f"f{i}") for i in range(len(rows))])
    for i, (mass, edema) in enumerate(rows):
        for name, (_, value) in (("Mass", mass), ("Edema", edema)):
            assert joined.labels[f"1.{i}"].get(name) == value
