"""The search for a language model, told from top to bottom: baseline, candidates, tuning, confirmation, decision, bundle."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lowbit.bundle.bundle import Bundle
from lowbit.bundle.schema import EngineTuningEntry, LanguageCandidateEntry
from lowbit.errors import Interrupted, LowbitError
from lowbit.llm.engines import registry
from lowbit.llm.recipe import LanguageRecipe
from lowbit.pipeline.language.budgets import budget_of, source_precision
from lowbit.pipeline.language.context import BASELINE, LanguageContext
from lowbit.pipeline.language.finish import confirm, contenders, finalists, race
from lowbit.pipeline.language.make import make, size_of
from lowbit.pipeline.language.recipes import MIXED, Plan
from lowbit.pipeline.language.request import LanguageOptions, LanguageRequest, kept_options, read_request
from lowbit.pipeline.language.score import comparison, divergence_entry, keep, kept, scored, spool
from lowbit.pipeline.language.state import decided, read_state
from lowbit.pipeline.language.timing import screen, tune
from lowbit.pipeline.language.write import clean_up, write_bundle
from lowbit.pipeline.optimize import Result
from lowbit.pipeline.reporting import Reporter
from lowbit.pipeline.store import claimed, discard
from lowbit.runtimes.hardware import probe
from lowbit.types import Candidate, Decision, Tuning


def optimize_language(
    model: str | Path,
    data: str | Path,
    *,
    out: str | Path | None = None,
    reporter: Reporter | None = None,
    command: str | None = None,
    **options: Any,
) -> Result:
    """Finds the smallest, fastest version of a language model whose perplexity stays within budget, for a workload on this machine.

    Args:
        model: A Hugging Face folder of a decoder: config.json, tokenizer.json, .safetensors.
        data: Text: a .txt file, a folder of them, or a .jsonl with a field "text".
        out: Folder of the bundle; `build/<folder's name>` where not given. The same call resumes an interrupted run there.
        reporter: Who is told about progress.
        command: For the manifest.
        **options: Fields of `LanguageOptions`.

    Raises:
        UsageError, ModelError, DataError: what the user can mend, with a hint.
        Interrupted: Ctrl-C or a full disk; the same call resumes.
    """
    started, reporter, said = time.monotonic(), reporter or Reporter(), LanguageOptions(**options)
    reporter.stage("Reading the model and the text")
    request = read_request(model, data, said)
    folder = Path(out) if out else Path("build") / request.source.path.name
    with claimed(folder, request.key, force=said.force) as store:
        end = started + said.time_limit_s if said.time_limit_s else None
        context = LanguageContext(request, store, reporter, end, read_state(store.journal))
        try:
            run(context, command or described(request))
        except KeyboardInterrupt as error:
            store.journal.append("interrupted")
            count = len(context.state.candidates)
            raise Interrupted(f"Stopped; '{store.out}' keeps {count} finished candidates.", "The same command resumes.") from error
        except LowbitError:
            if BASELINE not in context.state.candidates:
                discard(store)  # a model or text that cannot be used leaves nothing behind
            raise
        clean_up(context)
    return Result(decided(context.state, BASELINE), Bundle.load(store.out))


def run(context: LanguageContext, command: str) -> Decision:
    """The whole story. Every step reads the journal first, so a resumed run goes on where the last one stopped."""
    request, state = context.request, context.state
    if state.complete:
        context.reporter.note("This search was finished before: deciding from its journal.")
        decision = decided(state, BASELINE)
        write_bundle(context, decision, command)
        return decision
    if not state.start:
        context.record(
            "start",
            key=request.key,
            command=command,
            source={"path": request.source.path.name, "sha256": request.source.sha256},
            policy=request.policy,
            budget=request.budget,
            task_drop=request.task_drop,
            options=kept_options(request.options),
        )
    for plan in request.plans:
        attempt(context, plan)
    recover(context)
    screen(context)
    if not state.finalists or (state.cut and not context.late):
        tune(context, contenders(context))
        context.record("finalists", ids=[candidate.id for candidate in finalists(context)], cut=context.late)
    confirm(context)
    race(context)
    decision = decided(state, BASELINE)
    context.record("decided", decision=decision, complete=not context.late)
    write_bundle(context, decision, command)
    return decision


def attempt(context: LanguageContext, plan: Plan) -> None:
    """One recipe on one engine: made, and judged on the search's text. What cannot be made is a finding, not an end."""
    if plan.id in context.state.candidates or (context.late and plan.id != BASELINE):
        return
    if plan.id != BASELINE:
        spool(context)
    entry = LanguageCandidateEntry(
        engine=plan.engine, format=registry.get(plan.engine).opens, artifact=None, tuning=default_tuning(plan.engine)
    )
    candidate = Candidate(plan.id, plan.recipe.name, plan.engine, _precision(context, plan), Tuning())
    try:
        artifact = make(context, plan)
        relative = artifact.relative_to(context.store.out).as_posix()
        entry = entry.model_copy(update={"artifact": relative})
        context.state.facts[plan.id] = entry  # judging needs to know where it lies; the journal gets it whole
        found = scored(context, context.runnable(plan.id), "search")
    except Interrupted:
        raise
    except LowbitError as error:
        if plan.id == BASELINE:
            raise
        context.candidate(_failed(candidate, error.message), entry)
        return
    if found.error is not None or found.perplexity is None:
        context.candidate(_failed(candidate, found.error or "It gave no perplexity."), entry)
        return
    keep(context, plan.id, "search", found.perplexity)
    baseline = found.perplexity if plan.id == BASELINE else kept(context, BASELINE, "search")
    assert baseline is not None, "the baseline is judged first"
    divergence = divergence_entry(found)
    search = comparison(baseline, found.perplexity, divergence, context.request.policy.confidence)
    facts = entry.model_copy(
        update={
            "perplexity": found.perplexity.value,
            "bits_per_byte": found.perplexity.bits_per_byte,
            "bits_per_weight": bits_per_weight(context, plan),
            "divergence": divergence,
        }
    )
    whole = Candidate(
        plan.id, plan.recipe.name, plan.engine, candidate.precision, Tuning(), "done", size_of(artifact), search, artifact=relative
    )
    context.candidate(whole, facts)


def recover(context: LanguageContext) -> None:
    """Where no INT4 holds its budget: bits mixed layer by layer, so that what is sensitive gets more of them."""
    request, state = context.request, context.state
    narrow = [c for c in state.candidates.values() if c.precision.startswith("int4") and c.search is not None]
    if not narrow or request.options.recipes or context.late:
        return
    if any(c.search is not None and c.search.delta.value <= budget_of(c.precision, request.budget).value for c in narrow):
        return
    context.reporter.note("No INT4 version holds its budget: mixing bits by layer.")
    for engine in sorted({c.runtime for c in narrow}):
        attempt(context, Plan(MIXED, engine))


def described(request: LanguageRequest) -> str:
    """A command line for callers of the Python API."""
    return f"lowbit optimize {request.source.path.name} --data {request.facts['text']} --workload {request.workload}"


def _precision(context: LanguageContext, plan: Plan) -> str:
    """Of the weights; every engine's format keeps the source's own as they are."""
    return source_precision(context.request.source.dtype) if plan.recipe.method == "none" else plan.recipe.precision


def _failed(candidate: Candidate, why: str) -> Candidate:
    return Candidate(candidate.id, candidate.recipe, candidate.runtime, candidate.precision, Tuning(), "failed", reasons=(why,))


def default_tuning(engine: str) -> EngineTuningEntry:
    """An engine's first tuning here: its default."""
    return EngineTuningEntry.model_validate(asdict(registry.get(engine).tunings(probe())[0]))


def bits_per_weight(context: LanguageContext, plan: Plan) -> float | None:
    """Mean over the blocks' linear layers, scales and zero points included; None where an engine's own quantizer chose."""
    decoder, recipe = context.request.source.decoder, plan.recipe
    if recipe.method == "llamacpp":
        return None
    if "bits" in recipe.options and (file := context.store.candidate(plan.id) / "recipe.yaml").is_file():
        recipe = LanguageRecipe.from_yaml(file.read_text(encoding="utf-8"))  # which layer got which grid
    shapes = [(block, role, decoder.shape(role)) for block in range(decoder.layers) for role in decoder.roles]
    weights = sum(rows * columns for *_, (rows, columns) in shapes)
    grids = [(recipe.grid_of(block, role), rows, columns) for block, role, (rows, columns) in shapes]
    own = 32.0 if context.request.source.dtype == "float32" else 16.0
    return sum(rows * columns * (grid.bits_per_weight(columns) if grid else own) for grid, rows, columns in grids) / weights
