"""A local folder of a transformers encoder: its module, its preprocessing, its task. Nothing is fetched from anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.data.preprocess import Preprocess
from lowbit.errors import ModelError, UsageError
from lowbit.frontends.bring import Incoming, file_name, module_runner, need
from lowbit.frontends.encoders import Pooling, encoder_module, pooling_of
from lowbit.frontends.export import export_module
from lowbit.frontends.processors import image_preprocess, image_size, read_text
from lowbit.types import Origin

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Kind:
    """What a task means here.

    Attributes:
        loader: The class of transformers that loads it with its head.
        outputs: Names of the outputs, as transformers has them.
        task: In lowbit's words.
        metric: What its budget is usually about.
        form: Of its text; empty for images.
    """

    loader: str
    outputs: tuple[str, ...]
    task: str
    metric: str
    form: str = "sentence"


KINDS: Mapping[str, Kind] = {
    "ForSequenceClassification": Kind("AutoModelForSequenceClassification", ("logits",), "classification", "top1", "sentence"),
    "ForTokenClassification": Kind("AutoModelForTokenClassification", ("logits",), "tokens", "token_f1", "words"),
    "ForQuestionAnswering": Kind("AutoModelForQuestionAnswering", ("start_logits", "end_logits"), "span", "exact_match", "question"),
    "ForImageClassification": Kind("AutoModelForImageClassification", ("logits",), "classification", "top1", ""),
}
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
EXPORTED = ("model.onnx", "onnx/model.onnx")
"""Where Optimum and the Hub put a model that is ONNX already."""

EMBEDDING = Kind("AutoModel", ("sentence_embedding",), "embedding", "spearman", "both")


def bring_folder(source: Path, folder: Path) -> Incoming:
    """Exports a Hugging Face folder to an ONNX file; one that Optimum exported, without weights, is taken as it is.

    Args:
        source: With config.json, weights (safetensors) and the tokenizer's or image processor's files.
        folder: Where to write.

    Raises:
        UsageError: transformers is missing, or the task is none that is handled.
        ModelError: a file is missing or damaged, or the weights lack the head.
    """
    need("transformers", "tokenizers", extra="huggingface")
    config = read_json(source / "config.json")
    kind, pooling = kind_of(config, source)
    if exported := exported_file(source):
        return _taken(source, exported, config, kind)
    need("torch", "onnxscript", extra="huggingface")
    model = load_model(source, kind, config)
    if kind.form:
        return _text(source, folder, config, kind, pooling, model)
    preprocess = image_preprocess(read_processor(source), source.name)
    size = image_size(preprocess, config)
    import torch

    module = encoder_module(model, ("pixel_values",), kind.outputs)
    return _exported(source, folder, kind, module, {"pixel_values": torch.zeros(2, int(config.get("num_channels", 3)), *size)}, preprocess)


def _text(source: Path, folder: Path, config: dict[str, Any], kind: Kind, pooling: Pooling | None, model: Any) -> Incoming:
    import torch

    text, names = read_text(source, config, kind.form)
    kind = _settled(kind, config)
    example = {name: torch.ones(2, 16, dtype=torch.int64) for name in names}
    module = encoder_module(model, tuple(names), kind.outputs, pooling)
    return _exported(source, folder, kind, module, example, Preprocess(kind="text", text=text), text.max_length)


def exported_file(source: Path) -> Path | None:
    """The ONNX file of a folder that has no weights besides; None where there are weights, or no such file."""
    if any(next(source.glob(pattern), None) for pattern in WEIGHTS):
        return None
    return next((source / name for name in EXPORTED if (source / name).is_file()), None)


def _taken(source: Path, path: Path, config: dict[str, Any], kind: Kind) -> Incoming:
    """A file that was exported elsewhere, with the preprocessing and the task of its folder."""
    found = _outputs(path)
    if missing := [name for name in kind.outputs if name not in found]:
        raise UsageError(
            f"'{source.name}/{path.name}' has the outputs {', '.join(found)}; {', '.join(missing)} is wanted.",
            "Give the folder with the model's own weights, which is exported here, or the .onnx file with --preprocess.",
        )
    if not kind.form:
        return Incoming(path, None, None, image_preprocess(read_processor(source), source.name), kind.task, kind.metric)
    text, _ = read_text(source, config, kind.form)
    kind = _settled(kind, config)
    return Incoming(path, None, None, Preprocess(kind="text", text=text), kind.task, kind.metric)


def _outputs(path: Path) -> list[str]:
    """Names of an ONNX file's outputs.

    Raises:
        ModelError: it is none.
    """
    import onnx

    try:
        return [value.name for value in onnx.load_model(path, load_external_data=False).graph.output]
    except Exception as error:  # protobuf's and onnx's own kinds
        raise ModelError(f"'{path.parent.name}/{path.name}' is not a readable ONNX file.", "Copy the folder again.") from error


def _settled(kind: Kind, config: Mapping[str, Any]) -> Kind:
    """A head for sequences with one number instead of classes is a regression."""
    if kind.task == "classification" and config.get("problem_type") == "regression":
        return Kind(kind.loader, kind.outputs, "regression", "rmse", kind.form)
    return kind


def _exported(
    source: Path, folder: Path, kind: Kind, module: Any, example: dict[str, Tensor], preprocess: Preprocess, longest: int | None = None
) -> Incoming:
    name = source.resolve().name
    path = folder / f"{file_name(name)}.onnx"
    export_module(module, example, path, kind.outputs, max_tokens=longest)
    run: Callable[..., Any] = module_runner(module, list(example))
    return Incoming(path, Origin("huggingface", name), run, preprocess, kind.task, kind.metric)


def kind_of(config: Mapping[str, Any], source: Path) -> tuple[Kind, Pooling | None]:
    """The task that a folder's files say it was trained for, and how an embedding is pooled.

    Raises:
        UsageError: another task, or code of its own that would have to be run.
    """
    if config.get("auto_map"):
        raise UsageError(
            f"'{source.name}' brings Python code of its own, which is not run.",
            "Build the model yourself: lowbit optimize package.module:function",
        )
    if pooling := pooling_of(source):
        return EMBEDDING, pooling
    names = [str(name) for name in config.get("architectures") or []]
    for ending, kind in KINDS.items():
        if any(name.endswith(ending) for name in names):
            return kind, None
    if names and all(name.endswith("Model") for name in names) and not config.get("is_decoder"):
        return EMBEDDING, Pooling("mean", normalize=False)
    raise UsageError(
        f"'{source.name}' is a {', '.join(names) or 'model that does not say what it is'}; these are handled: "
        f"{', '.join(f'*{ending}' for ending in KINDS)}, and sentence encoders.",
        "For anything else: lowbit optimize package.module:function, which builds it.",
    )


def load_model(source: Path, kind: Kind, config: Mapping[str, Any]) -> Any:
    """The model with its head, in float32.

    Raises:
        ModelError: weights are missing or damaged, or the head has none.
    """
    import torch
    import transformers
    from transformers.utils import logging

    loader = getattr(transformers, kind.loader)
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    extra: dict[str, Any] = {}
    if kind is EMBEDDING and config.get("model_type") in ("bert", "roberta", "xlm-roberta", "mpnet"):
        extra = {"add_pooling_layer": False}  # the pooler is for other tasks, and many folders lack its weights
    try:
        model, found = loader.from_pretrained(
            source, local_files_only=True, attn_implementation="eager", dtype=torch.float32, output_loading_info=True, **extra
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"'{source.name}' cannot be loaded: {first}", "Copy the whole folder again, weights (safetensors) included."
        ) from error
    finally:
        logging.set_verbosity(level)
    absent = sorted(str(name) for name in found.get("missing_keys", ()))
    if absent:
        raise ModelError(
            f"'{source.name}' has no weights for {len(absent)} tensors: {', '.join(absent[:5])}{' …' if len(absent) > 5 else ''}.",
            "They would be random. Give the folder of a model that was trained with its head.",
        )
    return model.eval()


def read_processor(source: Path) -> dict[str, Any]:
    """The image processor's settings."""
    return read_json(source / "preprocessor_config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A settings file of the folder.

    Raises:
        ModelError: missing, or not JSON.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"'{path.parent.name}' has no {path.name}.", "Copy the whole folder, as save_pretrained wrote it.") from error
    except ValueError as error:
        raise ModelError(f"'{path.parent.name}/{path.name}' is not JSON: {error}.", "Copy the folder again.") from error
    if not isinstance(found, dict):
        raise ModelError(f"'{path.parent.name}/{path.name}' holds a {type(found).__name__}, not settings.", "Copy the folder again.")
    return found
