"""Recipes: what is shipped, what is refused, and a digest that only the meaning moves."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcd.daemon.image.recipe import Recipe, RecipeError, load, parse, shipped

TEXT = load("imagenet-224").to_toml()


def test_shipped_recipes() -> None:
    assert shipped() == ("imagenet-224", "xrv-224")
    imagenet, xrv = load("imagenet-224"), load("xrv-224")
    assert imagenet.shape == (3, 224, 224)
    assert imagenet.mean == (0.485, 0.456, 0.406)
    assert (xrv.shape, xrv.low, xrv.high) == ((1, 224, 224), -1024.0, 1024.0)
    # Changing one of these changes what parties approved: ship a new name instead.
    assert imagenet.digest == "192210dba2b9c152f3d4113baab79541b831f8b49a4c7046bb68328c31d18183"
    assert xrv.digest == "474eada79648b6be6ef016d12b0f8fc54d415dbc0d2e355a0974f0b75895d4c5"


def test_digest_is_of_the_meaning() -> None:
    recipe = parse(TEXT)
    assert parse("# a comment\n" + TEXT.replace("0.0", "0").replace(" = ", "=")).digest == recipe.digest
    assert parse(TEXT.replace("0.485", "0.4850000001")).digest != recipe.digest


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("format = 1\n", "", "format is missing"),
        ("format = 1", "format = 2", "this version reads 1"),
        ("format = 1", "format = true", "format is True"),
        ('"imagenet-224"', '"a b"', "name is"),
        ('"imagenet-224"', "7", "name is"),
        ('"stored_bits"', '"hounsfield"', "pixels.range"),
        ('"stored_bits"', "1", "pixels.range"),
        ('"stored_bits"', "[1]", "pixels.range"),
        ("low = 0.0", "low = 2.0", "less than"),
        ("low = 0.0", "low = nan", "pixels.low"),
        ("low = 0.0", "low = true", "pixels.low"),
        ("low = 0.0", "low = 1e300", "pixels.low"),
        ("size = 224", "size = 4", "geometry.size"),
        ("size = 224", "size = 1e3", "geometry.size"),
        ("size = 224", "size = true", "geometry.size"),
        ("size = 224", "size = 224\nextra = 1", "geometry.extra is not a known key"),
        ('interpolation = "bilinear-antialias"\n', "", "geometry.interpolation is missing"),
        ("count = 3", "count = 2", "1 or 3"),
        ("count = 3", "count = 3.0", "1 or 3"),
        ("count = 3", "count = 1", "3 numbers for 1 channels"),
        ("0.229, ", "", "channels.std has 2"),
        ("0.229", "0.0", "channels.std"),
        ("0.229", "-1.0", "channels.std"),
        ("[0.229, 0.224, 0.225]", '"x"', "list of numbers"),
        ('"skip"', '"first"', "files.multi_frame"),
        ("[files]", "[Files]", "files is missing"),
        ("[files]", "[files", "not TOML"),
    ],
)
def test_refusals_name_the_key(old: str, new: str, match: str) -> None:
    assert old in TEXT
    with pytest.raises(RecipeError, match=match) as caught:
        parse(TEXT.replace(old, new, 1), "mine.toml")
    assert "mine.toml" in str(caught.value)


def test_tables_must_be_tables() -> None:
    with pytest.raises(RecipeError, match="files must be a table"):
        parse(TEXT.split("[files]")[0].replace("format = 1", "format = 1\nfiles = 3"))


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(TEXT)
    assert load(str(path)) == load("imagenet-224")
    with pytest.raises(RecipeError, match="neither a shipped recipe nor a file") as caught:
        load(str(tmp_path / "none"))
    assert "imagenet-224" in caught.value.hint
    with pytest.raises(RecipeError, match="cannot be read"):
        load(str(tmp_path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="UTF-8"):
        load(str(path))
    path.write_text("#" * 100_000)
    with pytest.raises(RecipeError, match="longer"):
        load(str(path))


@given(st.text(max_size=300))
def test_any_text_is_a_recipe_or_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        parse(text)


@given(st.integers(0, len(TEXT) - 1), st.text(max_size=4), st.integers(0, 12))
def test_edited_recipes_are_read_or_refused(at: int, insert: str, cut: int) -> None:
    try:
        recipe = parse(TEXT[:at] + insert + TEXT[at + cut :])
    except RecipeError:
        return
    assert parse(recipe.to_toml()) == recipe


numbers = st.floats(-1e6, 1e6, allow_nan=False)


@given(
    numbers,
    st.floats(1e-3, 1e3),
    st.sampled_from([1, 3]).flatmap(
        lambda c: st.tuples(
            st.lists(numbers, min_size=c, max_size=c), st.lists(st.floats(1e-6, 1e6), min_size=c, max_size=c)
        )
    ),
    st.integers(8, 1024),
)
def test_round_trip(low: float, span: float, statistics: tuple[list[float], list[float]], size: int) -> None:
    if not low < low + span <= 1e6:
        return
    mean, std = statistics
    recipe = Recipe("a.b", "window", low, low + span, "none", size, "nearest", tuple(mean), tuple(std), "refuse")
    again = parse(recipe.to_toml())
    assert again == recipe
    assert again.digest == recipe.digest


@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 400, "nan", "inf", "1000001"])
def test_numbers_that_no_float_holds(number: str) -> None:
    text = load("imagenet-224").to_toml()
    with pytest.raises(RecipeError, match=r"pixels.high is .*, must be a number between"):
        parse(text.replace("high = 1.0", f"high = {number}"))


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000])
@pytest.mark.parametrize("key", ["high = 1.0", "size = 224", "count = 3", "format = 1"])
def test_numbers_that_python_does_not_print(number: str, key: str) -> None:
    with pytest.raises(RecipeError, match="digits"):
        parse(load("imagenet-224").to_toml().replace(key, f"{key.split()[0]} = {number}"))
