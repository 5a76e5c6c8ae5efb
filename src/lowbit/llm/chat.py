"""A conversation as the text that a chat model was trained on, by the template in its own folder."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.errors import ModelError, UsageError
from lowbit.llm.folder import read_json

if TYPE_CHECKING:
    from jinja2 import Template

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class ChatTemplate:
    """How messages become a prompt.

    Attributes:
        source: Jinja, as transformers has it.
        special: Texts of special tokens, which templates name: bos_token, eos_token, ...
    """

    source: str
    special: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path) -> ChatTemplate | None:
        """The template of a model's folder (chat_template.jinja, or in tokenizer_config.json); None where the model has none.

        Raises:
            ModelError: a file is damaged.
        """
        values = read_json(folder, "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        special = {key: text for key in SPECIAL if (text := _content(values.get(key))) is not None}
        if (file := folder / "chat_template.jinja").is_file():
            return cls(file.read_text(encoding="utf-8"), special)
        found = values.get("chat_template")
        if isinstance(found, list):  # several by name
            named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
            found = named.get("default") or next(iter(named.values()), None)
        return cls(str(found), special) if found else None

    def render(self, messages: Sequence[Mapping[str, Any]], *, answer: bool = True, **values: Any) -> str:
        """The text of a conversation.

        Args:
            messages: Each with "role" and "content".
            answer: The start of the assistant's answer is added.
            **values: More that the template reads, e.g. tools.

        Raises:
            ModelError: the template is damaged.
            UsageError: the template refuses these messages, e.g. roles that do not take turns.
        """
        template = self._compiled
        try:
            return template.render(messages=[dict(each) for each in messages], add_generation_prompt=answer, **self.special, **values)
        except Exception as error:  # a template is a program, and can fail like one
            raise UsageError(f"The model's chat template refuses these messages: {error}.") from error

    @cached_property
    def _compiled(self) -> Template:
        from jinja2 import TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # The template comes with the model and may be anybody's: it sees the messages and nothing else.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_refuse, strftime_now=lambda form: datetime.datetime.now().strftime(form))
        try:
            return environment.from_string(self.source)
        except TemplateSyntaxError as error:
            raise ModelError(f"The model's chat template cannot be read: {error}.") from error


def _refuse(message: str) -> None:
    raise ValueError(message)


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, sort_keys: bool = False) -> str:
    """As transformers' templates expect it: jinja's own escapes characters of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _content(token: object) -> str | None:
    found = token.get("content") if isinstance(token, Mapping) else token
    return None if found is None else str(found)
