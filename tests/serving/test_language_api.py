"""OpenAI's protocol over a small real model, without sockets: answers, streams, refusals, and who answers."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asgi_case import Answered, call, served
from decoder_case import need, write_tokenizer
from jsonschema import Draft202012Validator
from language_case import BASELINE, CHOSEN, SIZE, BigramEngine, chain, events, install, language_bundle, table

from lowbit.errors import ModelError, UsageError
from lowbit.llm.engines.base import Sampling
from lowbit.llm.engines.sampling import choose, generator
from lowbit.serving.language.openai_api import OpenAi
from lowbit.serving.language.replies import Reply
from lowbit.serving.language.settings import LanguageSettings
from lowbit.serving.language.speaking import Answer, Spelled
from lowbit.serving.language.words import Words
from lowbit.serving.language.writing import Writer
from lowbit.serving.run import deployment
from lowbit.serving.service import Service
from lowbit.serving.watch.metrics import Metrics
from lowbit.serving.watch.observing import Observer
from lowbit.serving.watch.recording import Recorder
from lowbit.serving.web.openapi import Docs
from lowbit.serving.web.rest import Rest
from lowbit.types import Array

POST = {"/v1/completions": {"prompt": "The"}, "/v1/chat/completions": {"messages": [{"role": "user", "content": "The"}]}}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Words:
    need("tokenizers", "jinja2")
    folder = tmp_path_factory.mktemp("words")
    write_tokenizer(folder, SIZE, chat=True)
    return Words.open(folder)


@pytest.fixture
def engine() -> Iterator[BigramEngine]:
    need("tokenizers", "jinja2")
    return install()


@pytest.fixture
def tiny(tmp_path: Path, engine: BigramEngine) -> Path:  # noqa: ARG001
    return language_bundle(tmp_path / "tiny")


def says(folder: Path, words: Words, text: str, **more: Any) -> Path:
    """A bundle whose chosen variant says a text and ends: no word of it comes twice, for a bigram knows no more than the last one."""
    ids = words.encode(text)
    assert len(set(ids)) == len(ids), "each token once"
    return language_bundle(folder, chosen=chain(ids), **more)


class Asking:
    """An application and what is asked of it."""

    def __init__(self, service: Service) -> None:
        self.service, self.app = service, OpenAi(service, Rest(service))

    async def __call__(self, path: str, *, headers: dict[str, str] | None = None, **fields: Any) -> Answered:
        return await call(self.app, "POST", path, json.dumps({**POST[path], **fields}).encode(), headers)

    async def complete(self, prompt: Any = "The", **fields: Any) -> Answered:
        return await self("/v1/completions", prompt=prompt, **fields)

    async def chat(self, content: str = "The", **fields: Any) -> Answered:
        return await self("/v1/chat/completions", messages=[{"role": "user", "content": content}], **fields)


def ask(folders: Sequence[Path], work: Callable[[Asking], Awaitable[Any]], **settings: Any) -> Any:
    async def run() -> Any:
        with served(*folders, **settings) as service:
            return await asyncio.wait_for(work(Asking(service)), 30)

    return asyncio.run(run())


def drawn(values: Array, tokens: Sequence[int], count: int, eos: Sequence[int] = (1,), **sampling: Any) -> tuple[list[int], list[float]]:
    """What the table says by itself."""
    wish = Sampling(count, eos=tuple(eos), **sampling)
    rng, last, found, told = generator(wish), tokens[-1], [], []
    for _ in range(count):
        token, logprob = choose(values[last], wish, rng)
        told.append(logprob)
        if token in eos:
            break
        found.append(token)
        last = token
    return found, told


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_completion_is_what_the_model_says(tiny: Path, words: Words) -> None:
    found = ask([tiny], lambda asking: asking.complete("The house", max_tokens=12, temperature=0, logprobs=0)).json
    tokens, told = drawn(table(1), words.encode("The house"), 12)
    choice = found["choices"][0]
    assert (found["object"], found["model"]) == ("text_completion", "tiny")
    assert choice["text"] == words.decode(tokens)
    assert choice["finish_reason"] == ("length" if len(tokens) == 12 else "stop")
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(told[: len(tokens)], abs=1e-5)
    size = len(words.encode("The house"))
    assert found["usage"] == {"prompt_tokens": size, "completion_tokens": len(tokens), "total_tokens": size + len(tokens)}
    assert found["system_fingerprint"].endswith(CHOSEN)


def test_a_model_that_says_a_text_ends_by_itself(tmp_path: Path, engine: BigramEngine, words: Words) -> None:  # noqa: ARG001
    text = "Grö漢 and he."
    folder = says(tmp_path / "tiny", words, text)
    found = ask([folder], lambda asking: asking.complete("zz", max_tokens=100, temperature=0)).json
    assert found["choices"][0] == {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
    assert found["usage"]["completion_tokens"] == len(words.encode(text)), "the end token is none of the answer"


@pytest.mark.parametrize("stream", [False, True])
def test_the_same_whole_and_in_pieces(tmp_path: Path, engine: BigramEngine, words: Words, stream: bool) -> None:  # noqa: ARG001
    text = "Grö漢 and he."
    folder = says(tmp_path / "tiny", words, text)
    found = ask([folder], lambda asking: asking.chat("zz", temperature=0, stream=stream, stop=["d h"]))
    assert found.status == 200
    if not stream:
        assert found.json["object"] == "chat.completion"
        message = found.json["choices"][0]["message"]
        assert (message["role"], message["content"]) == ("assistant", "Grö漢 an")
        assert found.json["choices"][0]["finish_reason"] == "stop"
        return
    assert found.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = events(found.body)
    assert done == "[DONE]"
    assert {each["object"] for each in chunks} == {"chat.completion.chunk"}
    assert len({each["id"] for each in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [each["choices"][0]["delta"].get("content", "") for each in chunks]
    assert "".join(deltas) == "Grö漢 an"
    assert len([each for each in deltas if each]) > 4, "it came in pieces"
    assert [each["choices"][0]["finish_reason"] for each in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all("usage" not in each for each in chunks)


def test_usage_of_a_stream_comes_last(tiny: Path) -> None:
    async def work(asking: Asking) -> tuple[Answered, Answered]:
        wish = {"max_tokens": 9, "seed": 4, "ignore_eos": True}
        return await asking.chat(**wish), await asking.chat(**wish, stream=True, stream_options={"include_usage": True})

    whole, streamed = ask([tiny], work)
    *chunks, last, done = events(streamed.body)
    assert done == "[DONE]"
    assert (last["choices"], last["usage"]) == ([], whole.json["usage"])
    assert all(each["usage"] is None for each in chunks)
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in chunks) == whole.json["choices"][0]["message"]["content"]


def test_several_prompts_several_answers(tiny: Path, words: Words) -> None:
    prompts = ["The house", "She had"]
    found = ask([tiny], lambda asking: asking.complete(prompts, n=2, seed=7, max_tokens=6, ignore_eos=True)).json
    assert [each["index"] for each in found["choices"]] == [0, 1, 2, 3]
    wanted = [
        words.decode(drawn(table(1), words.encode(prompt), 6, (), temperature=1.0, seed=7 + number)[0])
        for prompt in prompts
        for number in range(2)
    ]
    assert [each["text"] for each in found["choices"]] == wanted
    assert found["usage"]["prompt_tokens"] == sum(len(words.encode(each)) for each in prompts), "each prompt once"
    assert found["usage"]["completion_tokens"] == 24


def test_pieces_of_several_answers_say_whose_they_are(tiny: Path) -> None:
    async def work(asking: Asking) -> tuple[Answered, Answered]:
        wish = {"n": 3, "seed": 7, "max_tokens": 8, "ignore_eos": True}
        return await asking.complete(["a", "b"], **wish), await asking.complete(["a", "b"], **wish, stream=True)

    whole, streamed = ask([tiny], work, language=LanguageSettings(slots=2))
    texts = [""] * 6
    for each in events(streamed.body)[:-1]:
        texts[each["choices"][0]["index"]] += each["choices"][0]["text"]
    assert texts == [each["text"] for each in whole.json["choices"]]


def test_tokens_are_prompts_too(tiny: Path, words: Words) -> None:
    async def work(asking: Asking) -> list[Answered]:
        ids = words.encode("The house")
        return [
            await asking.complete(prompt, temperature=0) for prompt in ("The house", ids, [ids, ids], [SIZE], [5, -1], [[5], []], [1.5])
        ]

    text, tokens, several, *bad = ask([tiny], work)
    assert tokens.json["choices"][0]["text"] == text.json["choices"][0]["text"] == several.json["choices"][1]["text"]
    assert tokens.json["usage"] == text.json["usage"]
    assert [each.status for each in bad] == [400] * 4
    assert "not in the vocabulary: it has 320 tokens" in bad[0].json["error"]["message"]


def test_logprobs_of_a_chat(tiny: Path, words: Words) -> None:
    async def work(asking: Asking) -> tuple[Answered, Answered]:
        wish = {"max_tokens": 10, "temperature": 0, "logprobs": True}
        return await asking.chat(**wish), await asking.chat(**wish, stream=True)

    whole, streamed = ask([tiny], work)
    prompt = words.chat([{"role": "user", "content": "The"}], "tiny")
    tokens, told = drawn(table(1), prompt, 10)
    content = whole.json["choices"][0]["logprobs"]["content"]
    assert [each["logprob"] for each in content] == pytest.approx(told[: len(tokens)], abs=1e-5)
    parts = [each["choices"][0]["logprobs"] for each in events(streamed.body)[:-1]]
    assert [each for part in parts if part for each in part["content"]] == content


def test_logprobs_hold_nothing_of_a_stop_string(tmp_path: Path, engine: BigramEngine, words: Words) -> None:  # noqa: ARG001
    folder = says(tmp_path / "tiny", words, "He said no and more")
    found = ask([folder], lambda asking: asking.complete("zz", max_tokens=30, temperature=0, logprobs=0, stop="id")).json["choices"][0]
    assert found["text"] == "He sa"
    assert "".join(found["logprobs"]["tokens"]) == "He sa"


def test_a_token_goes_out_with_the_last_of_its_text() -> None:
    """A stop string may begin within a token: until it is known, no probability shows it."""
    words = ("ab", "c", "x")
    for said, told in (((0, 1), ["a"]), ((0, 2), ["ab", "x"])):
        answer = Answer(0, (), Writer(lambda tokens: "".join(words[each] for each in tokens), ["bc"]))
        found: list[str] = []
        for token in said:
            start = answer.writer.certain
            answer.writer.push(token)
            answer.held.append(Spelled(token, words[token], -1.0, start, answer.writer.certain))
            found += [each.text for each in answer.released()]
        assert found == told


@pytest.mark.parametrize("logprob", [math.nan, -math.inf])
def test_what_is_no_number_is_valid_json(logprob: float) -> None:
    tokens = [Spelled(5, "a", logprob, 0, 1)]
    plain, chat = (Reply("id", chat, "tiny", 0, "f").choice(0, "a", tokens, "stop") for chat in (False, True))
    assert json.loads(json.dumps(plain, allow_nan=False))["logprobs"]["token_logprobs"] == [None]
    assert [each["logprob"] for each in json.loads(json.dumps(chat, allow_nan=False))["logprobs"]["content"]] == [-9999.0]


def test_an_engine_that_tells_nothing_answers_all_the_same(tmp_path: Path, engine: BigramEngine) -> None:
    engine.tells = False
    folder = language_bundle(tmp_path / "tiny")
    with served(folder) as service:
        assert service.models["tiny"].reader is None
    found = ask([folder], lambda asking: asking.complete(max_tokens=3, logprobs=0, ignore_eos=True)).json["choices"][0]
    assert found["logprobs"]["token_logprobs"] == [None] * 3


def test_models(tiny: Path) -> None:
    async def work(asking: Asking) -> list[Answered]:
        paths = ("/v1/models", "/v1/models/", "/v1/models/tiny", "/v1/models/other", "/v2/models/tiny")
        return [await call(asking.app, "GET", path) for path in paths]

    listed, same, one, other, metadata = ask([tiny], work)
    assert listed.json == same.json == {"object": "list", "data": [one.json]}
    assert (one.json["id"], one.json["object"], one.json["owned_by"]) == ("tiny", "model", "lowbit")
    assert (other.status, other.json["error"]["code"]) == (404, "model_not_found")
    assert metadata.json["inputs"] == metadata.json["outputs"] == []


def test_the_description_is_true(tiny: Path, tmp_path: Path) -> None:
    from serving_case import tiny_bundle

    async def work(asking: Asking) -> tuple[Any, list[tuple[str, Answered]]]:
        docs = Rest(asking.service, Docs(asking.service))
        document = (await call(docs, "GET", "/openapi.json")).json
        assert "Why is the sea blue?" in (await call(docs, "GET", "/docs")).body.decode()
        return document, [
            ("/v1/models", await call(asking.app, "GET", "/v1/models")),
            ("/v1/models/{name}", await call(asking.app, "GET", "/v1/models/tiny")),
            ("/v1/completions", await asking.complete()),
            ("/v1/completions", await asking.complete(echo=True)),
            ("/v1/chat/completions", await asking.chat(max_tokens=3)),
            ("/v1/chat/completions", await asking.chat(model="other")),
        ]

    document, found = ask([tiny], work)
    for path, answer in found:
        (operation,) = document["paths"][path].values()
        schema = operation["responses"][str(answer.status)]["content"]["application/json"]["schema"]
        validator = Draft202012Validator({**schema, "components": document["components"]})
        assert [error.message for error in validator.iter_errors(answer.json)] == [], path
    assert {each["name"] for each in document["tags"]} >= {"Language", "Infer"}
    plain, _ = ask([tiny_bundle(tmp_path / "images"), tiny], work)
    assert len(plain["paths"]) == len(document["paths"])


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"echo": True}, "echo", "The prompt is not given back"),
        ({"suffix": "x"}, "suffix", "Text behind the answer"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "Single tokens"),
        ({"presence_penalty": 0.5}, "presence_penalty", "Penalties are not offered"),
        ({"best_of": 3}, "best_of", "is not looked for"),
        ({"logprobs": 5}, "logprobs", "give 0 or 1"),
        ({"max_tokens": 0}, "max_tokens", "of at least 1"),
        ({"max_tokens": "9"}, "max_tokens", "a whole number"),
        ({"n": 129}, "n", "from 1 to 128"),
        ({"prompt": ["a"] * 70, "n": 2}, "n", "140 answers"),
        ({"temperature": 2.5}, "temperature", "from 0 to 2"),
        ({"temperature": True}, "temperature", "from 0 to 2"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"stop": ""}, "stop", "each of 1 to"),
        ({"stop": [5]}, "stop", "each of 1 to"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"seed": 1.5}, "seed", "64 bits"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "are for streams"),
        ({"prompt": 5}, "prompt", "A prompt is a text"),
        ({"prompt": []}, "prompt", "A prompt is a text"),
        ({"prompt": ["a", 5]}, "prompt", "A prompt is a text"),
        ({"prompt": ""}, "prompt", "no tokens"),
        ({"prompt": "The " * 200}, "prompt", "maximum context length is 128 tokens"),
        ({"temperatur": 1}, "temperatur", "Unrecognized request argument"),
        ({"variant": 5}, None, "must be a word"),
    ],
)
def test_what_is_wrong_is_said_in_the_protocols_shape(tiny: Path, fields: dict[str, Any], param: str | None, text: str) -> None:
    found = ask([tiny], lambda asking: asking("/v1/completions", **fields))
    error = found.json["error"]
    assert found.status == 400
    assert text in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"messages": []}, "Messages are a list"),
        ({"messages": [{"content": "x"}]}, "messages[0] needs a role"),
        ({"messages": [{"role": "user"}]}, "messages[0] needs content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "only text is offered"),
        ({"tools": [{"type": "function"}]}, "Tools are not offered"),
        ({"response_format": {"type": "json_object"}}, "Answers are text"),
        ({"top_logprobs": 3, "logprobs": True}, "leave top_logprobs out"),
        ({"prompt": "x"}, "Unrecognized request argument"),
        ({"messages": [{"role": "user", "content": "half \ud83d"}]}, "half a surrogate pair"),
    ],
)
def test_what_is_wrong_with_a_chat(tiny: Path, fields: dict[str, Any], text: str) -> None:
    found = ask([tiny], lambda asking: asking("/v1/chat/completions", **fields))
    assert (found.status, text in found.json["error"]["message"]) == (400, True), found.body


def test_defaults_of_clients_ask_for_nothing(tiny: Path) -> None:
    nothing = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "n": 1, "stop": None, "user": "somebody", "store": False}
    assert ask([tiny], lambda asking: asking.complete(**nothing, echo=False, suffix=None, best_of=1)).status == 200
    chat = {**nothing, "tools": [], "response_format": {"type": "text"}, "top_logprobs": 0, "max_completion_tokens": 3, "metadata": {}}
    found = ask([tiny], lambda asking: asking.chat(**chat))
    assert found.status == 200
    assert found.json["usage"]["completion_tokens"] <= 3


def test_a_model_without_a_template_says_what_to_use(tmp_path: Path, engine: BigramEngine) -> None:  # noqa: ARG001
    folder = language_bundle(tmp_path / "tiny", chat=False)
    found = ask([folder], lambda asking: asking.chat())
    assert found.status == 400
    assert found.json["error"]["message"].endswith("Use /v1/completions with a prompt.")


def test_parts_of_text_are_a_text(tiny: Path) -> None:
    async def work(asking: Asking) -> tuple[Answered, Answered]:
        parts = [{"type": "text", "text": "The "}, {"type": "text", "text": "house"}]
        one = await asking("/v1/chat/completions", messages=[{"role": "user", "content": parts}], temperature=0)
        return one, await asking.chat("The house", temperature=0)

    one, other = ask([tiny], work)
    assert one.json["choices"] == other.json["choices"]


def test_other_refusals(tiny: Path) -> None:
    async def work(asking: Asking) -> list[Answered]:
        key = {"authorization": "Bearer right"}
        return [
            await asking.complete(),
            await asking.complete(headers={"authorization": "Bearer wrong"}),
            await asking.complete(headers=key, model="other"),
            await asking.complete(headers=key, model="tiny@nine"),
            await asking.complete(headers=key, variant="nothing"),
            await call(asking.app, "GET", "/v1/completions", headers=key),
            await call(asking.app, "POST", "/v1/completions", b"x" * 200_000, key),
            await call(asking.app, "POST", "/v1/completions", b'{"prompt": NaN}', key),
            await call(asking.app, "POST", "/v1/completions", b"[1]", key),
            await call(
                asking.app,
                "POST",
                "/v2/models/tiny/infer",
                b'{"inputs": [{"name": "a", "shape": [1], "datatype": "FP32", "data": [1]}]}',
                key,
            ),
            await call(asking.app, "POST", "/v1/predict", b"{}", key),
            await asking.complete(headers={**key, "x-request-timeout-ms": "0"}),
        ]

    none, wrong, other, version, variant, got, large, nan, listed, infer, predict, hurry = ask(
        [tiny], work, api_keys=("right",), max_body_bytes=100_000
    )
    assert [each.status for each in (none, wrong)] == [401, 401]
    assert none.json["error"]["code"] == "invalid_api_key"
    assert [(each.status, each.json["error"]["code"]) for each in (other, version, variant)] == [(404, "model_not_found")] * 3
    assert (got.status, got.headers["allow"]) == (405, "POST")
    assert [each.status for each in (large, nan, listed, infer, hurry)] == [413, 400, 400, 400, 400]
    assert "/v1/chat/completions" in infer.error
    assert predict.status in (400, 404)


def test_a_model_of_another_kind_is_no_language_model(tiny: Path, tmp_path: Path) -> None:
    from serving_case import tiny_bundle

    other = tiny_bundle(tmp_path / "images")

    async def work(asking: Asking) -> list[Answered]:
        return [await asking.complete(model=name) for name in ("images", "tiny", "")]

    images, named, alone = ask([tiny, other], work)
    assert (images.status, "is no language model" in images.json["error"]["message"]) == (404, True)
    assert (named.status, alone.status) == (200, 200), "there is one language model alone"


# ── who answers ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_variants(tiny: Path, words: Words) -> None:
    async def work(asking: Asking) -> list[Answered]:
        wish = {"temperature": 0, "max_tokens": 8}
        return [
            await asking.complete(**wish),
            await asking.complete(**wish, variant="full"),
            await asking.complete(**wish, headers={"x-lowbit-variant": BASELINE}),
        ]

    chosen, full, named = ask([tiny], work)
    one, other = (words.decode(drawn(table(seed), words.encode("The"), 8)[0]) for seed in (1, 2))
    assert one != other
    assert [each.json["choices"][0]["text"] for each in (chosen, full, named)] == [one, other, other]
    assert [each.headers["x-lowbit-variant"] for each in (chosen, full, named)] == [CHOSEN, BASELINE, BASELINE]
    assert [each.headers["x-lowbit-route"] for each in (chosen, full)] == ["default", "asked"]


def test_a_policy_routes_and_a_user_stays_where_he_is(tiny: Path, tmp_path: Path) -> None:
    from lowbit.serving.answer.answering import Answers
    from lowbit.serving.settings import Settings

    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "schema: 1\nrules:\n- {name: half, when: {flag: half}, use: full}\nflags: {half: 50%}\n"
        "escalate: {to: full, below: auto, by: margin}\n"
    )

    async def run() -> list[set[str]]:
        settings = Settings(policy=policy)
        service = Service(settings, (), Answers.of(settings))
        service.put(deployment.load(tiny))
        try:
            asking = Asking(service)
            sides: list[set[str]] = []
            for user in range(12):
                found = [await asking.complete(user=f"user {user}", max_tokens=1) for _ in range(3)]
                sides.append({each.headers["x-lowbit-variant"] for each in found})
            return sides
        finally:
            service.close()

    sides = asyncio.run(run())
    assert all(len(each) == 1 for each in sides)
    assert set.union(*sides) == {CHOSEN, BASELINE}


def test_one_variant_alone(tiny: Path, engine: BigramEngine) -> None:
    engine.opened.clear()
    made = deployment.load(tiny, roles=("chosen",))
    try:
        assert list(made.variants) == ["chosen"]
        assert len(engine.opened) == 1
        assert made.variant("full") is None
    finally:
        made.close()


@pytest.mark.parametrize(
    ("break_it", "error", "text"),
    [
        (lambda folder: (folder / "tokenizer" / "tokenizer.json").unlink(), ModelError, "lacks tokenizer/tokenizer.json"),
        (lambda folder: (folder / "model" / "model.npy").write_bytes(b"x"), ModelError, "model/model.npy has 1 bytes"),
        (lambda folder: (folder / "baseline" / "model.npy").unlink(), ModelError, "lacks baseline/model.npy"),
    ],
)
def test_damaged_bundles(tiny: Path, break_it: Callable[[Path], None], error: type[Exception], text: str) -> None:
    break_it(tiny)
    with pytest.raises(error, match=text):
        deployment.load(tiny)


def test_an_engine_that_nobody_has(tmp_path: Path, engine: BigramEngine) -> None:  # noqa: ARG001
    folder = language_bundle(tmp_path / "tiny", engine="nobody")
    with pytest.raises(UsageError, match="nobody"):
        deployment.load(folder)


def test_another_models_tokenizer(tmp_path: Path, engine: BigramEngine) -> None:  # noqa: ARG001
    folder = language_bundle(tmp_path / "tiny", chosen=np.zeros((SIZE - 1, SIZE - 1), np.float32))
    with pytest.raises(ModelError, match="The tokenizer has 320 tokens, and the model 319"):
        deployment.load(folder)


# ── what watchers see ───────────────────────────────────────────────────────────────────────────────────────────────


class Seen(Observer):
    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.refusals: list[str] = []

    def spoke(self, deployment: Any, variant: str, answers: Any) -> None:  # noqa: ARG002
        self.answers.append((variant, answers))

    def refused(self, deployment: Any, caller: Any, refusal: Any, seconds: float) -> None:  # noqa: ARG002
        self.refusals.append(refusal.outcome)


def test_a_refused_request_is_counted_once_and_as_what_it_is(tiny: Path) -> None:
    async def run() -> list[str]:
        seen = Seen()
        with served(tiny) as service:
            service.observers = (seen,)
            asking = Asking(service)
            for wish in ({"model": "nobody"}, {"model": "tiny@9"}, {"prompt": [999]}, {"variant": "nobody"}, {"temperature": 3}):
                await asking.complete(**wish)
        return seen.refusals

    assert asyncio.run(run()) == ["unknown", "unknown", "malformed", "unknown", "malformed"]


@pytest.mark.parametrize("where", ["encode", "decode"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_nobody_foresaw_is_our_failure(tiny: Path, monkeypatch: pytest.MonkeyPatch, where: str, stream: bool) -> None:
    """Not a client that went away: rollouts and reviews count these."""

    def broken(*_: Any) -> None:
        raise ValueError("/a/path/that/nobody/should/see")

    async def run() -> tuple[Answered, Seen, int]:
        seen = Seen()
        with served(tiny) as service:
            service.observers = (seen,)
            monkeypatch.setattr(Words, where, broken)
            found = await Asking(service).complete(max_tokens=5, stream=stream)
            return found, seen, service.inside

    found, seen, inside = asyncio.run(run())
    begun = stream and where == "decode"
    assert found.status == (200 if begun else 500)
    told = events(found.body)[-1] if begun else found.json
    assert told["error"]["type"] == "server_error"
    assert "path" not in told["error"]["message"]
    assert len(seen.refusals) == 1
    assert seen.refusals != ["gone"]
    assert inside == 0


def test_answers_are_counted_like_a_classifiers(tmp_path: Path, engine: BigramEngine, words: Words) -> None:  # noqa: ARG001
    folder = says(tmp_path / "tiny", words, "I cannot")

    async def run() -> tuple[Any, str, Seen]:
        metrics, recorder, seen = Metrics(), Recorder(1e9), Seen()
        with served(folder) as service:
            service.observers = (metrics, metrics.spoken, recorder, seen)
            metrics.watch(service)
            metrics.put(service.models["tiny"])
            asking = Asking(service)
            for wish in ({}, {"max_tokens": 2}, {"stop": "an"}, {"temperature": 3}):
                await asking.complete("zz", **{"max_tokens": 50, "temperature": 0, **wish})
            await asking.complete("zz", n=2, max_tokens=50, temperature=0)
            return recorder.snapshot(), metrics.text().decode(), seen

    snapshot, text, seen = asyncio.run(run())
    record = next(each for each in snapshot["models"] if each["variant"] == CHOSEN)
    size = len(words.encode("I cannot"))
    assert (record["requests"], record["rows_recorded"]) == (4, 5)
    assert record["predictions"] == [1, 1, 3], "one ended, one was cut, three refuse"
    assert record["inputs"]["answer_tokens"]["max"] == size
    assert sum(record["confidence"]["counts"]) == 5
    logprob = seen.answers[0][1][0].logprob
    assert logprob == pytest.approx(float(np.mean(drawn(chain(words.encode("I cannot")), words.encode("zz"), 50)[1][:size])), abs=1e-6)
    assert record["confidence"]["counts"][int(math.exp(logprob) * 256)] >= 3
    assert seen.refusals == ["malformed"]
    lines = [line for line in text.splitlines() if f'variant="{CHOSEN}"' in line]

    def value(name: str, more: str = "") -> float:
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{") and more in line)

    tokens = sum(each.tokens for _, answers in seen.answers for each in answers)
    assert value("lowbit_answer_tokens_total") == tokens
    assert value("lowbit_prompt_tokens_total") == 5 * len(words.encode("zz"))
    assert (value("lowbit_answers_total", 'finish="stop"'), value("lowbit_answers_total", 'finish="length"')) == (4, 1)
    assert value("lowbit_refusals_total") == 3
    assert value("lowbit_first_token_seconds_count") == 5
    assert value("lowbit_token_seconds_count") == tokens - 5
    assert value("lowbit_answer_nats_total") > 0
    assert value("lowbit_kv_cache_use") == 0
    assert value("lowbit_requests_total", 'outcome="ok"') == 4
