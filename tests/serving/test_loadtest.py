"""A load test tells the truth: about rates, about latencies while a server stalls, and about what breaks."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from cli_runner import lowbit
from serving_case import INPUT, OUTPUT, Running, running, tiny_bundle

from lowbit.errors import UsageError
from lowbit.serving.load.load_targets import GrpcTarget, Model, RestTarget, describe, parse_answer, varied
from lowbit.serving.load.loadtest import Objective, Step, arrivals, closed_loop, open_loop, until_it_breaks


def step(latencies: list[float], rate: float = 10, **statuses: int) -> Step:
    counts = Counter({int(status[1:]): count for status, count in statuses.items()}) or Counter({200: len(latencies)})
    return Step(rate, 1.0, counts, np.sort(np.array(latencies)), np.sort(np.array(latencies)))


def test_quantiles_are_latencies_that_were_seen() -> None:
    found = step([0.001 * n for n in range(1, 101)])
    assert [round(1000 * found.quantile(q)) for q in (0, 0.5, 0.99, 0.999, 1)] == [1, 50, 99, 100, 100]
    assert math.isnan(step([]).quantile(0.5))
    document = found.document()
    assert (document["p50_ms"], document["p99_ms"], document["max_ms"]) == (50, 99, 100)
    json.dumps(step([]).document(), allow_nan=False)


def test_an_objective_is_about_times_and_errors() -> None:
    objective = Objective(0.1, errors=0.05)
    assert objective.held(step([0.05] * 100))
    assert not objective.held(step([0.05] * 98 + [0.2] * 2))
    assert not objective.held(step([0.05] * 94, _200=94, _503=6))
    assert objective.held(step([0.05] * 96, _200=96, _503=4))
    assert not objective.held(step([], _503=10))


def test_arrivals_are_poisson_and_repeatable() -> None:
    due = arrivals(200, 50, seed=3)
    assert np.array_equal(due, arrivals(200, 50, seed=3))
    assert not np.array_equal(due, arrivals(200, 50, seed=4))
    assert len(due) == pytest.approx(10_000, abs=400)
    gaps = np.diff(due)
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # of an exponential they are the same
    assert (due >= 0).all()
    assert (due < 50).all()


def test_a_stall_is_paid_for_by_all_who_would_have_come() -> None:
    """A server that stops for a second hurts everybody who was due then, not only the one who was in it."""
    stalled = time.perf_counter() + 0.5

    async def send(number: int) -> int:  # noqa: ARG001
        now = time.perf_counter()
        if stalled <= now < stalled + 1.0:
            await asyncio.sleep(stalled + 1.0 - now)
        return 200

    found = asyncio.run(open_loop(send, 100, 2.0))
    assert found.ok == found.sent == pytest.approx(200, abs=50)
    assert (found.latencies_s > 0.2).sum() >= 45  # 80 or so were due; a busy machine makes more of them slow
    assert found.latencies_s[0] < 0.2
    assert found.quantile(0.99) > 0.8


def test_closed_loops_wait_for_answers() -> None:
    inside, most = 0, 0

    async def send(number: int) -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        inside -= 1
        return 503 if number % 10 == 0 else 200

    found = asyncio.run(closed_loop(send, 3, 0.5))
    assert most == 3
    assert 0 < found.statuses[503] < found.statuses[200]
    assert found.rate is None


def test_the_rate_that_holds_is_found() -> None:
    async def send(number: int) -> int:  # noqa: ARG001
        return 200

    async def work() -> tuple[list[Step], Step | None]:
        class Until(Objective):
            def held(self, step: Step) -> bool:
                return (step.rate or 0) <= 130

        return await until_it_breaks(send, Until(1.0), 0.05, first=20, growth=2, halvings=4)

    found, best = asyncio.run(work())
    assert [each.rate for each in found] == [20, 40, 80, 160, 120, 140, 130, 135]
    assert best is not None
    assert best.rate == 130


def test_random_inputs_fit_the_model() -> None:
    model = Model(
        "m",
        "1",
        (("x", "FP32", (-1, 3, -1)), ("input_ids", "INT64", (-1, -1)), ("attention_mask", "INT64", (-1, -1)), ("b", "BOOL", (-1,))),
    )
    one, other = varied(model, 2, 7, seed=0, count=2)
    assert {name: (array.shape, array.dtype.name) for name, array in one.items()} == {
        "x": ((2, 3, 7), "float32"),
        "input_ids": ((2, 7), "int64"),
        "attention_mask": ((2, 7), "int64"),
        "b": ((2,), "bool"),
    }
    assert (one["attention_mask"] == 1).all()
    assert not np.array_equal(one["x"], other["x"])
    with pytest.raises(UsageError, match="strings"):
        Model("m", "1", (("text", "BYTES", (-1,)),)).feeds(1, 1, 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Running:  # type: ignore[misc]
    with running(tiny_bundle(tmp_path_factory.mktemp("load") / "tiny")) as made:
        yield made


def test_both_ways_in_give_the_same_answers(server: Running) -> None:
    async def work() -> None:
        model = await describe(server.url, "tiny", {})
        assert model.inputs == ((INPUT, "FP32", (-1, 3, 8, 8)),)
        feeds = varied(model, 2, 1, seed=0, count=3)
        rest, grpc = RestTarget(server.url, model, feeds, {}), GrpcTarget(server.grpc or "", model, feeds, {})
        try:
            for number in range(3):
                one = parse_answer(await rest.ask(number)).outputs[OUTPUT]
                other = np.frombuffer((await grpc.ask(number)).raw_output_contents[0], np.float32).reshape(one.shape)
                assert one.shape == (2, 10)
                assert np.array_equal(one, other)
            assert [await rest(0), await grpc(0)] == [200, 200]
        finally:
            await rest.close()
            await grpc.close()
        missing = RestTarget(server.url, Model("other", "", model.inputs), feeds, {})
        assert await missing(0) == 404
        missing_grpc = GrpcTarget(server.grpc or "", Model("other", "", model.inputs), feeds, {})
        assert await missing_grpc(0) == 404
        await missing_grpc.close()
        await missing.close()

    asyncio.run(work())


def test_nobody_there_is_no_answer() -> None:
    async def work() -> None:
        target = RestTarget("http://127.0.0.1:9", Model("m", "", ()), [{"x": np.ones((1, 1), np.float32)}], {})
        assert await target(0) == 0
        with pytest.raises(UsageError, match="does not answer"):
            await describe("http://127.0.0.1:9", "m", {})

    asyncio.run(work())


def test_the_command_prints_a_table_and_json(server: Running, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = (server.url, "--model", "tiny", "--rate", "20,40", "--seconds", "0.5s", "--p99", "10s")
    done = lowbit(capfd, monkeypatch, "loadtest", *options)
    assert done.code == 0
    head, first, second, verdict = done.out.splitlines()
    assert head.split()[:2] == ["rate/s", "sent"]
    assert (first.split()[0], second.split()[0]) == ("20", "40")
    assert verdict.startswith("40 requests a second held")
    found = json.loads(lowbit(capfd, monkeypatch, "loadtest", *options, "--output", "json").out)
    assert [each["rate"] for each in found["steps"]] == [20, 40]
    assert found["best"]["rate"] == 40
    over_grpc = lowbit(capfd, monkeypatch, "loadtest", *options, "--grpc", server.grpc or "", "--output", "json")
    assert json.loads(over_grpc.out)["best"]["errors"] == 0


def test_the_command_says_what_is_wrong(server: Running, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    done = lowbit(capfd, monkeypatch, "loadtest", server.url, "--model", "other")
    assert (done.code, "404" in done.err) == (2, True)
    assert lowbit(capfd, monkeypatch, "loadtest", server.url, "--model", "tiny", "--rate", "fast").code == 2


def test_the_key_comes_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.cli.loadtest import _headers

    monkeypatch.delenv("LOWBIT_API_KEY", raising=False)
    assert _headers(None) == {}
    (tmp_path / "key").write_text("secret\n")
    assert _headers(tmp_path / "key") == {"Authorization": "Bearer secret"}
    monkeypatch.setenv("LOWBIT_API_KEY", " other ")
    assert _headers(None) == {"Authorization": "Bearer other"}
    for text, words in ((b"one\ntwo\n", "There are 2 keys"), (b"# none\n", "There are 0 keys"), (b"\xff", "read"), (b"a\x1bb", "header")):
        (tmp_path / "key").write_bytes(text)
        with pytest.raises(UsageError, match=words):
            _headers(tmp_path / "key")


def test_grpc_has_tls_where_rest_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key in plain text beside an address with https would be a surprise."""
    import grpc

    made: list[str] = []

    def secure(address: str, *_: object) -> grpc.aio.Channel:
        made.append(f"tls {address}")
        return grpc.aio.insecure_channel(address)

    monkeypatch.setattr(grpc.aio, "secure_channel", secure)

    async def work() -> None:
        model = Model("tiny", "1", ((INPUT, "FP32", (-1, 3, 8, 8)),))
        for tls in (False, True):
            await GrpcTarget("127.0.0.1:1", model, varied(model, 1, 1, 0, 1), {}, channels=1, tls=tls).close()

    asyncio.run(work())
    assert made == ["tls 127.0.0.1:1"]
