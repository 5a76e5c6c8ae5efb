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


def read_recipe(text: str, keys: Iterable[str], needed: Iterable[str], schema: int = 1) -> dict[str, Any]:
    """The mapping that a recipe's YAML holds, without its schema.

    Args:
        text: YAML.
        keys: That are known.
        needed: Of them, those that must be there.
        schema: That is read; a text without one is of it.

    Raises:
        UsageError: not YAML, no mapping, of another schema, a key that is not known or one that is missing.
    """
    import yaml

    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"The recipe is not YAML: {error}") from error
    if not isinstance(raw, Mapping):
        raise UsageError(f"A recipe is a mapping with {listed(needed)}.")
    values = dict(raw)
    if (found := values.pop("schema", schema)) != schema:
        raise UsageError(f"Recipe schema {found} is not known; this version reads schema {schema}.")
    check_keys("recipe key", values, keys)
    if missing := [key for key in needed if key not in values]:
        raise UsageError(f"The recipe lacks {', '.join(missing)}.")
    return values


def listed(names: Iterable[str]) -> str:
    """ "name, method and weights"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


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
