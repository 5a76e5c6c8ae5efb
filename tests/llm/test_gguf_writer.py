"""GGUF files: tensors come back bit for bit, and llama.cpp computes what the reference does."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_case import FAMILIES, SENTENCES, need, random_decoder
from engine_case import reference
from quantized_case import Rounded

from lowbit.errors import Interrupted, ModelError, UsageError
from lowbit.llm.decoder import Weights
from lowbit.llm.engines.base import EngineTuning
from lowbit.llm.folder import SourceFolder
from lowbit.llm.linear import Grid, QuantizedLinear
from lowbit.llm.recipe import LanguageRecipe
from lowbit.llm.writers import gguf_file
from lowbit.llm.writers.gguf_tokenizer import read_tokenizer

ONE = EngineTuning(threads=1, prompt_threads=1)
PLAIN = {"rope_theta": 10000.0}

WHOLE = "Hello wörld! 12345 ½\n\n\tfoo  bar   'll don't I'M 你好 émigré 🙂 a\u0301b __x__  "


@pytest.fixture(autouse=True)
def _packages() -> None:
    need("gguf", "torch", "transformers")


def source(family: str, folder: Path, **sizes: Any) -> SourceFolder:
    return SourceFolder.open(random_decoder(family, folder / "source", **sizes))


def rounded(weights: Weights, grid: Grid, **recipe: Any) -> Rounded:
    return Rounded(weights, LanguageRecipe("test", "rtn", grid, **recipe))


def lost(weights: Weights, file: Path) -> list[str]:
    """Tensors that do not stand in the file for exactly what the weights do."""
    from lowbit.llm.writers.gguf_weights import GgufWeights

    back = GgufWeights(file, weights)
    assert back.names() == weights.names()
    return [name for name in weights.names() if not np.array_equal(back.get(name).astype(np.float32), plain(weights.get(name)))]


def plain(tensor: Any) -> Any:
    return tensor.dequantized() if isinstance(tensor, QuantizedLinear) else np.asarray(tensor).astype(np.float32)


def differs(weights: Weights, file: Path, length: int = 40, context: int = 64) -> float:
    """Root mean square of llama.cpp's logits less the reference's, against the spread of the logits."""
    need("llama_cpp")
    from lowbit.llm.engines.llamacpp import LlamaCpp

    tokens = np.random.default_rng(0).integers(0, weights.decoder.vocabulary, length)
    expected = reference(weights, tokens)
    session = LlamaCpp().open(file, ONE, context=context)
    found = session.logits(tokens.tolist())
    session.close()
    return float(np.sqrt(((found - expected) ** 2).mean()) / expected.std())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back_and_computes_the_same(family: str, tmp_path: Path) -> None:
    weights = source(family, tmp_path)
    file = gguf_file.write(weights, tmp_path / "f16")
    assert lost(weights, file) == []
    assert differs(weights, file) < 0.01  # products in 16 bit
    for grid, head in ((Grid(8, 32), Grid(8, 32)), (Grid(4, 32), None)):
        small = rounded(weights, grid, head=head)
        file = gguf_file.write(small, tmp_path / f"int{grid.bits}")
        assert lost(small, file) == []
        assert differs(small, file) < 0.08  # llama.cpp rounds activations to 8 bit


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llama", {"dtype": "bfloat16"}),
        ("llama", {"dtype": "float32"}),
        ("llama", {"tied": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"head_size": 32}),
        ("llama", {"rope_parameters": {**PLAIN, "rope_type": "linear", "factor": 4.0}}),
        (
            "llama",
            {
                "rope_parameters": {
                    **PLAIN,
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
        ),
        ("qwen2", {"rope_parameters": {**PLAIN, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}),
        (
            "qwen3",
            {
                "rope_parameters": {
                    **PLAIN,
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32,
                    "attention_factor": 0.7,
                }
            },
        ),
        ("phi", {"tied": True, "partial_rotary_factor": 0.25}),
        ("phi", {"kv_heads": 2}),
        ("phi3", {"partial_rotary_factor": 0.5}),
        ("gpt2", {"tied": False}),
    ],
    ids=lambda each: each if isinstance(each, str) else "-".join(each),
)
def test_every_variant_of_an_architecture(family: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    weights = source(family, tmp_path, **sizes)
    file = gguf_file.write(weights, tmp_path / "out")
    assert lost(weights, file) == []
    assert differs(weights, file) < (0.03 if sizes.get("dtype") == "bfloat16" else 0.01)


@pytest.mark.parametrize("length", [100, 300])
def test_longrope_has_short_and_long_factors(length: int, tmp_path: Path) -> None:
    scaling = {
        **PLAIN,
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
        "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
        "original_max_position_embeddings": 256,
    }
    weights = source("phi3", tmp_path, rope_parameters=scaling, original_max_position_embeddings=256, positions=512)
    file = gguf_file.write(weights, tmp_path / "out")
    assert differs(weights, file, length, context=length) < 0.01
    assert any("more than 256 tokens" in note for note in gguf_file.notes(weights))


def test_notes_tell_what_is_larger_or_done_by_the_engine(tmp_path: Path) -> None:
    weights = source("llama", tmp_path)
    assert gguf_file.notes(weights) == ()
    assert gguf_file.notes(rounded(weights, Grid(4, 32))) == ()
    for grid, words in ((Grid(8), "whole rows"), (Grid(4, 64), "64"), (Grid(3, 32), "3 bit"), (Grid(4, 32, False), "Q5_0")):
        assert any(words in note for note in gguf_file.notes(rounded(weights, grid)))
    assert any("by token" in note for note in gguf_file.notes(rounded(weights, Grid(8, 32), activations="int8-token")))


GRIDS = {
    "int4 g64": (Grid(4, 64), "Q4_0"),
    "int4 row": (Grid(4), "Q4_0"),
    "int3": (Grid(3, 32), "Q4_0"),
    "int2": (Grid(2, 32), "Q4_0"),
    "int2 asymmetric": (Grid(2, 32, False), "Q4_0"),
    "int3 asymmetric": (Grid(3, 32, False), "Q4_0"),
    "int4 asymmetric": (Grid(4, 32, False), "Q5_0"),
    "int8 row": (Grid(8), "Q8_0"),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_every_grid_comes_back_bit_for_bit(name: str, family: str, tmp_path: Path) -> None:
    from lowbit.llm.writers.gguf_weights import types

    grid, kind = GRIDS[name]
    weights = rounded(source(family, tmp_path), grid)
    file = gguf_file.write(weights, tmp_path / "out")
    assert lost(weights, file) == []
    assert kind in types(file)


class _Changed(Rounded):
    """Weights with a change to every quantized layer."""

    change: Callable[[QuantizedLinear], QuantizedLinear]

    def get(self, name: str) -> Any:
        tensor = super().get(name)
        return self.change(tensor) if isinstance(tensor, QuantizedLinear) else tensor


def changed(weights: Weights, grid: Grid, change: Callable[[QuantizedLinear], QuantizedLinear]) -> _Changed:
    found = _Changed(weights, LanguageRecipe("test", "rtn", grid))
    found.change = change
    return found


def test_the_lowest_level_and_negative_scales_are_held(tmp_path: Path) -> None:
    def negative(tensor: QuantizedLinear) -> QuantizedLinear:
        levels = tensor.levels.copy()
        levels[:, ::7] = 0
        return replace(tensor, levels=levels, scale=-tensor.scale)

    for bits in (4, 8):
        weights = changed(source("qwen2", tmp_path), Grid(bits, 32), negative)
        assert lost(weights, gguf_file.write(weights, tmp_path / f"int{bits}")) == []


def test_zero_points_go_into_q4_1_where_16_bit_hold_their_products(tmp_path: Path) -> None:
    from lowbit.llm.writers.gguf_weights import types

    def powers(tensor: QuantizedLinear) -> QuantizedLinear:
        return replace(tensor, scale=np.exp2(np.floor(np.log2(tensor.scale))).astype(np.float16))

    weights = changed(source("qwen2", tmp_path), Grid(4, 32, False), powers)
    file = gguf_file.write(weights, tmp_path / "out")
    assert "Q4_1" in types(file)
    assert lost(weights, file) == []


def test_layers_of_several_bits_that_share_a_tensor_come_back(tmp_path: Path) -> None:
    weights = rounded(source("phi3", tmp_path), Grid(4, 32), formats={"attention.k": Grid(8, 32), "mlp.gate": Grid(4, 32, False)})
    assert lost(weights, gguf_file.write(weights, tmp_path / "out")) == []


def test_what_cannot_be_held_is_refused_by_name(tmp_path: Path) -> None:
    weights = source("llama", tmp_path, width=48, heads=2, kv_heads=1, inner=100, positions=64)
    decoder = weights.decoder
    for recipe, words in (
        (LanguageRecipe("x", "rtn", Grid(4, 32)), "rows of blocks.0.attention.q have 48"),
        (LanguageRecipe("x", "rtn", head=Grid(8)), "the head have 48"),
        (LanguageRecipe("x", "rtn", outliers=6.0), "single columns"),
        ({"blocks.1.mlp.down": Grid(4, 32)}, "blocks.1.mlp.down have 100"),
    ):
        with pytest.raises(UsageError, match=words):
            gguf_file.check(decoder, recipe)
    wide = source("llama", tmp_path / "wide").decoder
    with pytest.raises(UsageError, match="groups of 16"):
        gguf_file.check(wide, {"blocks.0.mlp.up": Grid(4, 16)})
    with pytest.raises(UsageError, match="zero point"):
        gguf_file.check(wide, {"embed": Grid(8, 32, False)})
    gguf_file.check(wide, LanguageRecipe("x", "rtn", Grid(4, 64), head=Grid(8)))


def test_kept_columns_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    weights = rounded(source("llama", tmp_path), Grid(8), outliers=6.0)
    with pytest.raises(UsageError, match="single columns"):
        gguf_file.write(weights, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    kept = changed(
        weights.source,
        Grid(8),
        lambda each: replace(each, columns=np.array([3], np.int32), kept=np.zeros((len(each.levels), 1), np.float16)),
    )
    with pytest.raises(UsageError, match="single columns of blocks"):
        gguf_file.write(kept, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"family": "bloom"}, "family 'bloom'"),
        ({"activation": "gelu"}, "activation"),
        ({"rope": "partial"}, "whole heads"),
        ({"rope": "dynamic"}, "type 'dynamic'"),
    ],
)
def test_what_llamacpp_does_not_compute_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    decoder = source("llama", tmp_path).decoder
    assert decoder.rope is not None
    ropes = {"partial": replace(decoder.rope, size=8), "dynamic": replace(decoder.rope, scaling={"rope_type": "dynamic", "factor": 2.0})}
    change = {key: ropes.get(value, value) if key == "rope" else value for key, value in change.items()}
    with pytest.raises(ModelError, match=words):
        gguf_file.check(replace(decoder, **change))


def test_a_sliding_window_ends_the_context(tmp_path: Path) -> None:
    weights = source("mistral", tmp_path, sliding_window=16)
    file = gguf_file.write(weights, tmp_path / "out")
    assert any("16 tokens" in note for note in gguf_file.notes(weights))
    assert differs(weights, file, length=16) < 0.01


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gguf import GGUFWriter

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    weights = source("llama", tmp_path)
    monkeypatch.setattr(GGUFWriter, "write_tensor_data", full)
    with pytest.raises(Interrupted, match="disk is full"):
        gguf_file.write(weights, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_progress_counts_tensors(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    gguf_file.write(source("llama", tmp_path), tmp_path / "out", progress=lambda done, total: told.append((done, total)))
    assert told == [(i + 1, len(told)) for i in range(len(told))]
    assert len(told) == 2 * 9 + 3


def llamacpp_ids(file: Path, text: str, special: bool = False) -> list[int]:
    """llama.cpp's own tokenizer on a text."""
    need("llama_cpp")
    from lowbit.llm.engines.llamacpp_context import library

    lib = library()
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(str(file).encode(), params)
    try:
        buffer = (ctypes.c_int32 * (4 * len(text) + 16))()
        data = text.encode()
        count = lib.llama_tokenize(lib.llama_model_get_vocab(model), data, len(data), buffer, len(buffer), False, special)
        return list(buffer[:count])
    finally:
        lib.llama_model_free(model)


def pre_tokenizers() -> dict[str, Any]:
    from tokenizers import Regex, pre_tokenizers

    def split(pattern: str) -> Any:
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )

    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    return {
        "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        "qwen2": split(words % ""),
        "dbrx": split(words % "{1,3}"),
    }


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "qwen2", "dbrx"])
def test_llamacpp_cuts_and_merges_texts_as_the_tokenizer_does(name: str, tmp_path: Path) -> None:
    need("tokenizers")
    from tokenizers import Tokenizer, decoders, models, trainers
    from tokenizers import pre_tokenizers as cuts

    weights = source("llama", tmp_path, vocabulary=400)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers()[name]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=390, special_tokens=["<s>", "</s>"], initial_alphabet=cuts.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*SENTENCES, WHOLE * 3, "12 123 1234 12345 " * 5], trainer)
    tokenizer.save(str(weights.path / "tokenizer.json"))
    assert read_tokenizer(weights.path, weights.decoder).pre == name
    assert read_tokenizer(weights.path, weights.decoder).notes == ()
    file = gguf_file.write(weights, tmp_path / "out")
    for text in (*SENTENCES, WHOLE):
        assert llamacpp_ids(file, text) == tokenizer.encode(text, add_special_tokens=False).ids
    assert llamacpp_ids(file, "<s>The</s>", special=True) == tokenizer.encode("<s>The</s>").ids


def test_merges_with_byte_fallback_become_scores(tmp_path: Path) -> None:
    need("tokenizers")
    from tokenizers import AddedToken, Tokenizer, models, normalizers, trainers

    weights = source("llama", tmp_path, vocabulary=600)
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator([f" {each}" for each in SENTENCES], trainers.BpeTrainer(vocab_size=300, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{i:02X}>": 3 + i for i in range(256)}
    for text in learned["vocab"]:
        vocabulary.setdefault(text, len(vocabulary))
    model = models.BPE(vocabulary, [tuple(each) for each in learned["merges"]], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in ("<unk>", "<s>", "</s>")])
    tokenizer.save(str(weights.path / "tokenizer.json"))
    file = gguf_file.write(weights, tmp_path / "out")
    for text in (*SENTENCES, "Zürich, 你好 🙂"):
        assert llamacpp_ids(file, text) == tokenizer.encode(text, add_special_tokens=False).ids


def test_a_cut_that_llamacpp_has_no_name_for_is_told(tmp_path: Path) -> None:
    weights = source("llama", tmp_path)
    path = weights.path / "tokenizer.json"
    values = json.loads(path.read_text())
    values["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "[aeiou]+"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    values["normalizer"] = {"type": "NFC"}
    path.write_text(json.dumps(values))
    notes = gguf_file.notes(weights)
    assert any("no name for how this tokenizer cuts" in note for note in notes)
    assert any("NFC" in note for note in notes)
    gguf_file.write(weights, tmp_path / "out")


def test_a_tokenizer_with_more_tokens_than_logits_is_refused(tmp_path: Path) -> None:
    weights = source("llama", tmp_path)
    with pytest.raises(ModelError, match=r"319.*logits for 300"):
        read_tokenizer(weights.path, replace(weights.decoder, vocabulary=300))


def test_chat_template_and_end_tokens_are_in_the_file(tmp_path: Path) -> None:
    from gguf import GGUFReader

    weights = source("llama", tmp_path, chat=True, vocabulary=330)
    file = gguf_file.write(weights, tmp_path / "out")
    fields = GGUFReader(file).fields
    assert "add_generation_prompt" in fields["tokenizer.chat_template"].contents()
    assert fields["tokenizer.ggml.bos_token_id"].contents() == 0
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 1
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert fields["tokenizer.ggml.tokens"].contents()[-1] == "[PAD329]"
    assert fields["tokenizer.ggml.token_type"].contents()[-1] == 5
