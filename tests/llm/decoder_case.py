"""Small random decoders of every family, as Hugging Face folders with a real tokenizer: what the tests of lowbit.llm start from."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from conftest import missing

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "gpt2")

SENTENCES = (
    "The house stood on a hill, and from its windows one could see the river and the road beside it.",
    "She had read the letter twice before she understood that nobody would come back that winter.",
    "There is grandeur in this view of life, with its several powers, having been originally breathed into a few forms.",
    "It was a long way to the town; the children counted the trees, the houses and the stones by the road.",
    "To be, or not to be, that is the question: whether it is nobler in the mind to suffer.",
    "The problem of the century is the problem of the line, and the line is long, 1234567890 steps and more.",
    "He said nothing. What could he have said? The river was higher than in other years, and the bridge was gone.",
)
"""What the tokenizer is trained on; also good as calibration text."""

CHAT = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def need(*packages: str) -> None:
    """Skips a test where one of these packages is absent."""
    import importlib.util

    for package in packages:
        if importlib.util.find_spec(package) is None:
            missing(package)


@cache
def _tokenizer_json(size: int) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    assert tokenizer.get_vocab_size() == size
    return str(tokenizer.to_str(pretty=True))


def write_tokenizer(folder: Path, size: int = 320, chat: bool = False) -> None:
    """A byte-level BPE tokenizer of `size` tokens: <s> is 0, </s> is 1."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(_tokenizer_json(size), encoding="utf-8")
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "model_max_length": 128}
    if chat:
        values["chat_template"] = CHAT
    (folder / "tokenizer_config.json").write_text(json.dumps(values, indent=2), encoding="utf-8")


def random_decoder(
    family: str,
    folder: Path,
    *,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    kv_heads: int | None = None,
    head_size: int | None = None,
    inner: int = 96,
    vocabulary: int = 320,
    positions: int = 128,
    dtype: str = "float16",
    tied: bool | None = None,
    shards: int = 1,
    chat: bool = False,
    tokenizer: int | None = None,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Writes a decoder with random weights that matter: logits far from uniform, norms and biases not at their starting values.

    Args:
        family: One of FAMILIES.
        folder: Made if absent.
        layers, width, heads, head_size, inner, vocabulary, positions: As Decoder has them; kv_heads: 2 where the family groups them.
        dtype: "float16", "bfloat16" or "float32", of the stored weights.
        tied: The head is the embedding; None: the family's usual (gpt2: tied, others: not).
        shards: Files that the weights are spread over.
        chat: tokenizer_config.json has a chat template.
        tokenizer: Tokens that the tokenizer has; None: `vocabulary`, at most 320. 0: no tokenizer.
        seed: Of the weights.
        **config: More keys of transformers' config class, e.g. rope_parameters, sliding_window, attention_bias.

    Returns:
        The folder.
    """
    need("torch", "transformers", "tokenizers", "safetensors")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = _config(family, layers, width, heads, kv_heads, head_size, inner, vocabulary, positions) | {
        "tie_word_embeddings": family == "gpt2" if tied is None else tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    generator_state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(values | config)), dtype=torch.float32)
        with torch.no_grad():
            for name, each in model.named_parameters():
                if each.ndim == 2:
                    each.normal_(0, 0.7 if "embed" in name or "wte" in name or "wpe" in name else 1.5 / width**0.5)
                elif name.endswith("weight"):  # norms
                    each.normal_(1, 0.2)
                else:
                    each.normal_(0, 0.2)
    finally:
        torch.random.set_rng_state(generator_state)
    model = model.to(getattr(torch, dtype))
    size = sum(each.numel() * each.element_size() for each in model.parameters())
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=max(size // shards + size // (shards * 50), 1) if shards > 1 else "50GB")
    if tokenizer != 0:
        write_tokenizer(folder, tokenizer or min(vocabulary, 320), chat)
    return folder


def _config(
    family: str,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int | None,
    head_size: int | None,
    inner: int,
    vocabulary: int,
    positions: int,
) -> dict[str, Any]:
    if family == "gpt2":
        return {
            "n_layer": layers,
            "n_embd": width,
            "n_head": heads,
            "n_inner": inner,
            "vocab_size": vocabulary,
            "n_positions": positions,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }
    if family not in FAMILIES:
        raise ValueError(f"{family!r} is none of {FAMILIES}")
    values: dict[str, Any] = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or (heads if family == "phi" else max(1, heads // 2)),
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
    }
    if family in ("llama", "mistral", "qwen3"):
        values["head_dim"] = head_size or width // heads
    if family == "phi3":
        values["original_max_position_embeddings"] = positions
    if family == "mistral":
        values["sliding_window"] = None
    return values


def texts(count: int = 4, sentences: int = 40, seed: int = 0) -> list[str]:
    """Documents of the sentences above, in a random order of their own each."""
    import numpy as np

    random = np.random.default_rng(seed)
    return [" ".join(SENTENCES[i] for i in random.integers(0, len(SENTENCES), sentences)) for _ in range(count)]


if __name__ == "__main__":
    import sys

    print(random_decoder(sys.argv[1], Path(sys.argv[2])))
