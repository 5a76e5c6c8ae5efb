"""Why an export failed: which operator or line, and what to do about it."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowbit.errors import ModelError
from lowbit.frontends.builder import is_own

_OPERATOR = re.compile(r"OpOverload\(op='([\w.:]+)'")
_LINE = re.compile(r'File "([^"]+)", line (\d+), in (\w+)(?:\n\s+(\S[^\n]*))?')
_SHAPES = ("constraint", "dynamic_shapes", "dynamic shape", "specializ", "mark_dynamic", "inferred to be a constant", "guards generated")
_ELSE = "Or export it to ONNX in your own way and give the .onnx file."


def about_shapes(error: BaseException) -> bool:
    """Whether an export failed because an axis cannot be dynamic."""
    text = " ".join(str(one).lower() for one in chain(error))
    return "data-dependent" not in text and any(word in text for word in _SHAPES)


def explain(error: BaseException, name: str, source: Any, inputs: tuple[Any, ...]) -> ModelError:
    """The error to show for a failed export.

    Args:
        error: What torch raised.
        name: Of the module.
        source: The module or exported program, in which the line of an operator is looked up.
        inputs: That it was traced with.
    """
    text = "\n".join(str(one) for one in chain(error))
    if operator := _OPERATOR.search(text):
        name_of = operator[1].replace("prims.", "aten.", 1)
        place = _line_of(operator[1], source, inputs) or _own_line(error, text)
        return ModelError(
            f"'{name}' uses the operator {name_of}{place}, for which PyTorch has no translation to ONNX.",
            f"Write that step with other operators. {_ELSE}",
        )
    place = _own_line(error, text)
    if "data-dependent" in text or "DataDependent" in text or "dynamic control flow" in text.lower():
        return ModelError(
            f"'{name}' decides by the values of a tensor{place}, and a graph has no such branch.",
            f"Use torch.where, or torch.cond, or leave the branch out for inference. {_ELSE}",
        )
    return ModelError(
        f"PyTorch cannot export '{name}'{place}: {_first_reason(error)}",
        f"torch.export.export(module, inputs) shows the same; see PyTorch's guide on torch.export. {_ELSE}",
    )


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what caused it, outermost first."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def _first_reason(error: BaseException) -> str:
    """The innermost cause's first line."""
    last = list(chain(error))[-1]
    lines = [line.strip() for line in str(last).splitlines() if line.strip()]
    return f"{type(last).__name__}: {lines[0].rstrip('.')}." if lines else f"{type(last).__name__}."


def _own_line(error: BaseException, text: str) -> str:
    """ " (line 25 of net.py, in forward: `if x.sum() > 0:`)" of the user's code, from messages or traces; "" where none is named."""
    found = [(match[1], match[2], match[3], match[4] or "") for match in _LINE.finditer(text) if is_own(match[1])]
    for one in chain(error):
        frames = [frame for frame in traceback.extract_tb(one.__traceback__) if is_own(frame.filename) and frame.name == "forward"]
        found += [(frame.filename, str(frame.lineno), frame.name, frame.line or "") for frame in frames]
    return _place(found[-1]) if found else ""


def _place(line: tuple[str, str, str, str]) -> str:
    file, number, function, code = line
    return f" (line {number} of {Path(file).name}, in {function}{f': `{code.strip()}`' if code else ''})"


def _line_of(operator: str, source: Any, inputs: tuple[Any, ...]) -> str:
    """Where the user's code calls an operator, from the program that torch.export traces."""
    import torch

    try:
        program = source if isinstance(source, torch.export.ExportedProgram) else torch.export.export(source, inputs)
        base = operator.rsplit(".", 1)[-1].split("::")[-1]
        for node in program.graph.nodes:
            if base in str(node.target):
                lines = [match for match in _LINE.finditer(str(node.meta.get("stack_trace", ""))) if is_own(match[1])]
                if lines:
                    return _place((lines[-1][1], lines[-1][2], lines[-1][3], lines[-1][4] or ""))
    except Exception:  # the line is a courtesy; the operator is named without it
        return ""
    return ""
