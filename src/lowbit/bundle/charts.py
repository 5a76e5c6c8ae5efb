"""Inline SVG, no library: a scatter with a frontier, bars, dots with intervals, overlaid histograms.

Colours come from the page's style sheet by class, so that light and dark need no second drawing. Bars and dots use
percentages and fit any width; the scatter is drawn once per width, so that its words keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from lowbit.bundle.words import minus

Box = tuple[float, float, float, float]


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers in [low, high], about `wanted` of them (steps of 1, 2 or 5)."""
    span = high - low
    if span <= 0:
        return [low]
    rough = span / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Dot:
    """One candidate in the scatter.

    Attributes:
        name: Its id.
        x: Milliseconds.
        y: Change in quality in hundredths, negative = worse.
        low: Lower end of the interval of y.
        high: Upper end.
        kind: Its verdict, or "baseline": decides shape and colour.
        chosen: Gets a ring and a bold label.
        frontier: No other dot is both faster and better.
    """

    name: str
    x: float
    y: float
    low: float
    high: float
    kind: str
    chosen: bool = False
    frontier: bool = False


def mark_frontier(dots: Sequence[Dot]) -> list[Dot]:
    """The same dots, fastest first, with the Pareto frontier of (faster, better) marked; refused ones cannot be on it."""
    best, marked = -math.inf, []
    for dot in sorted(dots, key=lambda d: (d.x, -d.y)):
        front = dot.kind != "refuse" and dot.y > best
        best = max(best, dot.y) if front else best
        marked.append(Dot(dot.name, dot.x, dot.y, dot.low, dot.high, dot.kind, dot.chosen, front))
    return marked


@dataclass(frozen=True)
class Axes:
    """What a scatter is of.

    Attributes:
        title: For those who do not see it.
        y: Label of the vertical axis.
        x: Label of the horizontal one.
        x_unit: Of the horizontal axis.
        unit: Of the vertical one: "pp" or "%".
        rises: True where a number is written as the rise of something that should be low: worse is still further down.
    """

    title: str
    y: str
    x: str
    x_unit: str = "ms"
    unit: str = "pp"
    rises: bool = False

    def worded(self, y: float, form: str = "g") -> str:
        """A change as it is written, without its unit."""
        value = -y if self.rises else y
        return minus(f"{value:+{form}}") if value else "0"


def against_latency(metric: str, unit: str, batch: int) -> Axes:
    """Change in a metric against milliseconds."""
    return Axes(
        f"Change in {metric} against latency", f"↑ {metric} against FP32 ({unit})", f"ms per call, batch {batch} · ← faster", unit=unit
    )


def scatter(dots: Sequence[Dot], budget: float, axes: Axes, width: int, ident: str) -> str:
    """Change in quality against what it costs, the budget as a line, the frontier as a stair.

    Args:
        dots: From `mark_frontier`.
        budget: Allowed drop in hundredths, positive.
        axes: What is drawn.
        width: In CSS pixels; the drawing is not scaled.
        ident: Unique on the page.
    """
    return _Scatter(dots, budget, axes, width, ident).draw()


def off_chart(dot: Dot, budget: float) -> bool:
    """Whether a dot is so far over the budget that it is only pointed at from the lower edge."""
    return dot.y < -_reach(budget)


def _reach(budget: float) -> float:
    """How far the y axis may go: what is refused anyway (3x over budget) needs no room."""
    return 3.2 * budget or 1.0


class _Scatter:
    def __init__(self, dots: Sequence[Dot], budget: float, axes: Axes, width: int, ident: str) -> None:
        self.dots, self.budget, self.axes, self.unit, self.ident = dots, budget, axes, axes.unit, ident
        self.width, self.height = width, 400 if width > 500 else 380
        self.left, self.right, self.top, self.bottom = 56 if width > 500 else 44, 18, 34, 62
        kept = [dot for dot in dots if not off_chart(dot, budget)]
        reach = _reach(budget)
        self.floor = min([-0.5 * reach, *(max(dot.low, -reach) for dot in kept)]) * 1.08
        self.ceiling = max([0.1 * reach, *(min(dot.high, reach) for dot in kept)]) * 1.12
        self.slowest = max((dot.x for dot in dots), default=0.0) * 1.06 or 1.0

    def px(self, x: float) -> float:
        return self.left + x / self.slowest * (self.width - self.left - self.right)

    def py(self, y: float) -> float:
        inner = self.height - self.top - self.bottom
        return self.top + (self.ceiling - min(max(y, self.floor), self.ceiling)) / (self.ceiling - self.floor) * inner

    def draw(self) -> str:
        front = [dot.name for dot in self.dots if dot.frontier]
        description = f"{len(self.dots)} candidates; budget {self.budget:g} {self.unit}. Frontier, fastest first: {', '.join(front)}."
        body = [self._axes(), self._frontier(), *(self._dot(dot) for dot in self.dots), self._labels()]
        return (
            f'<svg class="scatter" viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}" role="img" '
            f'aria-labelledby="{self.ident}-t {self.ident}-d">'
            f'<title id="{self.ident}-t">{escape(self.axes.title)}</title>'
            f'<desc id="{self.ident}-d">{escape(description)}</desc>{"".join(body)}</svg>'
        )

    def _axes(self) -> str:
        left, right, bottom = self.left, self.width - self.right, self.height - self.bottom
        parts = []
        for y in ticks(self.floor, self.ceiling, 6):
            parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{self.py(y):.1f}" y2="{self.py(y):.1f}"/>')
            parts.append(_text(left - 8, self.py(y) + 4, self.axes.worded(y), "tick end"))
        for x in ticks(0, self.slowest, 7 if self.width > 500 else 4):
            parts.append(f'<line class="grid" x1="{self.px(x):.1f}" x2="{self.px(x):.1f}" y1="{self.top}" y2="{bottom}"/>')
            parts.append(_text(self.px(x), bottom + 18, f"{x:g}", "tick middle"))
        parts.append(f'<line class="zero" x1="{left}" x2="{right}" y1="{self.py(0):.1f}" y2="{self.py(0):.1f}"/>')
        over = self.py(-self.budget)
        parts.append(f'<rect class="over" x="{left}" y="{over:.1f}" width="{right - left}" height="{max(bottom - over, 0):.1f}"/>')
        parts.append(f'<line class="budget" x1="{left}" x2="{right}" y1="{over:.1f}" y2="{over:.1f}"/>')
        parts.append(_text(right - 4, over + 15, f"over budget ({self.axes.worded(-self.budget)} {self.unit})", "budget-label end"))
        parts.append(_text(left, 18, self.axes.y, "axis"))
        parts.append(_text(right, bottom + 42, self.axes.x, "axis end"))
        return "".join(parts)

    def _frontier(self) -> str:
        front = [dot for dot in self.dots if dot.frontier]
        if len(front) < 2:
            return ""
        path = f"M{self.px(front[0].x):.1f} {self.py(front[0].y):.1f}"
        path += "".join(f"H{self.px(dot.x):.1f}V{self.py(dot.y):.1f}" for dot in front[1:])
        return f'<path class="frontier" d="{path}"/>'

    def _dot(self, dot: Dot) -> str:
        x, y, off = self.px(dot.x), self.py(dot.y), off_chart(dot, self.budget)
        parts = [f"<title>{escape(_tip(dot, self.axes))}</title>"]
        if not off and dot.kind != "baseline" and dot.high > dot.low:
            parts.append(f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{self.py(dot.high):.1f}" y2="{self.py(dot.low):.1f}"/>')
        if dot.chosen:
            parts.append(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="11"/>')
        parts.append(marker("below" if off else dot.kind, x, y - (8 if off else 0)))
        return f'<g class="dot v-{dot.kind}">{"".join(parts)}</g>'

    def _labels(self) -> str:
        """Places names so that they touch neither each other nor a dot; the unimportant ones give way."""
        taken: list[Box] = [(self.px(d.x) - 7, self.py(d.y) - 7, self.px(d.x) + 7, self.py(d.y) + 7) for d in self.dots]
        taken.append((self.width - self.right - 150, self.py(-self.budget), self.width - self.right, self.py(-self.budget) + 20))
        order = sorted(self.dots, key=lambda d: (not d.chosen, d.kind != "baseline", not d.frontier, d.kind == "refuse", -d.y))
        parts = []
        for dot in order:
            name = f"{dot.name} {self.axes.worded(dot.y, '.0f')} {self.unit}" if off_chart(dot, self.budget) else dot.name
            if place := self._place(dot, name, taken):
                x, y, anchor, box = place
                taken.append(box)
                parts.append(_text(x, y, name, f"label {anchor}{' strong' if dot.chosen else ''}"))
        return "".join(parts)

    def _place(self, dot: Dot, name: str, taken: Sequence[Box]) -> tuple[float, float, str, Box] | None:
        x, y, wide = self.px(dot.x), self.py(dot.y), len(name) * (7.4 if dot.chosen else 6.9) + 4
        for dx, dy in _AROUND:
            anchor = "start" if dx > 0 else "end" if dx < 0 else "middle"
            left = x + dx - (0 if dx > 0 else wide if dx < 0 else wide / 2)
            box = (left, y + dy - 11, left + wide, y + dy + 4)
            inside = box[0] >= self.left and box[2] <= self.width and box[1] >= self.top - 8 and box[3] <= self.height - self.bottom
            if inside and not any(_overlap(box, other) for other in taken):
                return x + dx, y + dy, anchor, box
        return None


_AROUND = ((15, 4), (0, -16), (0, 24), (-15, 4), (12, -14), (12, 20), (-12, -14), (-12, 20), (10, -30), (10, 38), (0, -34), (0, 42))
"""Where a label may stand, best first: offset from its dot in pixels, y downwards."""


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _tip(dot: Dot, axes: Axes) -> str:
    low, high = sorted((dot.low, dot.high), reverse=axes.rises)
    change, ends = axes.worded(dot.y, ".2f"), f"[{axes.worded(low, '.2f')}, {axes.worded(high, '.2f')}]"
    return f"{dot.name}: {dot.x:.3g} {axes.x_unit}, {change} {axes.unit} {ends}"


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def marker(kind: str, x: float, y: float) -> str:
    """A verdict's mark: told apart by shape as well as by colour."""
    if kind == "refuse":
        return f'<path class="mark cross" d="M{x - 4.5:.1f} {y - 4.5:.1f}l9 9m0 -9l-9 9"/>'
    if kind == "below":
        return f'<path class="mark" d="M{x - 6:.1f} {y - 5:.1f}h12l-6 10z"/>'
    if kind == "baseline":
        return f'<rect class="mark" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>'
    if kind == "recover":
        return f'<path class="mark" d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z"/>'
    return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'


def bar(value: float, low: float, high: float, tail: float, maximum: float, kind: str) -> str:
    """A bar from zero with the interval of its end as a whisker, and a tick at `tail` (p95) if that is on the axis; fits any width."""
    at = [f"{100 * min(max(v, 0) / (maximum or 1), 1):.2f}%" for v in (value, low, high, tail)]
    tick = f'<line class="p95" x1="{at[3]}" x2="{at[3]}" y1="1" y2="17"/>' if tail <= maximum else ""
    return (
        f'<svg class="bar v-{kind}" width="100%" height="18" aria-hidden="true"><rect class="track" y="3" width="100%" height="12" rx="2"/>'
        f'<rect class="fill" y="3" width="{at[0]}" height="12" rx="2"/><line class="whisker" x1="{at[1]}" x2="{at[2]}" y1="9" y2="9"/>'
        f"{tick}</svg>"
    )


def interval(value: float, low: float, high: float, domain: tuple[float, float], budget: float | None, kind: str, height: int = 22) -> str:
    """A dot with its interval on an axis from domain[0] to domain[1], zero and budget as lines; fits any width."""
    span = (domain[1] - domain[0]) or 1.0

    def at(v: float) -> str:
        return f"{100 * min(max((v - domain[0]) / span, 0), 1):.2f}%"

    middle = height / 2
    lines = f'<line class="zero" x1="{at(0)}" x2="{at(0)}" y1="0" y2="{height}"/>'
    if budget is not None:
        lines += f'<line class="budget" x1="{at(-budget)}" x2="{at(-budget)}" y1="0" y2="{height}"/>'
    return (
        f'<svg class="interval v-{kind}" width="100%" height="{height}" aria-hidden="true">{lines}'
        f'<line class="span" x1="{at(low)}" x2="{at(high)}" y1="{middle}" y2="{middle}"/>'
        f'<circle class="mark" cx="{at(value)}" cy="{middle}" r="5"/></svg>'
    )


def rebin(counts: Sequence[int], bins: int) -> list[float]:
    """Shares of the total in fewer equal bins."""
    total, size = sum(counts) or 1, max(1, len(counts) // bins)
    return [sum(counts[start : start + size]) / total for start in range(0, size * bins, size)]


def histogram(baseline: Sequence[int], candidate: Sequence[int], ident: str, bins: int = 32) -> str:
    """Two histograms over [0, 1], the baseline as an outline over the candidate's area; heights are square roots."""
    base, cand = rebin(baseline, bins), rebin(candidate, bins)
    top = math.sqrt(max([*base, *cand, 1e-9]))

    def stairs(shares: Sequence[float]) -> str:
        return "M0 100" + "".join(f"V{100 - 96 * math.sqrt(s) / top:.2f}H{i + 1}" for i, s in enumerate(shares)) + "V100"

    return (
        f'<svg class="histogram" viewBox="0 0 {bins} 100" preserveAspectRatio="none" width="100%" height="190" role="img" '
        f'aria-labelledby="{ident}-t {ident}-d"><title id="{ident}-t">Confidence, baseline and chosen</title>'
        f'<desc id="{ident}-d">Share of samples per confidence from 0 to 1, square-root scale. In the top bin: '
        f"baseline {base[-1]:.1%}, chosen {cand[-1]:.1%}.</desc>"
        f'<path class="area" d="{stairs(cand)}z"/><path class="outline" d="{stairs(base)}"/></svg>'
    )
