"""Synthetic chest radiographs, for demonstrations and tests: no patient, no download.

A phantom is a torso with lungs, ribs, spine, heart and diaphragm, jittered and noisy, with three findings:

* Cardiomegaly: the heart takes up well over half of the chest's width;
* Effusion: the base of one lung is opaque, its angle blunted by a meniscus;
* Mass: a round opacity in one lung.

The same seed gives the same images and labels wherever NumPy draws the same PCG64 stream. As a cohort they come
as DICOM in all the transfer syntaxes, photometric interpretations and depths that mpcd reads::

    python -m mpcd.daemon.image.phantom FOLDER --images 24 --seed 1
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mpcd.daemon.image import dicom

FINDINGS = ("Cardiomegaly", "Effusion", "Mass")
PREVALENCE = 0.4

# Transfer syntax, photometric interpretation, bits stored, modality: taken in turn.
VARIANTS = (
    ("implicit", "MONOCHROME2", 8, "DX"),
    ("explicit", "MONOCHROME1", 12, "CR"),
    ("jpeg-ls", "MONOCHROME1", 8, "DX"),
    ("jpeg-2000", "MONOCHROME2", 12, "CR"),
    ("rle", "MONOCHROME2", 16, "DX"),
    ("jpeg-lossless", "MONOCHROME1", 12, "DX"),
    ("jpeg-ls", "MONOCHROME2", 16, "CR"),
    ("rle", "MONOCHROME1", 10, "CR"),
)

Float = npt.NDArray[np.float64]


def draw(seed: int, index: int, findings: dict[str, bool]) -> Float:
    """Phantom ``index`` of a cohort: (rows, columns) between 352 and 448 each, in [0, 1], 1 white."""
    rng = np.random.default_rng([seed, index])
    rows, columns = (int(v) for v in rng.integers(352, 449, 2))
    side = min(rows, columns)
    zoom, shift_x, shift_y = rng.uniform(0.92, 1.08), *rng.uniform(-0.05, 0.05, 2)
    y = (((np.arange(rows) + 0.5 - rows / 2) / (side / 2) - shift_y) / zoom)[:, None]
    x = (((np.arange(columns) + 0.5 - columns / 2) / (side / 2) - shift_x) / zoom)[None, :]

    torso = _ellipse(x, y, 0.0, 0.25, 0.95, 1.5, 0.04)
    image = 0.04 + 0.5 * torso
    lung_left, lung_right = (_ellipse(x, y, centre, -0.08, 0.33, 0.66, 0.05) for centre in (-0.43, 0.43))
    lungs = np.maximum(lung_left, lung_right)
    image -= 0.36 * lungs
    phase, tilt = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.4)
    image += 0.05 * lungs * (0.5 + 0.5 * np.sin(24 * (y + tilt * np.abs(x)) + phase)) ** 4
    image += 0.18 * np.exp(-((x / 0.09) ** 2)) * torso
    dome = 0.58 + rng.uniform(-0.04, 0.04) + 0.35 * (np.abs(x) - 0.43) ** 2
    image += (0.66 - image) * _step(y - dome, 0.03) * torso

    width = rng.uniform(0.46, 0.56) if findings["Cardiomegaly"] else rng.uniform(0.25, 0.33)
    heart = _ellipse(x, y, 0.07 + 0.25 * width, 0.28, width, 0.24 + 0.3 * width, 0.04)
    image += (0.68 - image) * heart * torso
    side_x = 0.43 * rng.choice([-1.0, 1.0])
    level, where = rng.uniform(0.08, 0.22), rng.uniform(-0.45, 0.0)
    if findings["Effusion"]:
        lung = lung_left if side_x < 0 else lung_right
        meniscus = level - 0.5 * np.maximum(0.0, np.abs(x) - 0.43)
        image += (0.74 - image) * _step(y - meniscus, 0.03) * lung * (1.0 - _step(y - dome, 0.03))
    radius, drift = rng.uniform(0.13, 0.18), rng.uniform(-0.05, 0.05)
    if findings["Mass"]:
        image += (0.75 - image) * _ellipse(x, y, -side_x + drift, where, radius, radius, 0.025)

    image = rng.uniform(0.02, 0.06) + rng.uniform(0.95, 1.05) * image
    image += _smooth(rng.normal(0.0, 0.012, image.shape)) + rng.normal(0.0, 0.012, image.shape)
    return np.asarray(np.clip(image, 0.0, 1.0), dtype=np.float64)


def labels(images: int, seed: int) -> list[dict[str, bool]]:
    """Findings of a cohort's images: of each finding about PREVALENCE, both classes present from two images on."""
    rng = np.random.default_rng([seed, 1 << 32])
    positives = min(max(round(PREVALENCE * images), 1), max(images - 1, 0))
    chosen = {finding: set(rng.permutation(images)[:positives].tolist()) for finding in FINDINGS}
    return [{finding: i in chosen[finding] for finding in FINDINGS} for i in range(images)]


def write_cohort(
    folder: Path,
    images: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write ``folder/dicom/phantom-0000.dcm`` and on, and ``folder/labels.csv``. ``progress(done, total)`` per image.

    ``images`` from 1, ``seed`` from 0. Files of the same names are replaced.
    """
    known = labels(images, seed)
    (folder / "dicom").mkdir(parents=True, exist_ok=True)
    rows = []
    for index, findings in enumerate(known):
        name = f"phantom-{index:04d}"
        syntax, photometric, bits, modality = VARIANTS[index % len(VARIANTS)]
        top = (1 << bits) - 1
        stored = np.rint(draw(seed, index, findings) * top).astype(np.int64)
        if photometric == "MONOCHROME1":
            stored = top - stored
        uid = dicom.make_uid("mpcd phantom", str(seed), str(index))
        dicom.write(
            folder / "dicom" / f"{name}.dcm",
            stored,
            bits_stored=bits,
            syntax=syntax,
            photometric=photometric,
            modality=modality,
            instance_uid=uid,
            tags={
                "PatientID": f"{seed}-{name}",
                "PatientName": "Phantom",
                "StudyInstanceUID": dicom.make_uid("mpcd phantom study", str(seed), str(index)),
                "SeriesInstanceUID": dicom.make_uid("mpcd phantom series", str(seed), str(index)),
                "BodyPartExamined": "CHEST",
                "ViewPosition": "PA",
                "ImageComments": "synthetic, no patient",
            },
        )
        rows.append([uid, f"{name}.dcm", *(int(findings[finding]) for finding in FINDINGS)])
        progress(index + 1, images)
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["SOPInstanceUID", "File Name", *FINDINGS], *rows])


def main(arguments: list[str] | None = None) -> int:
    """Command line: FOLDER --images N --seed S. Progress on stderr."""
    parser = argparse.ArgumentParser(prog="python -m mpcd.daemon.image.phantom", description="Write synthetic x-rays.")
    parser.add_argument("folder", type=Path, help="gets dicom/ and labels.csv")
    parser.add_argument("--images", type=int, default=16, help="how many (default 16)")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other images (default 1)")
    options = parser.parse_args(arguments)
    if options.images < 1 or options.seed < 0:
        parser.error("--images must be at least 1 and --seed at least 0")
    write_cohort(options.folder, options.images, options.seed, _report)
    return 0


def _report(done: int, total: int) -> None:
    if done == total or done % 10 == 0:
        print(f"{done} of {total} phantoms", file=sys.stderr, flush=True)


def _step(distance: Float, softness: float) -> Float:
    """0 where ``distance`` is well below 0, 1 well above."""
    return np.asarray(0.5 + 0.5 * np.tanh(distance / softness), dtype=np.float64)


def _ellipse(x: Float, y: Float, cx: float, cy: float, rx: float, ry: float, softness: float) -> Float:
    distance = (1.0 - np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)) * min(rx, ry)
    return _step(distance, softness)


def _smooth(noise: Float) -> Float:
    """White noise to grains of some pixels, of the same deviation: two 9-tap running sums along each axis."""
    for axis in (0, 1, 0, 1):
        noise = np.sum([np.roll(noise, shift, axis) for shift in range(9)], axis=0)
    return noise / 489.0  # the sum of squares of the 17-tap triangle


if __name__ == "__main__":
    sys.exit(main())
