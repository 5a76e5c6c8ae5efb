"""Answers and inputs that are kept are those that were given, and never more than there is room for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from serving_case import INPUT, INT8, OUTPUT, tiny_bundle

from lowbit.monitoring.tally import Key
from lowbit.serving.answer.answered import Answered, Caller
from lowbit.serving.keep.backlog import Backlog
from lowbit.serving.keep.keepsakes import Predictions, Sampler, predictions_of, samples_of
from lowbit.serving.protocol.requests import InferRequest
from lowbit.serving.run import deployment
from lowbit.serving.run.deployment import Deployment
from small_models import images


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = deployment.load(tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny"), roles=())
    yield made
    made.close()


def asked(model: Deployment, name: str, x: Any, logits: Any) -> tuple[Any, ...]:
    found = Answered({OUTPUT: np.asarray(logits, np.float32)}, model.variants["chosen"], batch=len(x), ran_s=0.01)
    return model, InferRequest({INPUT: x}), Caller(name), found, 0.01


def test_a_backlog_is_bounded_and_counts_what_it_drops() -> None:
    waiting: Backlog[str] = Backlog(3, 100)
    for item, size in (("a", 40), ("b", 40), ("c", 40), ("d", 10), ("e", 1)):
        waiting.add(item, size)
    assert (waiting.take(1), waiting.dropped, len(waiting)) == (["a"], 2, 2)  # c is too large, e one too many
    waiting.add("f", 50)
    assert (waiting.take(), waiting.dropped) == (["b", "d", "f"], 2)
    waiting.add("g", 100)
    assert (waiting.take(), len(waiting)) == (["g"], 0)


def test_an_answer_is_kept_row_by_row_with_its_class_and_confidence(tiny: Deployment) -> None:
    observer = Predictions()
    logits = np.zeros((3, 10))
    logits[0, 4], logits[1, 2], logits[2, 0] = 100.0, np.log(9), np.nan
    observer.answered(*asked(tiny, "r1", images(3), logits))
    first, second = predictions_of(observer.waiting.take())  # what is no number has no class to compare a label with
    assert (first.request_id, first.key, first.part, first.predicted) == ("r1", Key("tiny", tiny.version, INT8), 0, 4)
    assert (second.part, second.predicted, second.confidence) == (1, 2, pytest.approx(0.5))


def test_a_share_of_the_inputs_is_kept_row_by_row(tiny: Deployment) -> None:
    x = images(2)
    everything, half, none = Sampler(1.0), Sampler(0.5, seed=1), Sampler(0.0)
    for number in range(1000):
        for observer in (half, none) if number else (everything, half, none):
            observer.answered(*asked(tiny, f"r{number}", x, np.zeros((2, 10))))
    assert 400 < len(half.waiting) < 600
    assert len(none.waiting) == 0
    first, second = samples_of(everything.waiting.take())
    np.testing.assert_array_equal(first.inputs[INPUT], x[0])
    np.testing.assert_array_equal(second.inputs[INPUT], x[1])
    assert (first.model, first.version, first.request_id) == ("tiny", tiny.version, "")  # whose label is a request's of two rows?
    everything.answered(*asked(tiny, "one", x[:1], np.zeros((1, 10))))
    assert samples_of(everything.waiting.take())[0].request_id == "one"


def test_answers_that_are_no_classes_are_not_kept(tiny: Deployment) -> None:
    from dataclasses import replace

    observer = Predictions()
    observer.answered(*asked(replace(tiny, reader=None), "r1", images(1), np.zeros((1, 10))))
    assert len(observer.waiting) == 0
