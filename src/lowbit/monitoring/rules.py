"""All rules together: a window and a baseline in, findings out. Pure: the same window gives the same findings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lowbit.measure.compare import SHIFT, SHIFT_SAMPLES
from lowbit.monitoring import answers, drift, shifts, sla
from lowbit.monitoring.baseline import Baseline
from lowbit.monitoring.findings import Finding, Kind
from lowbit.monitoring.labels import Accuracy
from lowbit.monitoring.reviews import Policy
from lowbit.monitoring.tally import Tally
from lowbit.monitoring.windows import Window

COMPARED: tuple[Kind, ...] = ("confidence", "low_tail", "predictions", "inputs", "perplexity", "length", "refusals")
"""Kinds that compare with the baseline's own numbers."""
REVIEWED: tuple[Kind, ...] = (*COMPARED, "accuracy")
"""Kinds that open a review; errors and latency are for alerts: a person cannot accept them as normal."""
SURE = 1e-3
"""Of the interval that has to lie below what is allowed of accuracy: windows are looked at every minute, and one in forty 95 % intervals
lies too low by chance."""


@dataclass(frozen=True)
class Rules:
    """What counts as a shift.

    Attributes:
        shift: Of the mean confidence, relative, and of the distance of the distributions.
        least: Rows that a window needs before a rule says anything.
        mix: Share of answers that may go to other classes, beyond chance.
        moved: Standard deviations by which an input's mean may move.
        accuracy: Points that labelled accuracy may surely be below the bundle's.
        sla: What was promised; None for nothing.
        policy: What a review does to the model while it is open.
    """

    shift: float = SHIFT
    least: int = SHIFT_SAMPLES
    mix: float = shifts.MIX
    moved: float = shifts.MOVED
    accuracy: float = 0.01
    sla: sla.Sla | None = None
    policy: Policy = "hold"


RULES = Rules()


def evaluate(window: Window, baseline: Baseline | None, rules: Rules = RULES, accuracy: Accuracy | None = None) -> tuple[Finding, ...]:
    """Everything the rules say of a window.

    Args:
        window: Of one variant, long enough: `windows.latest(..., rows=rules.least)`.
        baseline: Of the same variant; None: nothing is compared.
        rules: What counts.
        accuracy: Of the window's answers that were labelled.

    Returns:
        One finding for each rule that could be asked; those to look at have `review`.
    """
    found: list[Finding | None] = []
    tally = window.tally
    if baseline is not None:
        normal = baseline.tally
        found += _language(tally, normal, rules) if answers.are_answers(tally) else _arrays(tally, normal, rules)
        found.append(_accuracy(accuracy, baseline, rules))
    if rules.sla is not None:
        found += sla.findings(window, rules.sla)
    return tuple(_said_of(finding, baseline) for finding in found if finding is not None)


def _arrays(tally: Tally, normal: Tally, rules: Rules) -> list[Finding | None]:
    moved = drift.shift(tally.confidence, normal.confidence) if tally.confidence and normal.confidence else None
    mix = shifts.predictions(tally.predictions, normal.predictions, limit=rules.mix, least=rules.least)
    inputs = shifts.inputs(tally.inputs, normal.inputs, tally.columns, normal.columns, tally.recorded, limit=rules.moved, least=rules.least)
    if moved is None:
        return [mix, inputs]
    return [drift.confidence(moved, limit=rules.shift, least=rules.least), drift.low_tail(moved, least=rules.least), mix, inputs]


def _language(tally: Tally, normal: Tally, rules: Rules) -> list[Finding | None]:
    """Perplexity in the place of confidence, which is its other side; the low tail finds a part of the answers that turned bad."""
    moved = drift.shift(tally.confidence, normal.confidence) if tally.confidence and normal.confidence else None
    tail = None if moved is None else drift.low_tail(moved, least=rules.least)
    prompts, usual = ({answers.PROMPT: each.inputs[answers.PROMPT]} if answers.PROMPT in each.inputs else {} for each in (tally, normal))
    inputs = shifts.inputs(prompts, usual, {}, {}, tally.recorded, limit=rules.moved, least=rules.least)
    return [tail, inputs, *answers.findings(tally, normal, least=rules.least)]


def _accuracy(accuracy: Accuracy | None, baseline: Baseline, rules: Rules) -> Finding | None:
    """Labels say that the model is surely worse than it was: the whole of an interval that is asked again and again lies below."""
    if accuracy is None or baseline.accuracy is None:
        return None
    sure = Accuracy.of(round(accuracy.value * accuracy.n), accuracy.n, SURE)
    assert sure is not None, "there are labels"
    least = baseline.accuracy - rules.accuracy
    text = (
        f"{accuracy.value:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}] of {accuracy.n:,} labelled answers were right; "
        f"{baseline.accuracy:.1%} of the bundle's samples were, {least:.1%} is allowed"
    )
    numbers = {"low": accuracy.low, "high": accuracy.high, "value": accuracy.value, "baseline": baseline.accuracy, "sure_high": sure.high}
    drop = baseline.accuracy - sure.high
    return Finding("accuracy", drop, rules.accuracy, drop > rules.accuracy, f"{text}.", accuracy.n, numbers)


def _said_of(finding: Finding, baseline: Baseline | None) -> Finding:
    """With where the baseline is from, where that is not the bundle."""
    if baseline is None or finding.kind not in COMPARED or (baseline.source == "bundle" and not baseline.learned):
        return finding
    return replace(finding, text=f"{finding.text} Compared with {baseline.text}.")
