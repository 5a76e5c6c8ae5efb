"""The report's section on layers: noise along the graph, the worst layers and why; and the page that is nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from lowbit.bundle import words
from lowbit.bundle.report_parts import bullets, page, section
from lowbit.bundle.schema import Manifest
from lowbit.compress.explain import Layer, Layers, leave_in_float, why
from lowbit.errors import DataError

FILE = "layers.json"
"""In the folder of a candidate whose layers were looked at one by one."""

MIXED = "int8-mixed-"
"""How the recipes that leave some layers in floating point are called."""

KEPT = "Its recipe.yaml names the products that stay in floating point."
"""Where no reason says how many there are."""

TOP = 15
"""Layers in the table."""

RED = 5
"""Layers whose bars stand out."""

CEILING_DB = 60.0
"""End of the axis: noise of a thousandth of the signal. It begins at 0 dB, as much noise as signal."""


def find_layers(folder: Path, manifest: Manifest) -> Layers | None:
    """What a bundle knows of its layers; None where the search had no reason to look.

    Args:
        folder: Of the bundle.
        manifest: Of the bundle.

    Raises:
        DataError: a file that is not one of ours.
    """
    for entry in manifest.candidates:
        path = folder / "candidates" / entry.id / FILE
        if path.is_file():
            try:
                return Layers.from_json(json.loads(path.read_text(encoding="utf-8")))
            except ValueError as error:
                raise DataError(f"'{path}' is not JSON.", "Delete it to have a report without it.") from error
    return None


def mixed_sentences(manifest: Manifest) -> list[str]:
    """What each mixed-precision candidate left in floating point, as its reason says, and the time it took."""
    batch = words.main_batch(manifest)
    # Speedups, not milliseconds: what was timed in the search and what was timed at the end met different states of the machine.
    speeds = {e.id: m.speedup.value for e in manifest.candidates if (m := words.at(e, batch)) and m.speedup}
    whole = max((speeds[e.id] for e in manifest.candidates if e.id in speeds and _whole(e.recipe, e.precision)), default=None)
    found = []
    for entry in manifest.candidates:
        if not entry.recipe.startswith(MIXED):
            continue
        kept = next((text for text in (*entry.reasons, *entry.notes) if "products" in text), KEPT)
        time = ""
        if entry.id in speeds:
            than = f", against {words.times(whole)} for the fastest candidate of integers alone" if whole else ""
            time = f" Measured: {words.times(speeds[entry.id])} over FP32 at batch {batch}{than}."
        found.append(f"{entry.id}: {kept}{time}")
    return found


def _whole(recipe: str, precision: str) -> bool:
    return precision == "int8" and not recipe.startswith(MIXED)


def layers_section(layers: Layers, mixed: Sequence[str] = ()) -> str:
    """Bars of signal over noise in the order in which layers run, and a table of the worst.

    Args:
        layers: What was found.
        mixed: Sentences on what mixed precision left in floating point, and what that cost.
    """
    lead = (
        f"Each of {len(layers.layers)} layers quantized alone ({layers.format}, ranges by {layers.ranges}), {layers.samples:,} samples, "
        f"{layers.passes:.1f} passes. Damage is a layer's share of what all of them, each alone, do to the output."
    )
    left = leave_in_float(layers.layers)
    text = f"<h3>Signal over noise of each layer, 0 to {CEILING_DB:.0f} dB</h3>{noise_bars(layers)}{_axis()}"
    text += f"<h3>The worst layers</h3>{worst_table(layers, TOP)}"
    if left:
        share = words.share(sum(layer.share for layer in left))
        text += f"<p>The {len(left)} worst of {len(layers.layers)} layers make up {share} of the damage.</p>"
    if mixed:
        text += "<h3>Mixed precision</h3>" + bullets(mixed)
    return section("layers", "Layers", text, lead)


def noise_bars(layers: Layers) -> str:
    """One bar a layer: signal over noise of its own output, dB; those that damage the output most stand out."""
    worst = {layer.name for layer in layers.worst(RED) if layer.share > 0}
    count = max(len(layers.layers), 1)
    bars = "".join(_bar(index, layer, layer.name in worst) for index, layer in enumerate(layers.layers))
    noisy = sorted((layer for layer in layers.layers if layer.sqnr is not None), key=lambda layer: layer.sqnr or 0.0)[:3]
    named = ", ".join(f"{layer.name} {layer.sqnr:.0f} dB" for layer in noisy)
    return (
        f'<svg class="noise" viewBox="0 0 {count} 100" preserveAspectRatio="none" width="100%" height="130" role="img" '
        'aria-labelledby="noise-t noise-d"><title id="noise-t">Signal over noise of each layer, in the order in which they run</title>'
        f'<desc id="noise-d">From 0 to {CEILING_DB:.0f} dB. The noisiest: {escape(named)}.</desc>{bars}</svg>'
    )


def _bar(index: int, layer: Layer, worst: bool) -> str:
    decibel = CEILING_DB if layer.sqnr is None else layer.sqnr
    height = 100 * min(max(decibel, 0.0), CEILING_DB) / CEILING_DB
    told = "nothing changes" if layer.sqnr is None else f"{layer.sqnr:.1f} dB"
    colour = "bad" if worst else "good"
    return (
        f'<rect class="{colour}" x="{index + 0.1:.1f}" y="{100 - height:.1f}" width="0.8" height="{height:.1f}">'
        f"<title>{escape(layer.name)}: {told}, {words.share(layer.share)} of the damage</title></rect>"
    )


def _axis() -> str:
    worst = '<span class="bad">most damage to the output</span>'
    return f'<p class="axis-x"><span>input</span>{worst}<span>output</span></p>'


def worst_table(layers: Layers, most: int) -> str:
    """The worst layers, the worst first, with what calibration saw of what they read."""
    heads = [
        ("Layer", "and why"),
        ("Damage", "share"),
        ("SQNR", "dB"),
        ("Range use", "middle 99.9 %"),
        ("Tail", "top 0.1 %"),
        ("Kurtosis", ""),
    ]
    head = "".join(
        f'<th scope="col"{" class=num" if i else ""}>{escape(title)}<small>{escape(more)}</small></th>'
        for i, (title, more) in enumerate(heads)
    )
    rows = "".join(_row(layer, layers.shared) for layer in layers.worst(most))
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Worst layers"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(layer: Layer, shared: bool) -> str:
    sqnr = words.NONE if layer.sqnr is None else f"{layer.sqnr:.1f}"
    kurtosis = words.NONE if layer.kurtosis is None else words.minus(f"{layer.kurtosis:,.1f}")
    cells = [words.share(layer.share), sqnr, words.share(layer.use), words.share(layer.tail), kurtosis]
    numbers = "".join(f'<td class="num">{escape(cell)}</td>' for cell in cells)
    reason = why(layer, shared=shared)
    name = f"{escape(layer.name)}<small>{escape(f'{layer.kind}: {reason}' if reason else layer.kind)}</small>"
    return f'<tr><th scope="row">{name}</th>{numbers}</tr>'


def layers_page(layers: Layers, title: str) -> str:
    """A page of its own, as `lowbit analyze --out` writes it: offline, no script."""
    header = f'<header><p class="brand"><b>lowbit</b><span>{escape(title)}</span></p></header>'
    return page(f"{title} · lowbit analyze", f"{header}\n<main>\n{layers_section(layers)}\n</main>\n")
