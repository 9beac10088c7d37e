"""Recipes: the peer's, as text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from hypothesis import strategies as st

from mpcd.daemon.image import recipe
from mpcd.daemon.image.recipe import RecipeError
from tests.fuzz.harness import Target

ODD = (
    "true", "-1", "0", "1e400", "nan", "inf", "-inf", '""', '"window"', "[]", "[[]]", "{}", "1979-05-27", "0x7f",
    "9" * 400, "9" * 5000, "0x" + "f" * 5000,
    '"\\u0000"', "[1, 1, 1]", "[1]", "1", "3", "1024", "1e-7", '"x"\nformat = 1',
)  # fmt: skip


class Recipes(Target):
    def seeds(self) -> Sequence[bytes]:
        return [recipe.load(name).to_toml().encode() for name in recipe.shipped()] + [b"a = " + b"[" * 3000]

    def structured(self) -> st.SearchStrategy[bytes]:
        texts = [recipe.load(name).to_toml() for name in recipe.shipped()]

        def change(text: str, number: int) -> bytes:
            rng = random.Random(number)
            lines = text.splitlines()
            for _ in range(rng.choice((1, 1, 2, 5))):
                at = rng.randrange(len(lines))
                key, equals, _ = lines[at].partition("=")
                lines[at] = f"{key}= {rng.choice(ODD)}" if equals and rng.random() < 0.8 else rng.choice(lines)
            return "\n".join(lines).encode()

        return st.builds(change, st.sampled_from(texts), st.integers(0, 1 << 62))

    def one(self, data: bytes) -> None:
        try:
            found = recipe.parse(data.decode("utf-8", "replace"))
        except RecipeError as error:
            str(error)
            return
        assert recipe.parse(found.to_toml()) == found
        assert found.channels in (1, 3)
        assert len(found.digest) == 64


def make(folder: Path) -> Target:
    return Recipes()
