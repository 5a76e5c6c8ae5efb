"""Conversations by a model's own template, which may be anybody's: it sees messages and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from decoder_case import CHAT, need, write_tokenizer

from lowbit.errors import ModelError, UsageError
from lowbit.llm.chat import ChatTemplate

MESSAGES = [{"role": "user", "content": "Hello, <b>you</b>"}, {"role": "assistant", "content": "Hi"}]


@pytest.fixture(autouse=True)
def _packages() -> None:
    need("jinja2")


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<s>"})


def test_the_template_of_a_folder(tmp_path: Path) -> None:
    need("tokenizers")
    write_tokenizer(tmp_path, chat=True)
    found = ChatTemplate.open(tmp_path)
    assert found is not None
    assert found.render(MESSAGES, answer=False) == "<s><|user|>Hello, <b>you</b></s><|assistant|>Hi</s>"
    assert found.render(MESSAGES[:1]) == "<s><|user|>Hello, <b>you</b></s><|assistant|>"


def test_where_templates_are_kept(tmp_path: Path) -> None:
    assert ChatTemplate.open(tmp_path) is None
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"bos_token": {"content": "<B>"}}))
    assert ChatTemplate.open(tmp_path) is None
    several: dict[str, Any] = {"chat_template": [{"name": "tools", "template": "T"}, {"name": "default", "template": "D{{ bos_token }}"}]}
    path.write_text(json.dumps({"bos_token": {"content": "<B>"}, **several}))
    found = ChatTemplate.open(tmp_path)
    assert found is not None
    assert found.render([]) == "D<B>"
    (tmp_path / "chat_template.jinja").write_text("file {{ messages | length }}")  # newer, so it wins
    found = ChatTemplate.open(tmp_path)
    assert found is not None
    assert found.render(MESSAGES) == "file 2"


def test_it_is_what_transformers_makes(tmp_path: Path) -> None:
    need("transformers", "tokenizers")
    from transformers import PreTrainedTokenizerFast

    write_tokenizer(tmp_path)
    source = (
        "{%- for message in messages %}\n    {% if loop.first and message.role != 'user' %}{% continue %}{% endif %}\n"
        "  [{{ message.role }}] {{ message | tojson }}\n{%- endfor %}\n{{ eos_token }}{% if add_generation_prompt %}>{% endif %}"
    )
    (tmp_path / "chat_template.jinja").write_text(source)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path).apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    ours = ChatTemplate.open(tmp_path)
    assert ours is not None
    assert ours.render(MESSAGES) == theirs
    assert "<b>" in theirs


def test_what_a_template_refuses_is_said() -> None:
    found = template("{{ raise_exception('Roles must take turns') }}")
    with pytest.raises(UsageError, match="refuses these messages: Roles must take turns"):
        found.render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(999999999) %}{{ i }}{% endfor %}",
        "{{ messages[0].nothing.more }}",
        "{{ 1 / 0 }}",
    ],
)
def test_templates_that_reach_out_are_stopped(source: str) -> None:
    with pytest.raises(UsageError, match="chat template refuses"):
        template(source).render(MESSAGES)


def test_a_damaged_template_is_said() -> None:
    with pytest.raises(ModelError, match="chat template cannot be read"):
        template("{% for %}").render(MESSAGES)


def test_the_day_is_known() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", template("{{ strftime_now('%Y-%m-%d') }}").render([]))
    assert CHAT
