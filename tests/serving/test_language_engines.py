"""Real engines behind the endpoint: whoever else is in the batch, everybody gets the answer that he would get alone."""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from asgi_case import Answered, call, served
from decoder_case import need, random_decoder
from language_case import write_bundle

from conftest import missing
from lowbit.errors import UsageError
from lowbit.serving.language.openai_api import OpenAi
from lowbit.serving.language.settings import LanguageSettings
from lowbit.serving.web.rest import Rest

WRITERS = {
    "llamacpp": ("gguf", "gguf_file"),
    "openvino": ("openvino", "openvino_ir"),
    "torch": ("safetensors", None),
    "onnxruntime-genai": ("onnx", "genai_onnx"),
}
PROMPTS = ("The house", "She had read the letter twice", "There is", "To be, or not to be", "He said nothing. What", "the")


@pytest.fixture(scope="module", params=WRITERS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a small random Llama, in 16 bit, for one engine."""
    from lowbit.llm.engines import registry
    from lowbit.llm.folder import SourceFolder

    need("tokenizers", "jinja2", "transformers", "torch")
    try:
        registry.get(request.param)
    except UsageError:
        missing(request.param)
    form, writer = WRITERS[request.param]
    root = tmp_path_factory.mktemp("engine")
    source = random_decoder("llama", root / "source", chat=True)
    folder = root / "tiny"
    if writer is None:
        shutil.copytree(source, folder / "model")
        main = "model/model.safetensors"
    else:
        written = importlib.import_module(f"lowbit.llm.writers.{writer}").write(SourceFolder.open(source), folder / "model")
        main = written.relative_to(folder).as_posix()
    (folder / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(source / name, folder / "tokenizer")
    return write_bundle(folder, {"model": main}, engine=request.param, form=form)


def ask(bundle: Path, work: Callable[[Callable[..., Awaitable[Answered]]], Awaitable[Any]], **settings: Any) -> Any:
    async def run() -> Any:
        with served(bundle, roles=("chosen",), **settings) as service:
            app = OpenAi(service, Rest(service))

            async def post(path: str, **fields: Any) -> Answered:
                return await call(app, "POST", path, json.dumps(fields).encode())

            return await asyncio.wait_for(work(post), 60)

    return asyncio.run(run())


def test_together_as_alone(bundle: Path) -> None:
    async def work(post: Callable[..., Awaitable[Answered]]) -> tuple[list[Any], list[Any]]:
        asked = [{"prompt": prompt, "max_tokens": 4 + 3 * number, "temperature": 0} for number, prompt in enumerate(PROMPTS)]
        alone = [await post("/v1/completions", **each) for each in asked]
        together = await asyncio.gather(*(post("/v1/completions", **each) for each in asked * 2))
        return [each.json for each in alone], [each.json for each in together]

    alone, together = ask(bundle, work, language=LanguageSettings(slots=3))
    for number, each in enumerate(together):
        assert each["usage"] == alone[number % len(alone)]["usage"]
        assert each["choices"] == alone[number % len(alone)]["choices"]


def test_streams_seeds_and_stops(bundle: Path) -> None:
    async def work(post: Callable[..., Awaitable[Answered]]) -> None:
        chat = {"messages": [{"role": "user", "content": "The house"}], "max_tokens": 20, "ignore_eos": True}
        whole = (await post("/v1/chat/completions", **chat, temperature=0)).json["choices"][0]["message"]["content"]
        streamed = await post("/v1/chat/completions", **chat, temperature=0, stream=True)
        pieces = [json.loads(line[6:]) for line in streamed.body.decode().splitlines() if line.startswith("data: {")]
        assert "".join(each["choices"][0]["delta"].get("content", "") for each in pieces) == whole
        stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
        cut = (await post("/v1/chat/completions", **chat, temperature=0, stop=stop)).json["choices"][0]
        assert cut["message"]["content"] == whole[: whole.index(stop)]
        assert cut["finish_reason"] == "stop"
        drawn = [(await post("/v1/chat/completions", **chat, seed=seed)).json["choices"][0]["message"]["content"] for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]

    ask(bundle, work)


def test_who_goes_frees_the_place(bundle: Path) -> None:
    async def run() -> None:
        with served(bundle, roles=("chosen",), language=LanguageSettings(slots=2)) as service:
            app = OpenAi(service, Rest(service))
            body = json.dumps({"prompt": "The house", "max_tokens": 100, "ignore_eos": True}).encode()
            for _ in range(5):
                left = await call(app, "POST", "/v1/completions", body, gone=True)
                assert left.status == 0
            desk: Any = service.models["tiny"].variants["chosen"].batcher
            await asyncio.wait_for(desk.drained(), 20)
            assert (service.inside, desk.running, desk.waiting) == (0, 0, 0)
            assert (await call(app, "POST", "/v1/completions", body)).json["usage"]["completion_tokens"] == 100

    asyncio.run(run())
