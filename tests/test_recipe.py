"""Recipes survive YAML, and what they do not know is named."""

from __future__ import annotations

import pytest

from lowbit.errors import UsageError
from lowbit.recipe import QuantSpec, Recipe

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
