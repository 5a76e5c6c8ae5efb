"""`lowbit serve` with a language model, as a process of its own: OpenAI's client, clients that go, the end of the server, many at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clients_case import client
from decoder_case import need
from language_case import BASELINE, CHOSEN, Client, language_bundle, running_language, streamed
from serving_case import Running, until

STEP_S = 0.005


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("tokenizers", "jinja2")
    return language_bundle(tmp_path_factory.mktemp("language") / "tiny", context=1024)


@pytest.fixture(scope="module")
def keyed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("right\n")
    with running_language(folder, options=("--api-key-file", keys)) as server:
        yield server


@pytest.fixture(scope="module")
def slow(folder: Path) -> Iterator[Running]:
    """Every token takes a moment; two answers at once, and two may wait."""
    with running_language(folder, step_s=STEP_S, options=("--slots", 2, "--queue", 2, "--variants", "chosen")) as server:
        yield server


def test_openais_client(keyed: Running) -> None:
    found = client("openai_client.py", keyed.url, "tiny", "right")
    assert (found["models"], found["model"]) == (["tiny"], "tiny")
    whole, usage = found["whole"], found["usage"]
    content = whole["choices"][0]["message"]["content"]
    assert found["streamed"] == content
    assert found["finish"] == whole["choices"][0]["finish_reason"]
    assert {name: usage[name] for name in whole["usage"] if whole["usage"][name] is not None} == {
        name: value for name, value in whole["usage"].items() if value is not None
    }
    assert len(whole["choices"][0]["logprobs"]["content"]) == usage["completion_tokens"]
    assert whole["system_fingerprint"].endswith(CHOSEN)
    assert found["full"]["system_fingerprint"].endswith(BASELINE)
    assert found["full"]["choices"][0]["message"]["content"] != content
    assert [each["index"] for each in found["plain"]["choices"]] == [0, 1, 2, 3]
    assert found["plain"]["usage"]["completion_tokens"] <= 20
    assert found["first"].startswith("data: {")
    assert found["together"] == [content], "whoever else is there, the answer is the same"
    names, codes = zip(*[(each[0], each[1]) for each in found["refused"]], strict=True)
    assert names == ("AuthenticationError", "NotFoundError", "BadRequestError", "BadRequestError")
    assert codes == (401, 404, 400, 400)
    assert "maximum context length is 1,024 tokens" in found["refused"][3][2]


def test_pieces_come_while_the_answer_is_made(slow: Running) -> None:
    asking = Client(slow)
    start = time.perf_counter()
    response = asking.post("/v1/completions", prompt="The", max_tokens=200, stream=True, ignore_eos=True)
    came = [time.perf_counter() - start for _ in streamed(response)]
    asking.close()
    assert len(came) > 50
    assert came[0] < came[-1] / 4, "the first piece did not wait for the last"


def test_who_goes_frees_the_place(slow: Running) -> None:
    looking = Client(slow)
    left = looking.metric("lowbit_requests_total", 'outcome="gone"')
    for stream in (True, False):
        going, left_open = [Client(slow) for _ in range(2)], []
        for number, each in enumerate(going, 1):
            if stream:
                response = each.post("/v1/completions", prompt="The", max_tokens=1000, stream=True, ignore_eos=True)
                next(streamed(response))
                left_open.append(response)
            else:
                each.connection.request("POST", "/v1/completions", json.dumps({"prompt": "The", "max_tokens": 1000, "ignore_eos": True}))
                until(lambda number=number: looking.metric("lowbit_answers_running") == number)
        for each in (*left_open, *going):
            each.close()
        until(lambda: looking.metric("lowbit_answers_running") == 0)
    until(lambda: looking.metric("lowbit_in_flight") == 0)
    assert looking.metric("lowbit_requests_total", 'outcome="gone"') == left + 4
    assert Client(slow).post("/v1/completions", prompt="The", max_tokens=2).status == 200
    looking.close()


def test_a_full_queue_says_when_to_come_again(slow: Running) -> None:
    asking = [Client(slow) for _ in range(5)]
    looking = Client(slow)
    for number, each in enumerate(asking[:4]):
        each.connection.request("POST", "/v1/completions", json.dumps({"prompt": "The", "max_tokens": 150, "ignore_eos": True}))
        until(lambda number=number: looking.metric("lowbit_answers_running") + looking.metric("lowbit_queue_rows") == number + 1)
    refused = asking[4].post("/v1/completions", prompt="The", max_tokens=2)
    assert refused.status == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert json.loads(refused.read())["error"]["type"] == "rate_limit_error"
    assert [each.connection.getresponse().status for each in asking[:4]] == [200] * 4, "those who wait have their turn"
    many = asking[4].post("/v1/completions", prompt="The", n=5, max_tokens=2)
    assert (many.status, "4 are allowed" in many.read().decode()) == (400, True)
    for each in (*asking, looking):
        each.close()


def test_deadlines(slow: Running) -> None:
    asking = Client(slow)
    wish = {"prompt": "The", "max_tokens": 1000, "ignore_eos": True}
    late = asking.post("/v1/completions", {"x-request-timeout-ms": "300"}, **wish)
    assert (late.status, json.loads(late.read())["error"]["code"]) == (504, "timeout")
    stream = list(streamed(asking.post("/v1/completions", {"x-request-timeout-ms": "300"}, **wish, stream=True)))
    assert stream[-1]["error"]["code"] == "timeout", "the status has gone out: the stream says it, and does not claim to be done"
    assert len(stream) > 5
    until(lambda: asking.metric("lowbit_answers_running") == 0)
    asking.close()


def test_a_client_cannot_ask_for_more_time_than_the_server_gives(folder: Path) -> None:
    with running_language(folder, step_s=STEP_S, options=("--variants", "chosen", "--answer", "300ms")) as server:
        asking = Client(server)
        wish = {"prompt": "The", "max_tokens": 1000, "ignore_eos": True}
        late = asking.post("/v1/completions", {"x-request-timeout-ms": "3600000"}, **wish)
        assert (late.status, json.loads(late.read())["error"]["code"]) == (504, "timeout")
        asking.close()


def test_a_server_that_stops_ends_its_streams(folder: Path) -> None:
    with running_language(folder, step_s=STEP_S, options=("--variants", "chosen")) as server:
        asking, other = Client(server), Client(server)
        response = asking.post("/v1/completions", prompt="The", max_tokens=200, stream=True, ignore_eos=True)
        events = streamed(response)
        next(events)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: b"draining" in server.log.read_bytes())
        rest = list(events)
        assert rest[-1] == "[DONE]"
        assert rest[-2]["choices"][0]["finish_reason"] == "length"
        try:
            refused = other.post("/v1/completions", prompt="The", max_tokens=2).status
        except OSError:
            refused = 503
        assert refused == 503
        assert server.process.wait(20) == 0


def test_a_server_that_may_not_wait_refuses_what_is_left(folder: Path) -> None:
    with running_language(folder, step_s=STEP_S, options=("--variants", "chosen", "--drain", "300ms")) as server:
        asking = Client(server)
        events = streamed(asking.post("/v1/completions", prompt="The", max_tokens=1000, stream=True, ignore_eos=True))
        next(events)
        server.process.send_signal(signal.SIGTERM)
        *_, last = events
        assert last["error"]["code"] == "unavailable"
        assert server.process.wait(20) == 0


def test_a_load_test_hears_the_first_tokens(slow: Running) -> None:
    options = ("--tokens", "8:12", "--rate", "4,8", "--seconds", "1s", "--p99", "20s", "--errors", "1", "--output", "json")
    done = subprocess.run(
        [sys.executable, "-m", "lowbit", "loadtest", slow.url, "--model", "tiny", *options], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for step in json.loads(done.stdout)["steps"]:
        assert step["ok"] + step["statuses"].get("429", 0) == step["sent"]
        assert 0 < step["first_token_p50_ms"] <= step["first_token_p95_ms"] < step["max_ms"]
        assert 500 * STEP_S < step["token_p50_ms"] < step["max_ms"]
        assert step["answer_tokens_per_s"] > 0
    assert "first token p50" in done.stderr


def test_windows_and_costs_are_those_of_every_model(folder: Path, tmp_path: Path) -> None:
    options = ("--variants", "chosen", "--state", tmp_path, "--window-every", "1s", "--slots", 3)
    with running_language(folder, step_s=0.001, options=options) as server:
        assert server.ready["models"][0]["variants"] == {"chosen": CHOSEN}
        asking = Client(server)
        for number in range(6):
            asking.post("/v1/completions", prompt="The house", max_tokens=10, seed=number, ignore_eos=True).read()

        def windows() -> list[Any]:
            return list(json.loads(asking.get("/v1/monitoring/windows"))["windows"])

        until(lambda: sum(each["requests"] for each in windows()) == 6)
        found = windows()
        looked = [each for each in found if each["recorded"]]  # answers this quick are not all looked at
        assert looked
        for each in looked:
            assert each["inputs"]["answer_tokens"]["n"] == sum(each["confidence"]) == each["recorded"]
            assert each["inputs"]["answer_tokens"]["mean"] == 10.0
            assert each["predictions"] == [0, each["recorded"], 0], "all were cut"
        (bill,) = json.loads(asking.get("/v1/cost"))["models"]
        assert (bill["model"], bill["variant"]) == ("tiny", CHOSEN)
        asking.close()
        assert server.stop() == 0


def test_many_at_once(slow: Running) -> None:
    """Everybody gets the answer that he would get alone."""
    fields = [{"prompt": f"The {number}", "seed": number, "max_tokens": 12, "ignore_eos": True} for number in range(4)]
    alone = [json.loads(Client(slow).post("/v1/completions", **each).read())["choices"] for each in fields]
    found: list[Any] = []

    def ask() -> None:
        mine = Client(slow)
        for number, each in enumerate(fields * 3):
            response = mine.post("/v1/completions", **each)
            body = json.loads(response.read())
            found.append(response.status == 429 or body["choices"] == alone[number % 4])
        mine.close()

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(found), all(found)) == (72, True)
