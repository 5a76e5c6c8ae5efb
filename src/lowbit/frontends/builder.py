"""`pkg.mod:build`: a module from a person's own code."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.errors import LowbitError, ModelError, UsageError, unknown

if TYPE_CHECKING:
    from torch import nn

GIVE = "Give `package.module:function`, where the function takes no arguments and returns a torch.nn.Module."


def build_module(spec: str) -> nn.Module:
    """Calls `package.module:function`; modules are looked for in the current folder first, as `python -m` does.

    What is named may also be a module's class, or a module itself, which is then taken as it is.

    Raises:
        UsageError: no such module or name, not callable, or it returns something else.
        ModelError: the person's code raised; the line is named.
    """
    from torch import nn

    module_name, _, path = spec.partition(":")
    found = _named(_imported(spec, module_name), spec, module_name, path)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise UsageError(f"'{spec}' is a {type(found).__name__}, not something to call.", GIVE)
    try:
        built = found()
    except LowbitError:
        raise
    except Exception as error:
        raise ModelError(f"Calling '{spec}' failed{where(error)}: {_said(error)}", _missing_arguments(error)) from error
    if not isinstance(built, nn.Module):
        raise UsageError(f"'{spec}' returns a {type(built).__name__}, not a torch.nn.Module.", GIVE)
    return built


def _imported(spec: str, name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        own = error.name is not None and (name == error.name or name.startswith(f"{error.name}."))
        what = f"there is no module '{error.name}'" if own else f"'{name}' imports '{error.name}', which is not installed"
        raise UsageError(f"Model '{spec}': {what}.", "Run in the folder that holds it, or install it.") from error
    except Exception as error:  # whatever a person's module raises while it is imported
        raise ModelError(f"Model '{spec}': importing {name} failed{where(error)}: {_said(error)}") from error


def _named(module: Any, spec: str, module_name: str, path: str) -> Any:
    found = module
    for part in path.split("."):
        if not hasattr(found, part):
            near = [name for name, value in vars(found).items() if callable(value) and not name.startswith("_")]
            error = unknown(f"name in {module_name}", part, near or ["(nothing that can be called)"])
            raise UsageError(f"Model '{spec}': {error.message}", error.hint or GIVE)
        found = getattr(found, part)
    return found


def where(error: BaseException) -> str:
    """E.g. " (net.py, line 12)": the last line of the trace that is neither lowbit's nor a library's."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_own(frame.filename)]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def is_own(file: str) -> bool:
    """Whether a source file is the user's: no library's, no part of lowbit or of Python."""
    home = str(Path(__file__).resolve().parents[1])
    library = "site-packages" in file or "dist-packages" in file or file.startswith((home, str(Path(traceback.__file__).parent)))
    return not (library or file.startswith("<"))


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _missing_arguments(error: Exception) -> str | None:
    missing = isinstance(error, TypeError) and "argument" in str(error)
    return "It is called without arguments: wrap it in a function that has them filled in." if missing else None
