"""A compiled model in the clear, float and integer, on the model owner's images: what a secure run is held beside."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mpcd.daemon.model import artifact, floats
from mpcd.daemon.model.calibrate import Image, integer_outputs


def evaluate(
    folder: Path,
    images: Iterable[tuple[str, Image]],
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, dict[str, list[Any]]]:
    """``{SOPInstanceUID: {"float": logits, "integer": the integer network's outputs, "logits": those as logits}}``.

    ``images``: SOPInstanceUID and preprocessed image. ``integer`` is what a secure run must equal bit for bit.
    """
    model = artifact.load(folder)
    graph = floats.load(folder / artifact.FLOAT)
    result: dict[str, dict[str, list[Any]]] = {}
    for uid, image in images:
        integer = integer_outputs(model.network, model.numbers, image)
        result[uid] = {
            "float": floats.run(graph, [image])[0].tolist(),
            "integer": integer.tolist(),
            "logits": (integer / model.network.output_scale).tolist(),
        }
        progress(len(result))
    return result
