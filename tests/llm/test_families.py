"""config.json of every family, old and new ways of writing it, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lowbit.errors import ModelError
from lowbit.llm.decoder import Rope
from lowbit.llm.families import FAMILIES, places, read_decoder
from lowbit.llm.rope import frequencies

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "vocab_size": 300,
    "bos_token_id": 299,
    "eos_token_id": 299,
}


def changed(**values: Any) -> dict[str, Any]:
    return {**LLAMA, **values}


def of_family(family: str, **values: Any) -> dict[str, Any]:
    return changed(model_type=family, architectures=[f"{family.capitalize()}ForCausalLM"], **values)


def test_a_llama() -> None:
    decoder = read_decoder(LLAMA)
    assert (decoder.layers, decoder.width, decoder.heads, decoder.kv_heads, decoder.head_size) == (2, 64, 4, 2, 16)
    assert (decoder.norm, decoder.epsilon, decoder.activation, decoder.gated) == ("rms", 1e-5, "silu", True)
    assert (decoder.rope, decoder.tied, decoder.window, decoder.bos, decoder.eos) == (Rope(10000.0, 16), False, None, 1, (2, 3))
    assert decoder.shape("attention.k") == (32, 64)
    assert decoder.shape("mlp.down") == (64, 96)


def test_what_is_usual_is_left_out() -> None:
    bare = {
        key: value for key, value in LLAMA.items() if key not in ("num_key_value_heads", "rms_norm_eps", "bos_token_id", "eos_token_id")
    }
    decoder = read_decoder(bare)
    assert (decoder.kv_heads, decoder.epsilon, decoder.bos, decoder.eos) == (4, 1e-6, None, ())
    assert read_decoder(of_family("qwen3")).head_size == 128
    assert read_decoder(of_family("qwen3", head_dim=None)).head_size == 16
    assert read_decoder(of_family("qwen2", num_key_value_heads=None)).kv_heads == 4


def test_gpt2_has_names_of_its_own() -> None:
    decoder = read_decoder(GPT2)
    assert (decoder.width, decoder.layers, decoder.inner, decoder.positions, decoder.tied) == (48, 3, 192, 64, True)
    assert (decoder.norm, decoder.activation, decoder.gated, decoder.rope) == ("layer", "gelu_tanh", False, None)
    assert "mlp.gate" not in decoder.roles
    place = places(decoder, GPT2)["blocks.1.attention.k.weight"]
    assert (place.name, place.shape, place.start, place.rows, place.turned) == (
        "transformer.h.1.attn.c_attn.weight",
        (48, 48),
        48,
        144,
        True,
    )
    assert place.stored == (48, 144)


@pytest.mark.parametrize(
    "values",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}},
    ],
)
def test_rope_as_three_generations_write_it(values: dict[str, Any]) -> None:
    assert read_decoder(changed(**values)).rope == Rope(5e5, 16, {"rope_type": "linear", "factor": 2.0})


def test_older_phi3_calls_longrope_su_and_keeps_its_length_outside() -> None:
    scaling = {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    rope = read_decoder(of_family("phi3", rope_scaling=scaling, original_max_position_embeddings=32)).rope
    assert rope is not None
    assert rope.scaling is not None
    assert (rope.scaling["rope_type"], rope.scaling["original_max_position_embeddings"]) == ("longrope", 32)
    short, factor = frequencies(rope, 128, 32)
    long, _ = frequencies(rope, 128, 33)
    np.testing.assert_allclose(short, 2 * long)
    assert factor == pytest.approx(np.sqrt(1 + np.log(4) / np.log(32)))


@pytest.mark.parametrize(
    ("where", "size"), [({}, 8), ({"partial_rotary_factor": 0.25}, 4), ({"rope_parameters": {"partial_rotary_factor": 1.0}}, 16)]
)
def test_phi_rotates_a_part_of_each_head(where: dict[str, Any], size: int) -> None:
    decoder = read_decoder(of_family("phi", num_key_value_heads=4, hidden_act="gelu_new", **where))
    assert decoder.rope is not None
    assert decoder.rope.size == size
    assert decoder.parallel
    assert not decoder.gated
    assert decoder.norm == "layer"


@pytest.mark.parametrize(
    ("family", "values", "window"),
    [
        ("mistral", {"sliding_window": 32}, 32),
        ("mistral", {"sliding_window": None}, None),
        ("phi3", {"sliding_window": 32}, 32),
        ("llama", {"sliding_window": 32}, None),
        ("qwen2", {"sliding_window": 32}, None),
        ("qwen2", {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 2}, None),
        ("qwen2", {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 0}, 32),
        ("qwen3", {"sliding_window": 32, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}, 32),
    ],
)
def test_sliding_windows(family: str, values: dict[str, Any], window: int | None) -> None:
    assert read_decoder(of_family(family, **values)).window == window


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (changed(model_type="gemma2"), "type 'gemma2'.*llama, mistral, qwen2, qwen3, phi, phi3, gpt2"),
        (changed(model_type="mixtral", num_local_experts=8), "type 'mixtral'"),
        (changed(num_local_experts=8), "a mixture of experts"),
        (changed(attn_logit_softcapping=50.0), "soft caps on attention logits"),
        (changed(final_logit_softcapping=30.0), "soft caps on logits"),
        (of_family("phi", qk_layernorm=True), "normalised queries and keys"),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "attention scaled by the layer's number"),
        ({**GPT2, "add_cross_attention": True}, "cross attention"),
        (changed(architectures=None), "names no architecture"),
        (changed(architectures=["LlamaForSequenceClassification"]), "no head for text; a LlamaForCausalLM"),
        (changed(quantization_config={"quant_method": "gptq"}), "quantized already .method 'gptq'"),
        (changed(hidden_size=None), "'hidden_size' is missing"),
        (changed(num_hidden_layers=0), "'num_hidden_layers' is 0"),
        (changed(vocab_size="many"), "'vocab_size' is 'many'"),
        (changed(num_attention_heads=5), "5 heads do not divide a width of 64"),
        ({**of_family("mistral"), "num_key_value_heads": "x"}, "'num_key_value_heads' is 'x'"),
        ({k: v for k, v in of_family("qwen2").items() if k != "num_key_value_heads"}, "'num_key_value_heads' is missing"),
        (changed(num_key_value_heads=3), "3 key-value heads do not divide 4 heads"),
        (changed(hidden_act="relu6"), "activation 'relu6'; allowed: silu"),
        (changed(rope_scaling={"type": "dynamic", "factor": 2.0}), "by 'dynamic'; allowed: default, linear, llama3, yarn, longrope"),
        (changed(rope_scaling={"type": "llama3", "factor": 2.0}), "'llama3' but lacks low_freq_factor, high_freq_factor"),
        (changed(partial_rotary_factor=0.2), "rotates 3 elements"),
        (of_family("qwen2", sliding_window=8, use_sliding_window=True, max_window_layers=1), "mixes layers"),
    ],
)
def test_what_is_not_done_is_refused_by_name(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        read_decoder(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_every_linear_layer(family: str) -> None:
    config = GPT2 if family == "gpt2" else of_family(family)
    decoder = read_decoder(config)
    found = places(decoder, config)
    for index in range(decoder.layers):
        for role in decoder.roles:
            assert found[f"blocks.{index}.{role}.weight"].shape == decoder.shape(role)
    assert ("head.weight" in found) == (not decoder.tied)


def test_factors_of_the_wrong_number_are_refused() -> None:
    rope = Rope(1e4, 16, {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0], "original_max_position_embeddings": 8})
    with pytest.raises(ModelError, match="8 pairs of elements, and their scaling 1 factors"):
        frequencies(rope, 16, 4)
    with pytest.raises(ModelError, match="scaled by 'odd'"):
        frequencies(Rope(1e4, 16, {"rope_type": "odd"}), 16, 4)
