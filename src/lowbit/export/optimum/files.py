"""The files of a Hugging Face model folder, as data: what the model is, how its samples are prepared."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowbit.data.preprocess import Preprocess
from lowbit.types import TensorInfo

MODEL = "model_quantized.onnx"
"""The name that Optimum gives quantized models."""

_RESAMPLE = {"bilinear": 2, "bicubic": 3}
"""Pillow's numbers."""

IMAGES = "image-classification"
"""The task of a pipeline that takes pictures."""

CUSTOM = "ORTModelForCustomTasks"
"""The class for what fits no other: by name in, by name out."""

TOKENS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
"""What the classes for text pass on."""


@dataclass(frozen=True)
class Shape:
    """What Optimum takes a model for.

    Attributes:
        class_name: Of `optimum.onnxruntime`.
        architecture: For config.json, with the `model_type` that it belongs to.
        model_type: Known to transformers.
        renamed: The source's inputs and outputs -> the names that the class expects.
        task: Of a pipeline; "" where there is none.
        masked: Whether the model takes what OpenVINO's classes for text always feed, an attention mask.
    """

    class_name: str
    architecture: str
    model_type: str
    renamed: Mapping[str, str]
    task: str = ""
    masked: bool = True

    @property
    def openvino_class(self) -> str:
        """The class of optimum-intel that takes the same folder."""
        return (self.class_name if self.masked else CUSTOM).replace("ORT", "OV")

    def name_of(self, name: str) -> str:
        """What an input or output of the source is called in the folder."""
        return self.renamed.get(name, name)


def shape_of(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], preprocess: Preprocess | None) -> Shape:
    """What a model with these inputs and outputs is to Optimum."""
    first, answers = inputs[0], outputs[0]
    names = {info.name for info in inputs}
    one_answer = len(outputs) == 1
    if "input_ids" in names and names <= TOKENS and one_answer:
        masked = "attention_mask" in names
        if len(answers.shape) == 2:
            renamed = {answers.name: "logits"}
            return Shape(
                "ORTModelForSequenceClassification", "BertForSequenceClassification", "bert", renamed, "text-classification", masked
            )
        if len(answers.shape) == 3 and answers.name == "logits":
            return Shape("ORTModelForTokenClassification", "BertForTokenClassification", "bert", {}, "token-classification", masked)
    image = len(inputs) == 1 and len(first.shape) == 4 and (preprocess is None or preprocess.kind == "image")
    boxes = preprocess is not None and preprocess.boxes is not None
    if image and one_answer and len(answers.shape) == 2 and not boxes:
        renamed = {first.name: "pixel_values", answers.name: "logits"}
        return Shape("ORTModelForImageClassification", "ResNetForImageClassification", "resnet", renamed, IMAGES)
    kind, architecture = ("bert", "BertModel") if "input_ids" in names else ("resnet", "ResNetModel")
    return Shape(CUSTOM, architecture, kind, _words([info.name for info in (*inputs, *outputs)]))


def _words(names: Sequence[str]) -> dict[str, str]:
    """Names as Python's words where they are none: they become keywords, and OpenVINO's class cuts them at the point."""
    words = {name: re.sub(r"\W", "_", name) for name in names}
    taken = Counter(words.values())
    return {name: word for name, word in words.items() if word != name and taken[word] == 1}


def config(shape: Shape, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], labels: Sequence[str]) -> dict[str, Any]:
    """config.json. Only what Optimum reads is meant: the network itself is in the ONNX file, whatever the model type says."""
    classes = outputs[0].shape[-1] if outputs[0].shape else None
    count = len(labels) or (classes if isinstance(classes, int) else 0)
    names = list(labels) or [f"LABEL_{number}" for number in range(count)]
    found: dict[str, Any] = {
        "architectures": [shape.architecture],
        "model_type": shape.model_type,
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in reversed(list(enumerate(names)))},
    }
    sides = inputs[0].shape
    if shape.model_type == "resnet" and len(sides) == 4:
        found |= {key: value for key, value in (("num_channels", sides[1]), ("image_size", sides[2])) if isinstance(value, int)}
    return found


def image_processor(steps: Preprocess) -> tuple[dict[str, Any] | None, str]:
    """preprocessor_config.json as `CLIPImageProcessor` reads it (short side, centre crop, scale, mean and deviation).

    Returns:
        The settings and "", or None and what cannot be said in them.
    """
    lacking = [
        (steps.kind != "image", "samples that are no images"),
        (steps.channels != "rgb", f"{steps.channels} pixels"),
        (steps.layout != "nchw", f"the layout {steps.layout}"),
        (steps.letterbox is not None, "a letterbox"),
        (steps.boxes is not None, "boxes"),
        (isinstance(steps.resize, str) or isinstance(steps.crop, str) or isinstance(steps.scale, str), "steps that are not settled"),
    ]
    if missing := [words for wrong, words in lacking if wrong]:
        return None, ", ".join(missing)
    mean, std = ((list(values) * (3 if len(values) == 1 else 1)) for values in (steps.mean or (0.0,), steps.std or (1.0,)))
    found: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": steps.resize is not None,
        "size": _size(steps.resize),
        "resample": _RESAMPLE[steps.interpolation],
        "do_center_crop": steps.crop is not None,
        "crop_size": _size(steps.crop),
        "do_rescale": True,
        "rescale_factor": steps.scale,
        "do_normalize": bool(steps.mean or steps.std),
        "image_mean": mean,
        "image_std": std,
    }
    return {key: value for key, value in found.items() if value is not None}, ""


def _size(sides: Any) -> dict[str, int] | None:
    if isinstance(sides, int):
        return {"shortest_edge": sides}
    return None if sides is None else {"height": int(sides[0]), "width": int(sides[1])}


def tokenizer_config(steps: Preprocess) -> dict[str, Any]:
    """tokenizer_config.json beside the tokenizer.json that the bundle has."""
    assert steps.text is not None
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": steps.text.max_length,
        "pad_token": steps.text.pad_token,
        "padding_side": "left" if steps.text.pad_left else "right",
    }


def ort_config(opset: int) -> dict[str, Any]:
    """ort_config.json: what Optimum notes of a quantized export."""
    return {
        "opset": opset,
        "one_external_file": True,
        "use_external_data_format": False,
        "optimization": {},
        "quantization": {
            "is_static": True,
            "format": "QDQ",
            "mode": "QLinearOps",
            "activations_dtype": "QUInt8",
            "activations_symmetric": False,
            "weights_dtype": "QInt8",
            "weights_symmetric": True,
            "per_channel": True,
            "reduce_range": False,
            "nodes_to_quantize": [],
            "nodes_to_exclude": [],
            "operators_to_quantize": [],
            "qdq_add_pair_to_weight": False,
            "qdq_dedicated_pair": False,
        },
    }
