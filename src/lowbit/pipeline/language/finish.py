"""The finalists: at most three, confirmed on text that the search never saw, asked questions, and raced together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowbit.bundle.language_words import as_adjective, is_source
from lowbit.bundle.schema import DeltaEntry, TaskEntry
from lowbit.errors import RunError
from lowbit.llm.evaluate.paired_text import compare_scores
from lowbit.pipeline.language.budgets import budget_of, source_precision
from lowbit.pipeline.language.context import BASELINE, LanguageContext
from lowbit.pipeline.language.decide import score
from lowbit.pipeline.language.score import answered, as_judged, comparison, keep, kept, scored, task_score
from lowbit.pipeline.language.timing import time_together
from lowbit.types import Candidate

MOST = 3
"""Finalists share one error rate: each more makes every interval wider."""


def contenders(context: LanguageContext) -> list[Candidate]:
    """Who is tuned: the best of each engine, since tuning moves engines further apart than recipes, and whoever leads anyway."""
    ranked = _holding(context)
    firsts = [next(c for c in ranked if c.runtime == engine) for engine in dict.fromkeys(c.runtime for c in ranked)]
    return list({c.id: c for c in [*firsts, *finalists(context)]}.values())


def finalists(context: LanguageContext) -> list[Candidate]:
    """The best by the objective of those within their budget; one of 8 bits among them, to fall back on."""
    ranked = _holding(context)
    first = ranked[:MOST]
    wide = [c for c in ranked if c.precision == "int8"]
    if len(first) == MOST and wide and not any(c.precision == "int8" for c in first):
        first[-1] = wide[0]
    return first


def _holding(context: LanguageContext) -> list[Candidate]:
    """What was changed and is within its budget, the best by the objective first."""
    state, policy = context.state, context.request.policy
    found = [
        c
        for c in state.candidates.values()
        if not is_source(c.precision)
        and c.status == "done"
        and c.search is not None
        and c.search.delta.value <= budget_of(c.precision, context.request.budget).value
    ]
    return sorted(found, key=lambda c: (_known(score(state.facts[c.id], policy, c.size_bytes)), c.size_bytes or 0, c.id))


def _known(value: float) -> float:
    return value if value == value else float("inf")


def confirm(context: LanguageContext) -> None:
    """Perplexity on unseen text, and the tasks, of the baseline and of each finalist that was not confirmed yet.

    Whoever was confirmed before a resumed search found other finalists shares the error rate with them: its interval is made anew.
    """
    state, request = context.state, context.request
    sharing = dict.fromkeys([*state.finalists, *(c.id for c in state.candidates.values() if c.confirm is not None)])
    if not sharing:
        return
    confidence = 1 - (1 - request.policy.confidence) / len(sharing)
    waiting = [ident for ident in sharing if not _confirmed(context, ident, confidence)]
    if not waiting:
        return
    baseline = kept(context, BASELINE, "confirm")
    if baseline is None:
        found = scored(context, context.runnable(BASELINE), "confirm")
        if found.perplexity is None:
            kind = as_adjective(source_precision(request.source.dtype))
            raise RunError(f"The {kind} model cannot be run: {found.error}")
        baseline = found.perplexity
        keep(context, BASELINE, "confirm", baseline)
    for ident in waiting:
        perplexity = kept(context, ident, "confirm") if state.candidates[ident].confirm is not None else None
        if perplexity is None:
            found = scored(context, as_judged(context.runnable(ident)), "confirm")
            if found.perplexity is None:
                context.reporter.note(f"{ident} could not be confirmed: {found.error}")
                continue
            perplexity = found.perplexity
            keep(context, ident, "confirm", perplexity)
        try:
            tasks = [task.model_dump(mode="json") for task in _tasks(context, ident, confidence)]
        except RunError as error:  # one candidate's engine; the others may still be confirmed
            context.reporter.note(f"{ident} could not be confirmed: {error.message}")
            continue
        context.record("confirmed", id=ident, comparison=comparison(baseline, perplexity, None, confidence), tasks=tasks)


def _confirmed(context: LanguageContext, ident: str, confidence: float) -> bool:
    found = context.state.candidates[ident].confirm
    return found is not None and math.isclose(found.delta.confidence, confidence)


def _tasks(context: LanguageContext, ident: str, confidence: float) -> Sequence[TaskEntry]:
    """Questions with known answers, and tasks, paired with the baseline's; a task that is no mean over samples is left out."""
    found = []
    if context.request.questions is not None:
        ours, theirs = answered(context, BASELINE), answered(context, ident)
        for metric, before, after in (("exact_match", ours.exact, theirs.exact), ("f1", ours.f1_each, theirs.f1_each)):
            found.append(_paired("qa", metric, before, after, confidence))
    for file in context.request.tasks:
        reference, score_ = task_score(context, BASELINE, file), task_score(context, ident, file)
        if not reference.paired or not score_.paired:
            context.reporter.note(f"Task '{file.stem}' has no score for each sample: it cannot be compared in pairs.")
            continue
        sign = 1.0 if reference.higher_is_better else -1.0
        found.append(_paired(file.stem, reference.metric, reference.paired, score_.paired, confidence, sign))
    return found


def _paired(name: str, metric: str, before: Sequence[float], after: Sequence[float], confidence: float, sign: float = 1.0) -> TaskEntry:
    """One task; a drop of what should be high, or a rise of what should be low, is positive."""
    signed = [[sign * value for value in values] for values in (before, after)]
    delta = DeltaEntry.model_validate(compare_scores(*signed, confidence=confidence))
    return TaskEntry(name=name, metric=metric, value=_mean(after), baseline=_mean(before), delta=delta)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def race(context: LanguageContext) -> None:
    """The final timing: the baseline, the fastest 16-bit version and the finalists together, in turn."""
    state, request = context.state, context.request
    sources = [c for c in state.candidates.values() if is_source(c.precision) and c.status == "done"]
    fastest = min(sources, key=lambda c: (_known(score(state.facts[c.id], request.policy, c.size_bytes)), c.id))
    ids = list(dict.fromkeys([BASELINE, fastest.id, *state.finalists]))
    if all(state.raced.get(ident, 0) >= request.options.rounds for ident in ids):
        return
    time_together(context, ids, request.options.rounds, "Timing the finalists")
