"""Hugging Face Optimum: a model folder that `ORTModelFor...` and `OVModelFor...` load by `from_pretrained` and run by themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.errors import ModelError, RunError, UsageError
from lowbit.export.base import Abilities, Artifact, Finding, Setting, TargetSession, Wish
from lowbit.export.named_session import NamedSession, fixed_size, float_words, on_onnxruntime, write_beside
from lowbit.export.neutral import Neutral
from lowbit.export.optimum import openvino_ir
from lowbit.export.optimum.files import CUSTOM, IMAGES, MODEL, Shape, config, image_processor, ort_config, shape_of, tokenizer_config
from lowbit.export.optimum.openvino_ir import Ir
from lowbit.export.qdq_again import Rounded, write_qdq
from lowbit.export.worker import Worker, python_of
from lowbit.plugins import installed_version, named_version
from lowbit.runtimes.onnxruntime_cpu import DISTRIBUTIONS

OPTIMUM, OPTIMUM_INTEL, ONNXRUNTIME, OPENVINO = "optimum", "optimum-intel", "onnxruntime", "openvino"
MODULES = {OPTIMUM: "optimum.onnxruntime", OPTIMUM_INTEL: "optimum.intel"}
"""Kernel set, which is also the environment's name -> the module with its classes."""

_INSTALL = {
    OPTIMUM: "python -m venv .venv-optimum && .venv-optimum/bin/pip install optimum-onnx onnxruntime",
    OPTIMUM_INTEL: "python -m venv .venv-optimum-intel && .venv-optimum-intel/bin/pip install 'optimum-intel[openvino]'",
    OPENVINO: "pip install 'lowbit[openvino]'",
}
_AUTO = "auto"


@dataclass(frozen=True)
class Written:
    """What `open` needs beside the files.

    Attributes:
        shape: The classes that load them.
        rounded: The ONNX file.
        ir: OpenVINO's; None where it was not written.
        size: Samples a call, where the model takes no other number.
    """

    shape: Shape
    rounded: Rounded
    ir: Ir | None
    size: int | None


class Optimum:
    """See `lowbit.export.base.Target`."""

    name = "optimum"
    title = "Hugging Face Optimum"
    wishes = (
        Wish(
            "openvino",
            _AUTO,
            "adds the model in OpenVINO's own format, for OVModelFor... of optimum-intel; auto: where openvino is installed",
            (_AUTO, "true", "false"),
        ),
    )
    extra: str | None = None

    def version(self) -> str | None:
        """Of onnxruntime: the folder is written without Optimum."""
        return named_version("onnxruntime", *DISTRIBUTIONS)

    def abilities(self) -> Abilities:
        """Optimum's two halves want two versions of transformers, so that each has an environment of its own."""
        missing = [_INSTALL[name] for name in (OPTIMUM, OPTIMUM_INTEL) if _python(name) is None]
        missing += [] if installed_version("openvino") else [_INSTALL[OPENVINO]]
        return Abilities(True, "run", tuple(missing), _words([name for name in MODULES if _python(name) is not None]))

    def write(self, source: Neutral, folder: Path, settings: Mapping[str, Setting]) -> Artifact:
        """Writes the folder."""
        with_ir = _wants_ir(settings["openvino"])
        shape = shape_of(source.inputs, source.outputs, source.preprocess)
        rounded = write_qdq(source, folder / MODEL, renamed=shape.renamed)
        files = [folder / MODEL]
        opset = int(source.model.graph.opset_imports.get("", 0))
        files.append(_json(folder / "config.json", config(shape, source.inputs, source.outputs, source.labels)))
        files.append(_json(folder / "ort_config.json", ort_config(opset)))
        added, notes = _preparation(source, folder)
        files += [*added, *write_beside(source, folder)]
        try:
            ir = openvino_ir.write_ir(source, shape, folder) if with_ir else None
        except ModelError as error:
            if settings["openvino"] != _AUTO:
                raise
            ir, notes = None, (*notes, f"Without OpenVINO's files: {error.message}")
        files += [folder / name for name in openvino_ir.FILES] if ir is not None else []
        facts: dict[str, Setting] = {"class": shape.class_name, "task": shape.task}
        facts |= {} if ir is None else {"openvino_class": shape.openvino_class, "openvino_bytes": ir.size_bytes}
        state = Written(shape, rounded, ir, fixed_size(source.inputs))
        notes += (*_class_notes(state), *float_words(rounded.floats))
        return Artifact(folder, tuple(files), facts, notes, state, words=_words(_halves(ir)))

    def check(self, artifact: Artifact) -> Sequence[Finding]:
        """What the class expects of names, and the pipeline of a processor."""
        shape = _state(artifact).shape
        found = []
        if shape.task == IMAGES and not (artifact.main / "preprocessor_config.json").is_file():
            text = "There is no preprocessor_config.json, so a pipeline does not prepare images by itself: preprocess.yaml has the steps."
            found.append(Finding("image processor", "warning", text))
        if shape.task.startswith("t") and not (artifact.main / "tokenizer.json").is_file():
            found.append(Finding("tokenizer", "warning", "The bundle has no tokenizer: copy the model's own files into the folder."))
        if shape.model_type in ("resnet", "bert") and shape.task:
            text = f"config.json says '{shape.model_type}' so that transformers knows the type; the network is the one in {MODEL}."
            found.append(Finding("model type", "note", text))
        return found

    def kernel_sets(self, artifact: Artifact) -> tuple[str, ...]:
        """Optimum's classes where they have an environment; and what they stand on, by itself."""
        ir = _state(artifact).ir
        return (*_halves(ir), ONNXRUNTIME, *((OPENVINO,) if ir is not None and installed_version("openvino") else ()))

    def open(self, artifact: Artifact, kernels: str) -> TargetSession:
        """Loads the folder by a class of Optimum, or one of the models in it."""
        state = _state(artifact)
        names, ir = state.shape.renamed, state.ir
        if kernels == OPTIMUM:
            worker = _worker(OPTIMUM, state.shape.class_name, artifact.main, {})
            return NamedSession(worker.ask, worker.close, state.rounded.outputs, names, state.size)
        if kernels == ONNXRUNTIME:
            return on_onnxruntime(artifact.main / MODEL, state.rounded.outputs, names)
        if kernels == OPTIMUM_INTEL and ir is not None:
            worker = _worker(OPTIMUM_INTEL, state.shape.openvino_class, artifact.main, ir.keywords())
            return NamedSession(worker.ask, worker.close, ir.outputs, names, state.size)
        if kernels == OPENVINO and ir is not None:
            session = openvino_ir.open_ir(ir.path)
            return NamedSession(session.run, session.close, ir.outputs, names, state.size)
        raise RunError(f"Optimum has no kernels '{kernels}' here; it has {', '.join(self.kernel_sets(artifact))}.")


def _python(name: str) -> Path | None:
    """The Python of an environment with one of Optimum's two halves."""
    return python_of(name, MODULES[name].replace(".", "/"))


def _halves(ir: openvino_ir.Ir | None) -> tuple[str, ...]:
    """Of Optimum: those that have an environment here, and a model in the folder."""
    return tuple(name for name in MODULES if _python(name) is not None and (name == OPTIMUM or ir is not None))


def _worker(name: str, class_name: str, folder: Path, keywords: Mapping[str, Any]) -> Worker:
    """The folder as its users load it, in an environment of Optimum's."""
    python = _python(name)
    if python is None:
        raise RunError(f"{MODULES[name]} is not installed.", _INSTALL[name])
    script = Path(__file__).with_name("answer.py")
    return Worker([python, "-I", script, MODULES[name], class_name, folder, json.dumps(keywords)], f"{class_name} of {MODULES[name]}")


def _words(by: Sequence[str]) -> str:
    """What a result means, by the kernel sets that are Optimum's."""
    if not by:
        return "the folder's models run by the runtimes themselves; not loaded by Optimum"
    return f"loaded and run by {' and '.join(MODULES[name] for name in by)}, {'each ' if by[1:] else ''}in an environment of its own"


def _wants_ir(setting: Setting) -> bool:
    """Whether OpenVINO's format is written.

    Raises:
        UsageError: it was asked for, and openvino is not there.
    """
    there = installed_version("openvino") is not None
    if setting == "true" and not there:
        raise UsageError("openvino=true needs openvino, which is not installed.", _INSTALL[OPENVINO])
    return setting == "true" or (setting == _AUTO and there)


def _class_notes(state: Written) -> tuple[str, ...]:
    """What people should know who load the folder."""
    shape, ir, found = state.shape, state.ir, []
    if CUSTOM in (shape.class_name, shape.openvino_class.replace("OV", "ORT")):
        which = CUSTOM if shape.class_name == CUSTOM else shape.openvino_class
        found.append(f"No class of a task fits the model's inputs and outputs: {which} takes them by name.")
    if ir is None:
        found.append(f"{shape.openvino_class} finds no model in the folder: it was written without openvino.")
    else:
        exact = 'ov_config={"INFERENCE_PRECISION_HINT": "f32"}'
        found.append(f"{shape.openvino_class} computes as judged with {exact}: OpenVINO's default is bfloat16 where a processor has it.")
    if ir is not None and not ir.reshapes:
        found.append(f"{shape.openvino_class} needs dynamic_shapes=False: the model's sizes cannot all be opened.")
    if state.size is not None:
        found.append(f"The model takes {state.size} sample{'s' if state.size > 1 else ''} a call, neither more nor fewer.")
    return tuple(found)


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
