"""Strict reading of what people write in YAML: what is not known is refused, with the nearest name that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from lowbit.errors import UsageError, unknown


def mapping(what: str, raw: object) -> dict[str, Any]:
    """A copy of a mapping.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(raw, Mapping):
        raise UsageError(f"{what} must be a mapping, not {raw!r}.")
    return dict(raw)


def check_keys(kind: str, values: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """Compares the keys of a mapping with those that are known.

    Raises:
        UsageError: naming the first one that is not.
    """
    known = tuple(allowed)
    for key in values:
        if key not in known:
            raise unknown(kind, key, known)


def word(kind: str, value: object, allowed: Any) -> Any:
    """The value, if it is one of a Literal's.

    Raises:
        UsageError: it is not.
    """
    if value not in get_args(allowed):
        raise unknown(kind, value, get_args(allowed))
    return value
