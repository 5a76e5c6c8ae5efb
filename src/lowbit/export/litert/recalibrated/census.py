"""What a file's operators compute in: integers, real numbers, or both."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from lowbit.export.base import Finding

_INTEGERS = ("INT8", "INT16", "INT4", "UINT8", "INT2")
_BETWEEN = frozenset(
    {
        "CONCATENATION",
        "DEQUANTIZE",
        "EMBEDDING_LOOKUP",
        "EXPAND_DIMS",
        "GATHER",
        "PACK",
        "PAD",
        "QUANTIZE",
        "RESHAPE",
        "SLICE",
        "SPLIT",
        "SQUEEZE",
    }
    | {"STRIDED_SLICE", "TRANSPOSE", "UNPACK"}
)
"""What looks up and moves values computes nothing."""
_SHOWN = 5


@dataclass(frozen=True)
class Census:
    """Operators of a file.

    Attributes:
        operations: How many in all.
        real: Kind -> how many compute real numbers from real numbers.
        hybrid: Kind -> how many multiply real numbers with integer weights; they round while they run.
        strange: Names of operators that LiteRT does not have itself.
    """

    operations: int
    real: dict[str, int]
    hybrid: dict[str, int]
    strange: tuple[str, ...]

    def words(self) -> str:
        """For people; empty where everything is in integers."""
        parts = []
        if self.hybrid:
            parts.append(f"{_listed(self.hybrid)} have integer weights and round what comes in while they run")
        if self.real:
            parts.append(f"{_listed(self.real)} compute real numbers")
        return f"Of {self.operations} operators {'; '.join(parts)}." if parts else ""


def of(content: bytes, schema: Any) -> Census:
    """Reads a file's operators.

    Args:
        content: Of a .tflite file.
        schema: The classes of the flatbuffer.
    """
    model = schema.Model.GetRootAs(content, 0)
    kinds, types = (
        {number: name for name, number in vars(of).items() if isinstance(number, int)} for of in (schema.BuiltinOperator, schema.TensorType)
    )
    real, hybrid, strange, count = Counter[str](), Counter[str](), set[str](), 0
    for graph in (model.Subgraphs(k) for k in range(model.SubgraphsLength())):
        for operator in (graph.Operators(k) for k in range(graph.OperatorsLength())):
            code = model.OperatorCodes(operator.OpcodeIndex())
            kind = kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            count += 1
            if kind == "CUSTOM":
                strange.add(code.CustomCode().decode())
            given = [types[graph.Tensors(number).Type()] for number in operator.InputsAsNumpy().tolist() if number >= 0]
            made = types[graph.Tensors(operator.Outputs(0)).Type()]
            if kind in _BETWEEN or made != "FLOAT32":
                continue
            (hybrid if any(each in _INTEGERS for each in given) else real)[kind] += 1
    return Census(count, dict(real.most_common()), dict(hybrid.most_common()), tuple(sorted(strange)))


def _listed(kinds: dict[str, int]) -> str:
    shown = ", ".join(f"{number} {kind}" for kind, number in list(kinds.items())[:_SHOWN])
    return shown + (f" and {sum(list(kinds.values())[_SHOWN:])} others" if len(kinds) > _SHOWN else "")


def findings(content: bytes, schema: Any) -> list[Finding]:
    """What people should know before they carry a file elsewhere."""
    found = of(content, schema)
    texts = [Finding("integers", "note", found.words())] if found.words() else []
    if found.strange:
        strange = f"Not LiteRT's own: {', '.join(found.strange)}. Whoever runs the file has to bring them."
        texts.append(Finding("operators", "warning", strange))
    return texts
