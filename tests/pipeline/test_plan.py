"""Which candidates are tried on what kind of model, and in which order."""

from __future__ import annotations

from lowbit.pipeline.plan import plan
from lowbit.pipeline.recipes import (
    FP16,
    FP32,
    INT8_DEFAULTS,
    INT8_PT2E,
    INT8_TORCH_DYNAMIC,
    program_recipes_for,
    recipes_for,
    static,
    structure,
    traits,
)
from lowbit.types import Tuning

ORT = (Tuning(), Tuning(threads=1))
OPENVINO = (Tuning(), Tuning(fixed_shape=True), Tuning(precision="bf16"), Tuning(precision="bf16", fixed_shape=True), Tuning(streams=2))


def test_the_source_is_tuned_on_the_baselines_runtime_too() -> None:
    """Otherwise better threads would be sold as quantization."""
    ids = [entry.id for entry in plan([FP32], {"onnxruntime": ORT, "openvino": OPENVINO})]
    assert ids == ["fp32-tuned@onnxruntime", "fp32@openvino", "bf16@openvino"]


def test_every_recipe_meets_every_runtime() -> None:
    ids = [entry.id for entry in plan([FP16, static("mse")], {"onnxruntime": ORT, "openvino": OPENVINO})]
    assert ids == [
        "fp16@onnxruntime",
        "fp16@openvino",
        "fp16+bf16@openvino",
        "int8-static-mse@onnxruntime",
        "int8-static-mse@openvino",
    ]


def test_first_tunings_are_for_latency_with_fixed_shapes_where_offered() -> None:
    found = {entry.id: entry.tuning for entry in plan([static("mse")], {"onnxruntime": ORT, "openvino": OPENVINO})}
    assert found == {"int8-static-mse@onnxruntime": Tuning(), "int8-static-mse@openvino": Tuning(fixed_shape=True)}


def test_programs_and_onnx_files_meet_the_runtimes_that_open_them() -> None:
    tunings = {"onnxruntime": ORT, "torch": (Tuning(), Tuning(fixed_shape=True))}
    plans = plan([FP32, FP16, static("mse"), INT8_PT2E, INT8_TORCH_DYNAMIC], tunings, {"torch"})
    assert [entry.id for entry in plans] == [
        "fp32-tuned@onnxruntime",
        "fp32@torch",
        "fp16@onnxruntime",
        "int8-static-mse@onnxruntime",
        "int8-pt2e@torch",
        "int8-torch-dynamic@torch",
    ]
    assert {entry.id: entry.precision for entry in plans}["int8-pt2e@torch"] == "int8"
    assert {entry.id: entry.tuning for entry in plans}["int8-pt2e@torch"] == Tuning(fixed_shape=True)


def test_programs_are_planned_for_nobody_who_does_not_open_them() -> None:
    assert plan([INT8_PT2E, INT8_TORCH_DYNAMIC], {"onnxruntime": ORT, "openvino": OPENVINO}) == []


def test_linear_layers_alone_are_worth_scales_at_run_time() -> None:
    kinds = {
        "a CNN": ({"Conv": 20, "Gemm": 1}, [INT8_PT2E]),
        "attention": ({"MatMul": 40, "Softmax": 6, "LayerNormalization": 13}, [INT8_PT2E, INT8_TORCH_DYNAMIC]),
        "layers": ({"Gemm": 3}, [INT8_PT2E, INT8_TORCH_DYNAMIC]),
        "a memory": ({"LSTM": 2, "Gemm": 1}, [INT8_TORCH_DYNAMIC]),
    }
    for name, (operators, expected) in kinds.items():
        assert program_recipes_for(traits(operators)) == expected, name


def test_precision_says_what_arithmetic_and_weights_are() -> None:
    found = {entry.id: entry.precision for entry in plan([FP32, FP16, static("mse")], {"openvino": OPENVINO})}
    assert found == {
        "fp32@openvino": "fp32",
        "bf16@openvino": "bf16",
        "fp16@openvino": "fp16",
        "fp16+bf16@openvino": "bf16",
        "int8-static-mse@openvino": "int8",
    }


def names(operators: dict[str, int], *, nncf: bool = False) -> list[str]:
    return [recipe.name for recipe in recipes_for(traits(operators), nncf=nncf)]


def test_a_cnn_gets_every_range_method_and_no_dynamic() -> None:
    found = names({"Conv": 20, "Relu": 19, "Gemm": 1})
    assert {f"int8-static-{method}" for method in ("minmax", "percentile", "entropy", "mse")} < set(found)
    assert "int8-dynamic" not in found


def test_attention_gets_smoothed_and_dynamic_first_and_no_clipped_ranges() -> None:
    found = names({"MatMul": 40, "Softmax": 6, "LayerNormalization": 13})
    assert found.index("int8-smoothed") < found.index("int8-dynamic") < found.index("int8-static-minmax")
    assert not [name for name in found if any(ranges in name for ranges in ("percentile", "mse", "entropy"))]


def test_recurrent_models_get_dynamic() -> None:
    assert "int8-dynamic" in names({"LSTM": 2, "Gemm": 1})


def test_nncf_is_in_the_race_where_it_is_installed() -> None:
    assert "int8-nncf" in names({"Conv": 3}, nncf=True)
    assert "int8-nncf" not in names({"Conv": 3})


def test_what_people_do_is_always_tried_last() -> None:
    assert names({"Conv": 3})[-1] == INT8_DEFAULTS.name


def test_recipes_have_unique_names() -> None:
    found = names({"MatMul": 40, "Softmax": 6, "LayerNormalization": 13, "Conv": 1}, nncf=True)
    assert len(set(found)) == len(found)


def test_ranges_do_not_change_speed_but_granularity_may() -> None:
    assert structure(FP16) == structure(FP32)
    assert structure(static("mse")) == structure(static("minmax"))
    assert structure(static("mse")) != structure(static("mse", per_channel=False))
