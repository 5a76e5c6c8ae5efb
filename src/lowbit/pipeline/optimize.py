"""`lowbit.optimize`, told from top to bottom: baseline, candidates, tuning, confirmation, decision, bundle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lowbit.bundle import words
from lowbit.bundle.bundle import Bundle
from lowbit.data.dataset import Dataset
from lowbit.errors import Interrupted, LowbitError, UsageError
from lowbit.export import registry
from lowbit.frontends.bring import How, bring_in
from lowbit.frontends.parity import described as described_parity
from lowbit.graph.prepare import prepare
from lowbit.llm.detect import is_language_model
from lowbit.pipeline.advice import advise
from lowbit.pipeline.baseline import request_times, run_baseline
from lowbit.pipeline.context import Context
from lowbit.pipeline.decide import decide
from lowbit.pipeline.finish import confirm, race_finalists
from lowbit.pipeline.journal import read_state
from lowbit.pipeline.lengths import race_lengths
from lowbit.pipeline.recover import recover
from lowbit.pipeline.reporting import Reporter
from lowbit.pipeline.request import Data, Options, Request, kept_options, read_preprocess, read_request
from lowbit.pipeline.retrain import asked_to_train, retrain
from lowbit.pipeline.screen import QuickTimes
from lowbit.pipeline.search import pending, search
from lowbit.pipeline.store import Store, claimed, discard, need_space
from lowbit.pipeline.targets.leave import add_targets
from lowbit.pipeline.tune import tune
from lowbit.pipeline.write import clean_up, write_bundle
from lowbit.types import Candidate, Decision

FINISH_SHARE = 0.25
"""Part of a time limit kept for confirming and timing the finalists."""


@dataclass(frozen=True)
class Result:
    """What an optimization found.

    Attributes:
        decision: The verdict, what was chosen, and why.
        bundle: The folder that came out.
    """

    decision: Decision
    bundle: Bundle

    def __str__(self) -> str:
        return f"{self.decision.verdict}: {self.decision.chosen}\n" + "\n".join(self.decision.reasons)


def optimize(
    model: Any,
    data: Data | Dataset,
    *,
    out: str | Path | None = None,
    reporter: Reporter | None = None,
    command: str | None = None,
    example_inputs: Any = None,
    example_shapes: Sequence[Sequence[int]] = (),
    weights: str | Path | None = None,
    allow_pickle: bool = False,
    targets: Sequence[str] = (),
    **options: Any,
) -> Result:
    """Finds the smallest, fastest version of a model that stays within an accuracy budget on this machine and data.

    Args:
        model: An .onnx file, a torch.nn.Module, `package.module:function` that builds one, a .pt2 program, or a Hugging Face folder
            (one with a language model goes to `optimize_language`: see there for its options).
        data: A folder of images, .npz, CSV, Parquet, JSONL, `module:callable`, or a dict of arrays (docs/guides/data.md).
        out: Folder of the bundle; `build/<model's name>` where not given. The same call resumes an interrupted run there.
        reporter: Who is told about progress.
        command: For the manifest; made up from the arguments where not given.
        example_inputs: Of a module: a tensor, a tuple or a dict by argument name, with their batch axis; from the data where not given.
        example_shapes: Of a module: one sample's shape for each argument, instead of example inputs.
        weights: A checkpoint for the module (.pt, .pth, .safetensors); read without running code that may be in it.
        allow_pickle: Let it run that code.
        targets: Also write the result for these (`lowbit targets` lists them), into the bundle's folder targets/, and try it there.
        **options: Fields of `Options`: max_drop, metric, objective, batch, max_latency_ms, time_limit_s and so on.

    Raises:
        UsageError, ModelError, DataError: what the user can mend, with a hint.
        Interrupted: Ctrl-C or a full disk; the same call resumes.
    """
    if is_language_model(model):
        from lowbit.pipeline.language.optimize import optimize_language

        if not isinstance(data, str | Path):
            raise UsageError("A language model is judged on text.", "Give a .txt or .jsonl file, or a folder of .txt files.")
        if targets:
            raise UsageError("Language models have formats of their own.", "Write them with `lowbit llm write`.")
        return optimize_language(model, data, out=out, reporter=reporter, command=command, **options)
    started, reporter, said = time.monotonic(), reporter or Reporter(), Options(**options)
    known = [registry.get(name).name for name in targets]  # before the work
    reporter.stage("Reading the model and the data")
    how = How(example_inputs, example_shapes, weights, allow_pickle, said.target)
    with TemporaryDirectory(prefix="lowbit-") as scratch:
        incoming = bring_in(model, data, Path(scratch), how, read_preprocess(said.preprocess))
        request = read_request(model if incoming is None else incoming.path, data, said, incoming)
        if request.model.origin and request.model.origin.parity:
            reporter.note(described_parity(request.model.origin.parity))
        result = carry_out(request, Path(out) if out else Path("build") / request.model.path.stem, reporter, command, started)
        if known:
            judges, seen = request.split.confirm, request.split.calibration
            result = replace(result, bundle=add_targets(result.bundle, known, judges, calibration=seen, reporter=reporter))
        return result


def carry_out(request: Request, folder: Path, reporter: Reporter, command: str | None, started: float) -> Result:
    """The search for a request that was read, in its folder."""
    with claimed(folder, request.key, force=request.options.force) as store:
        context = new_context(request, store, reporter, started)
        try:
            decision = run(context, request, command or described(request))
        except KeyboardInterrupt as error:
            store.journal.append("interrupted")
            raise Interrupted(f"Stopped; '{store.out}' keeps {finished(context)}.", "The same command resumes.") from error
        except LowbitError:
            if context.state.baseline is None:
                discard(store)  # a model or data that cannot be used leaves nothing behind
            raise
        clean_up(context)
    return Result(decision, Bundle.load(store.out))


def new_context(request: Request, store: Store, reporter: Reporter, started: float) -> Context:
    """The run's context, with what an earlier run left in the journal; `started` is when the call came (`time.monotonic()`)."""
    limit = request.policy.time_limit_s
    return Context(
        model=request.model,
        split=request.split,
        metric=request.metric,
        policy=request.policy,
        hardware=request.hardware,
        runtimes=request.runtimes,
        recipes=request.recipes,
        transformer=request.traits.transformer,
        store=store,
        reporter=reporter,
        deadline=started + limit * (1 - FINISH_SHARE) if limit else None,
        end=started + limit if limit else None,
        prune=request.options.prune,
        rounds=request.options.rounds,
        training=request.training,
        state=read_state(store.journal),
    )


def run(context: Context, request: Request, command: str) -> Decision:
    """The whole story. Every step reads the journal first, so a resumed run goes on where the last one stopped."""
    if context.state.complete and not pending(context) and not asked_to_train(context):
        context.reporter.note("This search was finished before: deciding from its journal.")
        write_bundle(context, decision := decide_now(context), command)
        return decision
    if not context.state.start:
        source = {"path": request.model.path.name, "sha256": request.model.sha256}
        context.record(
            "start", key=request.key, command=command, source=source, policy=context.policy, options=kept_options(request.options)
        )
    need_space(context.store, 4 * context.model.size_bytes)
    prepare(context.model, context.store.prepared)
    baseline = run_baseline(context)
    if context.state.baseline is None:
        inference_ms, request_ms = request_times(context)
        advice = advise(context.model, baseline, context.policy, inference_ms=inference_ms, request_ms=request_ms)
        context.record("baseline", candidate=baseline, advice=[*doubts(request), *advice])
    context.reporter.note(f"FP32 baseline: {baseline_value(baseline)}.")
    for line in context.state.advice:
        context.reporter.note(line)
    quick = QuickTimes(context)
    search(context, quick, lambda: write_bundle(context, decide_now(context), command, complete=False))
    recover(context, quick)
    retrain(context, quick)
    tune(context)
    race_finalists(context, confirm(context))
    decision = decide_now(context)
    race_lengths(context, decision.chosen)
    context.record("decided", decision=decision, complete=not context.cut_short)
    write_bundle(context, decision, command)
    return decision


def doubts(request: Request) -> list[str]:
    """What in the request may make every number below wrong, said before the numbers are. Pure."""
    found, data = [], request.data
    if request.options.preprocess is None and data.preprocess.kind == "image":
        found.append(
            f"No preprocessing was given ({data.preprocess.note}). If the baseline is worse than you know the model to be, "
            "give what it was trained with, e.g. --preprocess imagenet."
        )
    outputs = [info.shape[-1] for info in request.model.outputs if info.shape and isinstance(info.shape[-1], int)]
    if data.classes and outputs and request.policy.task != "detection" and len(data.classes) < outputs[0]:
        found.append(
            f"The data has {len(data.classes)} classes, numbered in the order of their names, and the model {outputs[0]} outputs: "
            "if the model numbers them differently, say how with a labels.csv."
        )
    return found


def baseline_value(baseline: Candidate) -> str:
    """E.g. "top-1 81.03 % on 9,488 samples"."""
    parts = [part.metric for part in (baseline.search, baseline.confirm) if part is not None]
    n = sum(part.n for part in parts)
    value = sum(part.value * part.n for part in parts) / n
    return f"{words.metric_name(parts[0].name)} {words.metric_value(parts[0].name, value)} on {n:,} samples"


def decide_now(context: Context) -> Decision:
    """The decision that the evidence so far supports."""
    assert context.state.baseline is not None, "the baseline comes first"
    return decide(context.state.baseline, list(context.state.candidates.values()), context.policy, context.state.advice)


def finished(context: Context) -> str:
    count = len(context.state.candidates)
    return f"{count} finished candidate{'' if count == 1 else 's'}"


def described(request: Request) -> str:
    """A command line for callers of the Python API."""
    source = request.model.origin.name if request.model.origin else request.model.path.name
    return f"lowbit optimize {source} --data {request.data.name} --max-drop {request.policy.max_drop}"
