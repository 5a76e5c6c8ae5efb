"""`report.html` of a language model: the decision, the frontier of perplexity against size and time, every candidate, tasks, method."""

from __future__ import annotations

import math
from dataclasses import replace
from html import escape

from lowbit.bundle import charts, words
from lowbit.bundle import language_words as say
from lowbit.bundle.report_parts import breakable, bullets, chip, code_block, facts, footer, header, kind, page, section, size_tile, tile
from lowbit.bundle.schema import CandidateEntry, LanguageCandidateEntry, LanguageEntry, Manifest

WIDE, NARROW = 1060, 358
_ORDER = ("ship", "provisional", "keep", "recover", "reject", "refuse", "failed")
_LEGEND = {
    "baseline": "baseline",
    "ship": "may ship",
    "provisional": "provisional",
    "recover": "over its budget, recoverable",
    "keep": "source precision on another engine",
    "reject": "rejected",
    "refuse": "refused: broken or far over its budget",
}


def render_language_report(manifest: Manifest, language: LanguageEntry, name: str) -> str:
    """The page as one string of HTML.

    Args:
        manifest: Of the bundle.
        language: Its part about the language model.
        name: The page's title.
    """
    sections = (
        section("why", "Why", bullets(manifest.decision.reasons)),
        _frontier(manifest, language, "size"),
        _frontier(manifest, language, "time"),
        _table(manifest, language),
        _speeds(manifest, language),
        _tasks(manifest, language),
        _turned_down(manifest),
        section("next", "What to do next", bullets(manifest.decision.next_steps, "ol")) if manifest.decision.next_steps else "",
        _run(manifest),
        _method(manifest, language),
    )
    main = "\n".join(part for part in sections if part)
    tiles = (_perplexity_tile(manifest, language), _speed_tile(manifest, language), size_tile(manifest, drawn=False))
    head = header(manifest, name, say.headline(manifest), tiles)
    return page(f"{name} · lowbit", f"{head}\n<main>\n{main}\n</main>\n{footer(manifest)}\n")


def _perplexity_tile(manifest: Manifest, language: LanguageEntry) -> str:
    chosen, delta = manifest.chosen, manifest.chosen.delta
    value = words.metric_value("perplexity", chosen.metric.value) if chosen.metric else words.NONE
    if delta is None or chosen.id == manifest.baseline.id:
        return tile("Perplexity", value, "The source model itself ships.")
    budget = say.budget(language, chosen.precision)
    edge = 1.25 * max(abs(delta.ci_low), abs(delta.ci_high), budget)
    strip = charts.interval(-delta.value, -delta.ci_high, -delta.ci_low, (-edge, edge), budget, chosen.verdict or "keep", 26)
    tokens = chosen.metric.n if chosen.metric else 0
    note = f"{words.confidence(delta.confidence)} interval {say.rise_interval(delta)} on {tokens:,} tokens; "
    return tile("Perplexity", say.rise(delta), f"{note}budget +{budget * 100:g} %. It is {value}; more is worse.", strip)


def _speed_tile(manifest: Manifest, language: LanguageEntry) -> str:
    speed = say.speed_of(manifest, manifest.chosen.id)
    if speed is None:
        return tile("A request", words.NONE, "It was not timed.")
    note = (
        f"{say.workload(language.workload)}: first token after {words.milliseconds(speed.ttft_ms.value)}, "
        f"then {say.rate(speed.decode_tokens_per_s)} tokens a second."
    )
    return tile("A request", f"{words.digits(speed.total_s.value)} s", note)


def _frontier(manifest: Manifest, language: LanguageEntry, against: str) -> str:
    """Perplexity against size or against the time of a request; what was not measured is named below."""
    dots, hidden = [], []
    for entry in (manifest.baseline, *manifest.candidates):
        dot = _dot(manifest, entry, against)
        dots.append(dot) if dot else hidden.append(entry.id)
    if len(dots) < 2:
        return ""
    budget = 100 * max(say.budget(language, precision) for precision in ("int4", "int8"))
    label, unit = ("MB of weights · ← smaller", "MB") if against == "size" else ("seconds a request · ← faster", "s")
    title = "Perplexity against size" if against == "size" else "Perplexity against time"
    axes = charts.Axes(title, "↑ better: rise of perplexity (%)", label, unit, "%", rises=True)
    marked = charts.mark_frontier(dots)
    drawn = "".join(
        f'<div class="{shown}">{charts.scatter(marked, budget, axes, width, f"sc-{against}-{shown}")}</div>'
        for shown, width in (("wide", WIDE), ("narrow", NARROW))
    )
    kinds = {"below" if charts.off_chart(dot, budget) else dot.kind for dot in dots}
    legend = "".join(
        f'<li class="v-{word}"><svg width="16" height="16" aria-hidden="true">{charts.marker(word, 8, 8)}</svg>{escape(text)}</li>'
        for word, text in {**_LEGEND, "below": "far below the chart"}.items()
        if word in kinds
    )
    left_out = f'<p class="note">Not drawn, for want of a number: {escape(", ".join(hidden))}.</p>' if hidden else ""
    lead = "Up is better, left is better. The line joins the candidates that nothing else beats on both; whiskers are intervals."
    return section(f"frontier-{against}", title, f'{drawn}<ul class="legend">{legend}</ul>{left_out}', lead)


def _dot(manifest: Manifest, entry: CandidateEntry, against: str) -> charts.Dot | None:
    speed = say.speed_of(manifest, entry.id)
    x = (entry.size_bytes / 1e6 if entry.size_bytes else None) if against == "size" else (speed.total_s.value if speed else None)
    if x is None:
        return None
    chosen = entry.id == manifest.decision.chosen
    if entry.id == manifest.baseline.id:
        return charts.Dot(entry.id, x, 0, 0, 0, "baseline", chosen)
    delta = entry.delta
    if delta is None or not all(math.isfinite(v) for v in (delta.value, delta.ci_low, delta.ci_high)):
        return None
    dot = charts.Dot(entry.id, x, -100 * delta.value, -100 * delta.ci_high, -100 * delta.ci_low, entry.verdict or "reject", chosen)
    return replace(dot, y=0.0 if round(dot.y, 3) == 0 else dot.y)


def _ranked(manifest: Manifest) -> list[CandidateEntry]:
    """The baseline, the chosen one, then by verdict and by the time of a request."""

    def key(entry: CandidateEntry) -> tuple[int, int, float, str]:
        speed = say.speed_of(manifest, entry.id)
        place = 0 if entry.id == manifest.baseline.id else 1 if entry.id == manifest.decision.chosen else 2
        return place, _ORDER.index(kind(entry, "")), speed.total_s.value if speed else math.inf, entry.id

    return sorted((manifest.baseline, *manifest.candidates), key=key)


def _table(manifest: Manifest, language: LanguageEntry) -> str:
    heads = [("Candidate", ""), ("Verdict", ""), ("Perplexity", "rise [interval]"), ("KL", "nats a token"), ("Same token", "as the source")]
    heads += [("Size", ""), ("Bits", "a weight"), ("Memory", "peak")]
    rows = "".join(_row(manifest, language, entry) for entry in _ranked(manifest))
    lead = (
        "Perplexity is on the text of the search; rises are paired with the source model on the same windows of text, for finalists on "
        "unseen ones: plus is worse."
    )
    return section("candidates", "Every candidate", _grid(heads, rows, "Candidates"), lead)


def _grid(heads: list[tuple[str, str]], rows: str, label: str, words_first: int = 2) -> str:
    """A table that scrolls sideways in its own box where it does not fit; after so many columns of words come numbers."""
    head = "".join(
        f'<th scope="col"{" class=num" if i >= words_first else ""}>{escape(text)}<small>{escape(more)}</small></th>'
        for i, (text, more) in enumerate(heads)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(manifest: Manifest, language: LanguageEntry, entry: CandidateEntry) -> str:
    own = language.candidates.get(entry.id)
    is_base, is_chosen = entry.id == manifest.baseline.id, entry.id == manifest.decision.chosen
    value = escape(words.metric_value("perplexity", say.perplexity(manifest, entry)))
    delta = entry.delta
    if delta is not None and not is_base and math.isfinite(delta.value):
        value += f"<small>{escape(say.rise(delta))} {escape(say.rise_interval(delta))}</small>"
    divergence = own.divergence if own else None
    cells = [
        value,
        escape(words.digits(divergence.kl_mean) if divergence and not is_base else words.NONE),
        escape(words.share(divergence.top1) if divergence and not is_base else words.NONE),
        escape(words.size(entry.size_bytes)),
        escape(f"{own.bits_per_weight:.2f}" if own and own.bits_per_weight else words.NONE),
        escape(words.size(own.speed.peak_memory_bytes if own and own.speed else None)),
    ]
    marks = (" chosen" if is_chosen else "") + (" reference" if is_base else "")
    verdict = chip(kind(entry, manifest.baseline.id)) + ('<small class="mine">chosen</small>' if is_chosen else "")
    about = escape(say.tuning(own)) if own else ""
    return (
        f'<tr class="{marks.strip()}"><th scope="row">{breakable(entry.id)}<small>{about}</small></th><td>{verdict}</td>'
        + "".join(f'<td class="num">{cell}</td>' for cell in cells)
        + "</tr>"
    )


def _speeds(manifest: Manifest, language: LanguageEntry) -> str:
    timed = [(entry, own) for entry in _ranked(manifest) if (own := language.candidates.get(entry.id)) and own.speed]
    if not timed:
        return ""
    heads = [
        ("Candidate", ""),
        ("A request", "s"),
        ("First token", "ms"),
        ("Reads", "tokens/s"),
        ("Writes", "tokens/s"),
        ("All", "tokens/s"),
    ]
    priced = any(own.speed and own.speed.usd_per_million_tokens is not None for _, own in timed)
    heads += [("Cost", "$ a million")] if priced else []
    rows = "".join(_speed_row(manifest, entry, own, priced) for entry, own in sorted(timed, key=lambda pair: _seconds(pair[1])))
    lead = f"{say.workload(language.workload).capitalize()}. Medians with intervals; ~ was only timed quickly."
    return section("speed", "Speed on the workload", _grid(heads, rows, "Speeds", words_first=1), lead)


def _seconds(own: LanguageCandidateEntry) -> float:
    return own.speed.total_s.value if own.speed else math.inf


def _speed_row(manifest: Manifest, entry: CandidateEntry, own: LanguageCandidateEntry, priced: bool) -> str:
    speed = own.speed
    assert speed is not None, "only what was timed has a row"
    measured = words.at(entry, words.main_batch(manifest))
    rough = words.rough(measured, manifest) if measured else ""
    total = f"{rough}{words.digits(speed.total_s.value)}"
    cells = [f"{escape(total)}<small>[{words.digits(speed.total_s.ci_low)}, {words.digits(speed.total_s.ci_high)}]</small>"]
    rates = (speed.ttft_ms, speed.prefill_tokens_per_s, speed.decode_tokens_per_s, speed.throughput_tokens_per_s)
    cells += [escape(say.rate(value)) for value in rates]
    if priced:
        cost = speed.usd_per_million_tokens
        cells.append(escape(words.NONE if cost is None else words.digits(cost)))
    marks = "chosen" if entry.id == manifest.decision.chosen else "reference" if entry.id == manifest.baseline.id else ""
    row = "".join(f'<td class="num">{cell}</td>' for cell in cells)
    return f'<tr class="{marks}"><th scope="row">{breakable(entry.id)}</th>{row}</tr>'


def _tasks(manifest: Manifest, language: LanguageEntry) -> str:
    rows = ""
    for entry in _ranked(manifest):
        own = language.candidates.get(entry.id)
        for task in own.tasks if own else ():
            delta = task.delta
            change = f"{words.signed(-delta.value)} pp" if math.isfinite(delta.value) else words.NONE
            rows += (
                f'<tr><th scope="row">{breakable(entry.id)}</th><td>{escape(task.name)}, {escape(words.metric_name(task.metric))}</td>'
                f'<td class="num">{escape(words.share(task.baseline))}</td><td class="num">{escape(words.share(task.value))}</td>'
                f'<td class="num">{escape(change)}<small>{escape(words.interval(delta))}</small></td></tr>'
            )
    if not rows:
        return ""
    heads = [("Candidate", ""), ("Task", ""), ("Source", ""), ("This one", ""), ("Change", "[interval]")]
    return section("tasks", "Tasks", _grid(heads, rows, "Tasks"), "The same questions to both; a minus is worse.")


def _turned_down(manifest: Manifest) -> str:
    rest = [entry for entry in _ranked(manifest) if entry.id not in (manifest.decision.chosen, manifest.baseline.id)]
    items = "".join(
        f"<li>{chip(kind(entry, manifest.baseline.id))} <b>{breakable(entry.id)}</b> {escape(' '.join(entry.reasons))}</li>"
        for entry in rest
    )
    return section("turned-down", "Not chosen, and why", f'<ul class="plain">{items}</ul>') if items else ""


def _run(manifest: Manifest) -> str:
    shell = "lowbit serve path/to/this/folder    # an OpenAI-compatible endpoint\n"
    shell += "lowbit report path/to/this/folder   # this page\n" + manifest.command + "   # make it again"
    code = (
        "from openai import OpenAI\n"
        'client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")\n'
        'client.completions.create(model="MODEL", prompt="Once", max_tokens=32)'
    )
    return section("run", "How to run it", code_block("Shell", shell) + code_block("Python", code))


def _method(manifest: Manifest, language: LanguageEntry) -> str:
    e, d, p, s = manifest.environment, manifest.data, manifest.policy, manifest.source
    split = d.validation
    budgets = ", ".join(f"{word} {words.limit(text)}" for word, text in language.budgets.items())
    rows = {
        "Model": f"{s.path}, {s.parameters:,} parameters, {words.size(s.size_bytes)}",
        "Text": f"{split.n:,} windows of {language.window:,} tokens: {split.n_search:,} for the search, {split.n_confirm:,} unseen by it",
        "Calibration": f"{d.calibration.n:,} windows: {d.calibration.how_selected}",
        "Budgets": f"rise of perplexity, relative: {budgets}; {words.confidence(p.confidence)} confidence, best {p.objective}",
        "Workload": say.workload(language.workload),
        "Context": f"{language.context:,} tokens",
        "Processor": f"{e.cpu}, {e.cores} cores, {', '.join(e.isa)}",
        "Memory": words.size(e.memory_bytes),
        "Accelerator": e.accelerator or "none",
        "System": e.system or "",
        "Versions": ", ".join(f"{name} {version}" for name, version in e.versions.items()),
        "Fingerprints": f"model {s.sha256[:12]}, text {split.sha256[:12]}",
    }
    honest = [
        *manifest.notes,
        "Each candidate was judged and timed alone in its process with the others blocked, in turn over several rounds.",
        "Perplexity is about this text; questions with known answers say more about a use (--qa).",
    ]
    return section("method", "Environment, text and method", facts(rows) + bullets(honest))
