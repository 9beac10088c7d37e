"""Recipes: how a decoded radiograph becomes the network's input. Declared in TOML, hashed, approved by both parties.

::

    format = 1
    name = "imagenet-224"          letters, digits, . _ - ; at most 64
    [pixels]
    range = "stored_bits"          0..1 over the stored range | "window": over the file's VOI LUT or first window
    low = 0.0                      what 0 (black) and
    high = 1.0                     1 (white) become
    [geometry]
    crop = "centre"                to the short side | "none": the aspect ratio changes
    size = 224                     pixels a side, 8 to 1024
    interpolation = "bilinear-antialias" | "bilinear" | "nearest"
    [channels]
    count = 3                      1 or 3 (the same grey image)
    mean = [0.485, 0.456, 0.406]   per channel, subtracted after [pixels]
    std = [0.229, 0.224, 0.225]    per channel, positive, divided by
    [files]
    multi_frame = "skip"           and count | "refuse": the data set is unusable

Under "window" a file that has none is taken over its stored range. Every key is required and no other is allowed: a
recipe says everything, so that the digest that both approve says everything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from mpcd.daemon.errors import BadInput

FORMAT = 1
RANGES = ("stored_bits", "window")
CROPS = ("centre", "none")
INTERPOLATIONS = ("bilinear-antialias", "bilinear", "nearest")
MULTI_FRAME = ("skip", "refuse")
MAX_BYTES = 64 << 10

_KEYS = {
    "pixels": ("range", "low", "high"),
    "geometry": ("crop", "size", "interpolation"),
    "channels": ("count", "mean", "std"),
    "files": ("multi_frame",),
}


class RecipeError(BadInput):
    """The recipe is not valid."""

    code = "recipe"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A checked recipe; the module's docstring says what each field means."""

    name: str
    range: str
    low: float
    high: float
    crop: str
    size: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    multi_frame: str

    def __post_init__(self) -> None:
        _check(self)

    @property
    def channels(self) -> int:
        """1 or 3."""
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, size, size) of the network's input."""
        return (self.channels, self.size, self.size)

    def canonical(self) -> bytes:
        """The recipe as JSON with sorted keys and shortest numbers: equal recipes give equal bytes."""
        fields = {"format": FORMAT, **dataclasses.asdict(self)}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical form, in hexadecimal; comments and layout of the TOML do not matter."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def to_toml(self) -> str:
        """TOML that ``parse`` reads back to an equal recipe."""
        tables: dict[str, dict[str, Any]] = {
            "pixels": {"range": self.range, "low": self.low, "high": self.high},
            "geometry": {"crop": self.crop, "size": self.size, "interpolation": self.interpolation},
            "channels": {"count": self.channels, "mean": list(self.mean), "std": list(self.std)},
            "files": {"multi_frame": self.multi_frame},
        }
        lines = [f"format = {FORMAT}", f"name = {json.dumps(self.name)}"]
        for table, items in tables.items():
            # JSON's strings, floats and lists of floats are TOML's as well.
            lines += ["", f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in items.items())]
        return "\n".join(lines) + "\n"


def parse(text: str, source: str = "recipe") -> Recipe:
    """A recipe from TOML text (at most MAX_BYTES); ``source`` names it in errors. Raises RecipeError."""
    if len(text) > MAX_BYTES:
        raise RecipeError(f"{source}: longer than {MAX_BYTES} characters")
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is one of the first
        raise RecipeError(f"{source}: not TOML: {error}") from error
    try:
        return _from_document(document)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}", error.hint) from None
    except ValueError as error:  # a whole number of thousands of digits, which Python does not even print
        raise RecipeError(f"{source}: {error}") from error


def load(name_or_path: str) -> Recipe:
    """A shipped recipe by its name, or one from a TOML file. Raises RecipeError."""
    if name_or_path in shipped():
        text = resources.files("mpcd.daemon.image").joinpath("recipes", f"{name_or_path}.toml").read_text("utf-8")
        return parse(text, name_or_path)
    try:
        with Path(name_or_path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        return parse(data.decode("utf-8"), name_or_path)
    except FileNotFoundError as error:
        hint = f"shipped recipes: {', '.join(shipped())}"
        raise RecipeError(f"{name_or_path}: neither a shipped recipe nor a file", hint) from error
    except OSError as error:
        raise RecipeError(f"{name_or_path}: cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, ValueError) as error:
        raise RecipeError(f"{name_or_path}: not UTF-8 text") from error


def shipped() -> tuple[str, ...]:
    """Names of the recipes that come with mpcd, sorted."""
    folder = resources.files("mpcd.daemon.image").joinpath("recipes")
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def _from_document(document: dict[str, Any]) -> Recipe:
    _exactly(document, ("format", "name", *_KEYS), "")
    if document["format"] is True or document["format"] != FORMAT:
        raise RecipeError(f"format is {document['format']!r}; this version reads {FORMAT}")
    for table, keys in _KEYS.items():
        if not isinstance(document[table], dict):
            raise RecipeError(f"{table} must be a table")
        _exactly(document[table], keys, f"{table}.")
    pixels, geometry, channels = document["pixels"], document["geometry"], document["channels"]
    mean = _numbers(channels["mean"], "channels.mean")
    std = _numbers(channels["std"], "channels.std")
    if type(channels["count"]) is not int or channels["count"] not in (1, 3):
        raise RecipeError(f"channels.count is {channels['count']!r}, must be 1 or 3")
    if len(mean) != channels["count"]:
        raise RecipeError(f"channels.mean has {len(mean)} numbers for {channels['count']} channels")
    return Recipe(
        name=document["name"],
        range=pixels["range"],
        low=_number(pixels["low"], "pixels.low"),
        high=_number(pixels["high"], "pixels.high"),
        crop=geometry["crop"],
        size=geometry["size"],
        interpolation=geometry["interpolation"],
        mean=mean,
        std=std,
        multi_frame=document["files"]["multi_frame"],
    )


def _check(recipe: Recipe) -> None:
    if not isinstance(recipe.name, str) or not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", recipe.name):
        raise RecipeError(f"name is {recipe.name!r}, must be 1 to 64 letters, digits, '.', '_' or '-'")
    _one_of(recipe.range, RANGES, "pixels.range")
    _one_of(recipe.crop, CROPS, "geometry.crop")
    _one_of(recipe.interpolation, INTERPOLATIONS, "geometry.interpolation")
    _one_of(recipe.multi_frame, MULTI_FRAME, "files.multi_frame")
    if type(recipe.size) is not int or not 8 <= recipe.size <= 1024:
        raise RecipeError(f"geometry.size is {recipe.size!r}, must be a whole number from 8 to 1024")
    if not recipe.low < recipe.high:
        raise RecipeError(f"pixels.low {recipe.low} must be less than pixels.high {recipe.high}")
    if len(recipe.mean) not in (1, 3) or len(recipe.std) != len(recipe.mean):
        raise RecipeError(f"channels.std has {len(recipe.std)} numbers for {len(recipe.mean)} channels")
    if any(s < 1e-6 for s in recipe.std):
        raise RecipeError("channels.std must be at least 0.000001")


def _exactly(table: dict[str, Any], keys: tuple[str, ...], prefix: str) -> None:
    missing = [key for key in keys if key not in table]
    if missing:
        raise RecipeError(f"{prefix}{missing[0]} is missing")
    unknown = sorted(set(table) - set(keys))
    if unknown:
        raise RecipeError(f"{prefix}{unknown[0]} is not a known key", f"known here: {', '.join(keys)}")


def _one_of(value: Any, allowed: tuple[str, ...], key: str) -> None:
    if value not in allowed:
        raise RecipeError(f"{key} is {value!r}", f"must be one of: {', '.join(allowed)}")


def _number(value: Any, key: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= 1e6:  # nor nan, nor what is too large for a float
        raise RecipeError(f"{key} is {value!r}, must be a number between -1000000 and 1000000")
    return float(value)


def _numbers(value: Any, key: str) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise RecipeError(f"{key} must be a list of numbers")
    return tuple(_number(v, key) for v in value)
