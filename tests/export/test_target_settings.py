"""Settings of a target: defaults, values, and every way to get one wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from lowbit.errors import UsageError
from lowbit.export.base import Target, Wish
from lowbit.export.settings import settings_of

WISHES = (
    Wish("board", "m7", "Where it runs.", ("m4", "m7")),
    Wish("sram_kb", 0, "Its memory."),
    Wish("damping", 0.5, "How much."),
    Wish("float_input", True, "Whether it is fed floating point."),
)


def a_target(wishes: tuple[Wish, ...] = WISHES) -> Target:
    return cast(Target, SimpleNamespace(name="toy", title="Toy", wishes=wishes))


def test_what_is_not_said_has_its_default() -> None:
    assert settings_of(a_target(), ()) == {"board": "m7", "sram_kb": 0, "damping": 0.5, "float_input": True}


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("board=m4", "board", "m4"),
        ("sram_kb=320", "sram_kb", 320),
        ("damping=0.25", "damping", 0.25),
        ("float_input=false", "float_input", False),
        ("float_input=YES", "float_input", True),
    ],
)
def test_a_value_has_the_type_of_its_default(text: str, name: str, value: Any) -> None:
    found = settings_of(a_target(), [text])[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["board"], "'board' has no value"),
        (["bord=m4"], "Unknown setting of Toy 'bord'"),
        (["board=m9"], "Allowed: m4, m7"),
        (["sram_kb=much"], "not a number"),
        (["float_input=maybe"], "neither true nor false"),
        (["sram_kb=1", "sram_kb=2"], "given twice"),
    ],
)
def test_a_wrong_setting_says_what_is_allowed(given: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings_of(a_target(), given)
    assert message in str(caught.value)
    assert caught.value.hint


def test_a_target_without_settings_says_so() -> None:
    with pytest.raises(UsageError, match="Toy has no settings"):
        settings_of(a_target(()), ["board=m4"])
