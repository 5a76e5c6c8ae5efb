"""The page of `lowbit assess --report`: one self-contained file, no script, no request; every word that comes in is escaped."""

from __future__ import annotations

from html import escape

from lowbit.bundle import charts
from lowbit.bundle.report_parts import breakable, bullets, facts, page, section, tile
from lowbit.cli.assess import FIGURES, TEXTS, columns_of, name_of, replaced, rows_of
from lowbit.cost import say
from lowbit.cost.assess import Assessment
from lowbit.cost.figures import Figure
from lowbit.cost.lines import Line

KINDS = {"worth it": "ship", "probably": "provisional", "not worth it": "keep", "unknown": "reject"}
HEADS = {
    "worth it": "Change it",
    "probably": "Probably change it",
    "not worth it": "Leave it as it is",
    "unknown": "It depends on what is not known yet",
}


def render(found: Assessment) -> str:
    """The page as one string of HTML."""
    main = [_why(found), _asked(found), _table(found), _bills(found), _replaced(found), _roadmap(found), _origins(found), _assumed(found)]
    body = f"{_header(found)}\n<main>\n{chr(10).join(part for part in main if part)}\n</main>\n"
    foot = "<footer><p>Written by <code>lowbit assess</code>. Dollars are US dollars; a month has 730 hours.</p></footer>\n"
    return page(f"{found.name} · cost · lowbit", body + foot)


def _header(found: Assessment) -> str:
    word = found.answer.word
    first = found.answer.reasons[0] if found.answer.reasons else ""
    return (
        f'<header class="v-{KINDS[word]}"><p class="brand"><b>lowbit</b><span>{escape(found.name)}</span></p>'
        f'<h1><span class="chip v-{KINDS[word]}">{word}</span><span class="action">{HEADS[word]}</span></h1>'
        f'<p class="headline">{escape(first)}</p>'
        f'<div class="tiles">{_bill_tile(found)}{_million_tile(found)}{_payback_tile(found)}</div></header>'
    )


def _chosen(found: Assessment) -> Line | None:
    return next((each for each in found.lines if each.name == found.answer.chosen), None)


def _bill_tile(found: Assessment) -> str:
    chosen, today, best = _chosen(found), found.today.paid, found.best
    now = chosen.paid if chosen else None
    if today is None:
        return tile("A month", say.NONE, "Neither instances nor a bill of today are known.")
    if now is None or best is None:
        return tile("A month", say.dollars(today, ends=False), "Today; what it could be is not known.")
    note = f"{say.dollars(today)} today: {say.dollars(best.paid)} saved, {say.dollars(best.model)} of it by the model itself."
    if chosen and chosen.on_spot and not chosen.spot:
        note += f" On spot {say.dollars(chosen.on_spot)}."
    return tile("A month", say.dollars(now, ends=False), note, _pair(today, now))


def _million_tile(found: Assessment) -> str:
    chosen = _chosen(found)
    for figure, text in (("per_million", "with idle hours"), ("least", "if no instance ever idles")):
        before, now = getattr(found.today, figure), getattr(chosen, figure, None)
        if before and now:
            return tile("A million requests", say.dollars(now, ends=False), f"{say.dollars(before)} today, {text}.", _pair(before, now))
    return tile("A million requests", say.NONE, "Needs requests_per_month, or the time of a request.")


def _payback_tile(found: Assessment) -> str:
    effort = f"Effort {say.dollars(found.effort)}." if found.effort else "What the change costs is not known."
    if found.payback is None:
        return tile("Payback", say.NONE, effort)
    days = found.payback
    value = f"{say.amount(round(days.value))} days" if days.value < 1000 else f"{say.amount(round(days.value / 365, 1))} years"
    return tile("Payback", value, f"{effort} {days.note.capitalize()}." if days.origin == "derived" else f"{effort} Stated: {days.note}.")


def _pair(before: Figure, now: Figure) -> str:
    """Two bars, before and now."""
    top = max(before.value, now.value)
    if top <= 0:
        return ""
    return (
        '<svg class="pair" width="100%" height="26" aria-hidden="true">'
        f'<rect class="before" y="2" height="9" width="{100 * before.value / top:.1f}%" rx="2"/>'
        f'<rect class="now" y="15" height="9" width="{100 * now.value / top:.1f}%" rx="2"/></svg>'
    )


def _why(found: Assessment) -> str:
    """What the headline has not said yet."""
    return section("why", "Why", bullets(found.answer.reasons[1:])) if found.answer.reasons[1:] else ""


def _asked(found: Assessment) -> str:
    lead = "Nothing is guessed in its place. Say it in the workload, and run the command again."
    return section("asked", "What is not known", bullets(found.asked), lead) if found.asked else ""


def _table(found: Assessment) -> str:
    """What matters most stands first; what all have in common, and what stands below the name, is left out."""
    ranked = sorted(columns_of(found), key=lambda each: each[1])
    shown = [(head, cells) for head, _, cells in ranked if any(cell not in ("", say.NONE) for cell in cells)]
    columns = [(head, cells) for head, cells in shown if head != "instance" and (head != "hours" or len(set(cells)) > 1)]
    head = "".join(f'<th scope="col"{"" if name in TEXTS else " class=num"}>{escape(_heading(name))}</th>' for name, _ in columns)
    rows = ""
    for number, line in enumerate(rows_of(found)):
        marks = "chosen" if line.name == found.answer.chosen else "reference" if line is found.today else ""
        kind = "fewer instances" if line is found.trimmed and line is not found.today else line.precision
        more = ", ".join(filter(None, (kind, line.instance)))
        cells = "".join(f"<td{'' if name in TEXTS else ' class=num'}>{escape(cells[number])}</td>" for name, cells in columns)
        rows += f'<tr class="{marks}"><th scope="row">{breakable(line.name)}<small>{escape(more)}</small></th>{cells}</tr>'
    table = (
        '<div class="scroll" tabindex="0" role="region" aria-label="Deployments"><table>'
        f'<thead><tr><th scope="col">Deployment</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
    return section("deployments", "Every way to run it", table, "A month on demand and on spot; a saving is over what is paid today.")


def _heading(name: str) -> str:
    text = HEADINGS.get(name, name)
    return text[:1].upper() + text[1:]


HEADINGS = {"month": "on demand", "one holds": "one instance holds", "busy": "busy at the peak", "never idle": "per million, never idle"}


def _bills(found: Assessment) -> str:
    """On demand and on spot, a bar each; whiskers are ranges."""
    lines = [line for line in rows_of(found) if line.on_demand and not line.problems]
    if len(lines) < 2:
        return ""
    top = max(line.on_demand.ends[1] for line in lines if line.on_demand) * 1.02
    columns = ""
    for title, figure in (("On demand", "on_demand"), ("On spot", "on_spot")):
        rows = "".join(_bar(found, line, getattr(line, figure), top) for line in lines if getattr(line, figure))
        columns += f'<div><h3>{title}</h3><ul class="rows">{rows}</ul></div>' if rows else ""
    lead = "Dollars a month. Whiskers: from the low to the high end of what is known; spot prices move most."
    return section("bills", "Bills", f'<div class="columns">{columns}</div>', lead)


def _bar(found: Assessment, line: Line, figure: Figure, top: float) -> str:
    kind = "chosen" if line.name == found.answer.chosen else "baseline" if line in (found.today, found.trimmed) else "keep"
    low, high = figure.ends
    drawn = charts.bar(figure.value, low, high, top * 2, top, kind)
    return (
        f'<li><span class="name">{breakable(name_of(found, line))}</span><span class="plot">{drawn}</span>'
        f'<span class="num">{escape(say.dollars(figure, ends=False))}</span></li>'
    )


def _replaced(found: Assessment) -> str:
    lead = "What the bundle or a load test measured took the place of what the workload stated."
    return section("measured", "Measured in the place of stated", bullets(replaced(found)), lead) if found.replaced else ""


def _roadmap(found: Assessment) -> str:
    items = ""
    for week in found.roadmap:
        label = f"week {week.number}" if week.number else week.state
        kind = {"done": "ship", "not needed": "reject"}.get(week.state, "keep")
        items += (
            f'<li><span class="chip v-{kind}">{label}</span><div><b>{escape(week.title)}</b><p>{escape(week.what)}</p>'
            f"<p>Finished when: {escape(week.ends[:1].lower() + week.ends[1:])}</p></div></li>"
        )
    return section("roadmap", "Roadmap", f'<ul class="reasons">{items}</ul>')


def _origins(found: Assessment) -> str:
    """Every figure of every deployment, with its range and where it comes from."""
    blocks = ""
    for line in rows_of(found):
        rows = {FIGURES.get(name, name): f"{say.any_unit(each)}: {each.origin}, {each.note}" for name, each in line.figures.items()}
        blocks += f"<details><summary>{escape(name_of(found, line))}</summary>{facts(rows)}</details>"
    return section("origins", "Where every figure comes from", blocks, f"Prices: {found.prices}. Open a line to see its figures.")


def _assumed(found: Assessment) -> str:
    return section("assumed", "Assumed", bullets(found.assumptions)) if found.assumptions else ""
