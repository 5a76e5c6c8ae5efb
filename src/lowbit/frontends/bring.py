"""Whatever a user calls a model, as an ONNX file with what else it says about itself."""

from __future__ import annotations

import copy
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.data.custom import is_custom
from lowbit.data.preprocess import Preprocess
from lowbit.errors import LowbitError, ModelError, UsageError
from lowbit.types import Array, Feeds, Origin

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

OWN = {"onnx": "an ONNX file", "huggingface": "a Hugging Face folder", "pt2": "a .pt2 file", "program": "an exported program"}
WEIGHTS = (".pt", ".pth", ".th", ".bin", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class How:
    """What a user says about a model that is no ONNX file.

    Attributes:
        example_inputs: A tensor, a sequence of them or a mapping by argument name, each with its batch axis.
        example_shapes: Shapes of one sample each, instead of example inputs.
        weights: A checkpoint for the module.
        allow_pickle: Let checkpoints and programs run code while they are read.
        target: The label's column or field, which is no input.
    """

    example_inputs: Any = None
    example_shapes: Sequence[Sequence[int]] = ()
    weights: str | Path | None = None
    allow_pickle: bool = False
    target: str | None = None


@dataclass(frozen=True)
class Incoming:
    """A model that was exported, here or elsewhere.

    Attributes:
        path: The ONNX file.
        origin: What it was before; None where it came as ONNX.
        run: The model itself: feeds -> outputs in the file's order; None where it came as ONNX.
        preprocess: What it brings with it; None where it says nothing.
        task: That it was trained for; None where it says nothing.
        metric: Usual for that task.
    """

    path: Path
    origin: Origin | None
    run: Callable[[Feeds], list[Array]] | None
    preprocess: Preprocess | None = None
    task: str | None = None
    metric: str | None = None


def kind_of(model: Any) -> str:
    """ "onnx", "module", "program", "builder", "pt2" or "huggingface".

    Raises:
        UsageError: weights without a model, or something else altogether.
    """
    if not isinstance(model, str | Path):
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(model, torch.nn.Module):
            return "module"
        if torch is not None and isinstance(model, torch.export.ExportedProgram):
            return "program"
        raise UsageError(
            f"A {type(model).__name__} is no model that lowbit takes.",
            "Give the path of an .onnx or .pt2 file, a Hugging Face folder, `package.module:function`, or a torch.nn.Module.",
        )
    path = Path(model)
    if path.is_dir() and (path / "config.json").is_file():
        return "huggingface"
    if path.suffix == ".pt2":
        return "pt2"
    if path.suffix in WEIGHTS and path.is_file():
        raise UsageError(
            f"'{path.name}' holds weights; the model that they belong to is missing.",
            f"Give the function that builds it: lowbit optimize package.module:function --weights {path.name}",
        )
    return "builder" if is_custom(str(model)) and not path.exists() else "onnx"


def bring_in(model: Any, data: Any, folder: Path, how: How, preprocess: Preprocess | None = None) -> Incoming | None:
    """Exports a model to an ONNX file, or None where it is one already.

    Args:
        model: A path, `package.module:function`, a module, or an exported program.
        data: The samples, from which a module's input shapes follow where the user gives none.
        folder: Where to write the file.
        how: What else the user said about the model.
        preprocess: What the user said about samples; None where nothing.

    Raises:
        UsageError: it is not what it seems, or PyTorch is missing.
        ModelError: it cannot be loaded or exported, or its weights do not fit.
    """
    kind = kind_of(model)
    if kind == "onnx":
        _check_unused(how)
        return None
    if kind in ("huggingface", "pt2", "program"):
        _check_unused(how, kind)
    if kind == "huggingface":
        from lowbit.frontends.huggingface import bring_folder

        return bring_folder(Path(model), folder)
    need("torch", "onnxscript", extra="torch")
    if kind in ("pt2", "program"):
        return _program(model, folder, allow_pickle=how.allow_pickle)
    from lowbit.frontends.builder import build_module

    module: nn.Module = build_module(str(model)) if kind == "builder" else model
    name = type(module).__name__ if kind == "module" else str(model).rpartition(":")[2]
    if how.weights is not None:
        from lowbit.frontends.weights import load_weights

        module = copy.deepcopy(module) if kind == "module" else module  # the caller's own keeps its weights
        load_weights(module, how.weights, allow_pickle=how.allow_pickle)
    return _module(module, name, data, folder, how, preprocess)


def _module(module: nn.Module, name: str, data: Any, folder: Path, how: How, preprocess: Preprocess | None) -> Incoming:
    from lowbit.frontends import examples
    from lowbit.frontends.export import export_module

    module = _on_cpu(module)
    if how.example_inputs is not None:
        inputs = examples.given_examples(module, how.example_inputs)
    elif how.example_shapes:
        inputs = examples.shaped_examples(module, how.example_shapes)
    else:
        inputs = examples.derived_examples(module, data, preprocess, how.target)
    outputs = list(examples.named_outputs(examples.run_once(module, inputs)))
    path = folder / f"{file_name(name)}.onnx"
    export_module(module, inputs, path, outputs)
    return Incoming(path, Origin("pytorch", name), module_runner(module, list(inputs)))


def module_runner(module: nn.Module, names: Sequence[str]) -> Callable[[Feeds], list[Array]]:
    """Feeds -> outputs of a module on the CPU, in the order in which they are exported."""

    def run(feeds: Feeds) -> list[Array]:
        import torch

        from lowbit.frontends.examples import named_outputs
        from lowbit.frontends.export import inference

        with inference(module):
            answer = module(*(torch.from_numpy(feeds[name]) for name in names))
        return [value.numpy() for value in named_outputs(answer).values()]

    return run


def _program(model: Any, folder: Path, *, allow_pickle: bool) -> Incoming:
    from torch.utils import _pytree as pytree

    from lowbit.frontends.examples import named_outputs
    from lowbit.frontends.export import export_program

    name = Path(model).stem if isinstance(model, str | Path) else "program"
    program = load_program(Path(model), allow_pickle=allow_pickle) if isinstance(model, str | Path) else model
    module = program.module()
    names = list(program.graph_signature.user_inputs)

    def call(values: Sequence[Any]) -> Mapping[str, Any]:
        args, kwargs = pytree.tree_unflatten(list(values), program.call_spec.in_spec)
        return named_outputs(module(*args, **kwargs))

    def run(feeds: Feeds) -> list[Array]:
        import torch

        with torch.no_grad():
            return [value.detach().numpy() for value in call([torch.from_numpy(feeds[name]) for name in names]).values()]

    path = folder / f"{file_name(name)}.onnx"
    outputs = list(call(pytree.tree_leaves(program.example_inputs))) if program.example_inputs else []
    export_program(program, path, outputs)
    return Incoming(path, Origin("pt2", name), run)


def load_program(path: Path, *, allow_pickle: bool = False) -> ExportedProgram:
    """A program that `torch.export.save` wrote.

    Raises:
        ModelError: no such file, another format, or it holds pickled objects without `allow_pickle`.
    """
    import torch

    if not path.is_file():
        raise ModelError(f"There is no file '{path}'.", "Give the path of a .pt2 file.")
    try:
        with _tensors_only(not allow_pickle):
            return torch.export.load(path)
    except LowbitError:
        raise
    except Exception as error:  # torch raises a dozen kinds for a damaged archive
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise ModelError(
                f"'{path.name}' holds pickled objects: reading them would run code that is in the file.",
                "Export it anew with this version of torch, or, if you trust the file, say --allow-pickle.",
            ) from error
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"'{path.name}' is no program that torch.export.save wrote: {first[:200]}", "Export it again.") from error


@contextmanager
def _tensors_only(forced: bool) -> Iterator[None]:
    """Makes every torch.load inside refuse pickled code, also those of torch itself, which ask for it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    if forced:
        os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _on_cpu(module: nn.Module) -> nn.Module:
    """The module itself where it is on the CPU, else a copy: the caller's stays where it is."""
    if all(value.device.type == "cpu" for value in (*module.parameters(), *module.buffers())):
        return module
    return copy.deepcopy(module).cpu()


def _check_unused(how: How, kind: str = "onnx") -> None:
    said = {"--weights": how.weights, "--example-shape": how.example_shapes or None, "example_inputs": how.example_inputs}
    if given := [name for name, value in said.items() if value is not None]:
        raise UsageError(f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} for PyTorch modules; {OWN[kind]} has its own.")


def need(*modules: str, extra: str) -> None:
    """Refuses a model whose libraries are not installed; `extra` brings them."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"This model needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed.",
            f"pip install 'lowbit[{extra}]'",
        )


def file_name(name: str) -> str:
    """A name that any file system takes.

    >>> file_name("ResNet 20/best")
    'resnet-20-best'
    """
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.") or "model"
