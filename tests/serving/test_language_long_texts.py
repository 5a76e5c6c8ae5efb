"""Texts that cannot fit, whatever their tokens are, keep no thread busy: they are refused by their bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asgi_case import Answered, call, served
from decoder_case import need
from language_case import install, language_bundle

from lowbit.serving.language.asking import FEWEST_BYTES, SPARE, BadField, chat, check_length, completion, most_bytes
from lowbit.serving.language.openai_api import OpenAi
from lowbit.serving.language.words import Words
from lowbit.serving.web.rest import Rest

ROOM, LONGEST = 4096, 16
MOST = SPARE * ROOM * LONGEST


def test_the_limit_is_in_bytes_and_generous() -> None:
    assert most_bytes(ROOM, LONGEST) == MOST == 262_144
    assert most_bytes(128, 3) == FEWEST_BYTES, "a small model reads that much all the same"
    check_length(completion({"prompt": "x" * MOST}), ROOM, LONGEST)
    with pytest.raises(BadField, match=r"context length is 4,096 tokens, and the text has 262,145 bytes: at most 262,144") as told:
        check_length(completion({"prompt": ["short", "x" * (MOST + 1)]}), ROOM, LONGEST)
    assert (told.value.param, told.value.reason, told.value.status) == ("prompt", "context_length_exceeded", 400)
    check_length(completion({"prompt": "漢" * (MOST // 3)}), ROOM, LONGEST)
    with pytest.raises(BadField, match="bytes"):
        check_length(completion({"prompt": "漢" * (MOST // 3 + 1)}), ROOM, LONGEST)
    check_length(completion({"prompt": "\ud800"}), ROOM, LONGEST)  # which is refused for what it is, later


def test_prompts_count_one_by_one_and_messages_together() -> None:
    half = "x" * (MOST // 2 + 1)
    check_length(completion({"prompt": [half, half]}), ROOM, LONGEST)
    check_length(completion({"prompt": [5] * 10}), ROOM, LONGEST)
    with pytest.raises(BadField) as told:
        check_length(chat({"messages": [{"role": "user", "content": half}] * 2}), ROOM, LONGEST)
    assert told.value.param == "messages"
    with pytest.raises(BadField, match="16,385 messages"):
        check_length(chat({"messages": [{"role": "user", "content": ""}] * (SPARE * ROOM + 1)}), ROOM, LONGEST)


def posted(folder: Path, path: str, **fields: Any) -> Answered:
    async def run() -> Answered:
        with served(folder) as service:
            app = OpenAi(service, Rest(service))
            return await asyncio.wait_for(call(app, "POST", path, json.dumps(fields).encode()), 30)

    return asyncio.run(run())


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Characters that were given to the tokenizer, text by text."""
    need("tokenizers", "jinja2")
    install()
    found: list[int] = []
    encoded: Callable[..., list[int]] = Words._encoded

    def seen(words: Words, text: str, special: bool) -> list[int]:
        found.append(len(text))
        return encoded(words, text, special)

    monkeypatch.setattr(Words, "_encoded", seen)
    return found


@pytest.mark.parametrize("kind", ["completions", "chat/completions"])
def test_a_server_refuses_it_before_it_reads_it(kind: str, tmp_path: Path, counted: list[int]) -> None:
    bundle = language_bundle(tmp_path / "tiny")

    def asked(text: str) -> dict[str, Any]:
        return {"prompt": text} if kind == "completions" else {"messages": [{"role": "user", "content": text}]}

    found = posted(bundle, f"/v1/{kind}", **asked("word " * FEWEST_BYTES))
    assert (found.status, found.json["error"]["code"]) == (400, "context_length_exceeded")
    assert "bytes" in found.json["error"]["message"]
    assert counted == []
    long = posted(bundle, f"/v1/{kind}", **asked("word " * 1000))
    assert (long.status, long.json["error"]["code"]) == (400, "context_length_exceeded")
    assert "no room is left" in long.json["error"]["message"], "what might fit is counted exactly"
    assert len(counted) == 1
    assert posted(bundle, f"/v1/{kind}", **asked("word"), max_tokens=2).status == 200


def test_what_a_template_makes_of_it_counts_too(tmp_path: Path, counted: list[int]) -> None:
    bundle = language_bundle(tmp_path / "tiny")
    file = bundle / "tokenizer" / "tokenizer_config.json"
    template = "{% for message in messages %}{{ message['content'] * 2000 }}{% endfor %}"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    words = Words.open(bundle / "tokenizer")
    with pytest.raises(Exception, match=r"200,000 characters long; 70,000 are allowed"):
        words.chat([{"role": "user", "content": "x" * 100}], "tiny", 70_000)
    assert counted == []


def test_the_longest_token_is_known(tmp_path: Path, counted: list[int]) -> None:  # noqa: ARG001
    words = Words.open(language_bundle(tmp_path / "tiny") / "tokenizer")
    shown = max(len(words.decode([token]).encode()) for token in range(2, words.vocabulary))
    assert shown <= words.longest <= 2 * shown
