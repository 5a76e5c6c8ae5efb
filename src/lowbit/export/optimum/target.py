"""Hugging Face Optimum: a model folder that `ORTModelFor...from_pretrained` loads and runs by itself."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.errors import RunError, UsageError
from lowbit.export.base import Abilities, Artifact, Finding, Setting, TargetSession, Wish
from lowbit.export.named_session import NamedSession, float_words, on_onnxruntime, write_beside
from lowbit.export.neutral import Neutral
from lowbit.export.optimum.files import MODEL, Shape, config, image_processor, ort_config, shape_of, tokenizer_config
from lowbit.export.qdq_again import Rounded, write_qdq
from lowbit.export.worker import Worker, python_of
from lowbit.graph.profiles import OPENVINO_CPU
from lowbit.plugins import installed_version
from lowbit.quiet import no_output, no_telemetry
from lowbit.runtimes.onnxruntime_cpu import DISTRIBUTIONS
from lowbit.runtimes.openvino_cpu import OpenVinoSession

OPTIMUM, ONNXRUNTIME, OPENVINO = "optimum", "onnxruntime", "openvino"
_OPENVINO_FILES = ("openvino_model.xml", "openvino_model.bin")


@dataclass(frozen=True)
class Written:
    """What `open` needs beside the files: the class that loads them, and what was rounded."""

    shape: Shape
    rounded: Rounded


class Optimum:
    """See `lowbit.export.base.Target`."""

    name = "optimum"
    title = "Hugging Face Optimum"
    wishes = (Wish("openvino", False, "adds the model in OpenVINO's own format, for OVModelFor... of optimum-intel"),)
    extra: str | None = None

    def version(self) -> str | None:
        """Of onnxruntime: the folder is written without Optimum."""
        return installed_version("onnxruntime", *DISTRIBUTIONS)

    def abilities(self) -> Abilities:
        """Optimum needs an older transformers than lowbit's extras, so it has an environment of its own."""
        if python_of("optimum", "optimum/onnxruntime") is not None:
            return Abilities(True, "run", words="loaded and run by Optimum in its own environment")
        missing = "python -m venv .venv-optimum && .venv-optimum/bin/pip install optimum-onnx onnxruntime"
        return Abilities(True, "run", (missing,), "the folder's model run by onnxruntime; not loaded by Optimum")

    def write(self, source: Neutral, folder: Path, settings: Mapping[str, Setting]) -> Artifact:
        """Writes the folder."""
        shape = shape_of(source.inputs, source.outputs, source.preprocess)
        rounded = write_qdq(source, folder / MODEL, renamed=shape.renamed)
        files = [folder / MODEL]
        opset = int(source.model.graph.opset_imports.get("", 0))
        files.append(_json(folder / "config.json", config(shape, source.inputs, source.outputs, source.labels)))
        files.append(_json(folder / "ort_config.json", ort_config(opset)))
        added, notes = _preparation(source, folder)
        files += [*added, *write_beside(source, folder)]
        if settings["openvino"]:
            files += _openvino(source, shape, folder)
            notes += (f"{shape.openvino_class} of optimum-intel was not run: openvino itself loads {_OPENVINO_FILES[0]}.",)
        if shape.class_name == "ORTModelForCustomTasks":
            notes += ("No class of Optimum fits the model's inputs and outputs: ORTModelForCustomTasks takes them by name.",)
        facts: dict[str, Setting] = {"class": shape.class_name, "task": shape.task}
        return Artifact(folder, tuple(files), facts, (*notes, *float_words(rounded.floats)), Written(shape, rounded))

    def check(self, artifact: Artifact) -> Sequence[Finding]:
        """What the class expects of names, and the pipeline of a processor."""
        shape = _state(artifact).shape
        found = []
        if shape.task == "image-classification" and not (artifact.main / "preprocessor_config.json").is_file():
            text = "There is no preprocessor_config.json, so a pipeline does not prepare images by itself: preprocess.yaml has the steps."
            found.append(Finding("image processor", "warning", text))
        if shape.task.startswith("t") and not (artifact.main / "tokenizer.json").is_file():
            found.append(Finding("tokenizer", "warning", "The bundle has no tokenizer: copy the model's own files into the folder."))
        if shape.model_type in ("resnet", "bert") and shape.task:
            text = f"config.json says '{shape.model_type}' so that transformers knows the type; the network is the one in {MODEL}."
            found.append(Finding("model type", "note", text))
        return found

    def kernel_sets(self, artifact: Artifact) -> tuple[str, ...]:
        """Optimum where it has an environment; onnxruntime; OpenVINO where its files were asked for."""
        own = (OPTIMUM,) if python_of("optimum", "optimum/onnxruntime") is not None else ()
        openvino = (OPENVINO,) if (artifact.main / _OPENVINO_FILES[0]).is_file() and installed_version("openvino") else ()
        return (*own, ONNXRUNTIME, *openvino)

    def open(self, artifact: Artifact, kernels: str) -> TargetSession:
        """Loads the folder by Optimum, or the model in it."""
        state = _state(artifact)
        grids, names = state.rounded.outputs, state.shape.renamed
        if kernels == OPTIMUM:
            worker = _worker(artifact.main, state.shape.class_name)
            return NamedSession(worker.ask, worker.close, grids, names)
        if kernels == ONNXRUNTIME:
            return on_onnxruntime(artifact.main / MODEL, grids, names)
        if kernels == OPENVINO:
            session = _openvino_session(artifact.main / _OPENVINO_FILES[0])
            return NamedSession(session.run, session.close, grids, names)
        raise RunError(f"Optimum has no kernels '{kernels}' here; it has {', '.join(self.kernel_sets(artifact))}.")


def _worker(folder: Path, class_name: str) -> Worker:
    """The folder as its users load it, in Optimum's environment."""
    python = python_of("optimum", "optimum/onnxruntime")
    if python is None:
        raise RunError("Optimum is not installed.", "Name its Python in LOWBIT_OPTIMUM_PYTHON.")
    return Worker([python, "-I", Path(__file__).with_name("answer.py"), folder, class_name], "Optimum")


def _state(artifact: Artifact) -> Written:
    assert isinstance(artifact.state, Written), "the artifact is not of this target"
    return artifact.state


def _json(path: Path, values: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _preparation(source: Neutral, folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The image processor's or the tokenizer's settings, and what they do not say."""
    steps = source.preprocess
    if steps is None:
        return [], ("The bundle has no preprocessing: feed the model as it was validated.",)
    if steps.text is not None:
        return [_json(folder / "tokenizer_config.json", tokenizer_config(steps))], ()
    if steps.kind != "image":
        return [], ()
    settings, lacking = image_processor(steps)
    if settings is None:
        return [], (f"transformers' image processor does not express {lacking}: prepare images as preprocess.yaml says.",)
    notes: tuple[str, ...] = ()
    if steps.keep_exact and steps.size is not None:
        height, width = steps.size
        notes = (f"lowbit leaves images of exactly {height}x{width} as they are; transformers' processor resizes and crops those, too.",)
    return [_json(folder / "preprocessor_config.json", settings)], notes


def _openvino(source: Neutral, shape: Shape, folder: Path) -> list[Path]:
    """The same model as OpenVINO keeps it: rounded where its kernels want it, in 32 bit where it is floating point."""
    if installed_version("openvino") is None:
        raise UsageError("openvino=true needs openvino, which is not installed.", "pip install 'lowbit[openvino]'")
    no_telemetry()
    import openvino

    with tempfile.TemporaryDirectory(dir=folder) as place, no_output():
        rounded = write_qdq(source, Path(place) / MODEL, OPENVINO_CPU, renamed=shape.renamed)
        openvino.save_model(openvino.Core().read_model(rounded.path), folder / _OPENVINO_FILES[0], compress_to_fp16=False)
    return [folder / name for name in _OPENVINO_FILES]


def _openvino_session(path: Path) -> OpenVinoSession:
    """OpenVINO's own format, with one thread and without its default of bfloat16."""
    no_telemetry()
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    try:
        return OpenVinoSession(openvino.Core().compile_model(path, "CPU", settings), path)
    except RuntimeError as error:
        raise RunError(f"openvino cannot load '{path.name}': {str(error).splitlines()[0]}") from error
