"""Write the bundle: what ships, the manifest, the report and the card. The manifest comes last of what a reader needs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from lowbit.bundle.card import render_card
from lowbit.bundle.manifest import build_manifest, candidate_entry, file_entries, write_atomic, write_manifest
from lowbit.bundle.report import render_report
from lowbit.bundle.report_layers import find_layers
from lowbit.bundle.schema import CalibrationEntry, DataEntry, EnvironmentEntry, Manifest, ValidationEntry
from lowbit.pipeline.artifacts import artifact_files, format_of
from lowbit.pipeline.context import BASELINE, Context
from lowbit.pipeline.lengths import sentences
from lowbit.pipeline.recipes import PRUNED, QAT
from lowbit.pipeline.store import link_or_copy
from lowbit.types import Candidate, Decision


def write_bundle(context: Context, decision: Decision, command: str, *, complete: bool = True) -> Manifest:
    """Puts the chosen artifact in `model/` and writes everything that describes it.

    Args:
        context: The run.
        decision: What was decided.
        command: As the user typed it.
        complete: False while the search goes on: the manifest alone is written, so that the best so far is always on disk.
    """
    out = context.store.out
    baseline = context.state.baseline
    assert baseline is not None, "the baseline comes first"
    candidates = list(context.state.candidates.values())
    chosen = baseline if decision.chosen == BASELINE else context.state.candidates[decision.chosen]
    artifact = place_model(out, chosen)
    steps = context.split.search.preprocess
    write_atomic(out / "preprocess.yaml", steps.to_yaml())
    for name, content in steps.files().items():
        write_atomic(out / name, content)
    for candidate in candidates:
        write_result(context, candidate, decision)
    manifest = build_manifest(
        model=context.model,
        policy=context.policy,
        data=data_entry(context),
        environment=EnvironmentEntry.model_validate(context.hardware),
        baseline=baseline,
        candidates=[pruned(out, candidate, decision.chosen) for candidate in candidates] if context.prune and complete else candidates,
        decision=decision,
        command=command,
        artifact=artifact,
        files=file_entries(out, ["model", "baseline", "preprocess.yaml", *steps.files()]),
        preprocess="preprocess.yaml",
        notes=(*notes(context, complete), *sentences(chosen)),
    )
    if complete:
        write_atomic(out / "report.html", render_report(manifest, title=context.model.path.stem, layers=find_layers(out, manifest)))
        write_atomic(out / "MODEL_CARD.md", render_card(manifest))
    write_manifest(manifest, out)
    return manifest


def place_model(out: Path, chosen: Candidate) -> str:
    """Links the chosen artifact (with external data) into `model/`; returns its path relative to the bundle."""
    assert chosen.artifact is not None, f"{chosen.id} was chosen without an artifact"
    source = out / chosen.artifact
    target = out / "model" / f"model.{format_of(source)}"
    if not target.exists() or not target.samefile(source):
        fresh = out / ".work" / "model"
        shutil.rmtree(fresh, ignore_errors=True)
        for file in artifact_files(source):
            link_or_copy(file, fresh / file.relative_to(source.parent))
        # The whole folder is replaced: weights of what was chosen before must not stay beside it.
        shutil.rmtree(out / "model", ignore_errors=True)
        fresh.rename(out / "model")
    return f"model/{target.name}"


def write_result(context: Context, candidate: Candidate, decision: Decision) -> None:
    judgement = next((entry for entry in decision.judgements if entry.id == candidate.id), None)
    folder = context.store.candidate(candidate.id)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = next((recipe for recipe in context.recipes if recipe.name == candidate.recipe), None)
    if recipe is not None and not (folder / "recipe.yaml").exists():
        write_atomic(folder / "recipe.yaml", recipe.to_yaml())
    entry = candidate_entry(candidate, judgement)
    write_atomic(folder / "result.json", json.dumps(entry.model_dump(mode="json"), indent=1) + "\n")


def pruned(out: Path, candidate: Candidate, chosen: str) -> Candidate:
    """The candidate without its artifact, which is deleted. What ships stays: it is the same file as `model/`."""
    trained = candidate.recipe.startswith((QAT, PRUNED.name, "research-"))  # made again it would be another model
    if candidate.artifact is None or candidate.artifact.startswith("baseline/") or candidate.id == chosen or trained:
        return candidate
    (out / candidate.artifact).unlink(missing_ok=True)
    return replace(candidate, artifact=None)


def data_entry(context: Context) -> DataEntry:
    split = context.split
    return DataEntry(
        source=split.search.name,
        classes=split.search.classes or (),
        calibration=CalibrationEntry(sha256=split.calibration.fingerprint, n=len(split.calibration), how_selected=split.how_selected),
        validation=ValidationEntry(
            sha256=split.validation.fingerprint,
            n=len(split.search) + len(split.confirm),
            n_search=len(split.search),
            n_confirm=len(split.confirm),
            skipped=len(split.search.skipped),
        ),
    )


def notes(context: Context, complete: bool) -> tuple[str, ...]:
    found = []
    if not complete:
        found.append("The search was still going on when this was written; the same command resumes it.")
    if skipped := context.split.search.skipped:
        found.append(
            f"{len(skipped)} samples could not be read and were left out: {', '.join(skipped[:3])}{'…' if len(skipped) > 3 else ''}."
        )
    return tuple(found)


def clean_up(context: Context) -> None:
    """Removes the scratch folder; after this only the bundle remains."""
    for reference in context.references.values():
        reference.close()
    shutil.rmtree(context.store.work, ignore_errors=True)
