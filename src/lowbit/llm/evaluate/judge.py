"""Judges candidates one after the other, each alone in its process, so that none can disturb or end this one.

A candidate that crashes, hangs or cannot be loaded gives a record with an `error`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import RunError
from lowbit.llm.candidate import EngineCandidate
from lowbit.llm.evaluate.answers import TEMPLATE, Answers, check_template, read_questions, score
from lowbit.llm.evaluate.divergence import Divergence, discard, divergence
from lowbit.llm.evaluate.perplexity import Perplexity, Progress, gather
from lowbit.llm.evaluate.tasks import TaskScore, read_task
from lowbit.llm.evaluate.windows import Documents, Windows, cut
from lowbit.llm.evaluate.worker import save_documents
from lowbit.measure.lane import Lane

WORKER = "lowbit.llm.evaluate.worker"
TURN_S = 1.0
"""Seconds of work between two signs of life."""
TIMEOUT_S = 3600.0
SPOOL_TOKENS = 20_000
ANSWER_TOKENS = 32


@dataclass(frozen=True)
class Scored:
    """What was found of one candidate.

    Attributes:
        perplexity: None where it failed.
        divergence: From the reference; None where it failed or there is none.
        seconds: Of wall time, loading included.
        error: Why it failed.
        peak_memory_bytes: Of its process, mapped weights included.
        precision: Arithmetic that the engine really used for what is floating point.
    """

    perplexity: Perplexity | None
    divergence: Divergence | None
    seconds: float
    error: str | None = None
    peak_memory_bytes: int | None = None
    precision: str | None = None


@dataclass(frozen=True)
class Judged:
    """A task or questions on one candidate: one of the two, or why there is none."""

    task: TaskScore | None = None
    answers: Answers | None = None
    seconds: float = 0.0
    error: str | None = None


def evaluate_artifact(
    candidate: EngineCandidate,
    documents: Documents,
    windows: Windows,
    *,
    reference: Path | None = None,
    sizes: Mapping[str, int] | None = None,
    progress: Progress | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Scored:
    """Perplexity of an artifact, and its divergence from the 16-bit model.

    Args:
        candidate: Engine, artifact and tuning.
        documents: Names and tokens.
        windows: How they are cut.
        reference: What `spool_reference` wrote, of the same documents and windows.
        sizes: Name -> bytes of the text, for bits a byte.
        progress: Called with windows done and in all.
        timeout_s: For all of it.

    Raises:
        DataError: there is nothing to score.
    """
    return _score(candidate, documents, windows, {"reference": _absolute(reference), "spool": None}, sizes, progress, timeout_s)


def spool_reference(
    candidate: EngineCandidate,
    documents: Documents,
    windows: Windows,
    path: Path,
    *,
    tokens: int = SPOOL_TOKENS,
    sizes: Mapping[str, int] | None = None,
    progress: Progress | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Scored:
    """Evaluates the 16-bit model as `evaluate_artifact` does, and keeps its log-probabilities of some windows for the others.

    Args:
        candidate: The 16-bit model.
        documents: Names and tokens.
        windows: How they are cut.
        path: Folder to write to; replaced, and only at the end. 2 bytes a token and a word of the vocabulary.
        tokens: About so many, from windows spread evenly over all.
        sizes: As in `evaluate_artifact`.
        progress: As there.
        timeout_s: As there.

    Raises:
        DataError: there is nothing to score.
    """
    spool = {"path": _absolute(path), "tokens": tokens}
    scored = _score(candidate, documents, windows, {"reference": None, "spool": spool}, sizes, progress, timeout_s)
    if scored.error is not None:
        discard(path)
    return scored


def judge_task(
    candidate: EngineCandidate,
    task: Path,
    tokenizer: Path,
    *,
    context: int = 2048,
    limit: int | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Judged:
    """A task of lowbit.llm.evaluate.tasks on an artifact.

    Args:
        candidate: Engine, artifact and tuning.
        task: The file.
        tokenizer: Folder with the model's tokenizer and config.json.
        context: Tokens that the model may see at once.
        limit: Only so many samples.
        timeout_s: For all of it.

    Raises:
        DataError: the file is no task.
        UsageError: it needs the network, or the harness is not installed.
    """
    read_task(task)
    start = time.monotonic()
    try:
        *_, last = _turns(candidate, {"work": "task", "context": context, **_files(task, tokenizer), "limit": limit}, timeout_s)
    except RunError as error:
        return Judged(seconds=time.monotonic() - start, error=error.message)
    told = {**last["score"], "samples": {name: tuple(values) for name, values in last["score"]["samples"].items()}}
    return Judged(task=TaskScore(**told), seconds=time.monotonic() - start)


def judge_answers(
    candidate: EngineCandidate,
    questions: Path,
    tokenizer: Path,
    *,
    template: str = TEMPLATE,
    tokens: int = ANSWER_TOKENS,
    context: int = 2048,
    limit: int | None = None,
    progress: Progress | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Judged:
    """Questions of lowbit.llm.evaluate.answers on an artifact; arguments as in `judge_task` and `answer_texts`.

    Raises:
        DataError: the file has no questions.
        UsageError: the template has no place for them.
    """
    asked = read_questions(questions)[:limit]
    spec = {"work": "answers", "context": context, **_files(questions, tokenizer), "limit": limit, "tokens": tokens}
    start, texts = time.monotonic(), list[str]()
    try:
        for answer in _turns(candidate, {**spec, "template": check_template(template)}, timeout_s):
            texts += answer["texts"]
            if progress is not None:
                progress(len(texts), len(asked))
    except RunError as error:
        return Judged(seconds=time.monotonic() - start, error=error.message)
    return Judged(answers=score(asked, texts), seconds=time.monotonic() - start)


def _score(
    candidate: EngineCandidate,
    documents: Documents,
    windows: Windows,
    options: dict[str, Any],
    sizes: Mapping[str, int] | None,
    progress: Progress | None,
    timeout_s: float,
) -> Scored:
    pieces = cut(documents, windows)
    start, sums, kl, agree = time.monotonic(), list[float](), list[float](), 0
    last: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            save_documents(documents, path := Path(folder) / "documents.npz")
            spec = {"work": "windows", "context": windows.size, "documents": str(path), "windows": asdict(windows), **options}
            for last in _turns(candidate, spec, timeout_s):
                sums += last["nll"]
                kl += last["kl"]
                agree += last["agree"]
                if progress is not None:
                    progress(len(sums), len(pieces))
        found = gather(documents, pieces, sums, windows, sizes)
        compared = divergence(np.array(kl), agree) if options["reference"] else None
    except RunError as error:
        return Scored(None, None, time.monotonic() - start, error.message, last.get("peak"), last.get("precision"))
    return Scored(found, compared, time.monotonic() - start, None, last["peak"], last["precision"])


def _turns(candidate: EngineCandidate, spec: dict[str, Any], timeout_s: float) -> Iterator[dict[str, Any]]:
    """The worker's answers until it is done.

    Raises:
        RunError: it could not be loaded, crashed, or took too long.
    """
    deadline = time.monotonic() + timeout_s
    with Lane(WORKER) as lane:
        lane.load({**candidate.spec(), **spec}, timeout_s)
        done = 0.0
        while lane.error is None and done < 1:
            answer = lane.ask({"seconds": TURN_S}, max(deadline - time.monotonic(), 0.1))
            if answer is not None:
                done = answer["done"]
                yield {**answer, "precision": lane.ready["precision"]}
        if lane.error is not None:
            raise RunError(lane.error)


def _files(task: Path, tokenizer: Path) -> dict[str, Any]:
    return {"task": _absolute(task), "tokenizer": _absolute(tokenizer)}


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())
