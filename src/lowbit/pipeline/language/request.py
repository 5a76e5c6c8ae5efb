"""Turn what the user typed into what a search needs, refusing early whatever cannot work."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lowbit.bundle.manifest import digest
from lowbit.errors import UsageError, unknown
from lowbit.llm.evaluate.windows import Documents, Windows
from lowbit.pipeline.language.recipes import BASELINE_ENGINE, Plan, plans
from lowbit.pipeline.language.text import DealtText, fingerprint, read_text
from lowbit.pipeline.store import request_key
from lowbit.runtimes.hardware import Hardware, probe
from lowbit.types import Array, Budget, Objective, Policy

if TYPE_CHECKING:
    from lowbit.llm.folder import SourceFolder
    from lowbit.llm.workload.workload import Workload

SCHEMA = 1
PACKAGES = ("torch", "llama-cpp-python", "openvino-genai", "onnxruntime-genai")
"""Whose versions the numbers hold for, besides those that every run uses."""
MOST_TOKENS = 200_000
"""Tokens that are scored for each candidate, where the user gives more text than that."""


@dataclass(frozen=True)
class LanguageOptions:
    """What a user may say about a run; every field has a sensible default (docs/reference/cli.md).

    Attributes:
        max_drop: Budget of the rise of perplexity, relative; None: 2 % from 8 bits on, 8 % below.
        calibration: Text to calibrate on; None: a part of the data.
        workload: Tokens of a prompt and of an answer, and how many requests at once; or a log of requests. None: 512 and 128,
            one at a time, or what a shorter context holds.
        engines: Search only these.
        recipes: Try only these, and 16 bit.
        objective: "latency" (a request from end to end), "throughput" or "size".
        confidence: Of the interval that must lie within the budget.
        window: Tokens of a window of text; None: as many as the model and the text allow, 1,024 at most.
        qa: Questions with known answers (.jsonl).
        tasks: Files with tasks: choices or texts (.jsonl), or a task of lm-evaluation-harness on local files (.yaml).
        task_drop: What answers and tasks may lose, in points.
        context: Tokens that a served request may have; None: the model's own, 4,096 at most.
        rounds: Turns of each finalist in the final timing.
        price_per_hour: Dollars for this machine; None: no cost in dollars.
        time_limit_s: Start nothing new after this.
        most_tokens: Scored for each candidate.
        force: Replace what an earlier run left.
        prune: Keep only what ships.
    """

    max_drop: str | None = None
    calibration: str | Path | None = None
    workload: str | None = None
    engines: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    objective: Objective = "latency"
    confidence: float = 0.95
    window: int | None = None
    qa: str | Path | None = None
    tasks: tuple[str, ...] = ()
    task_drop: str = "2pp"
    context: int | None = None
    rounds: int = 7
    price_per_hour: float | None = None
    time_limit_s: float | None = None
    most_tokens: int = MOST_TOKENS
    force: bool = False
    prune: bool = False


NOT_KEPT = ("calibration", "qa", "tasks", "force", "prune", "time_limit_s")


@dataclass(frozen=True)
class LanguageRequest:
    """A checked request: everything opened, nothing done yet.

    Attributes:
        source: The model.
        search: Documents that the search may look at: its windows, each a document of its own.
        confirm: The same, unseen by the search.
        calibration: Tokens [N, T].
        windows: How perplexity is counted on each.
        plans: What to try.
        policy: Objective, confidence and the loosest budget.
        budget: The user's own; None: by bits.
        task_drop: What a task may lose, absolute.
        workload: What is timed.
        context: Tokens that prompt and answer have together.
        hardware: Of this machine.
        key: Of the whole request.
        options: As given.
        facts: Names and fingerprints for the manifest.
        questions: File with questions to ask; None: none.
        tasks: Files with tasks.
    """

    source: SourceFolder
    search: Documents
    confirm: Documents
    calibration: Array
    windows: Windows
    plans: tuple[Plan, ...]
    policy: Policy
    budget: Budget | None
    task_drop: float
    workload: Workload
    context: int
    hardware: Hardware
    key: str
    options: LanguageOptions = field(repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict)
    questions: Path | None = None
    tasks: tuple[Path, ...] = ()


def named(path: str | Path) -> Path:
    """The path with a name of its own: `.` has none, and a bundle names what it was made from."""
    return Path(path) if Path(path).name not in ("", "..") else Path(path).resolve()


def kept_options(options: LanguageOptions) -> dict[str, Any]:
    """The options that a journal keeps."""
    return {each.name: getattr(options, each.name) for each in fields(options) if each.name not in NOT_KEPT}


def usual_workload(positions: int) -> str:
    """A prompt and an answer as many have them, one request at a time; shorter where the model is.

    >>> usual_workload(4096), usual_workload(512)
    ('prompt=512,output=128,concurrency=1', 'prompt=384,output=128,concurrency=1')
    """
    output = min(128, max(1, positions // 4))
    return f"prompt={min(512, max(1, positions - output))},output={output},concurrency=1"


def read_request(model: str | Path, data: str | Path, options: LanguageOptions) -> LanguageRequest:
    """Opens the model and the text and checks every option against them.

    Raises:
        UsageError: an option is wrong. ModelError, DataError: the model or the text is.
    """
    from lowbit.llm.folder import SourceFolder
    from lowbit.llm.workload.workload import Workload

    if options.objective not in get_args(Objective):
        raise unknown("objective", options.objective, get_args(Objective))
    source = SourceFolder.open(named(model))
    workload = Workload.of(options.workload or usual_workload(source.decoder.positions))
    text = read_text(source, data, calibration=options.calibration, window=options.window, most_tokens=options.most_tokens)
    engines, budget = _engines(options.engines), _budget(options.max_drop)
    context, task_drop = _context(source.decoder.positions, workload, options.context), _task_drop(options.task_drop)
    chosen, questions, tasks = plans(source.decoder, engines, options.recipes), _questions(options.qa), _tasks(options.tasks)
    hardware, facts = probe(PACKAGES), _facts(source, named(data), text)
    said = (_digests(questions, tasks), asdict(workload), kept_options(options))  # of a log of requests the options have only the name
    key = request_key(SCHEMA, source.sha256, facts["calibration"], facts["validation"], *said, hardware, _versions(engines))
    return LanguageRequest(
        source=source,
        search=text.search,
        confirm=text.confirm,
        calibration=text.calibration,
        windows=text.windows,
        plans=tuple(chosen),
        policy=_policy(budget, workload, options),
        budget=budget,
        task_drop=task_drop,
        workload=workload,
        context=context,
        hardware=hardware,
        key=key,
        options=options,
        facts=facts,
        questions=questions,
        tasks=tasks,
    )


def _budget(max_drop: str | None) -> Budget | None:
    """The user's own budget; None: by bits.

    Raises:
        UsageError: it is not a share.
    """
    budget = Budget.parse(max_drop) if max_drop else None
    if budget is not None and not budget.relative:
        raise UsageError("Perplexity has no scale of points.", "Give a share of it, e.g. --max-drop 8%.")
    return budget


def _context(positions: int, workload: Workload, asked: int | None) -> int:
    """Tokens that prompt and answer may have together: what was asked for, else the model's own, 4,096 or what the workload needs.

    Raises:
        UsageError: more than the model takes, or less than the workload needs.
    """
    if asked is not None and asked > positions:
        raise UsageError(f"A context of {asked:,} tokens is more than the model's {positions:,}.", "Give less.")
    context = asked or min(positions, max(4096, workload.context))
    if workload.context > context:
        raise UsageError(
            f"The workload's requests have up to {workload.context:,} tokens; the context is {context:,}.",
            "Give shorter prompts and answers, or a larger --context where the model takes it.",
        )
    return context


def _task_drop(asked: str) -> float:
    """What a task may lose, absolute.

    Raises:
        UsageError: it is a share.
    """
    task_drop = Budget.parse(asked)
    if task_drop.relative:
        raise UsageError("What a task may lose is told in points of its own scale.", "Give e.g. --task-drop 2pp.")
    return task_drop.value


def _policy(budget: Budget | None, workload: Workload, options: LanguageOptions) -> Policy:
    return Policy(
        task="language-model",
        metric="perplexity",
        max_drop=budget or Budget(0.08, relative=True),
        confidence=options.confidence,
        objective=options.objective,
        batch=(workload.concurrency,),
    )


def _facts(source: SourceFolder, data: Path, text: DealtText) -> dict[str, Any]:
    """Names and fingerprints for the manifest."""
    return {
        "source": source.path.name,
        "text": data.name,
        "calibration": {"sha256": fingerprint([("", row) for row in text.calibration]), "n": len(text.calibration), "how": text.how},
        "validation": {
            "sha256": fingerprint([*text.search, *text.confirm]),
            "search": len(text.search),
            "confirm": len(text.confirm),
        },
    }


def _digests(questions: Path | None, tasks: Sequence[Path]) -> list[str]:
    """Of the files with questions and tasks, and of those that tasks read."""
    return [digest(file) for file in (questions, *tasks, *_read_by(tasks)) if file is not None]


def _versions(engines: Sequence[str]) -> list[str]:
    """Of the engines that candidates run on, the baseline's first."""
    from lowbit.llm.engines import registry

    return [f"{name} {registry.get(name).version()}" for name in (BASELINE_ENGINE, *engines)]


def _engines(asked: Sequence[str]) -> list[str]:
    """Names of the engines to search: those asked for, or all that are installed here.

    Raises:
        UsageError: one is not known or not installed.
    """
    from lowbit.llm.engines import registry

    if asked:
        return [registry.get(name).name for name in dict.fromkeys(asked)]
    return [engine.name for engine in registry.available() if engine.name != BASELINE_ENGINE]


def _tasks(paths: Sequence[str]) -> tuple[Path, ...]:
    """The files with tasks, once they were read without a complaint; scores of tasks that are no mean over samples cannot be paired.

    Raises:
        UsageError: two have one name, or the harness that scores them is not installed.
    """
    from lowbit.llm.evaluate.tasks import read_task

    files = tuple(Path(path) for path in paths)
    for file in files:
        read_task(file)
    if files and importlib.util.find_spec("lm_eval") is None:
        raise UsageError("Tasks need lm-evaluation-harness, which is not installed.", "pip install 'lowbit[tasks]'")
    if len({file.stem for file in files}) != len(files):
        raise UsageError("Two tasks have the same name.", "Give their files different names.")
    return files


def _read_by(tasks: Sequence[Path]) -> list[Path]:
    """Files that tasks in YAML read their samples from."""
    from lowbit.llm.evaluate.tasks import read_task

    def every(files: Any) -> list[str]:
        if isinstance(files, Mapping):
            files = list(files.values())
        return [found for each in files for found in every(each)] if isinstance(files, list) else [str(files)]

    options = [read_task(file).config.get("dataset_kwargs") or {} for file in tasks]
    return [path for each in options for path in map(Path, every(each.get("data_files") or [])) if path.is_file()]


def _questions(path: str | Path | None) -> Path | None:
    """The file with questions, once it was read without a complaint."""
    if path is None:
        return None
    from lowbit.llm.evaluate.answers import read_questions

    read_questions(Path(path))
    return Path(path)
