"""`MODEL_CARD.md`: what the artifact is, how it was made, how good it is, where it holds. Hugging Face's form."""

from __future__ import annotations

import math
from typing import Any

import yaml

from lowbit.bundle import words
from lowbit.bundle.schema import CandidateEntry, Manifest


def render_card(manifest: Manifest) -> str:
    """The card as Markdown with a YAML head.

    Source: the metadata follows https://github.com/huggingface/hub-docs, modelcard.md (`base_model_relation`, `model-index`).
    """
    parts = (
        f"# {_escape(manifest.source.path)}: {_escape(manifest.chosen.recipe)} on {_escape(manifest.chosen.runtime)}",
        _what(manifest),
        _made(manifest),
        _evaluation(manifest),
        _limits(manifest),
        _hardware(manifest),
        _run(manifest),
        _lineage(manifest),
    )
    return f"---\n{_head(manifest)}---\n\n" + "\n\n".join(parts) + "\n"


def _head(manifest: Manifest) -> str:
    chosen = manifest.chosen
    head: dict[str, Any] = {"library_name": "lowbit", "base_model": manifest.source.path}
    if chosen.precision != "fp32":
        head["base_model_relation"] = "quantized"
    head["tags"] = ["onnx" if manifest.model.artifact.endswith(".onnx") else "pytorch", "lowbit", chosen.precision, chosen.runtime]
    head["metrics"] = [manifest.policy.metric]
    if chosen.metric and math.isfinite(chosen.metric.value):
        result = {
            "task": {"type": manifest.policy.task},
            "dataset": {"name": manifest.data.source or "validation samples", "type": "custom"},
            "metrics": [{"type": chosen.metric.name, "value": round(chosen.metric.value, 6)}],
        }
        head["model-index"] = [{"name": manifest.source.path, "results": [result]}]
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def _what(manifest: Manifest) -> str:
    head, source = words.headline(manifest), manifest.source
    inputs = "".join(f"\n- input {_code(t.name)}: {t.dtype} {_shape(t.shape)}" for t in manifest.model.inputs)
    outputs = "".join(f"\n- output {_code(t.name)}: {t.dtype} {_shape(t.shape)}" for t in manifest.model.outputs)
    return (
        f"## What it is\n\n**{head.action}.** {_escape(head.sentence)}\n\n"
        f"Made from {_code(source.path)} ({source.format}, {source.parameters:,} parameters, {words.size(source.size_bytes)}) "
        f"for {_escape(manifest.policy.task)}.\n{inputs}{outputs}"
    )


def _shape(shape: tuple[int | str | None, ...]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def _made(manifest: Manifest) -> str:
    chosen, calibration = manifest.chosen, manifest.data.calibration
    tuning = chosen.tuning
    lines = [
        f"Recipe {_code(chosen.recipe)}, precision {chosen.precision}; what stays floating point runs in {tuning.precision}.",
        f"Calibrated on {calibration.n:,} samples, {_escape(calibration.how_selected)}." if calibration.n else "Nothing was calibrated.",
        f"Chosen from {len(manifest.candidates):,} candidates by lowbit {manifest.lowbit_version} on {manifest.created[:10]}.",
    ]
    return "## How it was made\n\n" + "\n".join(f"- {line}" for line in lines) + f"\n\n    {' '.join(manifest.command.split())}"


def _evaluation(manifest: Manifest) -> str:
    chosen, found = manifest.chosen, manifest.chosen.comparison
    if found is None:
        return "## Evaluation\n\nThe source model itself ships; there is nothing to compare it with."
    main = f"{words.change(found.delta)} {words.interval(found.delta)}"
    rows: list[tuple[str, float | None, float, str]] = [(found.metric.name, found.baseline.value, found.metric.value, main)]
    rows += [(name, found.baseline_secondary.get(name), value, words.NONE) for name, value in found.secondary.items()]
    table = "\n".join(
        f"| {_escape(words.metric_name(name))} | {words.metric_value(name, before)} | {words.metric_value(name, now)} | {change} |"
        for name, before, now, change in rows
    )
    where = "samples that the search did not use" if chosen.evidence == "confirm" else "the samples that the search looked at"
    text = (
        f"## Evaluation\n\nPaired with FP32 on {found.delta.n:,} samples ({where}); negative changes are worse; "
        f"{words.confidence(found.delta.confidence)} interval ({found.delta.method}).\n\n"
        f"| metric | FP32 | this model | change |\n|---|---|---|---|\n{table}\n\nSame answer as FP32: {words.share(chosen.agreement)}."
    )
    if found.delta.worse is not None and found.delta.better is not None:
        text += f" Right to wrong: {found.delta.worse:,}; wrong to right: {found.delta.better:,}."
    slices = [s for s in found.slices if math.isfinite(s.delta.value)]
    if slices:
        worst = max(slices, key=lambda s: s.delta.value)
        text += f" Worst slice: {_escape(worst.name)}, {words.change(worst.delta)} {words.interval(worst.delta)} (n = {worst.n:,})."
    return text


def _limits(manifest: Manifest) -> str:
    uses = [
        "For what the source model is for: its own card, licence and limits hold here too.",
        f"The numbers hold for data like the {manifest.data.validation.n:,} validation samples; other data needs `lowbit validate` first.",
        "Speeds hold for the hardware below; on another machine measure again with `lowbit bench`.",
    ]
    if manifest.policy.safety_critical:
        uses.append("A wrong answer can hurt someone here: have a person review the report's slices and flips before use.")
    reasons = [_escape(reason) for reason in manifest.decision.reasons]
    return "## Intended use and limits\n\n" + "\n".join(f"- {text}" for text in uses) + "\n\nWhy this verdict: " + " ".join(reasons)


def _hardware(manifest: Manifest) -> str:
    e = manifest.environment
    rows = "\n".join(_latency_row(manifest, entry) for entry in _shown(manifest) if entry.measurements)
    versions = ", ".join(f"{name} {version}" for name, version in e.versions.items())
    text = f"## Measured on\n\n{_escape(e.cpu)}, {e.cores} cores ({', '.join(e.isa)}), {words.size(e.memory_bytes)} memory, "
    text += f"accelerator: {_escape(e.accelerator or 'none')}. {versions}."
    if rows:
        heads = " | ".join(f"ms, batch {b}" for b in manifest.policy.batch)
        text += f"\n\n| | {heads} | speedup | peak memory |\n|---|{'---|' * len(manifest.policy.batch)}---|---|\n{rows}"
    return text


def _shown(manifest: Manifest) -> list[CandidateEntry]:
    chosen = manifest.chosen
    return [manifest.baseline] + ([chosen] if chosen.id != manifest.baseline.id else [])


def _latency_row(manifest: Manifest, entry: CandidateEntry) -> str:
    found = [words.at(entry, batch) for batch in manifest.policy.batch]
    cells = [words.digits(m.latency_ms.p50) if m else words.NONE for m in found]
    first = next((m.speedup for m in found if m and m.speedup), None)
    speed = f"{words.times(first.value)} [{words.times(first.ci_low)}, {words.times(first.ci_high)}]" if first else words.NONE
    return f"| {entry.id} | {' | '.join(cells)} | {speed} | {words.size(entry.peak_memory_bytes)} |"


def _run(manifest: Manifest) -> str:
    call = "predict(sample)  # raw: preprocessing is in the bundle" if manifest.preprocess else "run(x)  # a model-ready array"
    return (
        "## How to run\n\n```python\nfrom lowbit import Bundle\n\n"
        f'session = Bundle.load("path/to/this/folder").session()\noutputs = session.{call}\n```'
    )


def _lineage(manifest: Manifest) -> str:
    lines = [f"source {_code(manifest.source.path)}: `{manifest.source.sha256}`", f"validation data: `{manifest.data.validation.sha256}`"]
    if manifest.data.calibration.sha256:
        lines.append(f"calibration data: `{manifest.data.calibration.sha256}`")
    lines += [f"{_code(file.path)}: `{file.sha256}`" for file in manifest.files]
    return "## Lineage (SHA-256)\n\n" + "\n".join(f"- {line}" for line in lines)


def _code(text: str) -> str:
    """Text as a code span that it cannot leave."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def _escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no table cells, no line breaks of its own."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}") if mark not in "<>" else text.replace(mark, "&lt;" if mark == "<" else "&gt;")
    return " ".join(text.split())
