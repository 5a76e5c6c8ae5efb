"""Recipes survive YAML, and what they do not know is named."""

from __future__ import annotations

import pytest

from lowbit.errors import UsageError
from lowbit.recipe import QuantSpec, Recipe, widths

SPECS = [
    QuantSpec("int8", "per-channel", symmetric=True),
    QuantSpec("int4", "per-group", symmetric=True, block=64),
    QuantSpec("uint4", "per-group"),
]


@pytest.mark.parametrize("weights", SPECS, ids=str)
def test_recipes_survive_yaml(weights: QuantSpec) -> None:
    recipe = Recipe("r", "static", weights, QuantSpec("uint8"), "mse", operators=("Conv",), exclude=("a/b",))
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert ("block" in recipe.to_yaml()) == (weights.block is not None)


@pytest.mark.parametrize(
    ("granularity", "block"), [("per-channel", "32"), ("per-tensor", "1"), ("per-group", "0"), ("per-group", "true"), ("per-group", "x")]
)
def test_a_block_needs_groups_and_a_size(granularity: str, block: str) -> None:
    text = f"name: r\nmethod: static\nweights: {{dtype: int4, granularity: {granularity}, block: {block}}}\n"
    with pytest.raises(UsageError, match="Block"):
        Recipe.from_yaml(text)


def test_transforms_and_formats_survive_yaml() -> None:
    formats = {"conv1": "float", "/head/fc": "w4a8"}
    recipe = Recipe("r", "static", SPECS[0], QuantSpec("uint8"), "mse", transforms=("equalize", "fit"), formats=formats)
    read = Recipe.from_yaml(recipe.to_yaml())
    assert read == recipe
    assert (read.transforms, read.formats) == (("equalize", "fit"), formats)
    assert Recipe.from_yaml("name: r\nmethod: static\nweights: {dtype: int8}\n").formats == {}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("transforms: [smoth]", "Unknown transform 'smoth'"),
        ("formats: {conv1: w3a8}", "'w3a8' is not a format"),
        ("formats: {conv1: null}", "'None' is not a format"),
        ("formats: [conv1]", "not a mapping"),
        ("formats: float", "not a mapping"),
    ],
)
def test_transforms_and_formats_that_are_none_are_named(line: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Recipe.from_yaml(f"name: r\nmethod: static\nweights: {{dtype: int8}}\n{line}\n")


def test_widths_are_what_the_name_says() -> None:
    assert [widths(name) for name in ("w8a8", "w4a8", "w8a16", "w4a16", "float")] == [(8, 8), (4, 8), (8, 16), (4, 16), None]


@pytest.mark.parametrize("name", ["", "w16a8", "w8a4", "W8A8", "w8a8 ", "w8a8\n", "int8", "float32"])
def test_names_that_are_no_format(name: str) -> None:
    with pytest.raises(UsageError, match="is not a format"):
        widths(name)
