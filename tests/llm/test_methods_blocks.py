"""Whole blocks of small random decoders: folds that change nothing, every method on every grid, what it returns against what it ran."""

from __future__ import annotations

import numpy as np
import pytest
from decoder_case import FAMILIES, need, random_decoder, texts

from lowbit.llm.linear import Grid
from lowbit.llm.recipe import LanguageRecipe

need("torch", "transformers", "tokenizers", "safetensors")
import torch  # noqa: E402

from lowbit.llm.folder import SourceFolder  # noqa: E402
from lowbit.llm.forward import Block, Reference  # noqa: E402
from lowbit.llm.methods.base import METHODS, BlockProblem, QuantizedBlock, calibrates  # noqa: E402
from lowbit.llm.methods.folds import fold, seams, stored_array  # noqa: E402
from lowbit.llm.methods.inputs import captured, peaks, stages  # noqa: E402
from lowbit.llm.methods.smooth import smooth, strengthened  # noqa: E402
from lowbit.llm.tokens import read_texts  # noqa: E402


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SourceFolder]:
    room = tmp_path_factory.mktemp("decoders")
    return {family: SourceFolder.open(random_decoder(family, room / family, layers=1)) for family in FAMILIES}


def problem_of(source: SourceFolder, recipe: LanguageRecipe, windows: int = 8) -> BlockProblem:
    hidden = Reference(source).embed(read_texts(source, texts()).windows(windows, 32))
    return BlockProblem(0, source.decoder, Block.read(source, 0), hidden, None, recipe, "float16")


def recipe(method: str, grid: Grid, **more: object) -> LanguageRecipe:
    return LanguageRecipe("test", method, grid, **more)  # type: ignore[arg-type]


def output_error(problem: BlockProblem, source: SourceFolder) -> float:
    assert problem.exact is not None
    wanted = Block.read(source, 0).run(problem.exact)
    return float((problem.block.run(problem.exact) - wanted).square().sum() / (wanted - problem.exact).square().sum())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_folding_changes_nothing(family: str, stored: str, sources: dict[str, SourceFolder]) -> None:
    problem = problem_of(sources[family], recipe("rtn", Grid(8)))
    assert problem.exact is not None
    block, before = problem.block, problem.block.run(problem.exact)
    for tensor in block.floats:
        if tensor.endswith("bias"):  # a bias is rounded as it is stored, and has no column to make up for it
            block.floats[tensor] = torch.zeros_like(block.floats[tensor])
    before = block.run(problem.exact)
    generator = torch.Generator().manual_seed(0)
    for seam in seams(problem.decoder):
        first = block.weights[seam.source] if seam.source.startswith(("attention", "mlp")) else block.floats[f"{seam.source}.weight"]
        fold(block, seam, (torch.rand(len(first), generator=generator) * 3).exp() / 4, stored)
        assert "norm" not in seam.source or torch.equal(
            block.floats[f"{seam.source}.weight"], block.floats[f"{seam.source}.weight"].to(getattr(torch, stored)).float()
        )
    torch.testing.assert_close(block.run(problem.exact), before, rtol=1e-5, atol=2e-5 * float(before.abs().max()))


def test_every_linear_layer_that_can_be_reached_is(sources: dict[str, SourceFolder]) -> None:
    reached = {family: {role for seam in seams(source.decoder) for role in seam.roles} for family, source in sources.items()}
    assert reached["llama"] == set(sources["llama"].decoder.roles) == reached["qwen3"]
    assert reached["gpt2"] == set(sources["gpt2"].decoder.roles) - {"mlp.down"}  # gelu lies between


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(3, 24, False), Grid(2, 16), Grid(8)], ids=["4g32", "3g24z", "2g16", "8"])
def test_a_block_is_what_its_levels_stand_for(method: str, grid: Grid, sources: dict[str, SourceFolder]) -> None:
    source = sources["llama"]
    problem = problem_of(source, recipe(method, grid, options={"block_steps": 3}))
    found = METHODS[method](problem)
    assert set(found.linears) == set(source.decoder.roles)
    for role, linear in found.linears.items():
        assert linear.shape == source.decoder.shape(role)
        assert linear.levels.max() < 2**grid.bits
        assert linear.scale.dtype == np.float16
        np.testing.assert_allclose(linear.dequantized(), problem.block.weights[role].detach().numpy(), rtol=1e-6, atol=1e-7)
    for name, stored in found.floats.items():
        np.testing.assert_array_equal(stored.astype(np.float32), problem.block.floats[name].numpy())
        assert stored.dtype == np.float16
    assert output_error(problem, source) < {8: 1e-3, 4: 0.1, 3: 0.4, 2: 1.0}[grid.bits]


@pytest.mark.parametrize("family", ["phi", "gpt2", "qwen2"])
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_other_shapes_of_blocks(family: str, method: str, sources: dict[str, SourceFolder]) -> None:
    source = sources[family]
    plain, ours = problem_of(source, recipe("rtn", Grid(3, 32))), problem_of(source, recipe(method, Grid(3, 32)))
    METHODS["rtn"](plain)
    METHODS[method](ours)
    assert output_error(ours, source) < output_error(plain, source)


def test_gptq_and_awq_beat_rounding_to_nearest_and_training_beats_its_start(sources: dict[str, SourceFolder]) -> None:
    source = sources["llama"]
    errors = {}
    for name, method, options in (
        ("rtn", "rtn", {}),
        ("awq", "awq", {}),
        ("gptq", "gptq", {}),
        ("tuned", "tuned", {"block_steps": 60, "level_rate": 0.003, "scale_rate": 0.003}),
    ):
        problem = problem_of(source, recipe(method, Grid(2, 32), options=options), windows=64)
        METHODS[method](problem)
        with torch.no_grad():
            errors[name] = output_error(problem, source)
    assert errors["awq"] < errors["rtn"]
    assert errors["gptq"] < 0.8 * errors["rtn"]
    assert errors["tuned"] < errors["gptq"]


def test_layers_without_a_grid_stay_and_each_may_have_its_own(sources: dict[str, SourceFolder]) -> None:
    source = sources["llama"]
    given = LanguageRecipe("own", "awq", None, formats={"attention.o": Grid(4, 16), "blocks.0.mlp.down": Grid(2, 32)})
    problem = problem_of(source, given)
    found = METHODS["awq"](problem)
    assert {role: linear.grid for role, linear in found.linears.items()} == {"attention.o": Grid(4, 16), "mlp.down": Grid(2, 32)}
    for role in set(source.decoder.roles) - set(found.linears):  # what something was folded into is handed back, as it is stored
        exact, now = Block.read(source, 0).weights[role], problem.block.weights[role]
        if torch.equal(exact, now):
            assert f"{role}.weight" not in found.floats
        else:
            np.testing.assert_array_equal(found.floats[f"{role}.weight"], stored_array(now, "float16"))


def test_smoothing_is_the_paper_s(sources: dict[str, SourceFolder]) -> None:
    source = sources["llama"]
    problem = problem_of(source, recipe("rtn", Grid(8), smooth=0.5))
    assert problem.exact is not None
    before = problem.block.run(problem.exact)
    norm, reach = problem.block.floats["norm1.weight"], peaks(problem.block, problem.exact, ["attention.q"])["attention.q"]
    wide = torch.stack([problem.block.weights[f"attention.{each}"].abs().amax(0) for each in "qkv"]).amax(0)
    smooth(problem)
    torch.testing.assert_close(problem.block.run(problem.exact), before, rtol=1e-4, atol=1e-4)
    factors, wanted = norm / problem.block.floats["norm1.weight"], (reach / wide).sqrt()
    torch.testing.assert_close(factors / factors[0], wanted / wanted[0], rtol=2e-3, atol=0)
    assert torch.equal(strengthened(torch.tensor([0.0, 0.0]), torch.ones(2), 0.5), torch.ones(2))


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_outlier_columns_are_kept(method: str, sources: dict[str, SourceFolder]) -> None:
    source = sources["llama"]
    inputs = peaks(Block.read(source, 0), problem_of(source, recipe("rtn", Grid(8))).exact, ["mlp.down"])["mlp.down"]  # type: ignore[arg-type]
    threshold = float(inputs.sort().values[-3])
    problem = problem_of(source, LanguageRecipe("kept", method, None, formats={"mlp.down": Grid(4, 32)}, outliers=threshold))  # type: ignore[arg-type]
    exact = problem.block.weights["mlp.down"]
    linear = METHODS[method](problem).linears["mlp.down"]
    assert linear.columns is not None
    assert linear.kept is not None
    assert linear.columns.dtype == np.int32
    assert linear.columns.tolist() == sorted(inputs.topk(3).indices.tolist())
    assert (linear.levels[:, linear.columns] == 8).all()
    np.testing.assert_array_equal(linear.kept, exact[:, torch.from_numpy(linear.columns).long()].half().numpy())
    np.testing.assert_allclose(linear.dequantized(), problem.block.weights["mlp.down"].numpy(), rtol=1e-6, atol=1e-7)


def test_inputs_are_summed_right_whatever_the_chunks(sources: dict[str, SourceFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(sources["llama"], recipe("gptq", Grid(4, 32)))
    assert problem.exact is not None
    rows: dict[str, torch.Tensor] = {}
    problem.block.run(problem.exact, lambda role, fed: rows.setdefault(role, fed))  # type: ignore[arg-type]
    roles = [each[0] for each in stages(problem.decoder)]
    monkeypatch.setattr("lowbit.llm.methods.inputs.TOKENS", 96)
    for role, inputs in captured(problem.block, problem.exact, roles).items():
        fed = rows[role].double()
        torch.testing.assert_close(inputs.gram.double(), fed.T @ fed / len(fed), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(inputs.peak, rows[role].abs().amax(0))
        torch.testing.assert_close(inputs.mean, rows[role].abs().mean(0), rtol=1e-4, atol=1e-5)
        assert inputs.count == len(fed)
        assert inputs.cross is None


def test_one_pass_for_all_stages_sees_the_block_before_it_was_quantized(sources: dict[str, SourceFolder]) -> None:
    def quantized(in_turn: float) -> QuantizedBlock:
        return METHODS["gptq"](
            problem_of(sources["llama"], recipe("gptq", Grid(2, 32), options={"in_turn": in_turn, "cross": 0.0, "sweeps": 4.0}))
        )

    once, turns = quantized(0.0), quantized(1.0)
    np.testing.assert_array_equal(once.linears["attention.q"].levels, turns.linears["attention.q"].levels)
    assert (once.linears["mlp.down"].levels != turns.linears["mlp.down"].levels).any()


def test_which_recipes_calibrate() -> None:
    assert [calibrates(recipe(name, Grid(4, 32))) for name in ("rtn", "hqq", "gptq", "awq", "tuned")] == [False, False, True, True, True]
    assert calibrates(recipe("rtn", Grid(8), smooth=0.5))
    assert calibrates(recipe("rtn", Grid(8), outliers=6.0))
