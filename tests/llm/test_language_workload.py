"""What people ask for: the short form, logs of requests, and what is run of each shape."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import DataError, UsageError
from lowbit.llm.workload.stages import Plan, is_sampled, plan, round_of
from lowbit.llm.workload.workload import Shape, Workload


def test_the_short_form() -> None:
    workload = Workload.parse("prompt=512, output=128,concurrency=4")
    assert workload == Workload((Shape(512, 128),), 4)
    assert (workload.context, workload.prompt, workload.output) == (640, 512, 128)
    assert str(workload) == "prompt=512,output=128,concurrency=4"
    assert Workload.parse(str(workload)) == workload
    assert Workload.parse("output=1,prompt=2").concurrency == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "'' has no value"),
        ("512", "'512' has no value"),
        ("prompt=512", "lacks output"),
        ("concurrency=2", "lacks prompt and output"),
        ("prompt=512,output=0", "output is a whole number from 1 on, found '0'"),
        ("prompt=512,output=1.5", "found '1.5'"),
        ("prompt=-1,output=1", "found '-1'"),
        ("prompt=²,output=1", "found '²'"),
        ("promt=512,output=1", "Unknown key of a workload 'promt'"),
        ("prompt=512,output=1,prompt=2", "says prompt twice"),
        ("prompt=512,output=1,", "'' has no value"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, found: str) -> None:
    with pytest.raises(UsageError, match=found):
        Workload.parse(text)


def log(path: Path, rows: list[object]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_counts_are_found_where_logs_have_them(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
    rows: list[object] = [
        {"prompt": 10, "output": 20},
        {"prompt": "the text itself", "usage": usage},
        usage,
        "",
        {"response": {"usage": {"input_tokens": 10, "output_tokens": 20}}},
        {"custom_id": "x", "response": {"status_code": 200, "body": {"usage": usage}}},
        {"response": {"status_code": 500, "body": {"error": "busy"}}},
        {"usage": None},
        {"prompt": 10, "output": 0},
        [1, 2],
    ]
    found = Workload.from_log(log(tmp_path / "log.jsonl", rows))
    assert found == Workload((Shape(10, 20, 1.0),), 1, requests=5)


def test_a_mix_keeps_what_is_read_and_written_in_all(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    counts = np.stack([random.lognormal(5, 1, 1000), random.lognormal(4, 1, 1000)], axis=1).astype(int) + 1
    rows: list[object] = [{"prompt": int(prompt), "output": int(output)} for prompt, output in counts]
    found = Workload.from_log(log(tmp_path / "log.jsonl", rows), concurrency=3)
    assert len(found.shapes) == 9
    assert found.concurrency == 3
    assert found.requests == 1000
    assert sum(shape.weight for shape in found.shapes) == pytest.approx(1)
    assert found.prompt == pytest.approx(counts[:, 0].mean(), rel=0.01)
    assert found.output == pytest.approx(counts[:, 1].mean(), rel=0.01)
    assert max(shape.prompt for shape in found.shapes) > 3 * min(shape.prompt for shape in found.shapes)
    assert "1,000 requests of 9 shapes" in str(found)


@given(counts=st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=40))
def test_any_log_becomes_a_workload(counts: list[tuple[int, int]]) -> None:
    from lowbit.llm.workload.workload import _shapes

    shapes = _shapes(np.array(counts))
    assert 1 <= len(shapes) <= 9
    assert sum(shape.weight for shape in shapes) == pytest.approx(1)
    assert sum(shape.weight * shape.prompt for shape in shapes) == pytest.approx(np.mean([p for p, _ in counts]), abs=0.51)


def test_logs_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read"):
        Workload.from_log(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="it is empty"):
        Workload.from_log(log(tmp_path / "empty.jsonl", []))
    with pytest.raises(DataError, match="none of its 2 lines has prompt_tokens"):
        Workload.from_log(log(tmp_path / "other.jsonl", [{"a": 1}, {"prompt": 3}]))
    with pytest.raises(DataError, match="line 2, is no JSON"):
        Workload.from_log(log(tmp_path / "torn.jsonl", [{"prompt": 3, "output": 4}, '{"prom']))


def test_either_form_is_read(tmp_path: Path) -> None:
    assert Workload.of("prompt=1,output=2") == Workload.parse("prompt=1,output=2")
    assert Workload.of(str(log(tmp_path / "log.jsonl", [{"prompt": 3, "output": 4}]))).requests == 1
    with pytest.raises(UsageError, match="neither a log of requests"):
        Workload.of(str(tmp_path / "none.jsonl"))


def test_short_answers_are_written_out_and_long_ones_at_both_ends() -> None:
    assert plan(Shape(100, 1), steps=5) == Plan(100, 1, first=0, near=0)
    assert plan(Shape(100, 2), steps=5) == Plan(100, 2, first=1, near=0)
    assert plan(Shape(100, 12), steps=5) == Plan(100, 12, first=1, near=10)
    long = plan(Shape(100, 13), steps=5)
    assert long == Plan(100, 13, first=1, near=5, far_prompt=107, far=5)
    assert long.far_prompt + 1 + long.far == 113, "the last step is the answer's last"
    assert is_sampled([Shape(1, 2), Shape(100, 13)], steps=5)
    assert not is_sampled([Shape(1, 2), Shape(100, 12)], steps=5)


def affine(prompt: int, steps: int, base: float = 0.01, slope: float = 1e-5) -> list[float]:
    """What steps after a prompt take where a token takes longer the longer the context."""
    wall = sum(base + slope * (prompt + i) for i in range(steps))
    return [wall, 2 * wall, float("nan")]


def test_two_ends_of_a_long_answer_give_the_time_of_all_of_it() -> None:
    """A token takes an affine time, so the extrapolation is exact."""
    shape = Shape(300, 1000)
    run = plan(shape, steps=20)
    answer = {
        "start": [0.5, 0.9, float("nan")],
        "first": affine(300, 1),
        "near": affine(301, 20),
        "far": affine(run.far_prompt + 1, 20),
    }
    found = round_of([answer], [shape], 1, steps=20)
    decode = affine(300, 999)
    assert found.ttft_s == 0.5
    assert found.decode_s == pytest.approx(decode[0], rel=1e-3)
    assert found.total_s == pytest.approx(0.5 + decode[0], rel=1e-3)
    assert found.cpu_s == pytest.approx(0.9 + decode[1], rel=1e-3)
    assert found.prefill_tokens_per_s == pytest.approx(600)
    assert found.requests_per_s == pytest.approx(1 / found.total_s)
    assert found.joules is None


def test_shapes_count_by_their_weights() -> None:
    shapes = [Shape(100, 1, 0.75), Shape(10, 3, 0.25)]
    answers = [{"start": [1.0, 2.0, 4.0]}, {"start": [0.2, 0.3, 1.0], "first": [0.1, 0.1, 1.0], "near": [0.1, 0.1, 1.0]}]
    found = round_of(answers, shapes, 1)
    assert found.ttft_s == pytest.approx(0.75 * 1 + 0.25 * 0.2)
    assert found.total_s == pytest.approx(0.75 * 1 + 0.25 * 0.4)
    assert found.prefill_tokens_per_s == pytest.approx((75 + 2.5) / 0.8)
    assert found.output_tokens_per_s == pytest.approx((0.75 + 0.75) / found.total_s)
    assert found.joules == pytest.approx(0.75 * 4 + 0.25 * 3)
    assert found.decode_s == pytest.approx(0.25 * 0.2)


def test_a_wave_is_shared_by_its_requests() -> None:
    """Four requests of 50 tokens: 4 + 6 came while prompts were read, the other 190 take 10 ms each."""
    answer = {
        "start": [2.0, 4.0, float("nan")],
        "emitted": 10,
        "ahead": 4,
        "ttft": 1.25,
        "near": [1.9, 3.8, float("nan")],
        "near_emitted": 190,
    }
    found = round_of([answer], [Shape(300, 50)], 4, steps=100)
    assert found.total_s == pytest.approx(3.9)
    assert found.ttft_s == 1.25
    assert found.requests_per_s == pytest.approx(4 / 3.9)
    assert found.output_tokens_per_s == pytest.approx(200 / 3.9)
    assert found.prefill_tokens_per_s == pytest.approx(600)
    assert found.cpu_s == pytest.approx(7.8 / 4)
    sampled = {**answer, "near": [0.4, 0.8, 0.0], "near_emitted": 40, "far": [0.8, 1.6, 0.0], "far_emitted": 40}
    longer = round_of([sampled], [Shape(300, 500)], 4, steps=10)
    assert longer.total_s == pytest.approx(2.0 + 1990 * 0.015)
