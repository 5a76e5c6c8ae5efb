"""What the Edge TPU's documentation says of a program: which operators it takes, under which limits, and what falls back to the CPU.

Conditions and operators: https://coral.ai/docs/edgetpu/models-intro/ (model requirements; supported operations). The compiler is closed
and ships with no package, so nothing here was compiled: a program without warnings "meets documented conditions", no more.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.export.base import Finding
from lowbit.export.edgetpu.limits import SUPPORTED, Place
from lowbit.export.litert.versions import version
from lowbit.export.program.program import Kind, Operation, Program, Tensor

LABEL = "meets documented conditions; not compiled"
CACHE_BYTES = 8 << 20
"""On-chip memory for parameters; what is beyond it is streamed from the host at every inference."""
_RUNTIMES = {Kind.QUANTIZE: 13, Kind.TRANSPOSE_CONV: 13, Kind.TRANSPOSE: 14}
"""The Edge TPU runtime from which on an operator is mapped."""
_VERSIONS = {Kind.CONV_2D: 5, Kind.FULLY_CONNECTED: 4, Kind.RESIZE_BILINEAR: 2, Kind.RESIZE_NEAREST_NEIGHBOR: 2, Kind.TRANSPOSE_CONV: 3}
"""Highest versions that users' compiler logs do not show rejected ("Operation version not supported", "Didn't find op for builtin
opcode"; github.com/google-coral/edgetpu, issues 45, 396, 420 and 631). That of FULLY_CONNECTED is our caution, not documented."""


@dataclass(frozen=True)
class Split:
    """Where a program would be cut.

    Attributes:
        before: Operations that turn real numbers into integers first; they run on the CPU and cut nothing.
        mapped: Operations on the Edge TPU.
        fallen: Operations on the CPU: the first that is not mapped, and everything after it.
        reason: Why that first one is not; None where all are.
    """

    before: tuple[Operation, ...]
    mapped: tuple[Operation, ...]
    fallen: tuple[Operation, ...]
    reason: str | None


def findings(program: Program) -> list[Finding]:
    """What the documented conditions say of a program; a last line says so where all are met."""
    found = [*_tensors(program), *_versions(program), *_operators(program), *_memory(program)]
    if not any(finding.severity in ("error", "warning") for finding in found):
        found.append(Finding("verdict", "note", f"All {len(split(program).mapped)} operators on the Edge TPU: {LABEL}."))
    return found


def split(program: Program) -> Split:
    """The compiler cuts a model once: at the first operation that it cannot map, in the order in which they run."""
    before = tuple(operation for operation in program.operations if _from_real(operation, program))
    rest = tuple(operation for operation in program.operations if operation not in before)
    for number, operation in enumerate(rest):
        if reason := unmapped(operation, program):
            return Split(before, rest[:number], rest[number:], reason)
    return Split(before, rest, (), None)


def unmapped(operation: Operation, program: Program) -> str | None:
    """Why an operation is not mapped to the Edge TPU; None where the documentation says that it is."""
    if operation.kind not in SUPPORTED:
        return f"{operation.kind} is not among the supported operations"
    operands = [program.tensors[name] for name in (*operation.inputs, *operation.outputs) if name]
    if odd := next((tensor for tensor in operands if not _is_integer(tensor)), None):
        return f"'{odd.name}' is {odd.dtype}; the Edge TPU computes on 8-bit integers"
    if deep := next((tensor for tensor in operands if _is_deep(tensor)), None):
        return f"'{deep.name}' has shape {list(deep.shape)}; only the 3 innermost axes may be longer than 1"
    number, highest = version(operation, program), _VERSIONS.get(operation.kind)
    if highest is not None and number > highest:
        return f"{operation.kind} needs version {number} of its operator; compilers are known to reject those above {highest}"
    limit = SUPPORTED[operation.kind]
    return None if limit is None else limit(Place.of(operation, program))


def _from_real(operation: Operation, program: Program) -> bool:
    return operation.kind is Kind.QUANTIZE and program.tensors[operation.inputs[0]].dtype == "float32"


def _is_integer(tensor: Tensor) -> bool:
    """8 bits; constants may be wider (biases, shapes, axes)."""
    return tensor.dtype == "int8" or (tensor.dtype == "int32" and tensor.data is not None)


def _is_deep(tensor: Tensor) -> bool:
    """Filters may be: their four axes are no sizes of an image."""
    return tensor.data is None and any(extent > 1 for extent in tensor.shape[:-3])


def _tensors(program: Program) -> list[Finding]:
    """Shapes are constant by construction; an extent of 0 or below would be no shape."""
    dynamic = [tensor.name for tensor in program.tensors.values() if any(extent < 1 for extent in tensor.shape)]
    if not dynamic:
        return []
    text = f"Sizes must be constants when the model is compiled; these are not: {', '.join(dynamic)}."
    return [Finding("constant shapes", "error", text)]


def _versions(program: Program) -> list[Finding]:
    """Runtimes that operators need, and grids a channel where one a tensor is safer."""
    found = []
    newest = {kind: _RUNTIMES[kind] for kind in sorted({op.kind for op in split(program).mapped} & _RUNTIMES.keys())}
    if newest:
        words = ", ".join(f"{kind} from runtime {number}" for kind, number in newest.items())
        found.append(Finding("runtime version", "note", f"Mapped only for newer Edge TPU runtimes: {words}."))
    for operation in program.operations:
        if operation.kind is Kind.FULLY_CONNECTED and _per_channel(program.tensors[operation.inputs[1]]):
            text = f"The weights of FULLY_CONNECTED '{operation.outputs[0]}' have a scale a channel; write one for all of them."
            found.append(Finding("dense weights", "warning", text))
    return found


def _per_channel(tensor: Tensor) -> bool:
    return tensor.grid is not None and tensor.grid.scale.size > 1


def _operators(program: Program) -> list[Finding]:
    cut = split(program)
    found = []
    if cut.before:
        text = "The input is rounded to integers on the CPU first; with float_input=false the host gives them."
        found.append(Finding("float input", "note", text))
    if cut.reason is None:
        return found
    first = cut.fallen[0]
    if all(operation.kind is Kind.DEQUANTIZE for operation in cut.fallen):
        text = "The output is turned into real numbers on the CPU last; with float_output=false it stays integers."
        return [*found, Finding("float output", "note", text)]
    nodes = f" (from {', '.join(first.origin)})" if first.origin else ""
    text = (
        f"{cut.reason}{nodes}. The compiler cuts once: that operation and all after it, {len(cut.fallen)} of {len(program.operations)}, "
        f"would run on the CPU: {_listed(cut.fallen)}. Replace it in the model, or leave that end of the model to the host on purpose."
    )
    found.append(Finding("one partition", "warning" if cut.mapped else "error", text[0].upper() + text[1:]))
    later = {reason: None for operation in cut.fallen[1:] if (reason := unmapped(operation, program))}
    found += [Finding("one partition", "warning", f"Beyond that: {reason}.") for reason in later]
    return found


def _listed(operations: tuple[Operation, ...]) -> str:
    names = [f"{operation.kind} '{operation.outputs[0]}'" for operation in operations]
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])}, … , {names[-1]}"


def _memory(program: Program) -> list[Finding]:
    size = sum(tensor.size_bytes for tensor in program.constants)
    if size <= CACHE_BYTES:
        return []
    text = f"The parameters take {size:,} bytes, more than the {CACHE_BYTES:,} on the chip: the rest is streamed at every inference."
    return [Finding("parameter cache", "warning", text)]
