"""C99 text: names, arrays, initialisers. Nothing here knows what they are for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from lowbit.types import Array

_WIDTH = 140
_TYPES = {"int8": "int8_t", "int16": "int16_t", "int32": "int32_t", "float32": "float"}

Value = int | str | tuple[int, ...] | Mapping[str, "Value"]
"""Of a field: a number, C text, an array, or a struct of its own."""


@dataclass(frozen=True)
class Constant:
    """An array that stays in flash.

    Attributes:
        name: In C.
        values: Any shape; int8, int16 or int32.
    """

    name: str
    values: Array

    @property
    def size_bytes(self) -> int:
        """In flash."""
        return int(self.values.size * self.values.itemsize)

    @property
    def text(self) -> str:
        """Its definition, static."""
        head = f"static const {_TYPES[self.values.dtype.name]} {self.name}[{self.values.size}] = {{"
        return "\n".join([head, *_lines(str(int(value)) for value in self.values.reshape(-1)), "};"])


@dataclass(frozen=True)
class Struct:
    """A struct that stays in flash.

    Attributes:
        kind: Its type.
        name: In C.
        fields: In the order of the type.
    """

    kind: str
    name: str
    fields: Mapping[str, Value]

    @property
    def size_bytes(self) -> int:
        """In flash: numbers and pointers are 4 bytes each."""
        return 4 * _leaves(self.fields)

    @property
    def text(self) -> str:
        """Its definition, static, a line a field."""
        lines = [f"    .{name} = {_value(value)}," for name, value in self.fields.items()]
        return "\n".join([f"static const {self.kind} {self.name} = {{", *lines, "};"])


def identifier(name: str) -> str:
    """A name as C allows it: letters, digits, "_", no digit first."""
    word = re.sub(r"\W", "_", name, flags=re.ASCII)
    return word if word and not word[0].isdigit() else f"m_{word}"


def string(text: str) -> str:
    """A string literal; what is not printable ASCII is escaped byte by byte, in octal, which no following digit can lengthen."""
    escaped = "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\?' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{escaped}"'


def comment(text: str) -> str:
    """A comment on one line, whatever the text holds."""
    return f"/* {plain(text)} */"


def plain(text: str) -> str:
    """Text that may stand inside a comment: printable ASCII, and nothing that begins or ends one."""
    return re.sub(r"[^ -~]", "?", text).replace("*/", "* /").replace("/*", "/ *")


def real(value: float) -> str:
    """A float literal that reads back as the same float32."""
    text = np.format_float_scientific(np.float32(value), unique=True)
    return f"{text}f"


def _value(value: Value) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f".{name} = {_value(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, tuple):
        return "{" + ", ".join(map(str, value)) + "}"
    return str(value)


def _leaves(value: Value) -> int:
    if isinstance(value, Mapping):
        return sum(_leaves(inner) for inner in value.values())
    return len(value) if isinstance(value, tuple) else 1


def _lines(words: Iterable[str]) -> Iterable[str]:
    line = "   "
    for word in words:
        if len(line) + len(word) + 2 > _WIDTH:
            yield line
            line = "   "
        line += f" {word},"
    yield line
