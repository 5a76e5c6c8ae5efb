"""Reading preprocessing from YAML: strict about keys and types, kind in what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lowbit.data.boxes import KINDS, Boxes
from lowbit.data.geometry import Letterbox
from lowbit.data.text import Text, read_tokenizer
from lowbit.errors import LowbitError, UsageError, unknown

if TYPE_CHECKING:
    from lowbit.data.preprocess import Preprocess

_MAX_SIDE = 65_536


def parse(cls: type[Preprocess], text: str, folder: Path | None = None) -> Preprocess:
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
    read = {key: _READERS[key](key, value) for key, value in values.items() if key not in _SECTIONS and key != "text"}
    read |= {key: _SECTIONS[key](getattr(base, key), values[key]) for key in _SECTIONS if key in values}
    read |= {"text": _text_section(values["text"], folder)} if "text" in values else {}
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


def _whole(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _bad(key, value, "a whole number")
    return value


def _optional_whole(key: str, value: object) -> int | None:
    return None if value is None else _whole(key, value)


def _wholes(key: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _bad(key, value, "a list of whole numbers")
    return tuple(_whole(key, item) for item in value)


def _output_names(key: str, value: object) -> tuple[str, ...]:
    return _names(key, [value] if isinstance(value, str) else value)


def _letterbox(before: Letterbox | None, value: object) -> Letterbox | None:
    """A size, `auto`, none, or a mapping; what a mapping leaves out is the preset's."""
    if value in (None, "none"):
        return None
    given = value if isinstance(value, dict) else {"size": value}
    readers: dict[str, Callable[[str, Any], Any]] = {"size": _box_size, "value": _number, "align": _text}
    return replace(before or Letterbox(), **_section("letterbox", given, readers))


def _box_size(key: str, value: object) -> Any:
    found = _size("letterbox", value)
    if found is None:
        raise _bad(key, value, "[height, width] or auto")
    return found


def _boxes(before: Boxes | None, value: object) -> Boxes | None:
    """A mapping, or none; what it leaves out is the preset's, unless it names another kind."""
    if value in (None, "none"):
        return None
    if not isinstance(value, dict):
        raise _bad("boxes", value, "a mapping with `kind`")
    read = _section("boxes", value, _BOXES)
    if before is not None and read.get("kind", before.kind) == before.kind:
        return replace(before, **read)
    if "kind" not in read:
        raise UsageError("The `boxes` section of the preprocessing has no `kind`.", f"Give one of {', '.join(KINDS)}.")
    return Boxes(**read)


def _text_section(value: object, folder: Path | None) -> Text | None:
    if value in (None, "none"):
        return None
    if not isinstance(value, dict) or "tokenizer" not in value:
        raise _bad("text", value, "a mapping with `tokenizer`")
    read = _section("text", value, _TEXT)
    digest = read.pop("sha256", None)
    return Text(**{**read, "tokenizer": read_tokenizer(folder, read["tokenizer"], digest)})


def _length(key: str, value: object) -> Any:
    return value if value == "auto" else _whole(key, value)


def _section(name: str, given: dict[Any, Any], readers: dict[str, Callable[[str, Any], Any]]) -> dict[str, Any]:
    for key in given:
        if key not in readers:
            raise unknown(f"key of `{name}`", key, readers)
    return {key: readers[key](key, value) for key, value in given.items()}


_BOXES: dict[str, Callable[[str, Any], Any]] = {
    "kind": _text,
    "scores": _output_names,
    "boxes": _output_names,
    "strides": _wholes,
    "bins": _whole,
    "centre": _number,
    "shift": _number,
    "sigmoid": _flag,
    "background": _optional_whole,
    "normalised": _flag,
    "score_threshold": _number,
    "nms_iou": _number,
    "max_detections": _whole,
    "confident": _number,
}
_TEXT: dict[str, Callable[[str, Any], Any]] = {
    "tokenizer": _text,
    "sha256": _text,
    "columns": _names,
    "form": _text,
    "max_length": _whole,
    "length": _length,
    "pad_id": _whole,
    "pad_token": _text,
    "pad_left": _flag,
    "labels": _names,
}
_SECTIONS: dict[str, Callable[[Any, Any], Any]] = {"letterbox": _letterbox, "boxes": _boxes}

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
