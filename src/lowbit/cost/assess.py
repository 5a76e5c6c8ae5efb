"""The assessment: what runs today costs, what might run instead would cost, and what follows from that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lowbit.cost import decide as decision
from lowbit.cost.decide import Answer, Case, Saving
from lowbit.cost.evidence import WHOLE, Evidence, Replaced, Times, Variant, apply
from lowbit.cost.figures import Figure, assumed, derived
from lowbit.cost.lines import HOURS, PEAK, USE, Line, line, needed_for, price_row
from lowbit.cost.prices import PriceTable
from lowbit.cost.roadmap import Week, roadmap
from lowbit.cost.say import any_unit
from lowbit.cost.workload import Deployment, Workload
from lowbit.errors import unknown

SCHEMA = "1"
PAYBACK_STATED = "The payback is as stated; the effort is what such a payback stands for."
HORIZON = assumed(12.0, "months", "a year")
DAYS = assumed(20.0, "days", "four weeks of an engineer")


@dataclass(frozen=True)
class Assessment:
    """All that `lowbit assess` says.

    Attributes:
        name: Of the workload.
        today: As it runs.
        trimmed: Today's model on the instances that its load needs, where fewer than run.
        lines: Candidates.
        savings: Of those whose bill is known.
        answer: Whether it is worth it, and why.
        effort: Dollars; None where unknown.
        payback: Days; None where unknown.
        horizon: Months.
        roadmap: Weeks.
        replaced: Stated figures that measured ones replaced.
        assumptions: What was assumed, in sentences.
        asked: What is not known and would help, in sentences.
        prices: Name of the price table.
    """

    name: str
    today: Line
    trimmed: Line
    lines: tuple[Line, ...]
    savings: tuple[Saving, ...]
    answer: Answer
    effort: Figure | None
    payback: Figure | None
    horizon: Figure
    roadmap: tuple[Week, ...]
    replaced: tuple[Replaced, ...]
    assumptions: tuple[str, ...]
    asked: tuple[str, ...]
    prices: str

    @property
    def best(self) -> Saving | None:
        """The chosen candidate's saving."""
        return decision.best_of(self.savings, self.answer.chosen)

    def document(self) -> dict[str, Any]:
        """For JSON, schema "1"."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "verdict": self.answer.word.replace(" ", "_"),
            "chosen": self.answer.chosen,
            "reasons": list(self.answer.reasons),
            "today": _line(self.today),
            "trimmed": None if self.trimmed is self.today else _line(self.trimmed),
            "candidates": [_line(each) | {"saving": _saving(self.savings, each.name)} for each in self.lines],
            "effort": _figure(self.effort),
            "payback": _figure(self.payback),
            "horizon": self.horizon.document(),
            "roadmap": [{"week": week.number or None} | {key: getattr(week, key) for key in WEEK} for week in self.roadmap],
            "replaced": [
                {"deployment": each.deployment, "what": each.what, "before": _figure(each.before), "after": each.after.document()}
                for each in self.replaced
            ],
            "assumptions": list(self.assumptions),
            "asked": list(self.asked),
            "prices": self.prices,
        }


WEEK = ("title", "what", "ends", "state")


def _figure(figure: Figure | None) -> dict[str, Any] | None:
    return figure.document() if figure else None


def _line(found: Line) -> dict[str, Any]:
    plain = {key: getattr(found, key) for key in ("name", "precision", "instance", "spot", "batch", "quality", "verdict")}
    return plain | {"problems": list(found.problems), "figures": {name: each.document() for name, each in found.figures.items()}}


def _saving(savings: tuple[Saving, ...], name: str) -> dict[str, Any] | None:
    found = decision.best_of(savings, name)
    return None if found is None else {key: getattr(found, key).document() for key in ("paid", "model", "share")}


def assess(
    workload: Workload,
    table: PriceTable,
    evidence: Evidence | None = None,
    times: Times = "replace",
    held: Mapping[str, Figure] | None = None,
) -> Assessment:
    """Works a workload out.

    Args:
        workload: As stated.
        table: Of prices.
        evidence: Of a bundle; measured figures take the place of stated ones.
        times: How the bundle's times are used.
        held: Deployment's name -> requests a second of one instance, as a load test measured.

    Raises:
        UsageError: an instance has no price, or a load test is of a deployment that is not there.
    """
    replaced: tuple[Replaced, ...] = ()
    variants: Mapping[str, Variant] = {}
    foreign: list[str] = []
    comparable = _comparable(table, evidence)
    if evidence is not None:
        workload, replaced, variants = apply(workload, evidence, times, comparable)
        foreign = [each.name for each in (workload.today, *workload.candidates) if not comparable(each)]
        variants = {
            name: replace(each, cpu_seconds=None, kwh_per_million=None) if name in foreign else each for name, each in variants.items()
        }
    workload, tested = _tested(workload, held or {})
    replaced += tested
    today = line(workload.today, workload, table, variants.get(workload.today.name))
    trimmed = _trimmed(workload, table, today, variants.get(workload.today.name))
    lines = tuple(line(each, workload, table, variants.get(each.name), today) for each in workload.candidates)
    savings = tuple(found for each in lines if (found := decision.saving(today, trimmed, each)))
    effort, horizon = _effort(workload), workload.horizon_months or HORIZON
    bundle = evidence.verdict if evidence else ""
    case = Case(today, trimmed, lines, savings, effort, horizon, workload.inference_share, bundle, needed_for(workload.today, workload))
    answer = decision.decide(case)
    best = decision.best_of(savings, answer.chosen)
    if effort is None and workload.payback_days is not None:
        effort = decision.effort_of_payback(workload.payback_days, best)
        answer = decision.decide(replace(case, effort=effort))
        answer = replace(answer, reasons=(*answer.reasons, PAYBACK_STATED))
    back = decision.payback(effort, best) if _effort(workload) or not workload.payback_days else workload.payback_days
    return Assessment(
        workload.name,
        today,
        trimmed,
        lines,
        savings,
        answer,
        effort,
        back,
        horizon,
        roadmap(bundle, answer.word),
        replaced,
        _assumptions(workload, (today, *lines), evidence, foreign, times),
        _asked(workload, today, lines, effort),
        table.name,
    )


def _tested(workload: Workload, held: Mapping[str, Figure]) -> tuple[Workload, tuple[Replaced, ...]]:
    """The workload with capacities that load tests measured."""
    every = (workload.today, *workload.candidates)
    names = [each.name for each in every]
    for name in held:
        if name not in names:
            raise unknown("deployment", name, names)
    log = tuple(Replaced(each.name, "capacity_per_s", each.capacity_per_s, held[each.name]) for each in every if each.name in held)
    today, *candidates = (replace(each, capacity_per_s=held.get(each.name, each.capacity_per_s)) for each in every)
    return replace(workload, today=today, candidates=tuple(candidates)), log


def _comparable(table: PriceTable, evidence: Evidence | None) -> Callable[[Deployment], bool]:
    """Times of a CPU say nothing about a GPU, and the other way round."""

    def same(deployment: Deployment) -> bool:
        row = price_row(deployment, table)
        return evidence is None or row is None or bool(row.accelerator) == bool(evidence.accelerator)

    return same


def _trimmed(workload: Workload, table: PriceTable, today: Line, variant: Variant | None) -> Line:
    """Today's model on fewer instances, where its load needs fewer than run."""
    least = needed_for(workload.today, workload)
    if least is None or today.instances is None or least.ends[1] >= today.instances.value or workload.today.bill_per_month:
        return today
    return line(replace(workload.today, instances=least), workload, table, variant)


def _effort(workload: Workload) -> Figure | None:
    given = workload.effort
    if given.usd is not None:
        return given.usd
    if given.day_rate is None:
        return None
    return derived(lambda days, rate: days * rate, given.days or DAYS, given.day_rate, unit="USD", note="days × rate of a day")


def _assumptions(
    workload: Workload, lines: tuple[Line, ...], evidence: Evidence | None, foreign: list[str], times: Times
) -> tuple[str, ...]:
    """What nobody stated, and how it was filled in."""
    every = (workload.today, *workload.candidates)
    found = []
    if any(not each.hours_per_month and not each.bill_per_month for each in every) and not workload.today.hours_per_month:
        found.append(_said("hours", HOURS))
    if any(each.instances and each.instances.origin == "assumed" for each in lines):
        found.append("Instances of the candidates: as many as today, where the load or what one holds is not known.")
    if workload.requests_per_month and not workload.peak_per_second and not workload.peak_over_mean:
        found.append(_said("peak", PEAK))
    if any(each.capacity_per_s is None for each in every) and any(each.capacity_per_s for each in lines):
        if workload.latency_target_ms:
            found.append("Capacity: by a queue (M/D/c), 99 % of requests within the target; better is capacity_per_s from a load test.")
        else:
            found.append(_said("use", USE))
    if not workload.inference_share and (evidence is not None or any(each.speedup for each in every)):
        found.append(f"Inference share: 1 ({WHOLE.note}).")
    if not any(each.cache_hit_rate for each in every) and any(each.busy_per_million for each in lines):
        found.append("Cache hits: none.")
    if not workload.horizon_months:
        found.append(_said("horizon", HORIZON))
    if workload.effort.day_rate and not workload.effort.days and not workload.effort.usd:
        found.append(_said("effort", DAYS))
    if any(each.on_spot for each in lines):
        found.append("Spot: machines are found, and interruptions cost nothing but the drained seconds.")
    if evidence is not None:
        where = sorted({each.instance for each in every if each.instance and each.name not in foreign})
        if times == "ratio":
            found.append("Times of the bundle: their ratio holds on today's machines, too; it is applied to today's stated latency.")
        elif where:
            found.append(f"Times of the bundle: {', '.join(where)} is as fast as {evidence.machine}.")
        if foreign:
            kind = "an accelerator" if evidence.accelerator else "a CPU"
            found.append(f"Not for {', '.join(foreign)}: the bundle was measured on {kind}, which says nothing about the machines there.")
    return tuple(found)


def _said(name: str, figure: Figure) -> str:
    return f"{name.capitalize()}: {any_unit(figure)} ({figure.note})."


def _asked(workload: Workload, today: Line, lines: tuple[Line, ...], effort: Figure | None) -> tuple[str, ...]:
    """What is missing, most useful first."""
    found = []
    if today.price is None and today.paid is None:
        found.append("What an hour costs: today.instance or today.price_per_hour.")
    if today.instances is None and today.paid is None:
        found.append("How many instances run: today.instances.")
    if workload.requests_per_month is None:
        found.append("How many requests come: requests_per_month; without it no cost per million of what is paid, and no fewer instances.")
    if today.request_ms is None and today.capacity_per_s is None and not any(each.hours_per_month for each in workload.candidates):
        found.append("How long a request takes: today.latency_ms, or a bundle.")
    if workload.latency_target_ms is None and not any(each.capacity_per_s for each in (workload.today, *workload.candidates)):
        found.append("How long it may take: latency_target_ms, or capacity_per_s of a load test.")
    if effort is None:
        found.append("What the change costs: effort.usd, or effort.day_rate.")
    if not all(each.quality for each in lines):
        found.append("What happens to accuracy: a bundle, or quality of each candidate.")
    return tuple(found)
