"""The short form of the fuzzer: a few thousand inputs. ``make fuzz`` tries a million."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import pytest

from tests.fuzz import harness
from tests.fuzz.harness import TARGETS, load

FEWER = {"weights": 60, "dicoms": 120}


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_inputs(name: str, tmp_path: Path) -> None:
    if name == "weights" and importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch")
    target = load(name, tmp_path)
    seed = random.randrange(1 << 31)
    print(f"seed {seed}: python -m tests.fuzz --targets {name} --seed {seed}")
    try:
        for data in target.seeds():
            target.one(data)
        harness.by_hypothesis(target, target.one, FEWER.get(name, 150), seed)
    finally:
        target.close()
