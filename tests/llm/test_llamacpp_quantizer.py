"""llama.cpp's own quantizer: what it writes can be read back, judged by the reference, and run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from decoder_case import need, random_decoder

from lowbit.errors import ModelError, UsageError
from lowbit.llm.engines.base import EngineTuning
from lowbit.llm.engines.llamacpp import LlamaCpp
from lowbit.llm.folder import SourceFolder
from lowbit.llm.forward import Reference
from lowbit.llm.writers import gguf_file
from lowbit.llm.writers.gguf_weights import GgufWeights, types
from lowbit.llm.writers.llamacpp_quantizer import importance_matrix, quantize

ONE = EngineTuning(threads=1, prompt_threads=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceFolder:
    need("llama_cpp", "gguf")
    folder = tmp_path_factory.mktemp("decoder") / "source"
    return SourceFolder.open(random_decoder("llama", folder, width=256, heads=4, kv_heads=2, inner=512))


@pytest.fixture(scope="module")
def file(source: SourceFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_file.write(source, tmp_path_factory.mktemp("f16"))


def far(weights: GgufWeights, source: SourceFolder, name: str) -> float:
    """Root mean square of what a tensor lost, against its spread."""
    exact = np.asarray(source.get(name)).astype(np.float32)
    return float(np.sqrt(((weights.get(name) - exact) ** 2).mean()) / exact.std())


@pytest.mark.parametrize(
    ("preset", "kinds", "worst"), [("Q8_0", {"Q8_0"}, 0.01), ("Q4_K_M", {"Q4_K", "Q6_K"}, 0.15), ("q4_0", {"Q4_0"}, 0.15)]
)
def test_presets_read_back_close_to_the_source_and_run(
    preset: str, kinds: set[str], worst: float, source: SourceFolder, file: Path, tmp_path: Path
) -> None:
    made = quantize(file, tmp_path / "out" / "model.gguf", preset, threads=1)
    assert kinds <= set(types(made))
    assert made.stat().st_size < 0.6 * file.stat().st_size
    weights = GgufWeights(made, source)
    for name in ("blocks.0.attention.q.weight", "blocks.1.attention.k.weight", "blocks.1.mlp.down.weight", "embed.weight"):
        assert 0 < far(weights, source, name) < worst
    np.testing.assert_array_equal(weights.get("norm.weight"), np.asarray(source.get("norm.weight")).astype(np.float32))
    tokens = np.random.default_rng(0).integers(0, 320, 40)
    expected = Reference(weights).logits(tokens).numpy()
    session = LlamaCpp().open(made, ONE, context=64)
    found = session.logits(tokens.tolist())
    session.close()
    assert np.sqrt(((found - expected) ** 2).mean()) / expected.std() < 0.08
    assert [each.name for each in made.parent.iterdir()] == ["model.gguf"]


def test_the_head_can_be_asked_for_and_mixtures_forbidden(file: Path, tmp_path: Path) -> None:
    made = quantize(file, tmp_path / "model.gguf", "Q4_K_M", head="F16", pure=True, threads=1)
    assert set(types(made)) == {"F16", "F32", "Q4_K"}


def test_importance_moves_the_error_to_inputs_that_matter_less(source: SourceFolder, file: Path, tmp_path: Path) -> None:
    layer = "blocks.0.mlp.up"
    power = np.full(256, 1e-4)
    power[::8] = 1.0
    powers = {f"blocks.{i}.{role}": np.ones(source.decoder.shape(role)[1]) for i in range(2) for role in source.decoder.roles}
    matrix = importance_matrix(source.decoder, source.names(), {**powers, layer: power})
    assert set(matrix) >= {"blk.0.ffn_up.weight", "blk.1.attn_q.weight"}
    errors = []
    for importance in (None, matrix):
        made = quantize(file, tmp_path / str(importance is None) / "model.gguf", "Q4_K_S", importance=importance, threads=1)
        lost = GgufWeights(made, source).get(f"{layer}.weight") - np.asarray(source.get(f"{layer}.weight")).astype(np.float32)
        errors.append(float((lost[:, ::8] ** 2).mean()))
    assert errors[1] < 0.8 * errors[0]


def test_importance_of_fused_layers_goes_by_their_one_tensor(tmp_path: Path) -> None:
    need("llama_cpp")
    fused = SourceFolder.open(random_decoder("phi3", tmp_path / "source"))
    matrix = importance_matrix(fused.decoder, fused.names(), {"blocks.0.attention.q": np.arange(64), "blocks.0.mlp.gate": np.ones(64)})
    assert set(matrix) == {"blk.0.attn_qkv.weight", "blk.0.ffn_up.weight"}


def test_mistakes_are_told(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Unknown preset"):
        quantize(file, tmp_path / "model.gguf", "Q9_X")
    with pytest.raises(UsageError, match="importance matrix"):
        quantize(file, tmp_path / "model.gguf", "IQ2_XS")
    with pytest.raises(UsageError, match="type of the head"):
        quantize(file, tmp_path / "model.gguf", "Q8_0", head="Q7")
    with pytest.raises(ModelError, match="no file"):
        quantize(tmp_path / "none.gguf", tmp_path / "model.gguf", "Q8_0")
    (tmp_path / "text.gguf").write_text("no model at all")
    with pytest.raises(ModelError, match=r"could not quantize 'text.gguf' to Q8_0"):
        quantize(tmp_path / "text.gguf", tmp_path / "model.gguf", "Q8_0")
    assert [each.name for each in tmp_path.iterdir()] == ["text.gguf"]


def test_what_is_no_gguf_file_is_not_read(source: SourceFolder, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model at all, but long enough for a header")
    with pytest.raises(ModelError, match="no GGUF file"):
        types(tmp_path / "text.gguf")
    with pytest.raises(ModelError, match="no file"):
        GgufWeights(tmp_path / "none.gguf", source)
