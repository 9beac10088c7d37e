"""Chooses the ring: the cheapest whose integer network follows the float network closely on the calibration images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from mpcd.daemon.image.preprocess import quantise
from mpcd.daemon.model.compile import Compiled, compile_graph
from mpcd.daemon.model.nodes import Floats, Graph, ModelError, Range
from mpcd.protocol import oracle
from mpcd.protocol.network import Network, PrivateNumbers

# (bits of an activation, fraction bits), cheapest first. Comparisons are made in blocks of four bits: k - 1 and f
# are multiples of four. The fraction sets how exact the weights are, which decides; activations need less.
RINGS = ((17, 12), (17, 16), (21, 16))
TARGET = 0.01  # largest logit difference wanted
PROBES = 6  # images on which a ring is tried

Image = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The compiled model, and for each ring tried its largest logit difference on the probes."""

    compiled: Compiled
    bits: int
    fraction: int
    tried: dict[tuple[int, int], float]


def choose(
    graph: Graph,
    seen: list[Range],
    images: Sequence[Image],
    logits: Floats,
    *,
    name: str,
    findings: tuple[str, ...],
    rings: Sequence[tuple[int, int]] = RINGS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Choice:
    """Try ``rings`` in turn on a few of ``images``, whose float ``logits`` are known; keep the first that is good
    enough, else the best. Raises ModelError."""
    probes = np.unique(np.linspace(0, len(images) - 1, PROBES).round().astype(int))
    best: Choice | None = None
    refused = ModelError("there is no ring to try")
    tried: dict[tuple[int, int], float] = {}
    for at, (bits, fraction) in enumerate(rings):
        try:
            compiled = compile_graph(graph, seen, name=name, findings=findings, bits=bits, fraction=fraction)
        except ModelError as error:  # a larger ring may do
            refused = error
            continue
        worst = 0.0
        for done, probe in enumerate(probes):
            found = integer_logits(compiled.network, compiled.numbers, images[probe])
            worst = max(worst, float(np.abs(found - logits[probe]).max()))
            progress(at * len(probes) + done + 1, len(rings) * len(probes))
        tried[bits, fraction] = worst
        if best is None or worst < best.tried[best.bits, best.fraction]:
            best = Choice(compiled, bits, fraction, tried)
        if worst <= TARGET:
            break
    if best is None:
        raise refused
    return best


def integer_logits(network: Network, numbers: PrivateNumbers, image: Image) -> Floats:
    """The oracle's logits for a preprocessed image, as real numbers."""
    return integer_outputs(network, numbers, image) / network.output_scale


def integer_outputs(network: Network, numbers: PrivateNumbers, image: Image) -> npt.NDArray[np.int64]:
    """The oracle's outputs as the secure run makes them: the image quantised as the data owner does."""
    pixels, _ = quantise(image, network.input_scale, network.values[network.ops[0].output].bits)
    return oracle.run(network, numbers, pixels)
