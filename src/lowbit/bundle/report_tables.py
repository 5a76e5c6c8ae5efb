"""The report's lists: candidates, latencies, throughput, sequence lengths, slices, and what was turned down."""

from __future__ import annotations

import math
from html import escape

from lowbit.bundle import charts, words
from lowbit.bundle.report_parts import breakable, chip, kind
from lowbit.bundle.schema import CandidateEntry, Manifest, MeasurementEntry, SliceEntry

MOST_SLICES = 24
_ORDER = ("ship", "provisional", "keep", "recover", "reject", "refuse", "failed")


def ranked(manifest: Manifest) -> list[CandidateEntry]:
    """The baseline, the chosen one, then by verdict and latency."""
    base, chosen, batch = manifest.baseline.id, manifest.decision.chosen, words.main_batch(manifest)

    def key(entry: CandidateEntry) -> tuple[int, int, float, str]:
        measured = words.at(entry, batch)
        place = 0 if entry.id == base else 1 if entry.id == chosen else 2
        return place, _ORDER.index(kind(entry, "")), measured.latency_ms.p50 if measured else math.inf, entry.id

    return sorted((manifest.baseline, *manifest.candidates), key=key)


def candidate_table(manifest: Manifest) -> str:
    """One row a candidate; scrolls sideways in its own box where it does not fit."""
    batches = manifest.policy.batch
    heads = [("Candidate", ""), ("Verdict", ""), (f"Δ {words.metric_name(manifest.policy.metric)}", "[interval]")]
    heads += [("Speedup", "over best FP32"), *((f"Batch {b}", "ms per call") for b in batches), ("Size", "")]
    heads += [("Agreement", "with FP32"), ("Memory", "peak")]
    head = "".join(
        f'<th scope="col"{" class=num" if i > 1 else ""}>{escape(text)}<small>{escape(more)}</small></th>'
        for i, (text, more) in enumerate(heads)
    )
    rows = "".join(_row(manifest, entry) for entry in ranked(manifest))
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Candidates"><table class="candidates">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(manifest: Manifest, entry: CandidateEntry) -> str:
    measured = words.at(entry, words.main_batch(manifest))
    speed, best = (measured.speedup, measured.speedup_over_best_fp32) if measured else (None, None)
    is_base, is_chosen = entry.id == manifest.baseline.id, entry.id == manifest.decision.chosen
    change = "reference" if is_base else escape(words.change(entry.delta))
    if entry.delta and math.isfinite(entry.delta.value) and not is_base:
        change += f"<small>{escape(words.interval(entry.delta))}</small>"
    speedup = escape(words.times(speed.value if speed else None)) + (f"<small>{words.times(best.value)}</small>" if best else "")
    found = [words.at(entry, batch) for batch in manifest.policy.batch]
    cells = [words.rough(m, manifest) + words.digits(m.latency_ms.p50) if m else words.NONE for m in found]
    cells += [words.size(entry.size_bytes), words.NONE if is_base else words.share(entry.agreement), words.size(entry.peak_memory_bytes)]
    html = [change, speedup, *(escape(cell) for cell in cells)]
    marks = (" chosen" if is_chosen else "") + (" reference" if is_base else "")
    tuning = f"{entry.precision}, {entry.runtime}" + (", fixed shape" if entry.tuning.fixed_shape else "")
    verdict = chip(kind(entry, manifest.baseline.id)) + ('<small class="mine">chosen</small>' if is_chosen else "")
    return (
        f'<tr class="{marks.strip()}"><th scope="row">{breakable(entry.id)}<small>{escape(tuning)}</small></th>'
        f"<td>{verdict}</td>" + "".join(f'<td class="num">{cell}</td>' for cell in html) + "</tr>"
    )


def latency_bars(manifest: Manifest) -> str:
    """Per batch size one bar a candidate, fastest first."""
    blocks = []
    for batch in manifest.policy.batch:
        found = [(entry, m) for entry in (manifest.baseline, *manifest.candidates) if (m := words.at(entry, batch))]
        if not found:
            continue
        top = max(m.latency_ms.p50 for _, m in found) * 1.25  # a noisy p95 must not squeeze the bars
        rows = []
        for entry, m in sorted(found, key=lambda pair: pair[1].latency_ms.p50):
            ms = m.latency_ms
            colour = "chosen" if entry.id == manifest.decision.chosen else kind(entry, manifest.baseline.id)
            drawn = charts.bar(ms.p50, ms.ci_low, ms.ci_high, ms.p95, top, colour)
            rows.append(
                f'<li><span class="name">{breakable(entry.id)}</span><span class="plot">{drawn}</span>'
                f'<span class="num">{words.rough(m, manifest)}{escape(words.milliseconds(ms.p50))}</span></li>'
            )
        blocks.append(f'<div><h3>Batch {batch}</h3><ul class="rows">{"".join(rows)}</ul></div>')
    return f'<div class="columns">{"".join(blocks)}</div>' if blocks else ""


def throughput_table(manifest: Manifest) -> str:
    """Samples per second of the baseline and the chosen one, at every batch size and number of streams."""
    entries = [manifest.baseline] + ([manifest.chosen] if manifest.chosen.id != manifest.baseline.id else [])
    settings = sorted({(m.batch, m.streams) for entry in entries for m in entry.measurements})
    if not settings:
        return ""
    head = "".join(f'<th scope="col" class="num">batch {b}, {s} {"stream" if s == 1 else "streams"}</th>' for b, s in settings)
    rows = ""
    for entry in entries:
        found = [words.at(entry, *setting) for setting in settings]
        cells = "".join(f'<td class="num">{escape(words.digits(m.throughput_per_s) if m else words.NONE)}</td>' for m in found)
        rows += f'<tr><th scope="row">{escape(entry.id)}</th>{cells}</tr>'
    return (
        '<h3>Samples per second</h3><div class="scroll" tabindex="0" role="region" aria-label="Throughput"><table>'
        f'<thead><tr><th scope="col">Candidate</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def length_table(manifest: Manifest) -> str:
    """One row a sequence length: the baseline's time, the chosen one's and their ratio, at every batch size. Text alone has one."""
    chosen, before = ({(m.tokens, m.batch): m for m in entry.by_length} for entry in (manifest.chosen, manifest.baseline))
    batches, lengths = sorted({batch for _, batch in chosen}), sorted({tokens for tokens, _ in chosen if tokens})
    if not lengths:
        return ""
    head = "".join(f'<th scope="col" class="num">batch {batch}<small>baseline → chosen</small></th>' for batch in batches)
    rows = ""
    for tokens in lengths:
        cells = "".join(_length_cell(before.get((tokens, batch)), chosen.get((tokens, batch))) for batch in batches)
        rows += f'<tr><th scope="row">{tokens} tokens</th>{cells}</tr>'
    return (
        '<h3>By sequence length</h3><div class="scroll" tabindex="0" role="region" aria-label="Sequence lengths"><table class="lengths">'
        f'<thead><tr><th scope="col">Length</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _length_cell(before: MeasurementEntry | None, now: MeasurementEntry | None) -> str:
    """E.g. "6.71 → 2.90 ms", and under it "2.3× [2.21, 2.40]"."""
    if now is None:
        return f'<td class="num">{words.NONE}</td>'
    text = ("~ " if now.noisy else "") + (f"{words.digits(before.latency_ms.p50)} → " if before else "")
    ratio = now.speedup
    more = f"{words.times(ratio.value)} [{words.digits(ratio.ci_low)}, {words.digits(ratio.ci_high)}]" if ratio else ""
    return f'<td class="num">{escape(text + words.milliseconds(now.latency_ms.p50))}<small>{escape(more)}</small></td>'


def slice_rows(manifest: Manifest) -> str:
    """The chosen candidate's slices as dots with intervals, worst first; the hardest tenth always shows."""
    found = [s for s in manifest.chosen.slices if all(math.isfinite(v) for v in (s.delta.value, s.delta.ci_low, s.delta.ci_high))]
    if not found:
        return ""
    worst = sorted(found, key=lambda s: (-s.delta.value, s.name))
    shown = [s for i, s in enumerate(worst) if i < MOST_SLICES or "hardest" in s.name]
    budget = words.budget(manifest)
    low = min(-budget, *(-s.delta.ci_high for s in shown)) * 1.06
    high = max(budget * 0.5, *(-s.delta.ci_low for s in shown)) * 1.06
    rows = "".join(_slice(manifest, s, (low, high), budget) for s in shown)
    more = f'<p class="note">{len(worst) - len(shown)} more slices are in bundle.json.</p>' if len(worst) > len(shown) else ""
    unit = words.unit(shown[0].delta)
    span = f"Axis from {words.signed(low)} to {words.signed(high)} {unit}."
    axis = f'<p class="note">Solid line: no change. Dashed line: the budget. {span}</p>'
    return f'<ul class="rows slices">{rows}</ul>{axis}{more}'


def _slice(manifest: Manifest, part: SliceEntry, domain: tuple[float, float], budget: float) -> str:
    delta = part.delta
    colour = "refuse" if delta.ci_low > budget else "provisional" if delta.value > budget else "ship"
    drawn = charts.interval(-delta.value, -delta.ci_high, -delta.ci_low, domain, budget, colour)
    metric = manifest.policy.metric
    moved = f"{words.metric_value(metric, part.baseline)} → {words.metric_value(metric, part.candidate)}"
    strong = " strong" if "hardest" in part.name else ""
    return (
        f'<li><span class="name{strong}">{escape(part.name)}<small>n = {part.n:,}; {escape(moved)}</small></span>'
        f'<span class="plot">{drawn}</span>'
        f'<span class="num">{escape(words.change(delta))}<small>{escape(words.interval(delta))}</small></span></li>'
    )


def turned_down(manifest: Manifest) -> str:
    """Every candidate that is not what ships, with the reasons."""
    items = []
    for entry in ranked(manifest)[1:]:
        word = kind(entry, manifest.baseline.id)
        if entry.id == manifest.decision.chosen or word in ("ship", "keep"):
            continue
        broken = entry.comparison.broken if entry.comparison else None
        texts = dict.fromkeys([*entry.reasons, *entry.notes, *([broken] if broken else [])])
        why = escape(" ".join(texts)) or "No reason was recorded."
        items.append(f"<li>{chip(word)}<div><b>{breakable(entry.id)}</b><p>{why}</p></div></li>")
    return f'<ul class="reasons">{"".join(items)}</ul>' if items else ""
