"""`report.html`: one self-contained page that says what was decided, shows why, and how to run it.

No script, no external request; every word that comes from a manifest is escaped. Sections that have nothing to show are
left out.
"""

from __future__ import annotations

import math
from html import escape

from lowbit.bundle import charts, words
from lowbit.bundle.report_layers import layers_section, mixed_sentences
from lowbit.bundle.report_parts import bullets, code_block, facts, footer, header, page, pair, section, size_tile, tile
from lowbit.bundle.report_tables import candidate_table, latency_bars, length_table, slice_rows, throughput_table, turned_down
from lowbit.bundle.report_targets import targets_section
from lowbit.bundle.schema import CandidateEntry, Manifest
from lowbit.compress.explain import Layers


def render_report(manifest: Manifest, *, title: str | None = None, layers: Layers | None = None) -> str:
    """The page as one string of HTML.

    Args:
        manifest: Of the bundle.
        title: The page's title; defaults to the model's name.
        layers: What the search found out about single layers; see `report_layers.find_layers`.
    """
    if manifest.language is not None:
        from lowbit.bundle.report_language import render_language_report

        return render_language_report(manifest, manifest.language, title or manifest.source.path)
    name = title or manifest.source.path
    sections = (
        _why(manifest),
        _scatter(manifest),
        _table(manifest),
        _latency(manifest),
        _confidence(manifest),
        _slices(manifest),
        layers_section(layers, mixed_sentences(manifest)) if layers else "",
        targets_section(manifest),
        _turned_down(manifest),
        _next(manifest),
        _run(manifest),
        _method(manifest),
    )
    main = "\n".join(part for part in sections if part)
    tiles = (_quality_tile(manifest), _speed_tile(manifest), size_tile(manifest, drawn=True))
    head = header(manifest, name, words.headline(manifest), tiles)
    return page(f"{name} · lowbit", f"{head}\n<main>\n{main}\n</main>\n{footer(manifest)}\n")


def _quality_tile(manifest: Manifest) -> str:
    chosen, delta = manifest.chosen, manifest.chosen.delta
    name, limit = words.metric_name(manifest.policy.metric), words.limit(manifest.policy.max_drop)
    if chosen.id == manifest.baseline.id:
        return tile(name, "unchanged", "The source model itself ships.")
    if delta is None or not math.isfinite(delta.value):
        return tile(name, words.NONE, "Not compared on validation samples.")
    budget = words.budget(manifest)
    edge = 1.25 * max(abs(delta.ci_low), abs(delta.ci_high), budget)
    # A wider edge only while it fits: an interval that leaves the axis would look as if it ended there.
    strip = charts.interval(-delta.value, -delta.ci_high, -delta.ci_low, (-edge, edge), budget, chosen.verdict or "keep", 26)
    return tile(
        name,
        words.change(delta),
        f"{words.confidence(delta.confidence)} interval {words.interval(delta)}, n = {delta.n:,}; budget {limit}. Negative is worse.",
        strip,
    )


def _speed_tile(manifest: Manifest) -> str:
    batch, chosen = words.main_batch(manifest), manifest.chosen
    measured, base = words.at(chosen, batch), words.at(manifest.baseline, batch)
    if measured is None:
        return tile("Speed", words.NONE, "Latency was not measured.")
    now, before = measured.latency_ms.p50, base.latency_ms.p50 if base else None
    if chosen.id == manifest.baseline.id or measured.speedup is None:
        return tile("Speed", words.milliseconds(now), f"per call at batch {batch}.")
    ratio, best = measured.speedup, measured.speedup_over_best_fp32
    note = f"[{words.times(ratio.ci_low)}, {words.times(ratio.ci_high)}] over FP32 on onnxruntime at batch {batch}: "
    note += f"{words.milliseconds(before)} → {words.milliseconds(now)}." if before else f"{words.milliseconds(now)}."
    if best:
        note += f" {words.times(best.value)} over the fastest FP32 on any runtime."
    if measured.noisy:
        note += " The machine was noisy: take it as a rough figure."
    return tile("Speed", words.times(ratio.value), note, pair(before, now))


def _why(manifest: Manifest) -> str:
    # The bar below says in a picture what this sentence says in words.
    text = bullets([reason for reason in manifest.decision.reasons if "became wrong" not in reason])
    delta = manifest.chosen.delta
    if delta and delta.worse is not None and delta.better is not None and delta.worse + delta.better > 0:
        text += _flips(delta.worse, delta.better, delta.n)
    if notes := [note for note in manifest.notes if note not in manifest.decision.reasons]:
        text += '<div class="aside">' + "".join(f"<p>{escape(note)}</p>" for note in notes) + "</div>"
    return section("why", "Why", text)


def _flips(worse: int, better: int, n: int) -> str:
    """Net change hides flips: both directions, on one bar."""
    share = 100 * worse / (worse + better)
    return (
        f'<div class="flips"><p>Of {n:,} samples <b class="bad">{worse:,}</b> went from right to wrong and '
        f'<b class="good">{better:,}</b> from wrong to right.</p><svg width="100%" height="10" aria-hidden="true">'
        f'<rect class="good" width="100%" height="10" rx="2"/><rect class="bad" width="{share:.1f}%" height="10" rx="2"/></svg></div>'
    )


def _scatter(manifest: Manifest) -> str:
    batch = words.main_batch(manifest)
    dots, hidden = [], []
    for entry in (manifest.baseline, *manifest.candidates):
        dot = _dot(manifest, entry, batch)
        dots.append(dot) if dot else hidden.append(entry.id)
    if len(dots) < 2:
        return ""
    marked, delta = charts.mark_frontier(dots), next((entry.delta for entry in manifest.candidates if entry.delta), None)
    unit = words.unit(delta) if delta else "pp"
    args = (marked, words.budget(manifest) * 100, charts.against_latency(words.metric_name(manifest.policy.metric), unit, batch))
    drawn = f'<div class="wide">{charts.scatter(*args, 1060, "sc-w")}</div><div class="narrow">{charts.scatter(*args, 358, "sc-n")}</div>'
    kinds = {"below" if charts.off_chart(dot, words.budget(manifest) * 100) else dot.kind for dot in dots}
    legend = "".join(
        f'<li class="v-{kind}"><svg width="16" height="16" aria-hidden="true">{charts.marker(kind, 8, 8)}</svg>{escape(text)}</li>'
        for kind, text in _LEGEND.items()
        if kind in kinds
    )
    left_out = f'<p class="note">Not drawn, for want of a latency or a comparison: {escape(", ".join(hidden))}.</p>' if hidden else ""
    lead = "Up is better, left is faster. The line joins the candidates that nothing else beats on both; whiskers are intervals."
    return section("tradeoff", "Accuracy against latency", f'{drawn}<ul class="legend">{legend}</ul>{left_out}', lead)


_LEGEND = {
    "baseline": "baseline",
    "ship": "may ship",
    "provisional": "provisional",
    "recover": "over budget, recoverable",
    "keep": "source precision",
    "reject": "rejected: too slow or dominated",
    "refuse": "refused: broken or far over budget",
    "below": "refused: far below the chart",
}


def _dot(manifest: Manifest, entry: CandidateEntry, batch: int) -> charts.Dot | None:
    measured, delta = words.at(entry, batch), entry.delta
    if measured is None:
        return None
    if entry.id == manifest.baseline.id:
        return charts.Dot(entry.id, measured.latency_ms.p50, 0, 0, 0, "baseline", entry.id == manifest.decision.chosen)
    if delta is None or not all(math.isfinite(v) for v in (delta.value, delta.ci_low, delta.ci_high)):
        return None
    y, low, high = (-100 * v for v in (delta.value, delta.ci_high, delta.ci_low))
    return charts.Dot(entry.id, measured.latency_ms.p50, y, low, high, entry.verdict or "reject", entry.id == manifest.decision.chosen)


def _table(manifest: Manifest) -> str:
    lead = f"Changes are paired with FP32 on the same samples: negative is worse. Speedup is over {manifest.baseline.id}."
    return section("candidates", "Every candidate", candidate_table(manifest), lead)


def _latency(manifest: Manifest) -> str:
    bars = latency_bars(manifest)
    lead = "Median time of a call; whisker: interval of the median; tick: 95th percentile; ~ rough (see the end of the page)."
    return section("latency", "Latency", bars + length_table(manifest) + throughput_table(manifest), lead) if bars else ""


def _confidence(manifest: Manifest) -> str:
    found = manifest.chosen.comparison
    if not found or not found.histogram or not found.baseline_histogram or manifest.chosen.id == manifest.baseline.id:
        return ""
    drawn = charts.histogram(found.baseline_histogram, found.histogram, "hist")
    axis = '<p class="axis-x" aria-hidden="true"><span>0</span><span>0.25</span><span>0.5</span><span>0.75</span><span>1</span></p>'
    name = escape(manifest.chosen.id)
    legend = f'<ul class="legend"><li><i class="swatch line"></i>baseline</li><li><i class="swatch area"></i>{name}</li></ul>'
    text = drawn + axis + legend
    if shift := found.confidence_shift:
        verdict = "Review it before shipping." if shift.review else "Both are within the limits for a review (5 %, 0.05)."
        text += (
            f"<p>Mean confidence moved by {words.signed(shift.relative_mean)} %, the largest gap between the two distributions is "
            f"{shift.ks:.3f} (Kolmogorov-Smirnov), and {words.share(shift.low_tail)} of the samples now fall below what was the "
            f'baseline\'s 5th percentile (5.0 % = no change). <b class="{"bad" if shift.review else "good"}">{verdict}</b></p>'
        )
    lead = "How sure the model is of its answer, per sample. Heights are square roots, so that the tail shows."
    return section("confidence", "Confidence", text, lead)


def _slices(manifest: Manifest) -> str:
    rows = slice_rows(manifest)
    name = words.metric_name(manifest.policy.metric)
    lead = f"What an overall number hides: change of {name} per slice, worst first; intervals corrected for their number."
    return section("slices", "Slices and the hardest tenth", rows, lead) if rows else ""


def _turned_down(manifest: Manifest) -> str:
    return section("turned-down", "Not chosen, and why", turned_down(manifest)) if turned_down(manifest) else ""


def _next(manifest: Manifest) -> str:
    steps = manifest.decision.next_steps
    return section("next", "What to do next", bullets(steps, "ol")) if steps else ""


def _run(manifest: Manifest) -> str:
    call = "predict(sample)  # a raw sample: the bundle preprocesses it" if manifest.preprocess else "run(x)  # a model-ready array"
    code = f'from lowbit import Bundle\nsession = Bundle.load("path/to/this/folder").session()\noutputs = session.{call}'
    shell = "lowbit report path/to/this/folder   # this page\n" + manifest.command + "   # make it again"
    return section("run", "How to run it", code_block("Python", code) + code_block("Shell", shell))


def _method(manifest: Manifest) -> str:
    e, d, p, s = manifest.environment, manifest.data, manifest.policy, manifest.source
    split = d.validation
    used = f"{split.n:,} samples"
    if split.n_search and split.n_confirm:
        used += f": {split.n_search:,} for the search, {split.n_confirm:,} unseen by it to confirm"
    rows = {
        "Model": f"{s.path}, {s.format}, {s.parameters:,} parameters, {words.size(s.size_bytes)}",
        "Validation": used + (f"; {split.skipped:,} unreadable ones skipped" if split.skipped else ""),
        "Calibration": f"{d.calibration.n:,} samples, {d.calibration.how_selected}",
        "Policy": f"{words.metric_name(p.metric)}, at most {words.limit(p.max_drop)} worse, {words.confidence(p.confidence)} confidence, "
        f"best {p.objective}, batch {', '.join(map(str, p.batch))}" + (f", at most {p.max_latency_ms:g} ms" if p.max_latency_ms else ""),
        "Processor": f"{e.cpu}, {e.cores} cores, {', '.join(e.isa)}",
        "Memory": words.size(e.memory_bytes),
        "Accelerator": e.accelerator or "none",
        "System": e.system or "",
        "Versions": ", ".join(f"{name} {version}" for name, version in e.versions.items()),
        "Energy": _energy(manifest.chosen),
        "Fingerprints": f"model {s.sha256[:12]}, validation {split.sha256[:12]}",
    }
    return section("method", "Environment, data and method", facts(rows) + bullets(_honest(manifest)))


def _energy(entry: CandidateEntry) -> str:
    energy = entry.energy
    if energy is None:
        return ""
    if energy.joules_per_inference is None:
        return f"unavailable ({energy.method})"
    between = ""
    if energy.low is not None and energy.high is not None:
        between = f", between {words.joules(energy.low)} and {words.joules(energy.high)}"
    return f"{words.joules(energy.joules_per_inference)} per inference{between}; method: {energy.method}"


def _honest(manifest: Manifest) -> list[str]:
    """How it was measured, and what to doubt."""
    measured = [m for entry in (manifest.baseline, *manifest.candidates) for m in entry.measurements]
    notes = []
    if measured:
        notes.append(
            "Each variant ran alone in its own process with the others blocked, in turn over several rounds, warm-up left out; "
            "a speedup is the median of the rounds' ratios with a bootstrap interval."
        )
    if any(words.rough(m, manifest) for m in measured):
        notes.append(
            "Times marked ~ are rough: the rounds disagreed more than a quiet machine's do, or the candidate did not reach the "
            "final timing and was only timed quickly, beside the baseline of that moment. Trust their ratios more than their milliseconds."
        )
    if manifest.chosen.evidence == "confirm":
        notes.append("The chosen candidate was compared on samples that the search never saw, so that searching many does not flatter it.")
    elif manifest.chosen.evidence == "search":
        notes.append("The chosen candidate was compared on the samples that the search looked at, not on unseen ones.")
    energy = manifest.chosen.energy
    if energy and energy.method.startswith("model"):
        notes.append("Energy is modelled from processor time, not metered: use it to compare candidates, not to pay a bill.")
    return notes
