"""genai_config.json: what onnxruntime-genai wants to know of a decoder."""

from __future__ import annotations

import json
from typing import Any

from lowbit.llm.decoder import Decoder

KIND = "llama"
"""What the library calls any decoder with a cache of keys and values and no other inputs: it treats them all alike."""


def needs_positions(decoder: Decoder) -> bool:
    """Whether the graph has an input of positions: learned ones, or rotations that onnxruntime's attention does not do itself."""
    return decoder.rope is None or decoder.rope.size % 16 != 0


def config_text(decoder: Decoder, context: int, main: str) -> str:
    """The file's text.

    Args:
        decoder: The architecture.
        context: Tokens that the file's positions reach.
        main: Name of the graph.
    """
    inputs = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    if needs_positions(decoder):
        inputs["position_ids"] = "position_ids"
    inputs |= {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    model: dict[str, Any] = {
        "type": KIND,
        "vocab_size": decoder.vocabulary,
        "context_length": context,
        "bos_token_id": decoder.bos if decoder.bos is not None else -1,
        "eos_token_id": list(decoder.eos),
        "pad_token_id": decoder.eos[0] if decoder.eos else 0,
        "decoder": {
            "filename": main,
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "num_hidden_layers": decoder.layers,
            "hidden_size": decoder.width,
            "num_attention_heads": decoder.heads,
            "num_key_value_heads": decoder.kv_heads,
            "head_size": decoder.head_size,
            "inputs": inputs,
            "outputs": {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"},
        },
    }
    search = {"do_sample": False, "max_length": context, "past_present_share_buffer": True, "num_beams": 1}
    return json.dumps({"model": model, "search": search}, indent=2)
