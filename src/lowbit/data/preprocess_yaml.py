"""Reading preprocessing from YAML: strict about keys and types, kind in what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import yaml

from lowbit.errors import LowbitError, UsageError, unknown

if TYPE_CHECKING:
    from lowbit.data.preprocess import Preprocess

_MAX_SIDE = 65_536


def parse(cls: type[Preprocess], text: str) -> Preprocess:
    """See `Preprocess.from_yaml`."""
    try:
        raw = yaml.safe_load(text)
    except LowbitError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError, KeyError, AttributeError) as error:
        # PyYAML's constructors let ValueError and others through, e.g. for the date 2020-13-45.
        raise UsageError(f"The preprocessing is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UsageError("Preprocessing is a mapping, e.g. `preset: imagenet` or `scale: 1/255`.")
    values: dict[Any, Any] = dict(raw)
    schema = values.pop("schema", 1)
    if schema != 1 or isinstance(schema, bool):
        raise UsageError(f"Preprocessing schema {schema} is not known; this version reads schema 1.")
    base = cls()
    if "preset" in values:
        base = cls.preset(str(values.pop("preset")))
    allowed = [field.name for field in fields(cls)]
    for key in values:
        if key not in allowed:
            raise unknown("preprocessing key", key, [*allowed, "preset", "schema"])
    read = {key: _READERS[key](key, value) for key, value in values.items()}
    return replace(base, **read)


def _bad(key: str, value: object, want: str) -> UsageError:
    return UsageError(f"`{key}: {value}` in the preprocessing is not understood; {want} is.")


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise _bad(key, value, "a word")
    return value


def _optional_text(key: str, value: object) -> str | None:
    return None if value is None else _text(key, value)


def _flag(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _bad(key, value, "true or false")
    return value


def _number(key: str, value: object) -> float:
    """A finite number; "1/255" too."""
    if isinstance(value, str) and value.count("/") == 1:
        above, below = (part.strip() for part in value.split("/"))
        if above.isdecimal() and below.isdecimal() and len(above + below) < 30 and int(below) > 0:
            return int(above) / int(below)
    # PyYAML reads 1e-3 (no dot) as text, as YAML 1.1 has it.
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _bad(key, value, "a number or a fraction like 1/255")
    return number


def _scale(key: str, value: object) -> Any:
    if value == "auto":
        return value
    number = _number(key, value)
    if number <= 0:
        raise _bad(key, value, "a factor above 0")
    return number


def _optional_number(key: str, value: object) -> float | None:
    return None if value is None else _number(key, value)


def _numbers(key: str, value: object) -> tuple[float, ...]:
    if value is None:
        return ()
    return tuple(_number(key, item) for item in value) if isinstance(value, list) else (_number(key, value),)


def _names(key: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value) or len(set(value)) != len(value):
        raise _bad(key, value, "a list of different names")
    return tuple(value)


def _side(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_SIDE:
        raise _bad(key, value, f"a size in pixels up to {_MAX_SIDE}")
    return value


def _size(key: str, value: object) -> Any:
    """(h, w), None, "auto"; a single number is the short side for `resize`, a square for `crop`."""
    if value in (None, "none", "auto"):
        return None if value == "none" else value
    if isinstance(value, list):
        if len(value) != 2:
            raise _bad(key, value, "[height, width]")
        return (_side(key, value[0]), _side(key, value[1]))
    side = _side(key, value)
    return side if key == "resize" else (side, side)


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "kind": _text,
    "resize": _size,
    "crop": _size,
    "keep_exact": _flag,
    "interpolation": _text,
    "channels": _text,
    "scale": _scale,
    "mean": _numbers,
    "std": _numbers,
    "layout": _text,
    "dtype": _text,
    "columns": _names,
    "target": _optional_text,
    "target_mean": _optional_number,
    "target_std": _optional_number,
    "note": _text,
}
