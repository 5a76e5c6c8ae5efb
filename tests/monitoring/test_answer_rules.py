"""Rules for language models' answers: perplexity, length and refusals against the baseline, and the reviews they open."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from lowbit.measure.compare import BINS
from lowbit.monitoring import answers
from lowbit.monitoring.baseline import Baseline
from lowbit.monitoring.findings import Finding
from lowbit.monitoring.looking import look
from lowbit.monitoring.moments import Moments
from lowbit.monitoring.rules import evaluate
from lowbit.monitoring.store import Monitoring
from lowbit.monitoring.tally import Key, Tally
from lowbit.monitoring.windows import Window

KEY = Key("tiny", "1", "int4@bigram")


def tally(
    n: int = 3000, *, surprise: float = 1.0, tokens: float = 100.0, refusals: float = 0.01, prompt: float = 50.0, seed: int = 0
) -> Tally:
    """Of so many answers."""
    rng = np.random.default_rng(seed)
    nats = np.clip(rng.normal(surprise, 0.3, n), 0.01, None)
    confidence, _ = np.histogram(np.exp(-nats), bins=BINS, range=(0, 1))
    refused = round(refusals * n)
    inputs = {
        "surprise": Moments.of(nats),
        "answer_tokens": Moments.of(rng.normal(tokens, 40, n)),
        "prompt_tokens": Moments.of(rng.normal(prompt, 20, n)),
    }
    return Tally(n, 0, n, n, tuple(int(each) for each in confidence), (), (n - refused, 0, refused), inputs)


def found(now: Tally, before: Tally | None = None) -> dict[str, Finding]:
    window, baseline = Window(KEY, 0.0, 60.0, now), Baseline(before or tally(seed=1))
    return {each.kind: each for each in evaluate(window, baseline)}


def test_nothing_moved() -> None:
    said = found(tally())
    assert set(said) == {"low_tail", "inputs", "perplexity", "length", "refusals"}
    assert not any(each.review for each in said.values()), said


@pytest.mark.parametrize(
    ("moved", "kind"),
    [
        ({"surprise": 1.12}, "perplexity"),
        ({"surprise": 0.88}, "perplexity"),
        ({"tokens": 115.0}, "length"),
        ({"refusals": 0.035}, "refusals"),
    ],
)
def test_each_rule_sees_what_it_is_for(moved: dict[str, float], kind: str) -> None:
    reviews = {name for name, each in found(tally(**moved)).items() if each.review}
    assert kind in reviews
    assert reviews <= {kind, "low_tail"}


def test_prompts_that_change_are_inputs() -> None:
    assert found(tally(prompt=60.0))["inputs"].review


def test_what_is_said() -> None:
    said = found(tally(surprise=1.2))["perplexity"]
    exact = math.expm1(said.numbers["mean"] - said.numbers["baseline_mean"])
    assert said.value == pytest.approx(exact)
    assert f"({exact:+.1%}); 10% is allowed." in said.text
    assert "Perplexity of the answers 3.2" in said.text
    assert "3.50% of the answers begin like a refusal, against 1.00%" in found(tally(4000, refusals=0.035))["refusals"].text


def test_less_refusals_and_few_answers_are_nobodys_business() -> None:
    assert not found(tally(refusals=0.0), tally(refusals=0.2))["refusals"].review
    few = found(tally(1500, surprise=3.0, tokens=300, refusals=0.5))
    assert not any(each.review for each in few.values())
    assert all("the rule needs 2,000" in few[kind].text for kind in ("perplexity", "length", "refusals"))


def test_first_refusals_count_once_there_are_enough() -> None:
    assert not found(tally(refusals=0.005), tally(refusals=0.0))["refusals"].review
    assert found(tally(refusals=0.025), tally(refusals=0.0))["refusals"].review


def test_other_models_keep_their_rules() -> None:
    plain = Tally(3000, 0, 3000, 3000, tally().confidence, (), (2000, 1000), {"x": Moments.of(np.arange(3000.0))})
    assert not answers.are_answers(plain)
    assert set(found(plain, plain)) == {"confidence", "low_tail", "predictions", "inputs"}


def test_a_baseline_is_learned_and_a_review_opens(tmp_path: Path) -> None:
    store = Monitoring(tmp_path)
    store.set_baseline(KEY, Baseline())
    store.add([Window(KEY, 1000.0, 1060.0, tally(5200, seed=2))])
    learned = look(store, KEY, now=1100.0)
    assert learned.baseline is not None
    assert set(learned.baseline.learned) == {"confidence", "predictions", "inputs"}
    assert not learned.opened
    store.add([Window(KEY, 1100.0, 1160.0, tally(4000, surprise=1.5, refusals=0.1, seed=3))])
    kinds = {review.kind for review in look(store, KEY, now=1200.0).opened}
    assert {"perplexity", "refusals"} <= kinds
    assert "length" not in kinds
    assert {review.kind for review in store.reviews.listed("open")} == kinds
    store.close()
