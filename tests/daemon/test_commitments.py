"""Commitments opened to an auditor: what fits is confirmed, and whatever was changed is named."""

import base64
import json
import shutil

import pytest

from mpcd.daemon import commitments
from mpcd.daemon.commitments import CommitmentError
from mpcd.daemon.errors import BadInput, NotFound
from mpcd.daemon.library import Library
from mpcd.daemon.model import artifact
from tests.daemon.two_daemons import DATASET, HOSPITAL, IMAGES, MODEL, VENDOR, install


@pytest.fixture
def opened(tmp_path):
    """The openings of a model and a data set, by what; and where the things are."""
    install(tmp_path)
    vendor, hospital = Library(tmp_path / VENDOR), Library(tmp_path / HOSPITAL)
    return {
        "model": (commitments.open_model(vendor, MODEL), vendor.model_folder(MODEL), vendor.model(MODEL).commitment),
        "data set": (
            commitments.open_dataset(hospital, DATASET),
            tmp_path / "images" / "dicom",
            hospital.dataset(DATASET).commitment,
        ),
    }


@pytest.fixture
def verify(tmp_path):
    def verify(opening, expected=None, path=None):
        file = tmp_path / "opening.json"
        file.write_text(opening if isinstance(opening, str) else json.dumps(opening))
        return commitments.verify(file, expected, path)

    return verify


@pytest.mark.parametrize("what", ["model", "data set"])
def test_what_fits(opened, verify, what):
    opening, path, commitment = opened[what]
    found = verify(opening, commitment, path)
    assert (found["what"], found["commitment"], found["path"]) == (what, commitment, str(path))
    assert found["images"] == (IMAGES if what == "data set" else None)
    assert verify(opening)["path"] is None


def test_no_such_thing(tmp_path, opened):
    with pytest.raises(NotFound):
        commitments.open_model(Library(tmp_path / VENDOR), "other")
    with pytest.raises(NotFound):
        commitments.open_dataset(Library(tmp_path / HOSPITAL), "other")
    with pytest.raises(BadInput, match="cannot be read"):
        commitments.verify(tmp_path / "none.json", None, None)


CHANGES = {
    "model": {
        "salt": "00" * 32,
        "numbers": "00" * 32,
        "network": base64.b64encode(b"other").decode(),
        "recipe": base64.b64encode(b"{}").decode(),
        "commitment": "0" * 64,
    },
    "data set": {"salt": "00" * 32, "complete": True, "findings": ["other"], "images": [], "commitment": "0" * 64},
}


@pytest.mark.parametrize(("what", "key"), [(what, key) for what in CHANGES for key in CHANGES[what]])
def test_a_changed_part(opened, verify, what, key):
    changed = {**opened[what][0], key: CHANGES[what][key]}
    assert changed != opened[what][0]
    with pytest.raises(CommitmentError, match="another commitment"):
        verify(changed)


def test_labels_and_files_are_committed_to(opened, verify):
    opening, _, _ = opened["data set"]
    for row, change in ((0, ["1.2.9", *opening["images"][0][1:]]), (1, [*opening["images"][1][:2], []])):
        images = list(opening["images"])
        images[row] = change
        with pytest.raises(CommitmentError, match="another commitment"):
            verify({**opening, "images": images})


@pytest.mark.parametrize(
    "opening",
    ["", "[]", "{", "3", '{"format": 1}', '{"format": 1, "what": "model"}', '{"format": 2, "what": "model"}',
     '{"format": 1, "what": "model", "salt": "x", "network": "", "recipe": "", "numbers": "", "commitment": ""}',
     '{"format": 1, "what": "data set", "salt": "", "complete": 1, "findings": [], "images": [3], "commitment": ""}',
     '{"format": 1, "what": "data set", "salt": "", "complete": 1, "findings": [], "images": 3, "commitment": ""}'],
)  # fmt: skip
def test_what_is_no_opening(verify, opening):
    with pytest.raises(CommitmentError):
        verify(opening)


def test_another_than_asked_for(opened, verify):
    with pytest.raises(CommitmentError, match=r"opens .*, not ") as wrong:
        verify(opened["model"][0], opened["data set"][2])
    assert wrong.value.exit_status == 9


def test_other_weights_than_committed_to(tmp_path, opened, verify):
    opening, folder, _ = opened["model"]
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    verify(opening, None, copy)
    changed = artifact.numbers_from_bytes((copy / "numbers.npz").read_bytes())
    for own in changed.values():
        if hasattr(own, "bias"):
            own.bias.flat[0] += 1
            break
    (copy / "numbers.npz").write_bytes(artifact.numbers_to_bytes(changed))
    with pytest.raises(CommitmentError, match="another numbers"):
        verify(opening, None, copy)


def test_other_images_than_committed_to(opened, verify):
    opening, folder, _ = opened["data set"]
    (folder / "more.txt").write_text("is not looked at")
    verify(opening, None, folder)
    with open(folder / "0.dcm", "ab") as file:
        file.write(b"\0\0")
    with pytest.raises(CommitmentError, match=rf"1 of {IMAGES} images"):
        verify(opening, None, folder)
