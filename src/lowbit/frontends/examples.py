"""Inputs to trace a module with: what the user gave, or samples of the data in the shapes that the module takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.data.guess import guess_inputs
from lowbit.data.open import open_data
from lowbit.data.preprocess import Preprocess
from lowbit.errors import DataError, LowbitError, ModelError, UsageError
from lowbit.frontends.builder import where
from lowbit.types import Array, Feeds, TensorInfo

if TYPE_CHECKING:
    from torch import Tensor, nn

Data = str | Path | Mapping[str, Array]
GIVE = "Give example inputs: --example-shape 3,224,224 (one sample, without the batch axis), or example_inputs=(tensor,) in Python."
TRACED = 2
"""Samples that a module is traced with: one alone would make torch take the batch axis for fixed."""


def argument_names(module: nn.Module, count: int) -> list[str]:
    """Names of the first `count` arguments of `forward`; `input_0` and so on where it takes any number."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [name for name, parameter in inspect.signature(module.forward).parameters.items() if parameter.kind in kinds]
    return [*names, *(f"input_{index}" for index in range(len(names), count))][:count]


def given_examples(module: nn.Module, examples: Any) -> dict[str, Tensor]:
    """Example inputs by argument name, in the order of `forward`'s arguments, two samples or more.

    Args:
        module: Whose `forward` names them.
        examples: A tensor or array, a sequence of them, or a mapping by argument name; each with its batch axis.

    Raises:
        UsageError: neither, or a name that `forward` does not have.
    """
    import torch

    if isinstance(examples, Mapping):
        order = argument_names(module, len(inspect.signature(module.forward).parameters))
        if foreign := [name for name in examples if name not in order]:
            raise UsageError(f"forward() has no argument {', '.join(foreign)}; it has {', '.join(order)}.", "Name example inputs so.")
        values = {name: examples[name] for name in order if name in examples}
        if list(values) != order[: len(values)]:
            raise UsageError(f"Example inputs {', '.join(values)} leave out an argument before them: forward({', '.join(order)}).", GIVE)
    else:
        items = list(examples) if isinstance(examples, tuple | list) else [examples]
        values = dict(zip(argument_names(module, len(items)), items, strict=True))
    try:
        tensors = {name: torch.as_tensor(value).detach().cpu() for name, value in values.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"An example input is no tensor: {error}", GIVE) from error
    if not tensors or any(tensor.ndim == 0 for tensor in tensors.values()):
        raise UsageError("Example inputs need a batch axis.", "Give e.g. example_inputs=(torch.randn(2, 3, 224, 224),).")
    return {name: tensor if len(tensor) >= TRACED else torch.cat([tensor] * TRACED) for name, tensor in tensors.items()}


def shaped_examples(module: nn.Module, shapes: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Random examples for shapes of one sample each, in the order of `forward`'s arguments."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return given_examples(module, [torch.rand(TRACED, *shape, generator=generator) for shape in shapes])


def derived_examples(module: nn.Module, data: Data, preprocess: Preprocess | None, target: str | None) -> dict[str, Tensor]:
    """Examples from the first samples of the data, in the first shape that the module runs on.

    Raises:
        UsageError: the data does not say what shape a sample has, or the module runs on none of the likely shapes.
    """
    tried: list[str] = []
    for inputs in _likely_inputs(data, preprocess, target):
        try:
            feeds = next(open_data(data, inputs, preprocess, target=target).subset(np.arange(TRACED)).batches(TRACED)).feeds
        except (DataError, UsageError) as error:
            tried.append(error.message)
            continue
        order = _by_argument(module, feeds)
        try:
            examples = given_examples(module, order)
            run_once(module, examples)
            return examples
        except LowbitError as error:
            tried.append(f"{', '.join(f'{info.dtype} {list(info.shape[1:])}' for info in inputs)}: {error.message}")
    reason = f" {tried[0]}" if tried else ""
    raise UsageError(f"What {type(module).__name__} takes does not follow from the data.{reason}", GIVE)


def _by_argument(module: nn.Module, feeds: Feeds) -> Any:
    """Feeds by argument name where they are named so, else in their order."""
    names = argument_names(module, len(feeds))
    return {name: feeds[name] for name in names} if set(names) == set(feeds) else list(feeds.values())


def _likely_inputs(data: Data, preprocess: Preprocess | None, target: str | None) -> Iterator[tuple[TensorInfo, ...]]:
    """Inputs that the samples may be for: as the preprocessing has them, else as they are stored, then as pixels with channels first."""
    is_folder = not isinstance(data, Mapping) and Path(data).is_dir()
    if preprocess is not None and preprocess.size is not None:
        channels = 1 if preprocess.channels == "grey" else 3
        yield (TensorInfo("x", (None, channels, *preprocess.size), "float32"),)
    if is_folder:
        return  # files say nothing about the size that the module wants
    stored = guess_inputs(data, target)
    if len(stored) == 1 and (shapes := _pixel_shapes(stored[0].shape[1:])):
        for shape in shapes:
            yield (TensorInfo("x", (None, *shape), "float32"),)
        return
    yield stored


def _pixel_shapes(shape: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Shapes [C, H, W] that image arrays of a stored shape may become; none where they are no images."""
    if len(shape) == 3 and shape[2] in (1, 3) and shape[0] not in (1, 3):
        return [(shape[2], *shape[:2]), shape]
    if len(shape) == 2 and all(isinstance(size, int) and size >= 8 for size in shape):
        return [(1, *shape), (3, *shape), shape]
    return [shape, (3, *shape[1:])] if len(shape) == 3 and shape[0] == 1 else []


def run_once(module: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """The module's answer on example inputs, in eval mode.

    Raises:
        ModelError: the module fails on them.
    """
    from lowbit.frontends.export import inference

    try:
        with inference(module):
            return module(*inputs.values())
    except Exception as error:  # whatever a person's forward raises
        shapes = ", ".join(f"{name} {str(value.dtype).removeprefix('torch.')} {list(value.shape)}" for name, value in inputs.items())
        first = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(f"{type(module).__name__} fails on {shapes}{where(error)}: {type(error).__name__}: {first}", GIVE) from error


def named_outputs(answer: Any) -> dict[str, Tensor]:
    """A module's answer as tensors by name: a mapping's own names, "output" for a single one, "output_0" and so on for several.

    Raises:
        ModelError: it holds no tensor.
    """
    import torch

    if isinstance(answer, torch.Tensor):
        return {"output": answer}
    if isinstance(answer, Mapping):
        flat = {str(name): value for name, value in answer.items() if isinstance(value, torch.Tensor)}
    else:
        leaves = [value for value in torch.utils._pytree.tree_leaves(answer) if isinstance(value, torch.Tensor)]
        flat = {f"output_{index}": value for index, value in enumerate(leaves)}
    if not flat:
        raise ModelError(f"The module returns a {type(answer).__name__} without a tensor in it.", "Return a tensor, a tuple or a dict.")
    return flat
