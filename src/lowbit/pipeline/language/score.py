"""Judges a candidate on text: perplexity and divergence on windows that the baseline has been judged on, in a process of its own."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lowbit.bundle.language_words import as_adjective
from lowbit.bundle.manifest import write_atomic
from lowbit.bundle.schema import DivergenceEntry
from lowbit.errors import RunError
from lowbit.llm.candidate import EngineCandidate
from lowbit.llm.evaluate.answers import Answers
from lowbit.llm.evaluate.judge import TIMEOUT_S, Scored, evaluate_artifact, judge_answers, judge_task, spool_reference
from lowbit.llm.evaluate.paired_text import compare
from lowbit.llm.evaluate.perplexity import Perplexity
from lowbit.llm.evaluate.tasks import TaskScore
from lowbit.pipeline.language.budgets import source_precision
from lowbit.pipeline.language.context import BASELINE, LanguageContext
from lowbit.pipeline.language.text_bytes import sizes_of
from lowbit.types import Comparison, MetricValue

SPOOLED = 16_384
"""Tokens of the search's text that divergence is counted on: all their probabilities are kept while the search goes on."""

CACHE_BATCH = 16
"""Tokens that are scored at once where the cache is to be read."""

SLOWEST = 2e10
"""Operations a second: whoever reads a text more slowly than that, and an hour more, is taken to hang."""

Part = str
"""'search' or 'confirm'."""


def scored(context: LanguageContext, candidate: EngineCandidate, part: Part) -> Scored:
    """Perplexity on a part of the text; on the search's part divergence from the 16-bit model, whose probabilities the baseline leaves."""
    request, reporter = context.request, context.reporter
    documents = request.search if part == "search" else request.confirm
    reporter.stage(f"Reading text: {candidate.id}", len(documents))

    def progress(done: int, _: int) -> None:
        reporter.advance(done)

    timeout_s = patience_s(request.source.parameters, sum(len(tokens) for _, tokens in documents))
    common: dict[str, Any] = {"sizes": sizes_of(documents, request.source.path), "progress": progress, "timeout_s": timeout_s}
    if candidate.id == BASELINE and part == "search":
        return spool_reference(candidate, documents, request.windows, context.reference, tokens=SPOOLED, **common)
    reference = context.reference if part == "search" else None
    return evaluate_artifact(candidate, documents, request.windows, reference=reference, **common)


def patience_s(parameters: int, tokens: int) -> float:
    """Seconds after which somebody who reads a text is taken to hang: a large model on few cores takes hours for it, and does not.

    Args:
        parameters: Of the model; each is used twice for a token.
        tokens: Of the text.

    >>> patience_s(100_000_000, 100_000), patience_s(7_000_000_000, 100_000)
    (4600.0, 73600.0)
    """
    return TIMEOUT_S + 2 * parameters * tokens / SLOWEST


def as_judged(candidate: EngineCandidate) -> EngineCandidate:
    """A candidate as text is to judge it: one that is scored in a single piece never reads its cache, so that what few bits there
    cost would not be seen; in small pieces it is."""
    small = candidate.tuning.kv in ("int8", "int4")
    return replace(candidate, tuning=replace(candidate.tuning, batch=CACHE_BATCH)) if small else candidate


def spool(context: LanguageContext) -> None:
    """Keeps the 16-bit log-probabilities that divergence is counted against, where an interrupted search lost them."""
    if not (context.reference / "spool.json").exists():
        found = scored(context, context.runnable(BASELINE), "search")
        if found.error is not None:
            kind = as_adjective(source_precision(context.request.source.dtype))
            raise RunError(f"The {kind} model cannot be run: {found.error}")


def answered(context: LanguageContext, ident: str) -> Answers:
    """What a candidate answers to the questions, asked once.

    Raises:
        RunError: it cannot be asked.
    """
    request, file = context.request, context.store.candidate(ident) / "answers.json"
    assert request.questions is not None, "only asked where there are questions"
    if file.is_file():
        told = json.loads(file.read_text())
        return Answers(**{**told, **{name: tuple(told[name]) for name in ("exact", "f1_each", "texts")}})
    context.reporter.stage(f"Asking questions: {ident}")
    candidate = context.runnable(ident)
    found = judge_answers(candidate, request.questions, request.source.path, context=request.context)
    if found.answers is None:
        raise RunError(f"{ident} could not be asked: {found.error}")
    write_atomic(file, json.dumps(asdict(found.answers)) + "\n")
    return found.answers


def keep(context: LanguageContext, ident: str, part: Part, found: Perplexity) -> None:
    """Every window's sum beside the candidate, so that any comparison can be made again."""
    folder = context.store.candidate(ident)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{part}.json", json.dumps(asdict(found)) + "\n")


def forget(context: LanguageContext, ident: str) -> None:
    """Removes what was found of a candidate on unseen text and tasks: it was of another tuning."""
    folder = context.store.candidate(ident)
    for file in (folder / "confirm.json", folder / "answers.json", *folder.glob("task-*.json")):
        file.unlink(missing_ok=True)


def kept(context: LanguageContext, ident: str, part: Part) -> Perplexity | None:
    """What `keep` wrote."""
    file: Path = context.store.candidate(ident) / f"{part}.json"
    return Perplexity.from_dict(json.loads(file.read_text())) if file.is_file() else None


def comparison(baseline: Perplexity, found: Perplexity, divergence: DivergenceEntry | None, confidence: float) -> Comparison:
    """A candidate against the baseline on the same windows."""
    return Comparison(
        metric=MetricValue("perplexity", found.value, found.tokens),
        baseline=MetricValue("perplexity", baseline.value, baseline.tokens),
        delta=compare(baseline, found, confidence=confidence),
        agreement=divergence.top1 if divergence else float("nan"),
    )


def divergence_entry(found: Scored) -> DivergenceEntry | None:
    """As the manifest has it; None where none was counted."""
    if found.divergence is None:
        return None
    each = found.divergence
    return DivergenceEntry(kl_mean=each.kl_mean, kl_p99=each.kl_p99, top1=each.top1, tokens=each.tokens)


def task_score(context: LanguageContext, ident: str, task: Path) -> TaskScore:
    """A candidate's score on a task, found once.

    Raises:
        RunError: it cannot be judged.
    """
    request, file = context.request, context.store.candidate(ident) / f"task-{task.stem}.json"
    if file.is_file():
        told = json.loads(file.read_text())
        return TaskScore(**{**told, "samples": {name: tuple(values) for name, values in told["samples"].items()}})
    context.reporter.stage(f"Task {task.stem}: {ident}")
    found = judge_task(as_judged(context.runnable(ident)), task, request.source.path, context=request.context)
    if found.task is None:
        raise RunError(f"{ident} could not be judged by '{task.stem}': {found.error}")
    write_atomic(file, json.dumps(asdict(found.task)) + "\n")
    return found.task
