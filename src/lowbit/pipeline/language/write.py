"""Writes the bundle of a language model: what ships, the manifest, the report and the card. The manifest comes last."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

from lowbit.bundle.card import render_card
from lowbit.bundle.manifest import build_manifest, candidate_entry, file_entries, write_atomic, write_manifest
from lowbit.bundle.report import render_report
from lowbit.bundle.schema import (
    CalibrationEntry,
    DataEntry,
    EnvironmentEntry,
    LanguageCandidateEntry,
    LanguageEntry,
    LanguageVariantEntry,
    Manifest,
    ValidationEntry,
)
from lowbit.llm.folder import COPIED
from lowbit.pipeline.language.budgets import DEFAULTS
from lowbit.pipeline.language.context import BASELINE, LanguageContext
from lowbit.pipeline.language.recipes import catalogue
from lowbit.pipeline.store import copy_whole, link_or_copy
from lowbit.types import Candidate, Decision, Model, TensorInfo

TOKENIZER = "tokenizer"


def write_bundle(context: LanguageContext, decision: Decision, command: str) -> Manifest:
    """Puts the chosen artifact in `model/` and writes everything that describes it.

    Args:
        context: The run.
        decision: What was decided.
        command: As the user typed it.
    """
    out, state, request = context.store.out, context.state, context.request
    chosen = place_model(context, decision.chosen)
    place_tokenizer(context)
    candidates = [_pruned(context, c, decision.chosen) for c in state.candidates.values()]
    facts = {c.id: state.facts[c.id].model_copy(update={"artifact": c.artifact}) for c in candidates}
    for candidate in candidates:
        _write_result(context, candidate, facts[candidate.id], decision)
    baseline = next(c for c in candidates if c.id == BASELINE)
    budgets = {word: str(request.budget or budget) for word, budget in DEFAULTS.items()}
    language = LanguageEntry(
        chosen=_variant(facts[decision.chosen], chosen),
        baseline=_variant(facts[BASELINE], state.facts[BASELINE].artifact),
        context=request.context,
        tokenizer=TOKENIZER,
        workload=str(request.workload),
        window=request.windows.size,
        stride=request.windows.size,
        tokens=_tokens(context, decision.chosen),
        budgets=budgets,
        candidates=facts,
    )
    manifest = build_manifest(
        model=_model(context),
        policy=request.policy,
        data=_data(context),
        environment=EnvironmentEntry.model_validate(request.hardware),
        baseline=baseline,
        candidates=candidates,
        decision=decision,
        command=command,
        artifact=chosen,
        files=file_entries(out, ["model", "baseline", TOKENIZER]),
        notes=_notes(context),
        form="huggingface",
        language=language,
    )
    write_atomic(out / "report.html", render_report(manifest, title=request.source.path.name))
    write_atomic(out / "MODEL_CARD.md", render_card(manifest))
    write_manifest(manifest, out)
    return manifest


def place_model(context: LanguageContext, ident: str) -> str:
    """Links the chosen artifact into `model/`; returns its main file's path in the bundle."""
    out, artifact = context.store.out, context.state.facts[ident].artifact
    assert artifact is not None, f"{ident} was chosen without an artifact"
    source = out / artifact
    target = out / "model" / source.name
    if not target.exists() or not target.samefile(source):
        fresh = context.store.work / "model"
        shutil.rmtree(fresh, ignore_errors=True)
        for file in sorted(source.parent.rglob("*")):
            if file.is_file() and not file.name.startswith("."):
                link_or_copy(file, fresh / file.relative_to(source.parent))
        # The whole folder is replaced: weights of what was chosen before must not stay beside it.
        shutil.rmtree(out / "model", ignore_errors=True)
        fresh.rename(out / "model")
    return f"model/{source.name}"


def place_tokenizer(context: LanguageContext) -> None:
    """What turns text into tokens and chats into prompts, for whoever serves any of the candidates."""
    for name in COPIED:
        source, target = context.request.source.path / name, context.store.out / TOKENIZER / name
        if source.is_file() and not target.exists():
            copy_whole(source, target)


def _variant(facts: LanguageCandidateEntry, artifact: str | None) -> LanguageVariantEntry:
    return LanguageVariantEntry(engine=facts.engine, format=facts.format, artifact=artifact or "", tuning=facts.tuning)


def _tokens(context: LanguageContext, ident: str) -> int:
    evidence = context.state.candidates[ident].evidence
    return evidence.metric.n if evidence else 0


def _model(context: LanguageContext) -> Model:
    """The source as the manifest names any model: tokens in, logits out."""
    source = context.request.source
    tokens = TensorInfo("input_ids", (None, None), "int64")
    logits = TensorInfo("logits", (None, None, source.decoder.vocabulary), "float32")
    return Model(source.path, source.sha256, (tokens,), (logits,), source.parameters, source.size_bytes, 0)


def _data(context: LanguageContext) -> DataEntry:
    facts = context.request.facts
    calibration, validation = facts["calibration"], facts["validation"]
    n_search, n_confirm = validation["search"], validation["confirm"]
    return DataEntry(
        source=facts["text"],
        calibration=CalibrationEntry(sha256=calibration["sha256"], n=calibration["n"], how_selected=calibration["how"]),
        validation=ValidationEntry(sha256=validation["sha256"], n=n_search + n_confirm, n_search=n_search, n_confirm=n_confirm),
    )


def _write_result(context: LanguageContext, candidate: Candidate, facts: LanguageCandidateEntry, decision: Decision) -> None:
    judgement = next((entry for entry in decision.judgements if entry.id == candidate.id), None)
    folder = context.store.candidate(candidate.id)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = catalogue(context.request.source.decoder).get(candidate.recipe)
    if recipe is not None and not (folder / "recipe.yaml").exists():
        write_atomic(folder / "recipe.yaml", recipe.to_yaml())
    entry = {**candidate_entry(candidate, judgement).model_dump(mode="json"), "language": facts.model_dump(mode="json")}
    write_atomic(folder / "result.json", json.dumps(entry, indent=1) + "\n")


def _pruned(context: LanguageContext, candidate: Candidate, chosen: str) -> Candidate:
    """The candidate without its artifact, where only what ships is to stay; a search that goes on another time needs all of them."""
    if candidate.artifact is None or candidate.id in (chosen, BASELINE):
        return candidate
    if context.request.options.prune and context.state.complete:
        shutil.rmtree(context.store.candidate(candidate.id) / "model", ignore_errors=True)
    there = (context.store.out / candidate.artifact).is_file()  # the same search may have been asked to prune before
    return candidate if there else replace(candidate, artifact=None)


def _notes(context: LanguageContext) -> tuple[str, ...]:
    request = context.request
    found = [
        f"Perplexity is counted on windows of {request.windows.size} tokens without overlap, the first token of each not scored, "
        "no special tokens added.",
        f"Times are of the workload {request.workload}: a request from end to end.",
    ]
    if context.late:
        found.append("The time limit ended the search: not everything was tried.")
    return tuple(found)


def clean_up(context: LanguageContext) -> None:
    """Removes the scratch folder; after this only the bundle remains."""
    shutil.rmtree(context.store.work, ignore_errors=True)
