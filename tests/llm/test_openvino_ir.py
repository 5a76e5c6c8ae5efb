"""A decoder as an OpenVINO model: the same logits as the reference, for every family, and the very levels of a table."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_case import FAMILIES, need, random_decoder
from engine_case import reference
from numpy.typing import NDArray
from quantized_case import Rounded

from lowbit.errors import Interrupted, ModelError, UsageError
from lowbit.llm.decoder import Weights
from lowbit.llm.folder import SourceFolder
from lowbit.llm.linear import Grid, QuantizedLinear
from lowbit.llm.recipe import LanguageRecipe
from lowbit.llm.writers import openvino_ir

Array = NDArray[Any]

TOKENS = np.random.default_rng(0).integers(2, 320, 60)
LONG = {"short_factor": [1 + 0.1 * i for i in range(8)], "long_factor": [2 + 0.3 * i for i in range(8)]}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tied-bfloat16": ("llama", {"tied": True, "dtype": "bfloat16"}),
    "float32": ("llama", {"dtype": "float32"}),
    "window": ("mistral", {"sliding_window": 16}),
    "one-kv-head": ("llama", {"kv_heads": 1}),
    "wide-heads": ("qwen3", {"head_size": 32}),
    "linear": ("llama", {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}}),
    "yarn": (
        "llama",
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 32,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "longrope", "original_max_position_embeddings": 32, **LONG},
        },
    ),
}


class BothSigns(Rounded):
    """Rounded weights whose every other scale is negative, with the levels mirrored: the same weights."""

    def get(self, name: str) -> Array | QuantizedLinear:
        found = super().get(name)
        if not isinstance(found, QuantizedLinear) or found.zero is not None:
            return found
        sign = np.where(np.indices(found.scale.shape).sum(0) % 2, -1, 1)
        groups = np.arange(found.shape[1]) * found.scale.shape[1] // found.shape[1]
        levels = found.grid.zero + sign[:, groups] * (found.levels.astype(np.int16) - found.grid.zero)
        return dataclasses.replace(found, levels=levels.astype(np.uint8), scale=found.scale * sign.astype(np.float16))


def quantized(source: Weights, grid: Grid, head: Grid | None = None, *, outliers: float | None = None) -> BothSigns:
    return BothSigns(source, LanguageRecipe("test", "rtn", grid, head, outliers=outliers))


class Model:
    """An artifact in OpenVINO's own hands."""

    def __init__(self, artifact: Path, activations: int = 0) -> None:
        import openvino

        properties = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": activations}
        self.compiled = openvino.Core().compile_model(str(artifact), "CPU", properties)
        self._request = self.compiled.create_infer_request()
        self._past = 0

    def __call__(self, *texts: Array) -> Array:
        """Logits [B, T, V] of tokens that follow those of the calls before."""
        tokens = np.stack(texts)
        end = self._past + tokens.shape[1]
        self._request.infer(
            {
                "input_ids": tokens,
                "attention_mask": np.ones((len(texts), end), np.int64),
                "position_ids": np.tile(np.arange(self._past, end), (len(texts), 1)),
                "beam_idx": np.arange(len(texts), dtype=np.int32),
            }
        )
        self._past = end
        return np.array(self._request.get_output_tensor(0).data)

    def forget(self) -> None:
        self._request.reset_state()
        self._past = 0

    def kernels(self) -> Counter[str]:
        ops = self.compiled.get_runtime_model().get_ordered_ops()
        return Counter(str(op.get_rt_info()["layerType"].value) for op in ops)


@pytest.fixture(scope="module", autouse=True)
def openvino_is_here() -> None:
    need("openvino")
    from lowbit.quiet import no_telemetry

    no_telemetry()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> SourceFolder:
    return SourceFolder.open(random_decoder("llama", tmp_path_factory.mktemp("llama")))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_references_logits(family: str, tmp_path: Path) -> None:
    source = SourceFolder.open(random_decoder(family, tmp_path / "source"))
    model = Model(openvino_ir.write(source, tmp_path / "ir"))
    expected = reference(source, TOKENS)
    found = model(TOKENS)[0]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    model.forget()
    pieces = [model(TOKENS[:20])[0], model(TOKENS[20:40])[0], *(model(TOKENS[i : i + 1])[0] for i in range(40, 60))]
    assert np.abs(np.concatenate(pieces) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_have_the_references_logits(variant: str, tmp_path: Path) -> None:
    family, config = VARIANTS[variant]
    source = SourceFolder.open(random_decoder(family, tmp_path / "source", **config))
    found = Model(openvino_ir.write(source, tmp_path / "ir"))(TOKENS)[0]
    expected = reference(source, TOKENS)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_cpu_plugin_fuses_norms_rotations_and_attention_with_its_cache(llama: SourceFolder, tmp_path: Path) -> None:
    kernels = Model(openvino_ir.write(llama, tmp_path)).kernels()
    layers = llama.decoder.layers
    assert kernels["RMS"] == 2 * layers + 1
    assert kernels["RoPE"] == 2 * layers
    assert kernels["ScaledDotProductAttention"] == layers
    assert kernels["MemoryInput"] == 2 * layers
    assert kernels["FullyConnected"] == 7 * layers + 1
    assert kernels["MatMul"] == kernels["Concatenation"] - 2 == 0  # angles twice, and a shape; none of keys and values


@pytest.mark.parametrize(
    ("grid", "head", "stored"),
    [
        (Grid(8), Grid(8), {"i8": 16}),
        (Grid(8, 32, False), None, {"u8": 28}),
        (Grid(4, 32), Grid(4, 32, False), {"i4": 14, "u4": 4}),
        (Grid(4, 16, False), Grid(8), {"u4": 28, "i8": 2}),
        (Grid(4), None, {"i4": 14}),
        (Grid(3, 32), None, {"i4": 14}),
        (Grid(2, 32, False), None, {"u4": 28}),
    ],
    ids=lambda value: f"{value.bits}-{value.group}-{value.symmetric}" if isinstance(value, Grid) else "",
)
def test_quantized_weights_are_the_tables_own(
    grid: Grid, head: Grid | None, stored: dict[str, int], llama: SourceFolder, tmp_path: Path
) -> None:
    weights = quantized(llama, grid, head)
    artifact = openvino_ir.write(weights, tmp_path)
    constants = _constants(artifact)
    assert Counter(dtype for dtype, _ in constants.values() if dtype[1:] in ("4", "8")) == stored
    for name in weights.names():
        tensor = weights.get(name)
        if isinstance(tensor, QuantizedLinear):
            _compare(constants, name, tensor)
        else:
            np.testing.assert_array_equal(constants[name][1], tensor)
    expected = reference(weights, TOKENS)
    assert np.abs(Model(artifact)(TOKENS)[0] - expected).max() < 1e-4 * np.abs(expected).max()
    rounding = np.abs(Model(artifact, activations=16)(TOKENS)[0] - expected).max()
    assert 1e-3 * np.abs(expected).max() < rounding < 0.2 * np.abs(expected).max()  # inputs in 8 bit: near, and not the same


def _constants(artifact: Path) -> dict[str, tuple[str, Array]]:
    import openvino

    found = {}
    for op in openvino.Core().read_model(str(artifact)).get_ops():
        if op.get_type_name() == "Constant":
            dtype = op.get_element_type().get_type_name()
            packed = np.array(op.get_tensor_view().data if hasattr(op, "get_tensor_view") else op.data)
            found[op.get_friendly_name()] = dtype, packed
    return found


def _numbers(dtype: str, data: Array, count: int) -> Array:
    if dtype[1:] == "8":
        return data.reshape(-1).astype(np.int64)
    raw = data.reshape(-1).view(np.uint8)
    halves = np.stack([raw & 15, raw >> 4], -1).reshape(-1)[:count].astype(np.int64)
    return (halves ^ 8) - 8 if dtype == "i4" else halves


def _compare(constants: dict[str, tuple[str, Array]], name: str, tensor: QuantizedLinear) -> None:
    levels = _numbers(*constants[name], tensor.levels.size).reshape(tensor.shape)
    np.testing.assert_array_equal(levels + (tensor.grid.zero if tensor.zero is None else 0), tensor.levels)
    np.testing.assert_array_equal(constants[f"{name}/scale"][1].reshape(tensor.scale.shape), tensor.scale)
    if tensor.zero is not None:
        zeros = _numbers(*constants[f"{name}/zero_point"], tensor.zero.size)
        np.testing.assert_array_equal(zeros.reshape(tensor.zero.shape), tensor.zero)


def test_columns_that_are_kept_in_16_bit_stay_exact(llama: SourceFolder, tmp_path: Path) -> None:
    weights = quantized(llama, Grid(4), outliers=6.0)
    expected = reference(weights, TOKENS)
    assert np.abs(expected - reference(quantized(llama, Grid(4)), TOKENS)).max() > 0.01 * np.abs(expected).max()
    found = Model(openvino_ir.write(weights, tmp_path))(TOKENS)[0]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_large_input_in_a_kept_column_does_not_coarsen_the_others(llama: SourceFolder, tmp_path: Path) -> None:
    """Inputs are rounded in groups as the engine runs: one that is a hundred times larger takes nearly all steps for itself."""

    class Large(BothSigns):
        def get(self, name: str) -> Array | QuantizedLinear:
            found = super().get(name)
            if name.endswith(("norm1.weight", "norm2.weight")):
                assert isinstance(found, np.ndarray)
                found = found.copy()
                found[[0, 5]] *= 100
            return found

    lost = {}
    for outliers in (6.0, None):
        weights = Large(llama, LanguageRecipe("test", "rtn", Grid(8), outliers=outliers))
        artifact = openvino_ir.write(weights, tmp_path / str(outliers))
        exact, rounding = Model(artifact)(TOKENS)[0], Model(artifact, activations=32)(TOKENS)[0]
        lost[outliers] = float(np.square(rounding - exact).mean())
    assert lost[6.0] < lost[None] / 10


def test_several_rows_at_once_each_with_its_own_cache(llama: SourceFolder, tmp_path: Path) -> None:
    model = Model(openvino_ir.write(llama, tmp_path))
    other = np.flip(TOKENS)
    alone = [np.concatenate([model(text[:30])[0], model(text[30:])[0]]) for text in (TOKENS, other) if not model.forget()]
    model.forget()
    both = np.concatenate([model(TOKENS[:30], other[:30]), model(TOKENS[30:], other[30:])], axis=1)
    np.testing.assert_allclose(both, np.stack(alone), atol=1e-4)


def test_what_a_group_does_not_divide_is_refused(llama: SourceFolder) -> None:
    with pytest.raises(UsageError, match=r"blocks.0.mlp.down.*groups of 64: its 96 inputs") as caught:
        openvino_ir.check(llama.decoder, {"blocks.0.attention.q": Grid(4, 64), "blocks.0.mlp.down": Grid(4, 64)})
    assert caught.value.hint == "Use groups of 32, or one scale a row."
    with pytest.raises(UsageError, match="groups of 128"):
        openvino_ir.check(llama.decoder, LanguageRecipe("int4-g128", "rtn", Grid(4, 128)))
    openvino_ir.check(llama.decoder, LanguageRecipe("int4", "rtn", Grid(4, 32), Grid(8)))
    openvino_ir.check(llama.decoder)


def test_what_openvino_has_no_words_for_is_refused(llama: SourceFolder) -> None:
    with pytest.raises(UsageError, match=r"llama\.cpp's own quantizer"):
        openvino_ir.check(llama.decoder, LanguageRecipe("llamacpp-q4_k_m", "llamacpp", preset="Q4_K_M"))
    rope = llama.decoder.rope
    assert rope is not None
    scaled = dataclasses.replace(llama.decoder, rope=dataclasses.replace(rope, scaling={"rope_type": "dynamic", "factor": 2.0}))
    with pytest.raises(ModelError, match="dynamic"):
        openvino_ir.check(scaled)


def test_three_bits_are_said_to_take_four(llama: SourceFolder) -> None:
    assert openvino_ir.notes(quantized(llama, Grid(3, 32))) == ("3 bit is held in numbers of 4 bit: exact, and no smaller than int4.",)
    assert openvino_ir.notes(llama) == ()


def test_the_file_is_as_large_as_its_weights(llama: SourceFolder, tmp_path: Path) -> None:
    sizes = {}
    for name, weights in {
        "f16": llama,
        "int8": quantized(llama, Grid(8), Grid(8)),
        "int4": quantized(llama, Grid(4, 32), Grid(4, 32)),
    }.items():
        sizes[name] = openvino_ir.write(weights, tmp_path / name).with_suffix(".bin").stat().st_size
    numbers = sum(int(np.prod(llama.get(name).shape)) for name in llama.names())
    assert 2 * numbers < sizes["f16"] < 2 * numbers + 4096
    assert 1.0 * numbers < sizes["int8"] < 1.1 * numbers
    assert 0.5625 * numbers < sizes["int4"] < 0.6 * numbers  # a scale of 16 bit for 32 weights of 4


def test_a_full_disk_leaves_nothing_half_written(llama: SourceFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from lowbit.llm.writers.openvino_weights import Constants

    written = openvino_ir.write(llama, tmp_path).read_bytes()
    made = []

    def full(self: Constants, *args: object) -> object:
        made.append(args)
        if len(made) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return node(self, *args)  # type: ignore[arg-type]

    node = Constants.node
    monkeypatch.setattr(Constants, "node", full)
    with pytest.raises(Interrupted, match="disk is full"):
        openvino_ir.write(quantized(llama, Grid(8)), tmp_path)
    assert (tmp_path / "openvino_model.xml").read_bytes() == written
    assert not list(tmp_path.glob("partial*"))


def test_the_tokenizer_as_a_model(llama: SourceFolder, tmp_path: Path) -> None:
    need("openvino_tokenizers", "transformers", "tokenizers")
    import openvino
    import openvino_tokenizers  # noqa: F401  # registers its operators
    from tokenizers import Tokenizer

    openvino_ir.write(llama, tmp_path)
    assert openvino_ir.write_tokenizer(tmp_path)
    text = "The river, and the bridge beside it."
    core = openvino.Core()
    found = core.compile_model(str(tmp_path / "openvino_tokenizer.xml"), "CPU")([text])["input_ids"]
    assert found[0].tolist() == Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
    (tmp_path / "tokenizer.json").write_text("{}")
    assert not openvino_ir.write_tokenizer(tmp_path)
