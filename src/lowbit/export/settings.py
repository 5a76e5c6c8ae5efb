"""Settings of a target from `name=value` on the command line, checked against what the target has."""

from __future__ import annotations

from collections.abc import Iterable

from lowbit.errors import UsageError, unknown
from lowbit.export.base import Setting, Target, Wish

_TRUE, _FALSE = ("true", "yes", "1", "on"), ("false", "no", "0", "off")


def settings_of(target: Target, given: Iterable[str]) -> dict[str, Setting]:
    """A value for each of a target's wishes: its default, or what was given.

    Args:
        target: Whose wishes.
        given: "name=value", each.

    Raises:
        UsageError: not of that form, a name that the target does not have, given twice, or a value that is not allowed.
    """
    wishes = {wish.name: wish for wish in target.wishes}
    found: dict[str, Setting] = {wish.name: wish.default for wish in target.wishes}
    seen: set[str] = set()
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            what = "has no value" if name in wishes else "is no setting"
            raise UsageError(f"'{text}' {what}.", "Write --set name=value.")
        if name not in wishes:
            if not wishes:
                raise UsageError(f"{target.title} has no settings; '{name}' was given.", "Leave --set out.")
            raise unknown(f"setting of {target.title}", name, wishes)
        if name in seen:
            raise UsageError(f"The setting {name} was given twice.", "Give it once.")
        seen.add(name)
        found[name] = _value(wishes[name], value)
    return found


def _value(wish: Wish, text: str) -> Setting:
    value = _parsed(wish, text)
    if wish.allowed and value not in wish.allowed:
        raise UsageError(f"{wish.name}={text} is not allowed.", f"Allowed: {', '.join(str(each) for each in wish.allowed)}.")
    return value


def _parsed(wish: Wish, text: str) -> Setting:
    kind = type(wish.default)
    if kind is bool:
        if text.lower() not in (*_TRUE, *_FALSE):
            raise UsageError(f"{wish.name}={text} is neither true nor false.", f"Write --set {wish.name}=true or {wish.name}=false.")
        return text.lower() in _TRUE
    try:
        return kind(text)
    except ValueError as error:
        raise UsageError(f"{wish.name}={text} is not a number.", f"Its default is {wish.default}.") from error
