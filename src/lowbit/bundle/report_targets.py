"""The report's target matrix: what was written for other targets, how far it was tried, and what it answered there."""

from __future__ import annotations

import math
from html import escape

from lowbit.bundle import words
from lowbit.bundle.report_parts import breakable, bullets, chip, section
from lowbit.bundle.schema import KernelsEntry, Manifest, TargetEntry

LEVELS = {"run": "run", "emulated": "emulated", "interpreted": "interpreted", "checked": "checked"}
_HEADS = (
    ("Target", "how far it was tried"),
    ("Kernels", "what the gate says"),
    ("Same class", "as this bundle's"),
    ("Metric", "change [interval]"),
    ("Latency", "over full precision"),
    ("Reference", "what equals it"),
    ("Size", "working memory"),
)


def targets_section(manifest: Manifest) -> str:
    """The section; empty where the bundle was written for no target."""
    if not manifest.targets:
        return ""
    head = "".join(f'<th scope="col">{escape(text)}<small>{escape(more)}</small></th>' for text, more in _HEADS)
    rows = "".join(_rows(entry) for entry in manifest.targets)
    table = (
        '<div class="scroll" tabindex="0" role="region" aria-label="Targets"><table class="targets">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
    lead = (
        "Written from one table of parameters, unless a target recalibrates, which is said. "
        "Run: on the target's own runtime; emulated, interpreted, checked: not on its hardware."
    )
    return section("targets", "Other targets", table + bullets(_sentences(manifest)), lead)


def _rows(entry: TargetEntry) -> str:
    """One row a kernel set; a target that could not be tried, or not be written, has one of its own."""
    count = max(len(entry.kernels), 1)
    spanning = f' rowspan="{count}"' if count > 1 else ""
    tried = LEVELS[entry.level] if entry.refused is None and not (entry.kernels and all(each.error for each in entry.kernels)) else ""
    first = f'<th scope="rowgroup"{spanning}>{escape(entry.title)}<small>{escape(tried)}</small></th>'
    if entry.refused is not None:
        return f'<tr>{first}<td colspan="{len(_HEADS) - 1}">Not written: {escape(entry.refused)}</td></tr>'
    last = f"<td{spanning}>{escape(artifact_size(entry))}<small>{escape(working_memory(entry))}</small></td>"
    if not entry.kernels:
        return f"<tr>{first}{_cells([words.NONE] * (len(_HEADS) - 2))}{last}</tr>"
    top, *rest = (_kernel_cells(each) for each in entry.kernels)
    return f"<tr>{first}{top}{last}</tr>" + "".join(f"<tr>{row}</tr>" for row in rest)


def _kernel_cells(each: KernelsEntry) -> str:
    if each.error is not None:
        return f'<td>{breakable(each.kernels)}</td><td colspan="{len(_HEADS) - 3}">Could not be run: {escape(each.error)}</td>'
    counted = f"<small>{each.samples:,} {'random draws' if each.drawn else 'samples'}</small>"
    metric = words.NONE
    if each.metric is not None and each.delta is not None:
        value = escape(words.metric_value(each.metric.name, each.metric.value))
        metric = f'{value}<small>{escape(words.change(each.delta))} <span class="whole">{escape(words.interval(each.delta))}</span></small>'
    name = breakable(each.kernels) + (f"<br>{chip(each.verdict)}" if each.verdict else "")
    html = [name, escape(same_class(each)) + counted, metric, _latency(each), escape(identical(each))]
    return "".join(f"<td>{cell.replace(' %', '&nbsp;%')}</td>" for cell in html)


def _latency(each: KernelsEntry) -> str:
    if each.latency_ms is None:
        return words.NONE
    ratio = ""
    if each.speedup is not None:
        slower = ' <b class="bad">slower than full precision</b>' if each.speedup.ci_high < 1 else ""
        ratio = f"<small>{escape(words.times(each.speedup.value))}{slower}</small>"
    return escape(words.milliseconds(each.latency_ms.p50)) + ratio


def _cells(texts: list[str]) -> str:
    return "".join(f"<td>{escape(text)}</td>" for text in texts)


def same_class(each: KernelsEntry) -> str:
    """Share of samples with the same class, and with equal highest outputs counted as the same where that is more; else the cosine."""
    if math.isnan(each.agreement):
        return f"cosine {each.cosine:.4f}"
    ties = f" ({words.share(each.agreement_with_ties)} with ties)" if each.agreement_with_ties > each.agreement else ""
    return words.share(each.agreement) + ties


def identical(each: KernelsEntry) -> str:
    """Share of output levels equal to the exact reference's; the largest difference, and the classes that are the same all the same."""
    same = "" if math.isnan(each.agreement_exact) else f"same class {words.share(each.agreement_exact)}"
    if math.isnan(each.identical):
        return same or words.NONE
    steps = f", off by at most {each.largest_step}" if each.largest_step else ""
    return f"{words.share(each.identical)} of levels{steps}" + (f"; {same}" if same and steps else "")


def artifact_size(entry: TargetEntry) -> str:
    """What it takes where it stays: a program's flash, else its files."""
    flash = _bytes(entry, "flash_bytes_estimated")
    return f"{words.size(flash)} of flash" if flash is not None else words.size(entry.size_bytes)


def working_memory(entry: TargetEntry) -> str:
    """What it takes while it runs, as far as that is planned; empty where it is not."""
    sizes = {"SRAM": _bytes(entry, "sram_bytes"), "arena": _bytes(entry, "arena_bytes")}
    return ", ".join(f"{name} {words.size(size)}" for name, size in sizes.items() if size is not None)


def _bytes(entry: TargetEntry, fact: str) -> float | None:
    found = entry.facts.get(fact)
    return float(found) if isinstance(found, int | float) else None


def _sentences(manifest: Manifest) -> list[str]:
    found = []
    for entry in manifest.targets:
        if entry.refused is None:
            found.append(f"{entry.title}: {entry.words}")
        found += [f"{entry.title}: {each.text}" for each in entry.findings if each.severity != "note"]
    return [text for text in found if not text.endswith(": ")]
