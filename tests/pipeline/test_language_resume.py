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
from lowbit.llm.workload.tune import Tuned
from lowbit.pipeline.language import finish, optimize, timing
from lowbit.pipeline.language.context import BASELINE, LanguageContext
from lowbit.pipeline.language.decide import decide
from lowbit.pipeline.language.request import LanguageOptions
from lowbit.pipeline.language.score import as_judged, keep
from lowbit.pipeline.language.state import State, apply, read_state
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


# ── tuning that was cut short ───────────────────────────────────────────────────────────────────────────────────────

OPENVINO = "int4-gptq@openvino"
FASTER = EngineTuning(threads=2)


class Search:
    """Two candidates of two engines that are made and timed, and a search that goes on from there with a journal of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.tuned, self.raced, self.stop = folder, list[str](), list[str](), ""
        engine = SimpleNamespace(tunings=lambda _: (EngineTuning(), FASTER))
        monkeypatch.setattr(timing, "registry", SimpleNamespace(get=lambda _: engine))
        monkeypatch.setattr(timing, "screened", self.screened)
        monkeypatch.setattr(optimize, "confirm", lambda _: None)
        monkeypatch.setattr(optimize, "race", lambda at: self.raced.extend(at.state.finalists))
        monkeypatch.setattr(optimize, "write_bundle", lambda *_: None)

    def screened(self, candidate: EngineCandidate, *_: Any, **__: Any) -> Tuned:
        if candidate.id == self.stop:
            self.stop = ""
            raise KeyboardInterrupt
        self.tuned.append(candidate.id)
        return Tuned(FASTER, FASTER, ())

    def at(self, end: float | None = None) -> LanguageContext:
        request = SimpleNamespace(
            key="k", source=SimpleNamespace(path=Path("llama"), sha256="0" * 64), policy=policy(), budget=None, task_drop=0.02, plans=(),
            hardware=SimpleNamespace(cores=2), workload=None, options=LanguageOptions(),
        )  # fmt: skip
        store = Store(self.folder)
        found = LanguageContext(cast("Any", request), store, Reporter(), end, read_state(store.journal))
        if not found.state.candidates:
            for candidate, facts in (
                baseline(),
                made(INT4, "int4", 0.03, speed(500, 160), 150_000_000),
                made(OPENVINO, "int4", 0.03, speed(400, 160), 150_000_000),
            ):
                found.candidate(candidate, facts.model_copy(update={"artifact": f"candidates/{candidate.id}/model.gguf"}))
        return found

    def run(self, end: float | None = None) -> LanguageContext:
        found = self.at(end)
        optimize.run(found, "lowbit optimize")
        return found


def test_a_search_killed_while_it_tunes_goes_on_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(tmp_path, monkeypatch)
    search.stop = OPENVINO
    with pytest.raises(KeyboardInterrupt):
        search.run()
    assert search.tuned == [INT4]
    assert search.at().state.tuned == {INT4}
    assert search.raced == []
    found = search.run()
    assert search.tuned == [INT4, OPENVINO], "what was tuned is not tuned again, and the other is"
    assert found.state.facts[OPENVINO].tuning.threads == 2
    assert found.state.complete
    assert set(search.raced) == {INT4, OPENVINO}


def test_a_search_out_of_time_tunes_when_it_has_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(tmp_path, monkeypatch)
    first = search.run(end=0.0)
    assert (search.tuned, first.state.complete, first.state.cut) == ([], False, True)
    assert first.state.finalists, "it decides by what it has"
    again = search.run(end=0.0)
    assert (search.tuned, again.state.complete) == ([], False)
    found = search.run()
    assert search.tuned == [INT4, OPENVINO]
    assert (found.state.complete, found.state.cut) == (True, False)
    search.run()
    assert len(search.tuned) == 2, "a finished search is not tuned again"


def test_finalists_of_a_whole_search_are_not_chosen_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(tmp_path, monkeypatch)
    monkeypatch.setattr(optimize, "race", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        search.run()
    monkeypatch.setattr(optimize, "race", lambda _: None)
    search.run()
    events = [event["event"] for event in Store(tmp_path).journal.events()]
    assert events.count("finalists") == 1
    assert events.count("tuned") == 2
