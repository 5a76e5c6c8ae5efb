"""The torch reference gives what transformers gives, for every family and every trait of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_case import FAMILIES, need, random_decoder

from lowbit.errors import ModelError, RunError
from lowbit.llm.folder import SourceFolder

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 32,
    "partial_rotary_factor": 0.75,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {family: (family, {}) for family in FAMILIES} | {
    "llama-tied": ("llama", {"tied": True, "dtype": "bfloat16"}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "dtype": "float32"}),
    "llama-wide-heads": ("llama", {"head_size": 24, "kv_heads": 1}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "llama-yarn-plain": ("llama", {"rope_parameters": YARN | {"truncate": False, "mscale": 0.7, "mscale_all_dim": 1.1}}),
    "phi3-longrope": ("phi3", {"rope_parameters": LONG}),
    "phi3-window": ("phi3", {"sliding_window": 9}),
    "mistral-window": ("mistral", {"sliding_window": 7}),
    "qwen2-window": ("qwen2", {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 0}),
    "qwen3-biases": ("qwen3", {"attention_bias": True, "tied": True}),
    "phi-grouped": ("phi", {"kv_heads": 2, "hidden_act": "gelu"}),
    "gpt2-untied": ("gpt2", {"tied": False, "shards": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case: str, tmp_path: Path) -> None:
    family, options = CASES[case]
    folder = random_decoder(family, tmp_path / case, **options)
    import torch
    from transformers import AutoModelForCausalLM

    from lowbit.llm.forward import Reference

    tokens = np.random.default_rng(1).integers(0, 320, (2, 40))
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    reference = Reference(SourceFolder.open(folder))
    with torch.no_grad():
        for length in (40, 20):  # longrope has other factors for what is short
            expected = module(torch.from_numpy(tokens[:, :length])).logits
            found = reference.logits(tokens[:, :length])
            assert expected.std() > 0.3
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
            torch.testing.assert_close(reference.logits(tokens[1, :length]), expected[1], atol=1e-4, rtol=1e-5)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> SourceFolder:
    return SourceFolder.open(random_decoder("llama", tmp_path_factory.mktemp("llama"), dtype="bfloat16"))


def test_each_linear_layer_is_observed_in_the_order_of_running(llama: SourceFolder) -> None:
    import torch

    from lowbit.llm.forward import Block, Reference

    seen: list[tuple[str, tuple[int, ...]]] = []
    block = Block.read(llama, 1)
    hidden = Reference(llama).embed(np.arange(10).reshape(2, 5))
    out = block.run(hidden, lambda role, inputs: seen.append((role, tuple(inputs.shape))))
    assert [role for role, _ in seen] == list(llama.decoder.roles)
    assert [shape for _, shape in seen] == [(10, llama.decoder.shape(role)[1]) for role in llama.decoder.roles]
    block.weights["mlp.down"] = torch.zeros_like(block.weights["mlp.down"])
    block.weights["attention.o"] = torch.zeros_like(block.weights["attention.o"])
    torch.testing.assert_close(block.run(hidden), hidden)  # what is put in place is what runs
    assert not torch.allclose(out, hidden)


def test_gradients_reach_what_is_put_in_a_block(llama: SourceFolder) -> None:
    import torch

    from lowbit.llm.forward import Block, Reference

    block = Block.read(llama, 0)
    block.activations = "int8-token"  # rounding lets them through
    for role in llama.decoder.roles:
        block.weights[role].requires_grad_()
    block.floats["norm2.weight"].requires_grad_()
    block.run(Reference(llama).embed([[3, 4, 5]])).square().sum().backward()
    gradients = [block.weights[role].grad for role in llama.decoder.roles] + [block.floats["norm2.weight"].grad]
    assert all(each is not None and float(each.abs().max()) > 0 for each in gradients)
    torch.testing.assert_close(
        torch.isfinite(torch.cat([each.ravel() for each in gradients if each is not None])).all(), torch.tensor(True)
    )


def test_activations_have_a_scale_a_token_and_outliers_stay_exact() -> None:
    need("torch")
    import torch

    from lowbit.llm.forward import rounded_tokens

    inputs = torch.tensor([[127.0, 0.4, -63.6, 100.2], [1.27, 0.004, -0.636, 1.002]])
    expected = torch.tensor([[127.0, 0.0, -64.0, 100.0], [1.27, 0.0, -0.64, 1.0]])
    torch.testing.assert_close(rounded_tokens(inputs), expected)
    spiked = inputs.clone()
    spiked[:, 1] = 1e5
    rounded = rounded_tokens(spiked, torch.tensor([1]))
    assert rounded[0].tolist() == [127.0, 1e5, -64.0, pytest.approx(100.0)]
    assert float(rounded_tokens(spiked)[0, 2]) == 0.0  # without it the outlier takes the scale of its token
    assert rounded_tokens(torch.zeros(1, 4)).tolist() == [[0.0] * 4]


def test_bfloat16_weights_are_read_exactly(llama: SourceFolder) -> None:
    import torch
    from safetensors.torch import load_file

    from lowbit.llm.forward import to_tensor

    stored = load_file(llama.path / "model.safetensors")
    assert torch.equal(to_tensor(llama.get("blocks.0.mlp.up.weight")), stored["model.layers.0.mlp.up_proj.weight"].float())


def test_bfloat16_arithmetic_is_near(llama: SourceFolder) -> None:
    import torch

    from lowbit.llm.forward import Reference

    with torch.no_grad():
        exact, near = Reference(llama).logits([1, 2, 3, 4]), Reference(llama, torch.bfloat16, keep=False).logits([1, 2, 3, 4])
    assert near.dtype == torch.bfloat16
    assert 0 < float((exact - near.float()).abs().max()) < 0.05 * float(exact.abs().max())


@pytest.mark.parametrize(("tokens", "said"), [([320], "Token 320"), ([-1, 5], "Token -1"), ([], "shape"), ([[[1]]], "shape")])
def test_tokens_that_do_not_fit_are_refused(llama: SourceFolder, tokens: list[int], said: str) -> None:
    from lowbit.llm.forward import Reference

    with pytest.raises(RunError, match=said):
        Reference(llama).logits(tokens)


def test_learned_positions_end(tmp_path: Path) -> None:
    folder = random_decoder("gpt2", tmp_path, positions=16)
    from lowbit.llm.forward import Reference

    with pytest.raises(RunError, match="17 tokens are more than the model's 16"):
        Reference(SourceFolder.open(folder)).logits(range(17))


def test_a_block_that_is_not_there_is_refused(llama: SourceFolder) -> None:
    from lowbit.llm.forward import Block

    with pytest.raises(ModelError, match="no block 2; the model has 2"):
        Block.read(llama, 2)
