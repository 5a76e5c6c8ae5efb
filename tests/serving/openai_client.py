"""OpenAI's own client against a server: `python openai_client.py URL MODEL KEY`; prints what it got as JSON. In `.venv-clients`."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai


def refused(call: Any) -> list[Any]:
    try:
        call()
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.message]
    return ["answered"]


def main(url: str, model: str, key: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)
    chat = [{"role": "user", "content": "The house"}]
    wish: dict[str, Any] = {"model": model, "messages": chat, "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**wish, logprobs=True)
    chunks = list(client.chat.completions.create(**wish, stream=True, stream_options={"include_usage": True}))
    full = client.chat.completions.create(**wish, extra_body={"variant": "full"})
    plain = client.completions.create(model=model, prompt=["The house", "She had"], n=2, seed=3, max_tokens=5)
    stopped = client.completions.create(model=model, prompt="The house", temperature=0, max_tokens=12, stop=[plain.choices[0].text[:1]])
    with client.completions.with_streaming_response.create(model=model, prompt="The", stream=True, max_tokens=20) as left:
        first = next(left.iter_lines())  # and goes
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client.chat.completions.create, **wish) for _ in range(24)]
        together = {each.result().choices[0].message.content for each in asked}
    wrong = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
    found = {
        "models": [each.id for each in client.models.list()],
        "model": client.models.retrieve(model).id,
        "whole": whole.model_dump(),
        "streamed": "".join(each.choices[0].delta.content or "" for each in chunks if each.choices),
        "finish": [each.choices[0].finish_reason for each in chunks if each.choices][-1],
        "usage": chunks[-1].usage.model_dump(),
        "full": full.model_dump(),
        "plain": plain.model_dump(),
        "stopped": stopped.choices[0].text,
        "first": first,
        "together": sorted(together),
        "refused": [
            refused(lambda: wrong.models.list()),
            refused(lambda: client.completions.create(model="other", prompt="x")),
            refused(lambda: client.completions.create(model=model, prompt="x", echo=True)),
            refused(lambda: client.completions.create(model=model, prompt="The " * 2000)),
        ],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:4])
