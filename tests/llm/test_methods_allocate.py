"""Bits a layer: against exhaustive search, and measured where it hurts."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from decoder_case import need, random_decoder, texts

from lowbit.errors import UsageError
from lowbit.llm.decoder import Decoder, Rope
from lowbit.llm.linear import Grid

need("torch", "scipy")

from lowbit.llm.methods.allocate import CHOICES, allocate, mixed, sensitivities  # noqa: E402

TINY = Decoder("llama", 1, 64, 4, 2, 16, 96, 320, 128, "rms", 1e-6, "silu", True, Rope(10000.0, 16))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bits", [2.7, 3.6, 5.0, 8.5])
def test_it_is_the_best_of_all(seed: int, bits: float) -> None:
    random = np.random.default_rng(seed)
    names = [f"blocks.0.{role}" for role in TINY.roles[:5]]
    damage = {(name, grid): float(random.exponential() * 4.0 ** (2 - grid.bits)) for name in names for grid in CHOICES}
    sizes = {name: float(np.prod(TINY.shape(name.split(".", 2)[2]))) for name in names}
    best = min(
        sum(damage[name, grid] for name, grid in zip(names, each, strict=True))
        for each in itertools.product(CHOICES, repeat=5)
        if sum(sizes[name] * grid.bits_per_weight(64) for name, grid in zip(names, each, strict=True)) <= bits * sum(sizes.values()) + 1e-6
    )
    found = allocate(damage, TINY, bits)
    assert sum(sizes[name] * grid.bits_per_weight(64) for name, grid in found.items()) <= bits * sum(sizes.values()) * (1 + 1e-6)
    assert sum(damage[name, grid] for name, grid in found.items()) == pytest.approx(best, rel=1e-3)


def test_too_few_bits_are_refused() -> None:
    with pytest.raises(UsageError, match=r"2\.5"):
        allocate({("blocks.0.attention.q", Grid(2, 32)): 1.0}, TINY, 2.4)


def test_a_recipe_from_a_model(tmp_path: Path) -> None:
    need("transformers", "tokenizers", "safetensors")
    from lowbit.llm.folder import SourceFolder
    from lowbit.llm.tokens import read_texts

    source = SourceFolder.open(random_decoder("llama", tmp_path / "model"))
    tokens = read_texts(source, texts()).windows(4, 32)
    damage = sensitivities(source, tokens)
    assert len(damage) == 2 * 7 * 4
    for name in {name for name, _ in damage}:
        losses = [damage[name, grid] for grid in CHOICES]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < 1e-3 * losses[0]
    recipe = mixed(source, tokens, 3.9)
    grids = [recipe.grid_of(block, role) for block in range(2) for role in source.decoder.roles]
    weights = [np.prod(source.decoder.shape(role)) for _ in range(2) for role in source.decoder.roles]
    mean = sum(grid.bits_per_weight(64) * n for grid, n in zip(grids, weights, strict=True) if grid) / sum(weights)
    assert recipe.name == "mixed-3.9"
    assert 3.7 < mean <= 3.9
    assert len(set(grids)) > 1
    assert type(recipe).from_yaml(recipe.to_yaml()) == recipe
    with pytest.raises(UsageError, match="calibration"):
        mixed(source, tokens[:0], 4.0)


def test_a_mixed_recipe_is_better_than_one_grid_of_its_size(shared_data: Path, tmp_path: Path) -> None:
    need("transformers", "tokenizers", "safetensors")
    import torch
    import torch.nn.functional as F

    from lowbit.llm.decoder import Weights
    from lowbit.llm.folder import SourceFolder
    from lowbit.llm.forward import Reference
    from lowbit.llm.recipe import LanguageRecipe
    from lowbit.llm.tokens import read_texts
    from lowbit.llm.walk import quantize_folder

    source = SourceFolder.open(shared_data / "small-llama")
    tokens = read_texts(source, shared_data / "small-llama" / "calib_darwin.txt").windows(2, 64)
    others = read_texts(source, shared_data / "small-llama" / "calib_bronte.txt").windows(3, 128)
    recipe = mixed(source, tokens, 3.5, choices=(Grid(2, 32), Grid(3, 32), Grid(4, 32)), method="rtn")
    found = quantize_folder(source, recipe, None, tmp_path / "mixed")
    same = quantize_folder(source, LanguageRecipe("same", "rtn", Grid(3, 32)), None, tmp_path / "same")
    assert found.bits_per_weight <= same.bits_per_weight + 1e-6
    with torch.no_grad():

        def scored(weights: Weights) -> torch.Tensor:
            return F.log_softmax(Reference(weights).logits(others), -1)

        wanted = scored(source)
        ours, theirs = (F.kl_div(scored(each), wanted, reduction="batchmean", log_target=True) for each in (found, same))
    assert ours < theirs
