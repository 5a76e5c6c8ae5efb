"""Protobuf's text format, as far as configurations need it. Pure.

Source: "Text Format Language Specification", protobuf.dev.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Word(str):
    """A value of an enumeration: written without quotes."""

    __slots__ = ()


def to_text(message: Mapping[str, object], depth: int = 0) -> str:
    """A message, a field a line.

    Args:
        message: Field -> text, whole number, `Word`, message, or a sequence of one of these for a repeated field.
        depth: Of the message within others.
    """
    return "".join(_field(name, value, depth) for name, value in message.items())


def _field(name: str, value: object, depth: int) -> str:
    indent = "  " * depth
    if isinstance(value, Mapping):
        return f"{indent}{name} {{\n{to_text(value, depth + 1)}{indent}}}\n" if value else f"{indent}{name} {{ }}\n"
    if isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(each, Mapping) for each in value):
            return "".join(_field(name, each, depth) for each in value)
        return f"{indent}{name}: [{', '.join(map(_scalar, value))}]\n"
    return f"{indent}{name}: {_scalar(value)}\n"


def _scalar(value: object) -> str:
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    assert isinstance(value, str), f"{type(value).__name__} has no form here"
    return quoted(value)


def quoted(text: str) -> str:
    """In quotes; what is not plain ASCII as octal bytes of UTF-8."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'


def parameters(values: Mapping[str, str]) -> list[dict[str, object]]:
    """A map of named strings, as Triton's configuration has it."""
    return [{"key": key, "value": {"string_value": value}} for key, value in values.items()]
