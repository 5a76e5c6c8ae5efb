"""Methods on models: outlier channels that W8A8 must survive, and the small trained Llama."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from decoder_case import need, random_decoder, texts

from lowbit.llm.linear import Grid, QuantizedLinear
from lowbit.llm.recipe import LanguageRecipe

need("torch", "transformers", "tokenizers", "safetensors")
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from lowbit.llm.decoder import Weights  # noqa: E402
from lowbit.llm.folder import SourceFolder  # noqa: E402
from lowbit.llm.forward import Reference  # noqa: E402
from lowbit.llm.tokens import read_texts  # noqa: E402
from lowbit.llm.walk import quantize_folder  # noqa: E402
from lowbit.types import Array  # noqa: E402

MAKER = Path(__file__).resolve().parents[2] / "benchmarks" / "llm_outliers.py"


def divergence(exact: Weights, other: Weights, tokens: Array) -> float:
    """KL(exact | other) a token."""
    with torch.no_grad():
        wanted, scored = (F.log_softmax(Reference(each).logits(tokens), -1) for each in (exact, other))
        return float(F.kl_div(scored, wanted, reduction="sum", log_target=True)) / tokens.size


def test_w8a8_with_outlier_channels(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("llm_outliers", MAKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plain = SourceFolder.open(random_decoder("llama", tmp_path / "plain", dtype="float32"))
    channels = module.with_outliers(tmp_path / "plain", tmp_path / "model", factor=50.0, channels=3)
    source = SourceFolder.open(tmp_path / "model")
    tokens = read_texts(source, texts()).windows(24, 32)
    assert len(channels) == 3
    assert divergence(plain, source, tokens) < 1e-6  # it computes what it did

    def damage(name: str, **options: object) -> float:
        recipe = LanguageRecipe(name, "rtn", Grid(8), activations="int8-token", **options)  # type: ignore[arg-type]
        table = quantize_folder(source, recipe, tokens[:16], tmp_path / name)
        if "outliers" in options:
            kept = table.get("blocks.0.attention.q.weight")
            assert isinstance(kept, QuantizedLinear)
            assert kept.columns is not None
            assert set(channels) <= set(kept.columns.tolist())
        return divergence(source, table, tokens[16:])

    harm = damage("w8a8")
    assert damage("smooth", smooth=0.5) < 0.1 * harm
    assert damage("kept", outliers=20.0) < 0.2 * harm


def test_int4_gptq_beats_rounding_to_nearest_on_a_trained_model(shared_data: Path, tmp_path: Path) -> None:
    source = SourceFolder.open(shared_data / "small-llama")
    tokens = read_texts(source, shared_data / "small-llama" / "calib_darwin.txt").windows(16, 128)
    others = read_texts(source, shared_data / "small-llama" / "calib_bronte.txt").windows(4, 128)
    some = {f"blocks.{index}.{role}": Grid(4, 32) for index in (0, 4, 7) for role in source.decoder.roles}
    tables = {
        method: quantize_folder(source, LanguageRecipe(method, method, formats=some), tokens, tmp_path / method)  # type: ignore[arg-type]
        for method in ("rtn", "gptq")
    }
    damage = {method: divergence(source, table, others) for method, table in tables.items()}
    assert damage["gptq"] < 0.6 * damage["rtn"] < 0.6 * 0.004
    for table in tables.values():
        linear = table.get("blocks.7.mlp.down.weight")
        assert isinstance(linear, QuantizedLinear)
        assert linear.levels.max() < 16
        assert linear.scale.dtype == np.float16
