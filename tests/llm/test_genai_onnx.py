"""ONNX decoders for onnxruntime-genai: what is in the file, and that onnxruntime computes the reference's logits from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_case import FAMILIES, need, random_decoder
from engine_case import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_case import Rounded, recipe, rounded

from lowbit.errors import ModelError, UsageError
from lowbit.llm.decoder import Decoder
from lowbit.llm.engines.base import EngineTuning
from lowbit.llm.engines.genai_files import WHOLE_ROW, read_files
from lowbit.llm.engines.genai_run import Decoder as Runner
from lowbit.llm.folder import SourceFolder
from lowbit.llm.linear import Grid
from lowbit.llm.writers import genai_onnx
from lowbit.llm.writers.genai_data import block_of, pack

TEXT = [int(token) for token in np.random.default_rng(0).integers(2, 300, 24)]
EXACT = 2e-5
"""Float32 on the same weights; only the order of additions differs. Logits of these networks spread by 1.5 to 6."""

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "phi, rotated by the attention": ("phi", {"width": 128, "heads": 2}),
    "mistral with a window": ("mistral", {"sliding_window": 8}),
    "llama of odd widths": ("llama", {"width": 80, "heads": 5, "kv_heads": 5, "inner": 112}),
    "qwen2 tied, bfloat16": ("qwen2", {"dtype": "bfloat16", "tied": True}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
}


@pytest.fixture(autouse=True, scope="module")
def _packages() -> None:
    need("torch", "transformers", "onnx_ir", "onnxruntime", "onnxruntime_genai")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceFolder:
    return SourceFolder.open(random_decoder("llama", tmp_path_factory.mktemp("source")))


def scored(artifact: Path, activations: int | None = None) -> np.ndarray:
    return Runner(read_files(artifact, EngineTuning(threads=1, activations=activations), 128)).score(TEXT)


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max())


@pytest.mark.parametrize("case", CASES)
def test_sixteen_bits_of_every_family(case: str, tmp_path: Path) -> None:
    family, changes = CASES[case]
    weights = SourceFolder.open(random_decoder(family, tmp_path / "source", **changes))
    artifact = genai_onnx.write(weights, tmp_path / "out")
    assert apart(scored(artifact), reference(weights, TEXT)) < 5e-5
    assert sorted(path.name for path in artifact.parent.glob("*.onnx")) == ["model.onnx"]
    floats = sum(np.asarray(weights.get(name)).size for name in weights.names())
    # 16 bit a weight, each tensor from a page of its own, and cosines and sines of 128 positions.
    room = 4096 * len(weights.names()) + 2 * 128 * 16 * 4 + 2 * 4096
    assert 2 * floats < (artifact.parent / "model.onnx.data").stat().st_size < 2 * floats + room + 4 * 4096


SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32},
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_scaled_positions(kind: str, tmp_path: Path) -> None:
    weights = SourceFolder.open(random_decoder("llama", tmp_path / "source", rope_parameters=SCALINGS[kind]))
    assert apart(scored(genai_onnx.write(weights, tmp_path / "out")), reference(weights, TEXT)) < 5e-5


def test_longrope_reaches_as_far_as_its_short_factors(source: SourceFolder) -> None:
    rope = source.decoder.rope
    assert rope is not None
    scaled = replace(rope, scaling={"rope_type": "longrope", "original_max_position_embeddings": 48})
    assert genai_onnx.context(replace(source.decoder, rope=scaled)) == 48
    assert genai_onnx.context(source.decoder) == 128


GRIDS = {
    "int4, groups of 32": recipe(Grid(4, 32)),
    "int4, groups of 16, zero points": recipe(Grid(4, 16, False)),
    "int4, rows": recipe(Grid(4)),
    "int8, rows": recipe(Grid(8)),
    "int8, groups of 32, zero points": recipe(Grid(8, 32, False)),
    "int3": recipe(Grid(3, 32)),
    "int3, zero points": recipe(Grid(3, 32, False)),
    "int2": recipe(Grid(2, 16)),
    "int2, zero points": recipe(Grid(2, 32, False)),
    "mixed": recipe(Grid(4, 32), formats={"mlp.up": Grid(8), "blocks.1.attention.k": Grid(2, 32)}),
    "head in 8 bit": recipe(Grid(4, 32), head=Grid(8)),
    "head in 4 bit, zero points": recipe(Grid(4, 32), head=Grid(4, 32, False)),
    "columns in 16 bit": recipe(Grid(4, 32), outliers=6.0),
}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", GRIDS)
def test_quantized_weights_are_the_tables(name: str, family: str, tmp_path: Path) -> None:
    sizes = {"width": 80, "heads": 5, "kv_heads": 5, "inner": 112} if family == "llama" else {}
    weights = Rounded(SourceFolder.open(random_decoder(family, tmp_path / "source", **sizes)), GRIDS[name])
    artifact = genai_onnx.write(weights, tmp_path / "out")
    expected = reference(weights, TEXT)
    assert apart(scored(artifact, activations=0), expected) < 5e-5  # inputs in floating point: nothing but the weights counts
    # Inputs rounded to 8 bit by blocks: a step is 1/127 of a block's largest.
    assert np.sqrt(np.mean((scored(artifact) - expected) ** 2)) < 0.06 * expected.std()


@pytest.mark.parametrize("outliers", [None, 6.0])
def test_eight_bit_activations_are_rounded_as_the_reference_rounds_them(
    outliers: float | None, source: SourceFolder, tmp_path: Path
) -> None:
    weights = Rounded(source, recipe(Grid(8), activations="int8-token", outliers=outliers))
    artifact = genai_onnx.write(weights, tmp_path)
    assert apart(scored(artifact), reference(weights, TEXT)) < 5e-5
    assert sorted(path.name for path in tmp_path.glob("*.onnx")) == ["model.float.onnx", "model.onnx"]


def test_rows_in_eight_bit_can_be_multiplied_as_integers(source: SourceFolder, tmp_path: Path) -> None:
    artifact = genai_onnx.write(Rounded(source, recipe(Grid(8))), tmp_path)
    as_tokens = reference(Rounded(source, recipe(Grid(8), activations="int8-token")), TEXT)
    assert apart(scored(artifact, activations=WHOLE_ROW), as_tokens) < 5e-5


def test_a_rewritten_folder_has_no_graph_of_the_old_weights(source: SourceFolder, tmp_path: Path) -> None:
    genai_onnx.write(Rounded(source, recipe(Grid(8))), tmp_path)
    genai_onnx.write(source, tmp_path)
    assert [path.name for path in tmp_path.glob("*.onnx")] == ["model.onnx"]


def unpacked(packed: Any, columns: int) -> np.ndarray:
    """By the operator's words: blocks of levels, the first in the lowest bits of a byte; (level - zero) * scale."""
    rows, blocks, _ = packed.levels.shape
    per = 8 // packed.bits
    shifts = np.arange(per, dtype=np.uint8) * packed.bits
    levels = ((packed.levels[..., None] >> shifts) & ((1 << packed.bits) - 1)).reshape(rows, blocks, packed.block)
    if packed.zero is None:
        zero = np.full((rows, blocks), 1 << (packed.bits - 1))
    else:
        zero = ((packed.zero[..., None] >> shifts) & ((1 << packed.bits) - 1)).reshape(rows, -1)[:, :blocks]
    weights = (levels.astype(np.float32) - zero[..., None]) * packed.scale[..., None].astype(np.float32)
    return weights.reshape(rows, -1)[:, :columns]


@settings(deadline=None, max_examples=60)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    group=st.sampled_from([None, 16, 32, 48, 64, 128, 256]),
    symmetric=st.booleans(),
    columns=st.integers(1, 300),
    seed=st.integers(0, 2**32 - 1),
)
def test_packing_keeps_every_number(bits: int, group: int | None, symmetric: bool, columns: int, seed: int) -> None:
    weights = np.random.default_rng(seed).standard_normal((3, columns)).astype(np.float32)
    quantized = rounded(weights, Grid(bits, group, symmetric))
    np.testing.assert_array_equal(unpacked(pack(quantized), columns), quantized.dequantized())


def test_blocks_divide_groups() -> None:
    assert [block_of(Grid(4, group), 960) for group in (16, 32, 64, 96, 128, 256, 960, 40, 8)] == [16, 32, 64, 32, 128, 128, 64, None, None]
    assert [block_of(Grid(8), width) for width in (320, 864, 1024, 2816, 80)] == [64, 32, 128, 128, 32]


@pytest.mark.parametrize("changes", [{"grid": Grid(4, 40)}, {"head": Grid(4, 24)}, {"formats": {"mlp.down": Grid(4, 8)}}])
def test_groups_that_no_block_divides_are_refused(changes: dict[str, Any], source: SourceFolder, tmp_path: Path) -> None:
    asked = recipe(Grid(4, 32), **changes) if "grid" not in changes else recipe(changes["grid"])
    with pytest.raises(UsageError, match="groups of"):
        genai_onnx.check(source.decoder, asked)
    with pytest.raises(UsageError, match="groups of"):
        genai_onnx.write(Rounded(source, asked), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Broken(Rounded):
    """Fails at its last block, as a full disk would."""

    def get(self, name: str) -> Any:
        if name == "blocks.1.mlp.down.weight":
            raise OSError("no room")
        return super().get(name)


def test_nothing_is_half_written(source: SourceFolder, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no room"):
        genai_onnx.write(Broken(source, recipe(Grid(4, 32))), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    artifact = genai_onnx.write(source, tmp_path / "old")
    before = {path.name: path.read_bytes() for path in artifact.parent.iterdir()}
    with pytest.raises(OSError, match="no room"):
        genai_onnx.write(Broken(source, recipe(Grid(4, 32))), tmp_path / "old")
    assert {path.name: path.read_bytes() for path in artifact.parent.iterdir()} == before


def test_the_library_generates_from_the_folder_alone(source: SourceFolder, tmp_path: Path) -> None:
    """As a user would: its model, its generator, its tokenizer, greedy search by itself."""
    import onnxruntime_genai as genai

    weights = Rounded(source, recipe(Grid(4, 32)))
    told: list[tuple[int, int]] = []
    artifact = genai_onnx.write(weights, tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    assert {"config.json", "tokenizer.json", "genai_config.json", "model.onnx.data"} <= {path.name for path in tmp_path.iterdir()}
    model = genai.Model(str(tmp_path))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(TEXT) + 8)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.asarray(TEXT, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    found = [int(token) for token in generator.get_sequence(0)]
    assert found[: len(TEXT)] == TEXT
    runner = Runner(read_files(artifact, EngineTuning(threads=1), 128))
    expected = list(TEXT)
    while len(expected) < len(found):
        expected.append(int(runner.score(expected)[-1].argmax()))
    assert found == expected
    assert genai.Tokenizer(model).decode(np.asarray([10, 20, 30], np.int32))


def test_the_config_says_what_the_decoder_is(source: SourceFolder, tmp_path: Path) -> None:
    genai_onnx.write(source, tmp_path)
    model = json.loads((tmp_path / "genai_config.json").read_text(encoding="utf-8"))["model"]
    decoder: Decoder = source.decoder
    assert (model["vocab_size"], model["context_length"], model["eos_token_id"], model["bos_token_id"]) == (320, 128, [1], 0)
    inside = model["decoder"]
    sizes = [inside[key] for key in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_size", "hidden_size")]
    assert sizes == [decoder.layers, decoder.heads, decoder.kv_heads, decoder.head_size, decoder.width]
    assert "position_ids" not in inside["inputs"]


def test_a_window_must_hold_a_token(source: SourceFolder) -> None:
    with pytest.raises(ModelError, match="at least one"):
        genai_onnx.check(replace(source.decoder, window=0))
