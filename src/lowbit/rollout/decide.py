"""What follows from a look at a rollout. Pure: the same plan and the same look always give the same decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from lowbit.errors import DataError
from lowbit.rollout.evidence import Arm, Evidence
from lowbit.rollout.measures import Measured, has_source, measured
from lowbit.rollout.plan import RELATIVE, Guardrail, Kind, Plan

Action = Literal["hold", "advance", "promote", "rollback"]
Says = Literal["pass", "fail", "inconclusive"]
WORDS: Mapping[str, str] = {
    "errors": "errors",
    "p99": "p99 latency",
    "disagreement": "disagreement with full precision",
    "confidence": "the shift of confidences",
    "accuracy": "wrong answers by later labels",
    "cost": "compute per row",
}


@dataclass(frozen=True)
class Look:
    """Everything that a decision depends on, beside the plan.

    Attributes:
        step: Position in the plan's steps.
        in_step_s: Seconds since the step began, without pauses.
        evidence: Of this step, of all servers.
        looks: How many there were before, for the record; nothing depends on it.
        reference: What the champion answered in the last step in which it answered anybody; stands in for it where it has no share.
        paused: A person paused it: steps and their clock stand still, guardrails do not.
        moved: The alias champion names another version than the one that the candidate is compared with.
    """

    step: int
    in_step_s: float
    evidence: Evidence
    looks: int = 0
    reference: Arm = field(default_factory=Arm)
    paused: bool = False
    moved: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it back to an equal record."""
        raw = {each.name: getattr(self, each.name) for each in fields(self)}
        reference = Evidence(self.reference).to_json()["baseline"]
        return {**raw, "evidence": self.evidence.to_json(), "reference": reference}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Look:
        """Reads what `to_json` gives.

        Raises:
            DataError: it is none.
        """
        try:
            read = {"evidence": Evidence.from_json(raw["evidence"]), "reference": Arm.from_json(raw["reference"])}
            return cls(**{**raw, **read})
        except (KeyError, TypeError) as error:
            raise DataError(f"A look at a rollout is not as it was written: {error}.") from error


@dataclass(frozen=True)
class Verdict:
    """What one guardrail says.

    Attributes:
        guardrail: Its kind.
        verdict: "pass", "fail" or "inconclusive".
        value: Estimate of how much worse the candidate is; None without data.
        bound: What decided: the lower bound where it failed, else the upper one; None: nothing is known.
        limit: What the bound was held against: the tolerance where it failed, else the margin.
        n: The candidate's samples.
        why: In words.
        low: Lower bound at the guardrail's error rate, valid at every look.
        high: Upper bound at the plan's beta, valid at every look.
        candidate: The candidate's own value.
        champion: The champion's.
        needed: Whether the step waits for it.
    """

    guardrail: Kind
    verdict: Says
    value: float | None
    bound: float | None
    limit: float
    n: int
    why: str
    low: float | None = None
    high: float | None = None
    candidate: float | None = None
    champion: float | None = None
    needed: bool = False


@dataclass(frozen=True)
class Decision:
    """What to do now, and why.

    Attributes:
        action: "hold", "advance" (to the next step), "promote" or "rollback".
        verdicts: One for every guardrail of the plan.
        reasons: In words.
    """

    action: Action
    verdicts: tuple[Verdict, ...]
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it back to an equal record."""
        return {"action": self.action, "verdicts": [asdict(each) for each in self.verdicts], "reasons": list(self.reasons)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Decision:
        """Reads what `to_json` gives."""
        return cls(raw["action"], tuple(Verdict(**each) for each in raw["verdicts"]), tuple(raw["reasons"]))


def decide(plan: Plan, look: Look) -> Decision:
    """What follows from a look.

    In this order: another champion or a hard stop ends it; one failed guardrail ends it; too few requests hold it, and end it at the
    deadline; then the step's time must be over and what is required must pass. Modes ab and shadow never go on by themselves.
    """
    if look.moved:
        return Decision("rollback", (), ("Another version is the champion by now: this comparison is with one that answers nobody.",))
    verdicts = tuple(_verdict(plan, guardrail, look) for guardrail in plan.guardrails)
    if look.evidence.hard:
        return Decision("rollback", verdicts, tuple(f"The candidate: {word}. That needs no statistics." for word in look.evidence.hard))
    if failed := [each.why for each in verdicts if each.verdict == "fail"]:
        return Decision("rollback", verdicts, tuple(failed))
    if look.paused:
        return Decision("hold", verdicts, ("Paused by a person; guardrails go on.",))
    action, reason = _clock(plan, look, verdicts)
    return Decision(action, verdicts, (reason,))


def _clock(plan: Plan, look: Look, verdicts: tuple[Verdict, ...]) -> tuple[Action, str]:
    """Nothing failed: whether the step may end."""
    late = look.in_step_s >= plan.deadline_s
    answered = look.evidence.canary.requests
    if answered < plan.min_requests:
        found = f"{answered:,} of {plan.min_requests:,} requests"
        return ("rollback", f"Only {found} by the step's deadline of {plan.deadline_s:g} s.") if late else ("hold", f"Waiting: {found}.")
    if look.in_step_s < plan.step_s:
        return "hold", f"Waiting: {look.in_step_s:.0f} of {plan.step_s:g} s."
    if plan.mode != "canary":
        return "hold", "Nothing failed. A person ends it."
    waiting = [each for each in verdicts if each.needed and each.verdict != "pass"]
    if not waiting:
        last = look.step == len(plan.steps) - 1
        return ("promote", "All steps are done.") if last else ("advance", f"Step {look.step + 1} of {len(plan.steps)} is done.")
    if late and (empty := [each for each in waiting if not each.n]):
        return "rollback", f"No data on {_and(empty)} by the step's deadline of {plan.deadline_s:g} s."
    if late and plan.overdue == "rollback":
        return "rollback", f"Still inconclusive on {_and(waiting)} at the step's deadline of {plan.deadline_s:g} s."
    return "hold", f"Inconclusive: {_and(waiting)}.{' The deadline is over: a person should look.' if late else ''}"


def _verdict(plan: Plan, guardrail: Guardrail, look: Look) -> Verdict:
    evidence = look.evidence
    alone = plan.mode == "canary" and plan.steps[look.step] >= 1
    baseline = look.reference if alone else evidence.baseline
    # Against another time of day, what counts as worse must be more than what time itself does: the margin.
    limit = guardrail.margin if alone else guardrail.tolerance
    found = measured(guardrail.kind, baseline, evidence.canary, plan.alpha_of(guardrail), plan.beta, together=not alone)
    source = has_source(guardrail.kind, baseline, evidence.canary)
    needed = guardrail.required == "always" or (guardrail.required == "measured" and source)
    if found.low is not None and found.low > limit:
        return _said(guardrail, "fail", found, found.low, limit, needed)
    passes = found.high is not None and found.high <= guardrail.margin
    return _said(guardrail, "pass" if passes else "inconclusive", found, found.high, guardrail.margin, needed)


def _said(guardrail: Guardrail, says: Says, found: Measured, bound: float | None, limit: float, needed: bool) -> Verdict:
    why = _sentence(guardrail.kind, says, found, bound, limit)
    own = (found.low, found.high, found.candidate, found.champion)
    return Verdict(guardrail.kind, says, found.value, bound, limit, found.n, why, *own, needed)


def _sentence(kind: Kind, says: Says, found: Measured, bound: float | None, limit: float) -> str:
    name = WORDS[kind]
    if found.value is None:
        return f"No data on {name}."
    values = (
        ""
        if found.candidate is None or found.champion is None
        else f" ({_own(kind, found.candidate)}, champion {_own(kind, found.champion)})"
    )
    if bound is None:
        return f"Too little data on {name}: n={found.n:,}{values}."
    rise = "" if kind == "confidence" else " more"
    if says == "fail":
        return f"{_capital(name)}: at least {_amount(kind, bound)}{rise}{values}; {_amount(kind, limit)} is tolerated."
    if says == "pass":
        return f"{_capital(name)}: at most {_amount(kind, bound)}{rise}{values}; the margin is {_amount(kind, limit)}."
    return f"{_capital(name)}: up to {_amount(kind, bound)}{rise} is possible{values}; {_amount(kind, limit)} must not be."


def _amount(kind: Kind, value: float) -> str:
    return f"{100 * value:.3g} {'%' if kind in RELATIVE or kind == 'confidence' else 'pp'}"


def _own(kind: Kind, value: float | None) -> str:
    if value is None:
        return "unknown"
    if kind in ("p99", "cost"):
        return f"{1000 * value:.3g} ms"
    return f"{value:.3f}" if kind == "confidence" else f"{100 * value:.3g} %"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _and(verdicts: list[Verdict]) -> str:
    return ", ".join(WORDS[each.guardrail] for each in verdicts)
