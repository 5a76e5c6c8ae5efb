"""One artifact judged alone in its process: `python -m lowbit.llm.evaluate.worker`, started by lowbit.llm.evaluate.judge.

The first line says what to open and what to judge it by: a text's windows, a task or questions. Each further line asks for some
seconds of work; the answer is what was done in them (lowbit.measure.talk has the protocol).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import RunError
from lowbit.llm.candidate import opened
from lowbit.llm.engines.base import LanguageSession
from lowbit.llm.evaluate.divergence import Spool, SpoolWriter
from lowbit.llm.evaluate.perplexity import token_nll, window_logits
from lowbit.llm.evaluate.windows import Documents, Windows, cut, spread
from lowbit.measure.talk import Turn, serve

Work = Callable[[float], dict[str, Any]]
"""Seconds -> what was done in them; `done` says how much of the whole, 1 is all."""


def main() -> None:
    serve(_load, resting=False)


def _load(spec: dict[str, Any]) -> tuple[Turn, dict[str, Any]]:
    """Opens the artifact; the first answer says what that took."""
    from lowbit.measure.memory import anonymous_bytes, peak_bytes

    engine, artifact, tuning = opened(spec)
    start = time.perf_counter()
    session = engine.open(artifact, tuning, context=spec["context"])
    load = time.perf_counter() - start
    work = {"windows": _windows, "task": _task, "answers": _answers}[spec["work"]](session, spec)

    def turn(request: dict[str, Any]) -> dict[str, Any]:
        return {**work(request["seconds"]), "peak": peak_bytes(), "anonymous": anonymous_bytes()}

    return turn, {"ready": True, "load_seconds": load, "precision": session.precision}


def save_documents(documents: Documents, path: Path) -> None:
    """Writes names and tokens for `load_documents`."""
    tokens = [np.asarray(tokens, np.int32) for _, tokens in documents]
    ends = np.cumsum([len(each) for each in tokens])
    np.savez(path, names=np.array([name for name, _ in documents]), tokens=np.concatenate(tokens), ends=ends)


def load_documents(path: Path) -> Documents:
    """Reads what `save_documents` wrote."""
    with np.load(path) as stored:
        parts = np.split(stored["tokens"], stored["ends"][:-1])
        return [(str(name), part) for name, part in zip(stored["names"], parts, strict=True)]


def _windows(session: LanguageSession, spec: dict[str, Any]) -> Work:
    """Negative log-likelihood of window after window; compared with a spooled reference, or spooled, where asked for."""
    documents, windows = load_documents(Path(spec["documents"])), Windows(**spec["windows"])
    pieces = cut(documents, windows)
    chosen = set(spread(pieces, spec["spool"]["tokens"])) if spec["spool"] else set()
    stack = ExitStack()
    writer = None
    if spec["spool"]:
        kept = [pieces[index] for index in sorted(chosen)]
        writer = stack.enter_context(SpoolWriter(Path(spec["spool"]["path"]), documents, kept, session.vocabulary))
    spool = Spool(Path(spec["reference"])) if spec["reference"] else None
    if spool is not None:
        spool.check(documents, pieces)
    begin = 0

    def work(seconds: float) -> dict[str, Any]:
        nonlocal begin
        end, nll, kl, agree = time.perf_counter() + seconds, [], [], 0
        first = begin
        while begin < len(pieces) and (begin == first or time.perf_counter() < end):
            window = pieces[begin]
            logits, targets = window_logits(session, documents, window)
            nll.append(float(token_nll(logits, targets).sum()))
            if writer is not None and begin in chosen:
                _check_finite(logits)
                writer.add(window, logits)
            if spool is not None and window in spool:
                found, same = spool.compare(window, logits)
                kl += found.tolist()
                agree += same
            begin += 1
        if begin == len(pieces):
            stack.close()
        return {"nll": nll, "kl": kl, "agree": agree, "done": begin / len(pieces)}

    return work


def _task(session: LanguageSession, spec: dict[str, Any]) -> Work:
    from lowbit.llm.evaluate.harness_model import harness_model
    from lowbit.llm.evaluate.tasks import read_task, score_task
    from lowbit.llm.evaluate.text import open_text

    text = open_text(Path(spec["tokenizer"]))
    model = harness_model(session, text, bos=text.bos, eos=text.eos, adds_bos=text.adds_bos)
    task = read_task(Path(spec["task"]))
    return lambda _: {"score": asdict(score_task(model, task, limit=spec["limit"])), "done": 1.0}


def _answers(session: LanguageSession, spec: dict[str, Any]) -> Work:
    """Some questions at a time."""
    from lowbit.llm.evaluate.answers import answer_texts, read_questions
    from lowbit.llm.evaluate.text import open_text

    text, questions = open_text(Path(spec["tokenizer"])), read_questions(Path(spec["task"]))[: spec["limit"]]
    texts = answer_texts(session, text, questions, template=spec["template"], tokens=spec["tokens"], eos=text.eos, bos=text.start)
    given = 0

    def work(seconds: float) -> dict[str, Any]:
        nonlocal given
        end, found = time.perf_counter() + seconds, []
        for answer in texts:
            found.append(answer)
            if time.perf_counter() >= end:
                break
        given += len(found)
        return {"texts": found, "done": given / len(questions)}

    return work


def _check_finite(logits: Any) -> None:
    if not np.isfinite(logits).all():
        raise RunError("The 16-bit model gives no numbers (NaN or infinity), so nothing can be compared with it.")


if __name__ == "__main__":
    main()
