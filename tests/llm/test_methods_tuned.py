"""Training: gradients reach what moves, what is stored is what ran, and the model comes nearer to the float one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from decoder_case import need, random_decoder, texts

from lowbit.errors import DataError
from lowbit.llm.linear import Grid, QuantizedLinear
from lowbit.llm.recipe import LanguageRecipe

need("torch", "transformers", "tokenizers", "safetensors")
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from lowbit.llm.folder import SourceFolder  # noqa: E402
from lowbit.llm.forward import Reference  # noqa: E402
from lowbit.llm.methods.grids import searched  # noqa: E402
from lowbit.llm.methods.trainable import TrainableLinear  # noqa: E402
from lowbit.llm.methods.tuned import finish  # noqa: E402
from lowbit.llm.tokens import read_texts  # noqa: E402
from lowbit.llm.walk import quantize_folder  # noqa: E402
from lowbit.types import Array  # noqa: E402


def linear_of(grid: Grid, columns: Array | None = None) -> tuple[QuantizedLinear, torch.Tensor]:
    weights = torch.randn(8, 20, generator=torch.Generator().manual_seed(1))
    scales = searched(weights, grid)
    linear = scales.packed(scales.nearest(weights))
    if columns is not None:
        kept = weights.numpy()[:, columns].astype(np.float16)
        linear = QuantizedLinear(linear.levels, linear.scale, linear.zero, grid, columns, kept)
    return linear, weights


@pytest.mark.parametrize("grid", [Grid(2, 8), Grid(3, 8, False), Grid(4)], ids=["2", "3z", "4row"])
@pytest.mark.parametrize("kept", [False, True])
def test_it_starts_as_it_was_and_stores_what_ran(grid: Grid, kept: bool) -> None:
    linear, weights = linear_of(grid, np.array([3, 11], np.int32) if kept else None)
    layer = TrainableLinear(linear, weights)
    np.testing.assert_allclose(layer.weights().detach().numpy(), linear.dequantized(), rtol=1e-6)
    (layer.weights() * torch.randn(8, 20)).sum().backward()
    assert layer.levels.grad is not None
    assert layer.steps.grad is not None
    with torch.no_grad():
        layer.levels += torch.randn(8, 20)
        layer.steps += 0.1 * torch.randn(layer.steps.shape)
    packed = layer.packed()
    np.testing.assert_allclose(packed.dequantized(), layer.weights().detach().numpy(), rtol=1e-6, atol=1e-7)
    assert packed.levels.max() < 2**grid.bits
    assert (packed.levels != linear.levels).any()
    frozen = TrainableLinear(linear, None)
    assert not frozen.levels.requires_grad


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceFolder:
    return SourceFolder.open(random_decoder("llama", tmp_path_factory.mktemp("llama"), tied=True))


def divergence(source: SourceFolder, student: Reference, tokens: Array) -> float:
    with torch.no_grad():
        wanted, scored = (F.log_softmax(each.logits(tokens), -1) for each in (Reference(source), student))
        return float(F.kl_div(scored, wanted, reduction="sum", log_target=True)) / tokens.size


@pytest.mark.parametrize("level_rate", [0.0, 0.01])
def test_distilling_brings_a_model_nearer_on_tokens_it_did_not_see(source: SourceFolder, level_rate: float, tmp_path: Path) -> None:
    every = np.random.default_rng(0).integers(0, 320, (160, 32)).astype(np.int32)  # to random weights any tokens are text
    tokens, others = every[:128], every[128:]
    plain = LanguageRecipe("plain", "rtn", Grid(4, 32), options={"candidates": 0.0})
    start = quantize_folder(source, plain, None, tmp_path / "plain")
    options = {"steps": 40.0, "tokens": 512.0, "scale_rate": 0.005, "norm_rate": 0.005, "level_rate": level_rate}
    found = dict(finish(source, start, tokens, LanguageRecipe("tuned", "tuned", Grid(4, 32), options=options)))
    assert set(found) == {0, 1}
    student = Reference(start, keep=True)
    moved = False
    for index, changed in found.items():
        block = student.block(index)
        for role, linear in changed.linears.items():
            before = start.get(f"blocks.{index}.{role}.weight")
            assert isinstance(before, QuantizedLinear)
            assert linear.grid == before.grid
            moved |= bool((before.levels != linear.levels).any())
            block.weights[role] = torch.from_numpy(linear.dequantized())
        for name, stored in changed.floats.items():
            assert stored.dtype == np.float16
            assert "norm" in name
            block.floats[name] = torch.from_numpy(stored.astype(np.float32))
    assert moved == (level_rate > 0)
    assert divergence(source, student, others) < (0.9 if level_rate else 0.96) * divergence(source, Reference(start), others)


def test_the_method_is_gptq_then_training(source: SourceFolder, tmp_path: Path) -> None:
    tokens = read_texts(source, texts()).windows(16, 32)
    start = quantize_folder(source, LanguageRecipe("gptq", "gptq", Grid(4, 32)), tokens, tmp_path / "gptq")
    tuned = quantize_folder(source, LanguageRecipe("tuned", "tuned", Grid(4, 32), options={"steps": 0.0}), tokens, tmp_path / "tuned")
    for name in start.names():
        a, b = start.get(name), tuned.get(name)
        if isinstance(a, QuantizedLinear) and isinstance(b, QuantizedLinear):
            np.testing.assert_array_equal(a.levels, b.levels)
            np.testing.assert_array_equal(a.scale, b.scale)


def test_what_does_not_help_is_not_taken(source: SourceFolder, tmp_path: Path) -> None:
    tokens = read_texts(source, texts()).windows(16, 32)
    recipe = LanguageRecipe("wild", "tuned", Grid(4, 32), options={"steps": 3.0, "scale_rate": 3.0})
    start = quantize_folder(source, LanguageRecipe("gptq", "gptq", Grid(4, 32)), tokens, tmp_path / "start")
    assert list(finish(source, start, tokens, recipe)) == []
    with pytest.raises(DataError, match="two windows"):
        list(finish(source, start, tokens[:1], recipe))
    assert list(finish(source, start, tokens, LanguageRecipe("none", "tuned", Grid(4, 32), options={"steps": 0.0}))) == []
