"""Requests read strictly: whatever comes is understood or refused, and never anything else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgi_case import call, served
from decoder_case import need
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from language_case import install, language_bundle

from lowbit.errors import UsageError
from lowbit.serving.language.asking import CHAT, COMPLETION, REFUSED, Ask, BadField, chat, completion
from lowbit.serving.language.openai_api import OpenAi
from lowbit.serving.language.refusing import PHRASES, read_phrases, refuses
from lowbit.serving.protocol.refusals import Malformed
from lowbit.serving.service import Service
from lowbit.serving.web.rest import Rest

PLAIN = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
ANY = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=8)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "x", ""]) | ANY, "content": st.text(max_size=10) | ANY})
FIELDS = st.dictionaries(st.sampled_from(sorted({*COMPLETION, *CHAT, *REFUSED, "else"})), ANY, max_size=6)


def read(document: object, talk: bool) -> Ask | Malformed:
    try:
        return (chat if talk else completion)(document)
    except Malformed as refusal:
        return refusal


@settings(max_examples=400, deadline=None)
@given(FIELDS, st.booleans(), st.lists(MESSAGE, max_size=3))
@example({"n": 2, "stop": ["a"], "stream": True, "stream_options": {}}, False, [])
def test_any_document_is_read_or_refused(fields: dict[str, Any], talk: bool, messages: list[Any]) -> None:
    own = {"messages": messages} if talk and "messages" not in fields else {"prompt": "x", **fields} if not talk else {}
    ask = read({**fields, **own}, talk)
    if isinstance(ask, Malformed):
        assert 0 < len(ask.message) < 1000
        return
    assert 1 <= ask.answers <= 128
    assert 0 <= ask.temperature <= 2
    assert 0 < ask.top_p <= 1
    assert all(ask.stops)
    assert ask.seed is None or 0 <= ask.seed < 2**32
    assert ask.tokens is None or ask.tokens >= 1


@given(ANY)
@settings(max_examples=100, deadline=None)
def test_what_is_no_object_is_refused(document: Any) -> None:
    if not isinstance(document, dict):
        with pytest.raises(Malformed, match="must be a JSON object"):
            completion(document)


def test_the_defaults_are_openais() -> None:
    one, other = completion({"prompt": "x"}), chat({"messages": [{"role": "user", "content": "x"}]})
    assert (one.tokens, one.temperature, one.top_p, one.n, one.stream) == (16, 1.0, 1.0, 1, False)
    assert (other.tokens, other.chat, other.messages) == (None, True, ({"role": "user", "content": "x"},))


def test_a_newer_word_goes_before_the_older() -> None:
    messages = [{"role": "user", "content": "x"}]
    assert chat({"messages": messages, "max_tokens": 5, "max_completion_tokens": 7}).tokens == 7


def test_a_refused_field_says_what_to_do() -> None:
    for name in REFUSED:
        with pytest.raises(BadField) as refused:
            completion({"prompt": "x", name: {"anything": 1}})
        assert (refused.value.param, refused.value.reason) == (name, "unsupported_parameter")


# ── over the application ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    need("tokenizers", "jinja2")
    install()
    with served(language_bundle(tmp_path_factory.mktemp("asking") / "tiny"), max_body_bytes=20_000) as made:
        yield made


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=60)
    | FIELDS.map(lambda fields: json.dumps({"prompt": "The", "max_tokens": 2, **fields}).encode())
    | FIELDS.map(lambda fields: json.dumps({"messages": [{"role": "user", "content": "The"}], **fields}).encode()),
    st.sampled_from(["/v1/completions", "/v1/chat/completions"]),
)
@example(b"[" * 10_000, "/v1/completions")
@example(b'{"prompt": "' + b"a" * 30_000 + b'"}', "/v1/completions")
@example(b'{"prompt": [1e400]}', "/v1/completions")
@example(b'{"prompt": "\\ud800"}', "/v1/completions")
@example(b'{"messages": [{"role": "user", "content": "\\udfff"}]}', "/v1/chat/completions")
def test_no_body_makes_the_server_fail(service: Service, body: bytes, path: str) -> None:
    async def run() -> None:
        found = await asyncio.wait_for(call(OpenAi(service, Rest(service)), "POST", path, body), 20)
        assert found.status in (200, 400, 404, 413), (found.status, found.body)
        if found.status != 200:
            assert set(found.json["error"]) == {"message", "type", "param", "code"}
        assert service.inside == 0
        assert service.held == 0

    asyncio.run(run())


# ── refusals of models ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "no"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, but no.", True),
        ("As an AI, I have no body.", True),
        ("Unfortunately, I CANNOT do this.", True),
        ("The sea is blue.", False),
        ("The answer is long, and long before anybody says what follows there are many words here. I cannot go on.", False),
        ("", False),
    ],
)
def test_refusals(text: str, no: bool) -> None:
    assert refuses(text) is no


def test_phrases_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    file.write_text("# German\nDas kann ich nicht\n\nTut mir leid\n", encoding="utf-8")
    assert read_phrases(file) == ("das kann ich nicht", "tut mir leid")
    assert refuses("Tut mir leid, aber nein.", read_phrases(file))
    assert not refuses("I cannot.", read_phrases(file))
    file.write_text("# nothing\n")
    with pytest.raises(UsageError, match="There is no phrase in phrases"):
        read_phrases(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_phrases(tmp_path / "absent.txt")
    assert all(phrase == phrase.lower() for phrase in PHRASES)
