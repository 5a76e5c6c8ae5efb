"""Tasks of the user's own, scored by lm-evaluation-harness (EleutherAI) in this process, offline.

A task is a file:

    choices.jsonl   {"context" or "question": ..., "choices": [...], "answer": number, letter or text}, one a line: the likeliest
                    choice is the model's; `acc_norm` divides a choice's log-likelihood by its bytes, `acc` does not
    texts.jsonl     {"text": ...}, one a line: `bits_per_byte`, `byte_perplexity` and `word_perplexity`, each text scored whole
    task.yaml       a task as the harness writes them, on local files (`dataset_path: json` with `data_files`)

Samples' own results are kept, so that two models can be compared in pairs.
"""

from __future__ import annotations

import logging
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.errors import DataError, UsageError
from lowbit.llm.evaluate.answers import read_lines
from lowbit.strict import check_keys

SPLIT = "test"
LOCAL = ("json", "csv", "text", "parquet")
"""Kinds of local files that a harness task may read."""


@dataclass(frozen=True)
class TaskScore:
    """One task.

    Attributes:
        name: Of the file, without its ending, or the name in a .yaml.
        metric: The one to look at first: acc_norm of choices, bits_per_byte of texts, a .yaml's first.
        value: Of that metric.
        higher_is_better: Of that metric.
        metrics: All of them.
        samples: Of metrics that are means over samples, each sample's value, in the file's order.
        n: Samples.
    """

    name: str
    metric: str
    value: float
    higher_is_better: bool
    metrics: Mapping[str, float]
    samples: Mapping[str, tuple[float, ...]]
    n: int

    @property
    def paired(self) -> tuple[float, ...]:
        """The samples' values of the first metric; empty where it is no mean over samples."""
        return self.samples.get(self.metric, ())


@dataclass(frozen=True)
class Task:
    """A task as the harness wants it.

    Attributes:
        name: Unique.
        metric: As in TaskScore.
        config: The harness's.
        rows: Its samples; None where the harness reads them itself.
    """

    name: str
    metric: str
    config: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...] | None = None


def read_task(file: Path) -> Task:
    """Reads a task of any of the three kinds.

    Raises:
        DataError: it cannot be read, or its lines are of no kind.
        UsageError: a .yaml that would need the network.
    """
    if file.suffix.lower() in (".yaml", ".yml"):
        return _harness_task(file)
    rows = read_lines(file)
    if not rows:
        raise DataError(f"{file.name} has no samples.", 'Each line is one, e.g. {"context": ..., "choices": [...], "answer": 0}.')
    if all("choices" in row for _, row in rows):
        return Task(file.stem, "acc_norm", _CHOICES, tuple(_choice(row, f"{file.name}, line {number}") for number, row in rows))
    if all(isinstance(row.get("text"), str) and row["text"].strip() for _, row in rows):
        return Task(file.stem, "bits_per_byte", _TEXTS, tuple({"text": row["text"]} for _, row in rows))
    raise DataError(
        f"{file.name} is no task: its lines have neither choices nor a text.",
        'Write {"context": ..., "choices": [...], "answer": 0} or {"text": ...} a line.',
    )


def score_task(model: Any, task: Task, *, limit: int | None = None) -> TaskScore:
    """Has the harness score a model (lowbit.llm.evaluate.harness_model).

    Args:
        model: The model.
        task: The task.
        limit: Only so many of its samples.

    Raises:
        UsageError: the harness is not installed.
        DataError: it cannot use the task.
    """
    try:
        import lm_eval.evaluator
        from lm_eval.api.task import ConfigurableTask
    except ImportError as error:
        raise UsageError("Tasks need lm-evaluation-harness, which is not installed.", "pip install 'lowbit[tasks]'") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is meant so here
    try:
        made = ConfigurableTask(config={"task": task.name, **task.config, **_dataset(task)})
        made.set_config(key="num_fewshot", value=made.get_config("num_fewshot") or 0)
        made.set_fewshot_seed(seed=1234)
        told = lm_eval.evaluator.evaluate(lm=model, task_dict={task.name: made}, limit=limit, bootstrap_iters=0, log_samples=True)
    except (KeyError, ValueError, TypeError, AttributeError, OSError) as error:
        raise DataError(
            f"Task {task.name} cannot be run: {type(error).__name__}: {error}.", "See lm-evaluation-harness's task guide."
        ) from error
    return _task_score(task, told, made.higher_is_better())


_CHOICES: Mapping[str, Any] = {
    "output_type": "multiple_choice",
    "test_split": SPLIT,
    "doc_to_text": "{{context}}",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
_TEXTS: Mapping[str, Any] = {
    "output_type": "loglikelihood_rolling",
    "test_split": SPLIT,
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}, {"metric": "word_perplexity"}],
}


def _dataset(task: Task) -> dict[str, Any]:
    """Rows that are here already go to the harness as they are, so that nothing is cached in the user's home."""
    if task.rows is None:
        return {}

    def rows(**_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        assert task.rows is not None
        return DatasetDict({SPLIT: Dataset.from_list([dict(row) for row in task.rows])})

    return {"custom_dataset": rows}


def _choice(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = {key: value for key, value in row.items() if key != "id"}
    try:
        check_keys("key", known, ("context", "question", "choices", "answer"))
    except UsageError as error:
        raise DataError(f"{where}: {error.message}", error.hint) from error
    choices = known["choices"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(each, str) and each.strip() for each in choices):
        raise DataError(f"{where}, needs two choices or more, each a text.")
    context = "\n".join(part for part in (known.get("context", ""), known.get("question", "")) if part)
    if not context.strip():
        raise DataError(f"{where}, has neither a context nor a question.", "Say what the choices continue or answer.")
    return {
        "context": context.rstrip(),
        "choices": [each.strip() for each in choices],
        "answer": _number(known.get("answer"), choices, where),
    }


def _number(answer: object, choices: Sequence[str], where: str) -> int:
    """Which choice is right: its number from 0, its letter from A, or itself."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str):
        if answer in choices:
            return choices.index(answer)
        if answer.strip().upper() in (letters := list(string.ascii_uppercase[: len(choices)])):
            return letters.index(answer.strip().upper())
    raise DataError(
        f"{where}: the answer is {answer!r}; it is one of {len(choices)} choices.", "Give its number from 0, its letter, or its text."
    )


def _harness_task(file: Path) -> Task:
    try:
        from lm_eval.tasks._yaml_loader import load_yaml
    except ImportError as error:
        raise UsageError("A task in YAML needs lm-evaluation-harness, which is not installed.", "pip install 'lowbit[tasks]'") from error
    try:
        config = dict(load_yaml(file))
    except Exception as error:  # yaml's errors, and those of a task's own functions
        raise DataError(f"{file.name} cannot be read: {error}.", "See lm-evaluation-harness's task guide.") from error
    options = dict(config.get("dataset_kwargs") or {})
    if config.get("dataset_path") not in LOCAL or not options.get("data_files"):
        raise UsageError(
            f"{file.name} reads '{config.get('dataset_path')}', which may need the network.",
            f"Use local files: dataset_path: json (or {', '.join(LOCAL[1:])}), dataset_kwargs: {{data_files: {{test: samples.jsonl}}}}.",
        )
    options["data_files"] = _absolute(options["data_files"], file.parent)
    metrics = config.get("metric_list") or [{"metric": "acc" if config.get("output_type") == "multiple_choice" else "exact_match"}]
    return Task(str(config.pop("task", file.stem)), str(metrics[0]["metric"]), config | {"dataset_kwargs": options})


def _absolute(files: Any, folder: Path) -> Any:
    """Paths in a task are beside its file."""
    if isinstance(files, Mapping):
        return {split: _absolute(each, folder) for split, each in files.items()}
    if isinstance(files, list):
        return [_absolute(each, folder) for each in files]
    if "://" in str(files):
        raise UsageError(f"The task reads {files}, which needs the network.", "Use a file beside it.")
    return str((folder / str(files)).absolute())


def _task_score(task: Task, told: Mapping[str, Any], better: Mapping[str, bool]) -> TaskScore:
    found = {key.partition(",")[0]: value for key, value in told["results"][task.name].items() if isinstance(value, int | float)}
    metrics = {
        name: float(value)
        for name, value in found.items()
        if not name.endswith("_stderr") and name != "sample_len" and math.isfinite(value)
    }
    rows = sorted(told["samples"][task.name], key=lambda row: int(row["doc_id"]))
    samples = {
        name: tuple(float(row[name]) for row in rows) for name in metrics if all(isinstance(row.get(name), int | float) for row in rows)
    }
    if task.metric not in metrics:
        raise DataError(f"Task {task.name} gave no {task.metric}; it gave {', '.join(metrics) or 'nothing'}.")
    return TaskScore(task.name, task.metric, metrics[task.metric], better.get(task.metric, True), metrics, samples, len(rows))
