"""What a resumed search keeps of an earlier one, and what it must not: evidence of another tuning, shares of an error rate, artifacts."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from language_evidence import baseline, made, policy, rise, speed, task

from lowbit.bundle.schema import EngineTuningEntry
from lowbit.llm.candidate import EngineCandidate
from lowbit.llm.engines.base import EngineTuning
from lowbit.llm.evaluate.perplexity import DocumentScore, Perplexity
from lowbit.pipeline.language import finish
from lowbit.pipeline.language.context import BASELINE, LanguageContext
from lowbit.pipeline.language.decide import decide
from lowbit.pipeline.language.score import as_judged, keep
from lowbit.pipeline.language.state import State, apply
from lowbit.pipeline.language.write import _pruned
from lowbit.pipeline.reporting import Reporter
from lowbit.pipeline.store import Store, claimed

INT4 = "int4-gptq@llamacpp"
INT8 = "int8@llamacpp"


def state(*more: Any) -> State:
    """The baseline and a confirmed INT4, raced."""
    pairs = [baseline(), made(INT4, "int4", 0.03, speed(500, 160), 150_000_000, tasks=(task(0.0),)), *more]
    return State(
        candidates={c.id: c for c, _ in pairs}, facts={c.id: facts for c, facts in pairs}, finalists=(INT4,), raced={BASELINE: 7, INT4: 7}
    )


def context(folder: Path, found: State, **options: Any) -> LanguageContext:
    request = SimpleNamespace(policy=policy(), questions=None, tasks=(), confirm=[], options=SimpleNamespace(**options))
    return LanguageContext(cast("Any", request), Store(folder), Reporter(), None, found)


def tuned(kv: str) -> dict[str, Any]:
    found = {"perplexity": 52.0, "divergence": {"kl_mean": 0.1, "kl_p99": 1.0, "top1": 0.9, "tokens": 10}}
    tuning = EngineTuningEntry.model_validate({"kv": kv}).model_dump()
    return {"event": "tuned", "id": INT4, "tuning": tuning, "comparison": None, "facts": found, "speed": None}


def test_another_tuning_voids_what_was_confirmed_of_the_one_before() -> None:
    found = state()
    apply(found, tuned("int8"))
    assert found.candidates[INT4].confirm is None
    assert found.facts[INT4].tasks == ()
    assert INT4 not in found.raced
    assert found.facts[INT4].perplexity == 52.0
    same = state()
    apply(same, {**tuned("f16"), "facts": {}})
    assert same.candidates[INT4].confirm is not None
    assert same.raced[INT4] == 7


def test_what_cannot_be_timed_in_the_end_does_not_ship_by_an_earlier_speed() -> None:
    found = state()
    assert decide(found.candidates[BASELINE], list(found.candidates.values()), found.facts, policy()).verdict == "ship"
    apply(found, {"event": "measured", "raced": {INT4: 7}, "results": {INT4: {"speed": None, "error": "It could not be timed: killed"}}})
    assert found.facts[INT4].speed is None
    decision = decide(found.candidates[BASELINE], list(found.candidates.values()), found.facts, policy())
    assert decision.verdict == "provisional"
    assert "killed" in " ".join(decision.reasons)


def test_a_cache_of_few_bits_is_read_where_text_judges() -> None:
    few = EngineCandidate("x", "llamacpp", Path("model.gguf"), EngineTuning(kv="int4", threads=2))
    assert as_judged(few).tuning == replace(few.tuning, batch=16)
    plain = replace(few, tuning=EngineTuning(threads=2))
    assert as_judged(plain) == plain


def text(shift: float) -> Perplexity:
    documents = tuple(
        DocumentScore(f"t:{i}", 60.0 + i % 3 + shift * (1 + i % 2), 20, (60.0 + i % 3 + shift * (1 + i % 2),), (20,)) for i in range(40)
    )
    mean = sum(each.nll for each in documents) / 800
    return Perplexity(2.718281828**mean, mean, 800, documents, 21)


def test_finalists_of_a_resumed_search_share_the_error_rate_with_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = made(INT8, "int8", 0.001, speed(900, 85), 260_000_000, confirmed=False)
    found = state(second)
    found.finalists = (INT8,)
    at = context(tmp_path, found)
    keep(at, BASELINE, "confirm", text(0.0))
    keep(at, INT4, "confirm", text(0.1))
    asked = []

    def scored(_: LanguageContext, candidate: EngineCandidate, part: str) -> Any:
        asked.append((candidate.id, part))
        return SimpleNamespace(perplexity=text(0.01), error=None)

    monkeypatch.setattr(finish, "scored", scored)
    finish.confirm(at)
    assert asked == [(INT8, "confirm")]  # the other's windows are kept
    assert {found.candidates[ident].confirm.delta.confidence for ident in (INT4, INT8)} == {0.975}  # type: ignore[union-attr]
    finish.confirm(at)
    assert len(asked) == 1


@pytest.mark.parametrize(("complete", "prune", "there"), [(True, True, False), (False, True, True), (True, False, True)])
def test_only_a_finished_search_is_pruned(tmp_path: Path, complete: bool, prune: bool, there: bool) -> None:
    found = state()
    found.complete = complete
    file = tmp_path / "candidates" / INT4 / "model" / "model.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF")
    candidate = replace(found.candidates[INT4], artifact=file.relative_to(tmp_path).as_posix())
    at = context(tmp_path, found, prune=prune)
    assert (_pruned(at, candidate, BASELINE).artifact is not None) == there
    assert file.exists() == there
    file.unlink(missing_ok=True)
    assert _pruned(at, candidate, BASELINE).artifact is None  # never one that is not there


def test_a_bundle_of_a_language_model_can_be_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claimed(out, "one") as store:
        store.journal.append("start", key="one")
        (out / "tokenizer").mkdir()
        (out / "tokenizer" / "tokenizer.json").write_text("{}")
    with claimed(out, "two", force=True):
        assert not (out / "tokenizer").exists()


def test_evidence_survives_the_journal() -> None:
    comparison = asdict(rise(0.01))
    found = state()
    apply(found, {**tuned("int8"), "comparison": comparison})
    assert found.candidates[INT4].search == rise(0.01)
