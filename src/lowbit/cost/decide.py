"""Whether it is worth it: what changing the model alone saves, against what changing it takes. Pure: the same figures, the same answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lowbit.cost import bill
from lowbit.cost.figures import Figure, derived
from lowbit.cost.lines import Line
from lowbit.cost.say import dollars, percent

Word = Literal["worth it", "probably", "not worth it", "unknown"]
BOTTLENECK = 0.3
"""Share of a request below which the model is not what makes it slow."""
HALF_IDLE = 0.5
REFUSED = ("refuse", "reject", "recover")


@dataclass(frozen=True)
class Saving:
    """A candidate against today, a month.

    Attributes:
        name: The candidate's.
        paid: What is paid today less what would be paid; negative where it costs more.
        model: The part that the change of the model brings: what today's model would cost on as many instances as its load needs,
            paid in the same way (on demand or spot), less what the candidate would cost.
        share: `paid` of today's bill.
    """

    name: str
    paid: Figure
    model: Figure
    share: Figure


@dataclass(frozen=True)
class Case:
    """All that the answer depends on.

    Attributes:
        today: As it runs.
        trimmed: Today's model on the instances that its load needs; `today` where that is not known.
        lines: Candidates.
        savings: Of those whose bill is known.
        effort: Dollars; None where unknown.
        horizon: Months.
        inference_share: None where not stated.
        bundle: The bundle's verdict; empty without one.
        needed: Instances that today's model needs for its load, however many run; None where unknown.
    """

    today: Line
    trimmed: Line
    lines: tuple[Line, ...]
    savings: tuple[Saving, ...]
    effort: Figure | None
    horizon: Figure
    inference_share: Figure | None = None
    bundle: str = ""
    needed: Figure | None = None


@dataclass(frozen=True)
class Answer:
    """What to do about it.

    Attributes:
        word: Whether it is worth it.
        chosen: The candidate that saves most of those that can be run; None where there is none.
        reasons: In sentences.
    """

    word: Word
    chosen: str | None
    reasons: tuple[str, ...]


def saving(today: Line, trimmed: Line, candidate: Line) -> Saving | None:
    """A candidate's; None where a bill is not known."""
    same_terms = trimmed.on_spot if candidate.spot else trimmed.on_demand
    if today.paid is None or candidate.paid is None:
        return None
    same_terms = same_terms or today.paid
    paid = derived(lambda a, b: a - b, today.paid, candidate.paid, unit="USD/month", note="today's bill − the candidate's")
    note = "today's model on the instances its load needs − the candidate"
    model = derived(lambda a, b, c: min(a, b) - c, same_terms, today.paid, candidate.paid, unit="USD/month", note=note)
    share = derived(lambda a, b: 1 - b / a, today.paid, candidate.paid, unit="share", note="1 − the candidate's bill / today's")
    return Saving(candidate.name, paid, model, share)


def decide(case: Case) -> Answer:
    """The answer for a case. "Worth it": the low end of the saving within the horizon is more than the high end of the effort."""
    usable = {each.name: each for each in case.lines if not each.problems and each.verdict not in REFUSED}
    found = [each for each in case.savings if each.name in usable]
    reasons = [*_model_reasons(case), *_load_reasons(case)]
    if not found:
        answer = _without_bills(case, usable)
        return replace(answer, reasons=(*answer.reasons, *reasons))
    best = max(found, key=lambda each: (each.model.value, each.paid.value))
    unsure = usable[best.name].instances
    if best.model.value <= 0 and unsure is not None and unsure.origin == "assumed" and unsure.value > 1:
        return Answer("unknown", best.name, (LOAD_UNKNOWN, *_shrink_reasons(case, usable[best.name], best)[-1:], *reasons))
    word, money = _money(best, case)
    return Answer(word, best.name, (*money, *_shrink_reasons(case, usable[best.name], best), *reasons))


def _money(best: Saving, case: Case) -> tuple[Word, list[str]]:
    low, high = best.model.ends
    part = "" if best.paid.value == best.model.value else f", {dollars(best.model)} of it by the model itself"
    saves = f"{best.name} saves {dollars(best.paid)} a month{part}"
    if best.model.value <= 0:
        return "not worth it", [f"{best.name} saves nothing by the model itself: {dollars(best.model)} a month."]
    if case.effort is None:
        limit = best.model.value * case.horizon.value
        return "unknown", [
            f"{saves}. What the change costs is not known: it is worth it below ${limit:,.0f} within {case.horizon.value:g} months."
        ]
    gain, effort = (low * case.horizon.value, high * case.horizon.value), case.effort.ends
    text = (
        f"{saves}. The model brings ${best.model.value * case.horizon.value:,.0f} within {case.horizon.value:g} months; "
        f"the change costs {dollars(case.effort)}."
    )
    if gain[0] > effort[1]:
        return "worth it", [text]
    if best.model.value * case.horizon.value > case.effort.value:
        return "probably", [text, "The ends of the ranges overlap: at worst it does not pay."]
    return "not worth it", [text]


def _without_bills(case: Case, usable: dict[str, Line]) -> Answer:
    """Where no saving of a month is known: by cost per million requests, if that is."""
    if case.lines and not usable:
        return Answer("not worth it", None, ("None of the candidates can be run.", *_problems(case)))
    if not case.lines:
        return Answer("not worth it", None, ()) if case.bundle == "keep" else Answer("unknown", None, (NO_CANDIDATE,))
    known = [each for each in usable.values() if each.least is not None]
    before = case.today.least
    if before is None or not known:
        return Answer("unknown", next(iter(usable)), ("What it would save is not known: see what is asked for.",))
    best = min(known, key=lambda each: each.least.value if each.least else 0.0)
    assert best.least is not None, "only known ones were looked at"
    cut = 1 - best.least.value / before.value
    text = f"A million requests cost ${best.least.value:,.2f} with {best.name} and ${before.value:,.2f} today if no instance ever idles: "
    first = f"{text}{percent(abs(cut))} {'less' if cut >= 0 else 'more'}."
    alone = case.today.busy_per_million_spot if best.spot and not case.today.spot else None
    spot = (f"Spot alone would make it ${alone.value:,.2f} with today's model.",) if alone else ()
    return Answer("unknown", best.name, (first, *spot, BILL_UNKNOWN))


LOAD_UNKNOWN = "Whether fewer instances would do is not known, because the load or what one instance holds is not."
NO_CANDIDATE = "There is no candidate: name one in the workload, or give a bundle."
BILL_UNKNOWN = "What that is in a month is not known, because the load or the number of instances is not."


def _problems(case: Case) -> list[str]:
    refused = [f"{each.name}: the bundle's verdict is {each.verdict}." for each in case.lines if each.verdict in REFUSED]
    return [f"{each.name}: {text}" for each in case.lines for text in each.problems] + refused


def _model_reasons(case: Case) -> list[str]:
    found = []
    share = case.inference_share
    if share is not None and share.value < BOTTLENECK:
        found.append(
            f"Inference is not the bottleneck: the model is {percent(share.value)} of a request; however fast it becomes, "
            f"{percent(1 - share.value)} of the time stays."
        )
    sentences = {
        "keep": "The bundle kept the source precision: nothing smaller held its budget and was faster.",
        "recover": "The bundle's best is over its budget of accuracy: recover that first.",
        "provisional": "The bundle's accuracy is provisional: put it behind a canary.",
    }
    return found + ([sentences[case.bundle]] if case.bundle in sentences else [])


def _load_reasons(case: Case) -> list[str]:
    """What today's machines have to spare, whatever the model."""
    today, trimmed = case.today, case.trimmed
    if today.instances is not None and case.needed is not None and case.needed.value > today.instances.value:
        return [
            f"Today's model would need {case.needed.value:g} instances for this load and target, and runs on {today.instances.value:g}: "
            "a load test tells who is right."
        ]
    if today.instances is None or trimmed.instances is None or trimmed.instances is today.instances:
        return []
    spare = today.instances.value - trimmed.instances.value
    if spare <= 0:
        return []
    worth = ""
    if today.paid is not None and trimmed.paid is not None:
        worth = f" and {dollars(_less(today.paid, trimmed.paid))} a month"
    needs = f"{trimmed.instances.value:g} of its {today.instances.value:g} instances"
    return [f"Today's model needs {needs}: {spare:g}{worth} can go without any change."]


def _less(a: Figure, b: Figure) -> Figure:
    return derived(lambda x, y: x - y, a, b, unit="USD/month", note="a difference of bills")


def _shrink_reasons(case: Case, chosen: Line, best: Saving) -> list[str]:
    found = []
    before, after = case.trimmed, chosen
    same_price = before.price is not None and after.price is not None and before.price.value == after.price.value
    same_hours = before.hours.value == after.hours.value
    if before.instances and after.instances and best.model.value <= 0 and same_price and same_hours:
        if before.instances.value <= after.instances.value == 1:
            found.append("It runs on one instance already, and half an instance cannot be rented: try a smaller one.")
        elif after.instances.value >= before.instances.value:
            found.append(f"It needs {after.instances.value:g} instances as before: being faster saves nothing unless there can be fewer.")
        if before.utilization and before.utilization.value < HALF_IDLE:
            found.append(
                f"Its instances are busy {percent(before.utilization.value)} of the time at the peak: what idles does not get cheaper."
            )
    if before.problems and not after.problems and after.request_ms and before.request_ms:
        found.append("Today's model misses the latency target, the candidate holds it: that may be worth it without a saving.")
    if case.today.on_spot and case.today.on_demand and not case.today.spot:
        alone = _less(case.today.on_demand, case.today.on_spot)
        found.append(f"Spot alone would save {dollars(alone)} a month with today's model, where interruptions are tolerated.")
    return found


def payback(effort: Figure | None, best: Saving | None) -> Figure | None:
    """Days until the effort is earned back by what the model saves; None where nothing is saved or the effort is not known."""
    if effort is None or best is None or best.model.value <= 0:
        return None
    note = "effort / saving by the model a day"
    value = bill.payback_days(effort.value, best.model.value)
    assert value is not None, "it was just seen to be saved"
    low, high = bill.payback_days(effort.ends[0], best.model.ends[1]), bill.payback_days(effort.ends[1], best.model.ends[0])
    if low is None or high is None:
        return Figure(value, "days", "derived", f"{note}; at worst never")
    return Figure(value, "days", "derived", note, low, high) if low < high else Figure(value, "days", "derived", note)


def effort_of_payback(days: Figure, best: Saving | None) -> Figure | None:
    """The effort that a stated payback stands for."""
    if best is None or best.model.value <= 0:
        return None
    note = "stated payback × saving a day: the effort that it stands for"
    return derived(lambda d, per_month: d * max(0.0, per_month) / bill.DAYS_PER_MONTH, days, best.model, unit="USD", note=note)


def best_of(case_savings: Sequence[Saving], name: str | None) -> Saving | None:
    """The saving of that candidate."""
    return next((each for each in case_savings if each.name == name), None)
