"""model.h and model.c of a prepared program. Pure: text from data."""

from __future__ import annotations

from dataclasses import dataclass

import lowbit
from lowbit.export.cortexm.c_text import comment, identifier, plain, real, string
from lowbit.export.cortexm.prepared import Prepared
from lowbit.export.program.program import Operation, Port, Program, Tensor

_C = {"int8": "int8_t", "float32": "float"}
_WIDTHS = {"int8": 1, "float32": 4}


@dataclass(frozen=True)
class End:
    """An input or an output in C.

    Attributes:
        name: "input", or "input_0" and so on where there are several; the same for outputs.
        port: As the source model has it.
        tensor: In the program.
        offset: Where it begins in the arena, in bytes.
        given: Whether it is an input.
    """

    name: str
    port: Port
    tensor: Tensor
    offset: int
    given: bool

    @property
    def c_type(self) -> str:
        """Of its elements."""
        return _C[self.tensor.dtype]

    @property
    def elements(self) -> int:
        """How many."""
        return self.tensor.size_bytes // _WIDTHS[self.tensor.dtype]

    @property
    def parameter(self) -> str:
        """Of the functions that run the model."""
        return f"{'const ' if self.given else ''}{self.c_type} *{self.name}"


def ends(prepared: Prepared) -> tuple[End, ...]:
    """All inputs, then all outputs."""
    program, made = prepared.program, []
    for word, ports in (("input", program.inputs), ("output", program.outputs)):
        for number, port in enumerate(ports):
            name = word if len(ports) == 1 else f"{word}_{number}"
            made.append(End(name, port, program.tensors[port.tensor], prepared.arena.offsets[port.tensor], word == "input"))
    return tuple(made)


def parameters(prepared: Prepared) -> str:
    """Of the functions that run the model."""
    return ", ".join(end.parameter for end in ends(prepared))


# ---- model.h -----------------------------------------------------------------------------------------------------------------------

_HEADER = """\
/* {name}: a network on 8-bit integers, written by lowbit {version} from {origin}. */
#ifndef {upper}_MODEL_H
#define {upper}_MODEL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

/* What the tensors need, in bytes; 16-byte aligned. */
#define {upper}_ARENA_BYTES {arena}

{ends}

{labels}/* Answers one sample in memory of the model's own. Not reentrant: several tasks take {name}_run_in.
 *
{described}
 *
 * Returns 0, or the number of the step that failed (only CMSIS-NN's kernels can).
 */
int {name}_run({parameters});

/* Where inputs and outputs lie in that memory: pass these pointers to {name}_run and nothing is copied. */
{pointers}

/* The same in memory of the caller: {upper}_ARENA_BYTES bytes, 16-byte aligned; what they held is lost. */
int {name}_run_in(void *memory, {parameters});

#ifdef __cplusplus
}}
#endif

#endif
"""


def header(prepared: Prepared, origin: str) -> str:
    """model.h: one documented function, its memory, and what its inputs and outputs mean."""
    name = identifier(prepared.program.name)
    upper = name.upper()
    return _HEADER.format(
        name=name,
        upper=upper,
        version=lowbit.__version__,
        origin=plain(origin),
        arena=_arena(prepared),
        ends="\n\n".join(_macros(end, upper) for end in ends(prepared)),
        labels=_labels_declared(prepared.program, name, upper),
        described="\n".join(f" *   {end.name}: {end.elements} elements{_fate(end)}" for end in ends(prepared)),
        parameters=parameters(prepared),
        pointers="\n".join(f"{end.c_type} *{name}_{end.name}(void);" for end in ends(prepared)),
    )


def _arena(prepared: Prepared) -> int:
    return max(prepared.arena.size, 16)


def _fate(end: End) -> str:
    return "; overwritten where it lies in the arena" if end.given else ""


def _macros(end: End, upper: str) -> str:
    """Size, place, scale and zero point of an input or output."""
    shape = " x ".join(map(str, end.tensor.shape))
    port, grid = end.port, end.tensor.grid
    order = "" if port.permutation is None else f" (the model's own {list(port.shape)} with axes in the order {list(port.permutation)})"
    text = f"'{port.name}': {end.c_type}, {shape}, row by row{order}."
    values = {"SIZE": str(end.elements), "OFFSET": str(end.offset)}
    if grid is not None and end.tensor.dtype == "int8":
        text += " A level q stands for (q - ZERO_POINT) * SCALE."
        values |= {"SCALE": real(float(grid.scale)), "ZERO_POINT": f"({int(grid.zero_point)})"}
    return "\n".join([comment(text), *(f"#define {upper}_{end.name.upper()}_{key} {value}" for key, value in values.items())])


def _labels_declared(program: Program, name: str, upper: str) -> str:
    if not program.labels:
        return ""
    return f"#define {upper}_LABELS {len(program.labels)}\nextern const char *const {name}_labels[{upper}_LABELS];\n\n"


# ---- model.c -----------------------------------------------------------------------------------------------------------------------

_SOURCE = """\
/* {name}, written by lowbit {version} from {origin}. See model.h. */
#include "model.h"

#include <stddef.h>

#include "lowbit_kernels.h"

void *memcpy(void *to, const void *from, size_t bytes);

{definitions}

int {name}_run_in(void *memory, {parameters}) {{
{steps}
}}

static int8_t {name}_memory[{arena}] LOWBIT_ALIGNED(16);

int {name}_run({parameters}) {{ return {name}_run_in({name}_memory, {names}); }}

{pointers}
"""


def source(prepared: Prepared, origin: str) -> str:
    """model.c: constants, plans, and a call an operation."""
    name = identifier(prepared.program.name)
    definitions = [constant.text for constant in prepared.constants.values()]
    for step in prepared.steps:
        definitions += [constant.text for constant in step.constants]
        definitions += [struct.text for struct in step.structs]
    if prepared.program.labels:
        words = "\n".join(f"    {string(label)}," for label in prepared.program.labels)
        definitions.append(f"const char *const {name}_labels[{len(prepared.program.labels)}] = {{\n{words}\n}};")
    return _SOURCE.format(
        name=name,
        version=lowbit.__version__,
        origin=plain(origin),
        definitions="\n\n".join(definitions),
        parameters=parameters(prepared),
        steps="\n".join(f"  {line}" for line in _steps(prepared)),
        arena=_arena(prepared),
        names=", ".join(end.name for end in ends(prepared)),
        pointers="\n\n".join(_pointer(end, name) for end in ends(prepared)),
    )


def _steps(prepared: Prepared) -> list[str]:
    program = prepared.program
    lines = ["int8_t *arena = memory;"]
    lines += [_copied(end) for end in ends(prepared) if end.given]
    for number, (operation, step) in enumerate(zip(program.operations, prepared.steps, strict=True), 1):
        lines.append(comment(_title(program, number, operation)))
        lines += [f"if ({line} != 0) return {number};" for line in step.lines]
    lines += [_copied(end) for end in ends(prepared) if not end.given]
    return [*lines, "return 0;"]


def _copied(end: End) -> str:
    """Into the arena or out of it, where it is not the same place."""
    place = f"(void *)(arena + {end.offset})"
    to, source_ = (place, end.name) if end.given else (end.name, place)
    return f"if ((const void *){end.name} != {place}) memcpy({to}, {source_}, {end.tensor.size_bytes});"


def _title(program: Program, number: int, operation: Operation) -> str:
    origin = f" ({', '.join(operation.origin)})" if operation.origin else ""
    return f"{number}: {operation.kind}{origin} to {list(program.tensors[operation.outputs[0]].shape)}"


def _pointer(end: End, name: str) -> str:
    cast = "(float *)(void *)" if end.c_type == "float" else ""
    return f"{end.c_type} *{name}_{end.name}(void) {{ return {cast}({name}_memory + {end.offset}); }}"
