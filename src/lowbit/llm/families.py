"""Families of decoders: config.json into a Decoder, and each canonical tensor's place in the family's own tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from lowbit.errors import ModelError
from lowbit.llm.decoder import Decoder, Rope
from lowbit.llm.rope import NEEDED, SCALINGS

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "gpt2")
ACTIVATIONS: Mapping[str, Literal["silu", "gelu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_RENAMED = {  # gpt2's own keys
    "num_hidden_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "hidden_act": "activation_function",
}
_REFUSED: Mapping[str, tuple[object, str]] = {
    "attn_logit_softcapping": (None, "soft caps on attention logits"),
    "final_logit_softcapping": (None, "soft caps on logits"),
    "num_experts": (None, "a mixture of experts"),
    "num_local_experts": (None, "a mixture of experts"),
    "qk_layernorm": (False, "normalised queries and keys with biases"),
    "scale_attn_weights": (True, "attention that is not scaled"),
    "scale_attn_by_inverse_layer_idx": (False, "attention scaled by the layer's number"),
    "add_cross_attention": (False, "cross attention"),
    "is_encoder_decoder": (False, "an encoder"),
}
"""Keys of config.json -> the value that means no, and what any other asks for."""


@dataclass(frozen=True)
class Place:
    """Where a canonical tensor is in a family's file.

    Attributes:
        name: The family's tensor.
        shape: The canonical tensor's.
        start: First row (after turning) that is ours; the rows before and after belong to others.
        rows: All rows of the family's tensor; None: all are ours.
        turned: The family stores inputs by outputs.
    """

    name: str
    shape: tuple[int, ...]
    start: int = 0
    rows: int | None = None
    turned: bool = False

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape of the family's tensor."""
        whole = (self.rows or self.shape[0], *self.shape[1:])
        return whole[::-1] if self.turned else whole


def read_decoder(config: Mapping[str, Any]) -> Decoder:
    """The architecture that a config.json describes.

    Raises:
        ModelError: another family, something that no part of lowbit does, or a key that is missing or contradicts another.
    """
    family = _family(config)
    _refuse(config, family)
    get = _reader(config, family)
    width, heads, layers = get("hidden_size"), get("num_attention_heads"), get("num_hidden_layers")
    if config.get("head_dim") is None and width % heads:
        raise ModelError(f"config.json: {heads} heads do not divide a width of {width}.")
    # Where a family groups them by default, a folder that does not say so cannot be trusted to mean one each.
    alone = family in ("llama", "phi", "phi3", "gpt2") or "num_key_value_heads" in config
    kv_heads = get("num_key_value_heads", heads if alone else None)
    if heads % kv_heads:
        raise ModelError(f"config.json: {kv_heads} key-value heads do not divide {heads} heads.")
    usual = 128 if family == "qwen3" and "head_dim" not in config else width // heads
    head_size = usual if family == "gpt2" else get("head_dim", usual)
    positions = get("max_position_embeddings")
    return Decoder(
        family=family,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        inner=get("intermediate_size", 4 * width if family == "gpt2" else None),
        vocabulary=get("vocab_size"),
        positions=positions,
        norm="layer" if family in ("gpt2", "phi") else "rms",
        epsilon=float(config.get({"gpt2": "layer_norm_epsilon", "phi": "layer_norm_eps"}.get(family, "rms_norm_eps"), _EPSILON[family])),
        activation=_activation(config, family),
        gated=family not in ("gpt2", "phi"),
        rope=None if family == "gpt2" else _rope(config, family, head_size, positions),
        parallel=family == "phi",
        tied=bool(config.get("tie_word_embeddings", family == "gpt2")),
        qk_norm=family == "qwen3",
        window=_window(config, family, layers),
        bos=_tokens(config.get("bos_token_id"))[0] if _tokens(config.get("bos_token_id")) else None,
        eos=_tokens(config.get("eos_token_id")),
    )


_EPSILON = {"llama": 1e-6, "mistral": 1e-6, "qwen2": 1e-6, "qwen3": 1e-6, "phi": 1e-5, "phi3": 1e-5, "gpt2": 1e-5}
"""transformers' defaults: config.json leaves out what is usual."""


def _family(config: Mapping[str, Any]) -> str:
    allowed = f"Decoders of these families can be used: {', '.join(FAMILIES)}."
    if not config.get("architectures"):
        raise ModelError(f"config.json names no architecture. {allowed}", "Save the model with transformers' save_pretrained.")
    family, architecture = config.get("model_type"), str(config["architectures"][0])
    if family not in FAMILIES:
        raise ModelError(f"config.json describes a model of type '{family}' ({architecture}). {allowed}")
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise ModelError(f"config.json describes a '{architecture}', which has no head for text; a {_CLASSES[family]} is needed.")
    return str(family)


_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}


def _refuse(config: Mapping[str, Any], family: str) -> None:
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, Mapping) else quantized
        raise ModelError(
            f"These weights are quantized already (method '{method}'); float16, bfloat16 or float32 is needed.", "Start from the original."
        )
    for key, (usual, what) in _REFUSED.items():
        if config.get(key, usual) not in (usual, None):
            raise ModelError(f"config.json asks for {what} ({key}: {config[key]}), which lowbit does not do for {family}.")


def _reader(config: Mapping[str, Any], family: str) -> Callable[..., int]:
    def get(key: str, default: int | None = None) -> int:
        value = config.get(key)
        if value is None and family == "gpt2":
            value = config.get(_RENAMED.get(key, key))
        value = default if value is None else value
        if not isinstance(value, int) or value < 1:
            found = "is missing" if value is None else f"is {value!r}"
            raise ModelError(f"config.json: '{key}' {found}; a {family} needs a whole number above 0 there.")
        return value

    return get


def _activation(config: Mapping[str, Any], family: str) -> Literal["silu", "gelu", "gelu_tanh"]:
    usual = "gelu_new" if family in ("gpt2", "phi") else "silu"
    name = str(config.get("activation_function" if family == "gpt2" else "hidden_act", usual))
    if name not in ACTIVATIONS:
        raise ModelError(f"config.json asks for the activation '{name}'; allowed: {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def _rope(config: Mapping[str, Any], family: str, head_size: int, positions: int) -> Rope:
    """transformers 5 has one `rope_parameters`; before it was `rope_theta`, `rope_scaling` and `partial_rotary_factor`."""
    raw = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = str(raw.pop("rope_type", None) or raw.pop("type", None) or "default")
    raw.pop("type", None)
    kind = {"su": "longrope"}.get(kind, kind)
    if kind != "default" and kind not in SCALINGS:
        raise ModelError(f"config.json scales rotary positions by '{kind}'; allowed: default, {', '.join(SCALINGS)}.")
    theta = float(raw.pop("rope_theta", None) or config.get("rope_theta") or 10000.0)
    usual = 0.5 if family == "phi" else 1.0
    part = raw.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or usual
    size = int(head_size * float(part))
    if size % 2:
        raise ModelError(f"config.json rotates {size} elements of each head; an even number is needed.")
    if kind == "default":
        return Rope(theta, size)
    if kind in ("yarn", "longrope"):  # the trained length: older folders have it beside, and without it it is the longest context
        raw.setdefault("original_max_position_embeddings", config.get("original_max_position_embeddings") or positions)
    if lacking := [key for key in NEEDED[kind] if raw.get(key) is None]:
        raise ModelError(f"config.json scales rotary positions by '{kind}' but lacks {', '.join(lacking)}.")
    return Rope(theta, size, {"rope_type": kind, **raw})


def _window(config: Mapping[str, Any], family: str, layers: int) -> int | None:
    """Sliding attention that all layers share."""
    window = config.get("sliding_window")
    if window is None or family in ("llama", "phi", "gpt2"):
        return None
    kinds = list(config.get("layer_types") or ())
    if family in ("qwen2", "qwen3"):
        if not config.get("use_sliding_window", False):
            return None
        first = int(config.get("max_window_layers", 28))
        kinds = kinds or ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    if kinds and len(set(kinds)) > 1:
        raise ModelError("config.json mixes layers with sliding and with full attention; all of one kind are needed.")
    return None if kinds and kinds[0] == "full_attention" else int(window)


def _tokens(raw: object) -> tuple[int, ...]:
    if raw is None:
        return ()
    return tuple(int(each) for each in raw) if isinstance(raw, (list, tuple)) else (int(str(raw)),)


end_tokens = _tokens


def places(decoder: Decoder, config: Mapping[str, Any]) -> dict[str, Place]:
    """Every canonical tensor that such a model has, and where its family keeps it."""
    block = {"gpt2": _gpt2, "phi": _phi, "phi3": _phi3}.get(decoder.family, partial(_llama, config=config))
    found = dict(_outside(decoder))
    for index in range(decoder.layers):
        for suffix, place in block(decoder):
            prefix = f"{'transformer.h' if decoder.family == 'gpt2' else 'model.layers'}.{index}."
            found[f"blocks.{index}.{suffix}"] = Place(prefix + place.name, place.shape, place.start, place.rows, place.turned)
    return found


def _outside(decoder: Decoder) -> Iterator[tuple[str, Place]]:
    wide, table = (decoder.width,), (decoder.vocabulary, decoder.width)
    if decoder.family == "gpt2":
        yield "embed.weight", Place("transformer.wte.weight", table)
        yield "positions.weight", Place("transformer.wpe.weight", (decoder.positions, decoder.width))
    else:
        yield "embed.weight", Place("model.embed_tokens.weight", table)
    norm = {"gpt2": "transformer.ln_f", "phi": "model.final_layernorm"}.get(decoder.family, "model.norm")
    yield "norm.weight", Place(f"{norm}.weight", wide)
    if decoder.norm == "layer":
        yield "norm.bias", Place(f"{norm}.bias", wide)
    if not decoder.tied:
        yield "head.weight", Place("lm_head.weight", table)
    if decoder.family == "phi":
        yield "head.bias", Place("lm_head.bias", (decoder.vocabulary,))


Parts = Iterator[tuple[str, Place]]


def _llama(decoder: Decoder, config: Mapping[str, Any]) -> Parts:
    """llama, mistral, qwen2, qwen3."""
    attention = bool(config.get("attention_bias", False)) and decoder.family in ("llama", "qwen3")
    biased = {
        "attention": ("q", "k", "v") if decoder.family == "qwen2" else ("q", "k", "v", "o") if attention else (),
        "mlp": ("gate", "up", "down") if decoder.family == "llama" and config.get("mlp_bias", False) else (),
    }
    for number, name in ((1, "input_layernorm"), (2, "post_attention_layernorm")):
        yield f"norm{number}.weight", Place(f"{name}.weight", (decoder.width,))
    for role in decoder.roles:
        part, short = role.split(".")
        module = f"{'self_attn' if part == 'attention' else 'mlp'}.{short}_proj"
        yield f"{role}.weight", Place(f"{module}.weight", decoder.shape(role))
        if short in biased[part]:
            yield f"{role}.bias", Place(f"{module}.bias", decoder.shape(role)[:1])
    if decoder.qk_norm:
        for short in ("q", "k"):
            yield f"attention.{short}_norm.weight", Place(f"self_attn.{short}_norm.weight", (decoder.head_size,))


def _phi(decoder: Decoder) -> Parts:
    modules = {"attention.o": "self_attn.dense", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
    for kind in ("weight", "bias"):
        yield f"norm1.{kind}", Place(f"input_layernorm.{kind}", (decoder.width,))
        for role in decoder.roles:
            module = modules.get(role, f"self_attn.{role[-1]}_proj")
            shape = decoder.shape(role)
            yield f"{role}.{kind}", Place(f"{module}.{kind}", shape if kind == "weight" else shape[:1])


def _phi3(decoder: Decoder) -> Parts:
    yield "norm1.weight", Place("input_layernorm.weight", (decoder.width,))
    yield "norm2.weight", Place("post_attention_layernorm.weight", (decoder.width,))
    fused = {"self_attn.qkv_proj": ("attention.q", "attention.k", "attention.v"), "mlp.gate_up_proj": ("mlp.gate", "mlp.up")}
    for module, roles in fused.items():
        yield from _cut(decoder, f"{module}.weight", roles, "weight")
    yield "attention.o.weight", Place("self_attn.o_proj.weight", decoder.shape("attention.o"))
    yield "mlp.down.weight", Place("mlp.down_proj.weight", decoder.shape("mlp.down"))


def _gpt2(decoder: Decoder) -> Parts:
    modules = {"attention.o": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
    for kind in ("weight", "bias"):
        for number in (1, 2):
            yield f"norm{number}.{kind}", Place(f"ln_{number}.{kind}", (decoder.width,))
        yield from _cut(decoder, f"attn.c_attn.{kind}", ("attention.q", "attention.k", "attention.v"), kind, turned=kind == "weight")
        for role, module in modules.items():
            shape = decoder.shape(role)
            yield f"{role}.{kind}", Place(f"{module}.{kind}", shape if kind == "weight" else shape[:1], turned=kind == "weight")


def _cut(decoder: Decoder, name: str, roles: tuple[str, ...], kind: str, turned: bool = False) -> Parts:
    """The rows of a fused tensor, one role after the other."""
    total = sum(decoder.shape(role)[0] for role in roles)
    start = 0
    for role in roles:
        shape = decoder.shape(role) if kind == "weight" else decoder.shape(role)[:1]
        yield f"{role}.{kind}", Place(name, shape, start, total, turned)
        start += shape[0]
