"""A checkpoint's tensors into a module: nothing in the file is executed, and what does not fit is named."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.errors import ModelError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

State = dict[str, "Tensor"]
NESTS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params")
"""Keys under which trainers keep a state dict beside optimizer states and epochs."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
"""What DataParallel, torch.compile and trainers put before every key."""

SHOWN = 5
_CODE = ("GLOBAL", "unsupported class", "unrecognized function", "whitelisted", "not an allowed")
"""What torch's messages about code in a file have in common; those about damaged files have none of it."""


def load_weights(module: nn.Module, path: str | Path, *, allow_pickle: bool = False) -> None:
    """Fills a module's parameters and buffers from a checkpoint.

    Args:
        module: Changed in place.
        path: .safetensors, or what `torch.save` wrote: a state dict, alone or inside a trainer's checkpoint.
        allow_pickle: Let the file run code while it is read. Only for files that you trust.

    Raises:
        ModelError: no such file, unreadable, more than tensors without `allow_pickle`, or it does not fit.
    """
    path = Path(path)
    fit(module, state_dict(read(path, allow_pickle=allow_pickle), path.name), path.name)


def read(path: Path, *, allow_pickle: bool = False) -> Any:
    """What a checkpoint file holds, on the CPU; see `load_weights`."""
    if not path.is_file():
        raise ModelError(f"There are no weights at '{path}'.", "Give a .pt, .pth, .th or .safetensors file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        import torch

        return torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        if allow_pickle or not any(word in str(error) for word in _CODE):
            raise ModelError(f"'{path.name}' is no file that torch.save wrote, or was cut off.", "Copy it again.") from error
        raise ModelError(
            f"'{path.name}' holds more than tensors: reading it would run code that is in the file{_culprit(error)}.",
            "Save its state_dict() alone (or as .safetensors), or, if you trust the file, say --allow-pickle.",
        ) from error
    except ImportError as error:
        raise UsageError(f"Reading {path.suffix} files needs '{error.name}'.", "pip install 'lowbit[torch]'") from error
    except Exception as error:  # zipfile, struct, safetensors and torch raise a dozen kinds for a damaged file
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ModelError(
            f"'{path.name}' cannot be read as weights: {reason[0]}.", "Copy it again; .pt and .safetensors are read."
        ) from error


def _culprit(error: Exception) -> str:
    """The class that weights_only refused, as torch's message names it."""
    _, found, rest = str(error).partition("GLOBAL ")
    return f" ({rest.split()[0]})" if found else ""


def state_dict(found: Any, name: str) -> State:
    """The state dict in what a file holds: itself, a module's own, or under one of the usual keys.

    Raises:
        ModelError: there is none.
    """
    import torch

    if isinstance(found, torch.nn.Module):
        return dict(found.state_dict())
    if isinstance(found, Mapping):
        if found and all(isinstance(value, torch.Tensor) for value in found.values()):
            return {str(key): value for key, value in found.items()}
        for key in NESTS:
            if isinstance(inner := found.get(key), Mapping | torch.nn.Module):
                return state_dict(inner, name)
        tensors = {str(key): value for key, value in found.items() if isinstance(value, torch.Tensor)}
        if tensors:
            return tensors
    keys = f" It has {', '.join(map(str, list(found)[:SHOWN]))}." if isinstance(found, Mapping) else ""
    raise ModelError(f"'{name}' holds a {type(found).__name__} without a state dict.{keys}", "Save model.state_dict().")


def fit(module: nn.Module, state: State, name: str) -> None:
    """Loads a state dict, with a prefix that all its keys share taken off where that makes it fit.

    Raises:
        ModelError: keys are missing or unexpected, or shapes differ; the first few of each are named.
    """
    wanted = module.state_dict()
    state = _unprefixed(state, set(wanted))
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    shapes = [
        f"{key} is {list(state[key].shape)}, the model has {list(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    if missing or unexpected or shapes:
        parts = [
            f"{len(entries)} {what}: {'; '.join(entries[:SHOWN])}{' …' if len(entries) > SHOWN else ''}"
            for what, entries in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if entries
        ]
        raise ModelError(
            f"The weights in '{name}' do not fit {type(module).__name__} ({len(wanted)} tensors). {'. '.join(parts)}.",
            "Build the very model that they were trained with: its width, depth and number of classes.",
        )
    module.load_state_dict(state, strict=False)  # all but BatchNorm's counters, which old checkpoints lack, is there


def _unprefixed(state: State, wanted: set[str]) -> State:
    """The state dict under the names that fit best: as it is, or without a prefix that all of its keys share."""
    best, found = state, len(wanted & set(state))
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            shorter = _unprefixed({key.removeprefix(prefix): value for key, value in state.items()}, wanted)
            if len(wanted & set(shorter)) > found:
                best, found = shorter, len(wanted & set(shorter))
    return best
