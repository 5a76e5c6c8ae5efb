"""`lowbit export BUNDLE --to TARGET` from top to bottom: neutral, written, checked, asked, timed, moved into place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lowbit.bundle.bundle import Bundle
from lowbit.bundle.schema import FindingEntry, KernelsEntry, TargetEntry
from lowbit.data.dataset import Dataset
from lowbit.errors import DataError, Interrupted, LowbitError, ModelError, unknown
from lowbit.export import registry
from lowbit.export.base import Abilities, Artifact, Calibrating, Finding, Setting, Target
from lowbit.export.make import MARK, check_place, make
from lowbit.export.named_session import fixed_size
from lowbit.export.neutral import Neutral, read_neutral
from lowbit.export.settings import settings_of
from lowbit.pipeline.reporting import Reporter
from lowbit.pipeline.request import Data
from lowbit.pipeline.targets.prove import prove, yardstick
from lowbit.pipeline.targets.samples import MOST, labelled, parted, questions, with_samples
from lowbit.pipeline.targets.timing import timed

FOLDER = "targets"
"""Of a bundle, for what `optimize(targets=...)` writes."""


def leave(
    bundle: Bundle,
    target: str,
    out: Path,
    *,
    data: Data | Dataset | None = None,
    calibration: Dataset | None = None,
    candidate: str | None = None,
    settings: Iterable[str] = (),
    samples: int | None = None,
    kernels: Sequence[str] = (),
    force: bool = False,
    time: bool = True,
    reporter: Reporter | None = None,
) -> TargetEntry:
    """Writes a bundle's model for a target, and tries it as far as this machine can.

    Args:
        bundle: Checked.
        target: Its name; see `lowbit targets`.
        out: Folder to write.
        data: Samples to judge it by; random draws from what calibration saw where not given, and no verdict then.
        calibration: Samples for targets that measure ranges by themselves; by default those of `data` that the search calibrated on, else
            some of them that then do not judge.
        candidate: Whose table; what ships where it has one, else the best static INT8 candidate.
        settings: "name=value", each.
        samples: How many are asked; by default as many as the way of running it can bear.
        kernels: Kernel sets that are asked; all that are here where none is named.
        force: Replace an earlier export there.
        time: Also measure its latency, where this machine can.
        reporter: Who is told about progress.

    Raises:
        UsageError: an unknown target or setting, something missing, a folder that cannot be written, a bundle without a table.
        ModelError: the model has what the target lacks.
        DataError: the data do not fit the model.
        Interrupted: by Ctrl-C; the folder is as it was.
    """
    reporter = reporter or Reporter()
    found = registry.get(target)
    wishes = settings_of(found, settings)
    check_place(out, force=force)
    reporter.stage(f"Reading the table of {candidate or bundle.folder.name}")
    judges, known = parted(bundle, data)
    source = labelled(read_neutral(bundle, candidate), judges)
    if judges is not None and isinstance(found, Calibrating) and (wanted := found.samples_wanted(source, wishes)):
        source, judges = with_samples(source, judges, calibration or known, wanted)
    if judges is not None:
        questions(source, judges, samples or MOST["run"])  # too few are found before anything is written
    entries: list[TargetEntry] = []

    def tried(artifact: Artifact, folder: Path) -> str:
        told = _tried(bundle, source, found, artifact, _chosen(found, artifact, kernels), judges, samples, reporter, time=time)
        entries.append(told.model_copy(update={"artifact": artifact.main.relative_to(folder).as_posix()}))
        return json.dumps({"schema": 1, **entries[-1].model_dump(mode="json")}, indent=1) + "\n"

    earlier = (out / MARK).is_file()
    try:
        reporter.stage(f"Writing for {found.title}")
        make(found, source, out, wishes, tried, force=force)
    except KeyboardInterrupt as error:
        kept = "an earlier export is still there" if earlier else "nothing was written"
        raise Interrupted(f"Stopped; {kept}: {out}.", "Run it again.") from error
    return entries[0]


def add_targets(
    bundle: Bundle,
    targets: Sequence[str],
    data: Data | Dataset,
    *,
    calibration: Dataset | None = None,
    time: bool = True,
    reporter: Reporter | None = None,
) -> Bundle:
    """Writes a bundle for several targets into its folder `targets/`; what a target lacks is told in its entry, and the others go on.

    Raises:
        Interrupted: by Ctrl-C, or the disk is full; the targets that were done by then are in the bundle.
    """
    found: list[TargetEntry] = []
    for name in targets:
        try:
            out = bundle.folder / FOLDER / name
            found.append(leave(bundle, name, out, data=data, calibration=calibration, force=True, time=time, reporter=reporter))
        except (Interrupted, KeyboardInterrupt) as error:
            with suppress(LowbitError, OSError):  # where the disk is full this may be so, too
                with_targets(bundle, found)
            done = f", with {', '.join(each.title for each in found)}" if found else ""
            again = f"lowbit export {bundle.folder} --to {name} --data ... goes on."
            raise Interrupted(f"Stopped while writing for {name}; '{bundle.folder}' is finished{done}.", again) from error
        except Exception as error:  # a third party's target may fail in any way; the others go on
            told = error if isinstance(error, LowbitError) else ModelError(f"{type(error).__name__}: {error}")
            found.append(refused(registry.find(name), told))
    return with_targets(bundle, found)


def refused(target: Target, error: LowbitError) -> TargetEntry:
    """The entry of a target that a model could not be written for."""
    able = target.abilities()
    return TargetEntry(
        target=target.name,
        title=target.title,
        version=target.version(),
        level=able.level,
        words=able.words,
        candidate="",
        artifact=None,
        size_bytes=None,
        refused=str(error),
    )


def _chosen(target: Target, artifact: Artifact, wanted: Sequence[str]) -> tuple[str, ...]:
    """The kernel sets that are asked.

    Raises:
        UsageError: one that is not here.
    """
    here = target.kernel_sets(artifact)
    for name in wanted:
        if name not in here:
            raise unknown(f"kernel set of {target.title}", name, here)
    return tuple(name for name in here if name in wanted) if wanted else here


def _tried(
    bundle: Bundle,
    source: Neutral,
    target: Target,
    artifact: Artifact,
    kernel_sets: Sequence[str],
    data: Dataset | None,
    samples: int | None,
    reporter: Reporter,
    *,
    time: bool,
) -> TargetEntry:
    able = target.abilities()
    kernels: list[KernelsEntry] = []
    if kernel_sets:
        try:
            asked = questions(source, data, samples or MOST[able.level])
        except DataError as error:
            note = f"Not asked: {error.message} {error.hint or ''}".strip()
            unasked = replace(artifact, notes=(*artifact.notes, note), words="written; not asked anything: no data were given")
            return entry(target, source, unasked, [])
        by = yardstick(bundle, source, target, artifact, asked)
        kernels = [prove(bundle, source, target, artifact, name, asked, by, reporter) for name in kernel_sets]
        if time:
            kernels = timed(bundle, target, artifact, kernels, by.feeds[0], fixed_size(source.inputs) or 1, reporter)
        return entry(target, source, artifact, kernels, by.doubts)
    return entry(target, source, artifact, kernels)


def entry(
    target: Target, source: Neutral, artifact: Artifact, kernels: Sequence[KernelsEntry], doubts: Sequence[FindingEntry] = ()
) -> TargetEntry:
    """All that is known of an artifact, and what makes the comparison doubtful."""
    able, findings = target.abilities(), tuple(target.check(artifact))
    facts: dict[str, Setting] = dict(artifact.facts)
    return TargetEntry(
        target=target.name,
        title=target.title,
        version=target.version(),
        level=able.level,
        words=words_of(replace(able, words=artifact.words or able.words), findings, kernels),
        candidate=source.candidate,
        artifact=artifact.main.name,
        size_bytes=artifact.size_bytes,
        facts=facts,
        findings=(*doubts, *(FindingEntry(rule=each.rule, severity=each.severity, text=each.text) for each in findings)),
        kernels=tuple(kernels),
        notes=artifact.notes,
    )


def words_of(able: Abilities, findings: Sequence[Finding], kernels: Sequence[KernelsEntry]) -> str:
    """What a result means: the target's own words, unless this artifact gave no reason for them."""
    if kernels and all(each.error for each in kernels):
        return "written; it could not be run here"
    if able.level == "checked" and any(each.severity != "note" for each in findings):
        return "does not meet all documented conditions: see what was found; not run on the target"
    return able.words


def with_targets(bundle: Bundle, entries: Sequence[TargetEntry]) -> Bundle:
    """The bundle with its targets in manifest and report."""
    from lowbit.bundle.manifest import write_atomic, write_manifest
    from lowbit.bundle.report import render_report
    from lowbit.bundle.report_layers import find_layers

    manifest = bundle.manifest.model_copy(update={"targets": tuple(entries)})
    layers = find_layers(bundle.folder, manifest)
    write_atomic(bundle.folder / "report.html", render_report(manifest, title=Path(manifest.source.path).stem, layers=layers))
    write_manifest(manifest, bundle.folder)
    return replace(bundle, manifest=manifest)
