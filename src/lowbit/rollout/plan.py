"""How a version is let in: steps, how long each lasts, and what must hold, as data.

In YAML, every key with its default where it may be left out:

    schema: 1
    mode: canary                    # canary: in steps; ab: one split until a person ends it; shadow: answers are thrown away
    steps: [1%, 5%, 25%, 50%, 100%] # shares of keys that the candidate answers; ab: one share (50%); shadow: none
    step_s: 10m                     # a step lasts at least that long
    min_requests: 500               # and until the candidate has answered so many in it
    deadline_s: 24h                 # a step without its data by then is rolled back
    overdue: hold                   # a step that is still inconclusive by then: hold, or rollback
    look_s: 5s                      # how often one looks; as often as one likes, the error rate holds
    shadow: 10%                     # share of answers asked again at full precision; in mode shadow: of requests that are mirrored
    alpha: 0.02                     # a healthy candidate is rolled back at most so often, over all guardrails, steps and looks
    beta: 0.05                      # a guardrail passes a candidate beyond its margin at most so often, in a step
    guardrails:
      - {kind: errors, tolerance: 0, margin: 1pp, required: always, weight: 5}

A guardrail fails when the candidate is shown to be worse than the champion by more than `tolerance`, and passes when it is shown to be
worse by less than `margin`. Between the two nothing is shown yet, and that is what inconclusive means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, Literal, get_args

import yaml

from lowbit.errors import UsageError
from lowbit.strict import check_keys, mapping, word

Mode = Literal["canary", "ab", "shadow"]
Kind = Literal["errors", "p99", "disagreement", "confidence", "accuracy", "cost"]
Need = Literal["always", "measured", "never"]
Overdue = Literal["hold", "rollback"]
STEPS: Mapping[str, tuple[float, ...]] = {"canary": (0.01, 0.05, 0.25, 0.5, 1.0), "ab": (0.5,), "shadow": (0.0,)}


@dataclass(frozen=True)
class Guardrail:
    """One thing that must not get worse.

    Attributes:
        kind: "errors" (share of requests that fail), "p99" (latency), "disagreement" (with full precision, on shadowed rows),
            "confidence" (mean and distribution), "accuracy" (by delayed labels), "cost" (compute seconds per row).
        tolerance: Worse by more than this, shown: fail. Points (0.01 = 1 pp) for errors, disagreement and accuracy; a share of the
            champion's value (0.2 = 20 %) for p99 and cost; for confidence both the relative shift of the mean and the
            Kolmogorov-Smirnov distance.
        margin: Worse by less than this, shown: pass. At least the tolerance.
        required: "always": a step waits for it to pass. "measured": only if there is any data for it by the time that the step has its
            requests and its time; a model without confidences or labels does not wait for them. "never": it can fail, and nobody waits.
        weight: Its part of the error rate `alpha`, against those of the others.
    """

    kind: Kind
    tolerance: float
    margin: float
    required: Need = "measured"
    weight: float = 1.0


GUARDRAILS: tuple[Guardrail, ...] = (
    # A rise of failures is never wanted. That it is no more than a point can be shown by some 500 answers without one. It has half of the
    # error rate: where nothing is tolerated, being sure takes longest.
    Guardrail("errors", 0.0, 0.01, "always", 5.0),
    # Two arms on one machine differ by a few per cent at p99 without any reason; from a fifth on users notice. A p99 needs many answers
    # to be shown within a margin, so it guards and nobody waits.
    Guardrail("p99", 0.20, 0.50, "never"),
    # Eight bits change 1-2 % of first classes, mostly of samples that were undecided at full precision, too.
    Guardrail("disagreement", 0.02, 0.05, "measured"),
    # The rule of comparisons and reviews: 5 %, from 2,000 answers on.
    Guardrail("confidence", 0.05, 0.10, "measured"),
    # The usual budget. Labels come late and few: they guard, and nobody waits.
    Guardrail("accuracy", 0.01, 0.03, "never"),
    # Compute is noisy by some per cent; a candidate that is meant to be cheaper and costs a tenth more is a mistake.
    Guardrail("cost", 0.10, 0.25, "never"),
)
KINDS: tuple[str, ...] = get_args(Kind)
RELATIVE = frozenset({"p99", "cost"})
"""Guardrails whose tolerance is a share of the champion's value; others have points."""


@dataclass(frozen=True)
class Plan:
    """Everything that a rollout is decided by, beside the evidence. See the module's text.

    Attributes:
        mode: "canary", "ab" or "shadow".
        steps: Shares of keys that the candidate answers, rising.
        step_s: Seconds that a step lasts at least.
        min_requests: That the candidate has answered in a step before it can end.
        deadline_s: Seconds after which a step without data is rolled back.
        overdue: What becomes of a step that has data and is inconclusive at the deadline.
        look_s: Seconds from one look to the next.
        shadow: Share of answers that are asked again in the background.
        guardrails: One of a kind at most.
        alpha: Probability of rolling back a healthy candidate, in all.
        beta: Probability that a guardrail passes a candidate beyond its margin, in one step.
    """

    mode: Mode = "canary"
    steps: tuple[float, ...] = STEPS["canary"]
    step_s: float = 600.0
    min_requests: int = 500
    deadline_s: float = 86400.0
    overdue: Overdue = "hold"
    look_s: float = 5.0
    shadow: float = 0.1
    guardrails: tuple[Guardrail, ...] = GUARDRAILS
    alpha: float = 0.02
    beta: float = 0.05

    def __post_init__(self) -> None:
        """Raises UsageError where the parts do not fit each other."""
        _check(self)

    def alpha_of(self, guardrail: Guardrail) -> float:
        """The error rate of one guardrail in one step: the whole, shared by weight over guardrails and equally over steps."""
        return self.alpha * guardrail.weight / (sum(each.weight for each in self.guardrails) * len(self.steps))

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it back to an equal plan."""
        raw = asdict(self)
        return {"schema": 1, **raw, "steps": list(raw["steps"]), "guardrails": list(raw["guardrails"])}

    def to_yaml(self) -> str:
        """The text that `from_yaml` reads."""
        return yaml.safe_dump(self.to_json(), sort_keys=False)

    @classmethod
    def from_json(cls, raw: object) -> Plan:
        """Reads a plan; what is left out has its default.

        Raises:
            UsageError: a key or word that is not known, a value of the wrong kind, or parts that do not fit each other.
        """
        values = mapping("A rollout plan", raw)
        if (schema := values.pop("schema", 1)) != 1:
            raise UsageError(f"Rollout plan schema {schema!r} is not known; this version reads schema 1.")
        check_keys("plan key", values, (each.name for each in fields(cls)))
        mode = word("mode", values.get("mode", "canary"), Mode)
        read = {name: reader(name, values[name]) for name, reader in _READERS.items() if name in values}
        if mode == "shadow":
            read = {"shadow": 1.0} | read  # nobody waits for a mirrored answer: mirror what the machine can take
        return cls(**({"steps": STEPS[mode]} | read | {"mode": mode}))

    @classmethod
    def from_yaml(cls, text: str) -> Plan:
        """Reads a plan; see the module's text.

        Raises:
            UsageError: not YAML, or no plan.
        """
        try:
            raw = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none is a ValueError
            raise UsageError(f"The rollout plan is not YAML: {error}") from error
        return cls.from_json({} if raw is None else raw)


def amount(what: str, value: object) -> float:
    """A tolerance, a margin or a share: a number, "1%" or "0.5pp".

    >>> amount("tolerance", "20%"), amount("tolerance", "0.5pp"), amount("tolerance", 0)
    (0.2, 0.005, 0.0)

    Raises:
        UsageError: none of these, or below 0.
    """
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(%|pp)\s*", value)):
        value = float(match[1]) / 100
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e300:
        return float(value)
    raise UsageError(f"{what} {value!r} is not understood.", "Give a number from 0, a percentage such as 5%, or points such as 0.5pp.")


# ── JSON → records ──────────────────────────────────────────────────────────────────────────────────────────────────


def _check(plan: Plan) -> None:
    _check_steps(plan)
    for name in ("step_s", "look_s", "deadline_s"):
        if not 0 < getattr(plan, name) < 1e9:
            raise UsageError(f"{name} must be a time above 0, not {getattr(plan, name):g} seconds.")
    if plan.deadline_s < plan.step_s:
        raise UsageError(f"A step of {plan.step_s:g} seconds cannot end by a deadline of {plan.deadline_s:g}.", "Raise deadline_s.")
    if plan.min_requests < 1:
        raise UsageError("min_requests must be 1 or more: a step without an answer shows nothing.")
    for name in ("alpha", "beta"):
        if not 0 < getattr(plan, name) < 0.5:
            raise UsageError(f"{name} must be above 0 and below 0.5, not {getattr(plan, name):g}.")
    if not 0 <= plan.shadow <= 1:
        raise UsageError(f"shadow must be a share from 0 to 1, not {plan.shadow:g}.")
    _check_guardrails(plan.guardrails)


def _check_steps(plan: Plan) -> None:
    shares = plan.steps
    if plan.mode == "shadow" and shares != STEPS["shadow"]:
        raise UsageError("In mode shadow the candidate answers nobody: its only step is 0.", "Leave steps out.")
    if plan.mode == "ab" and not (len(shares) == 1 and 0 < shares[0] < 1):
        raise UsageError("Mode ab has one split, above 0 and below 1.", "E.g. steps: [50%].")
    rising = all(a < b for a, b in pairwise(shares))
    if plan.mode == "canary" and not (shares and rising and 0 < shares[0] < 1 and shares[-1] <= 1):
        raise UsageError(f"Steps must rise from above 0 to 1 at most, not {list(shares)}.", "E.g. steps: [1%, 5%, 25%, 50%, 100%].")


def _check_guardrails(guardrails: tuple[Guardrail, ...]) -> None:
    if not guardrails:
        raise UsageError("A rollout needs a guardrail.", f"There are {', '.join(KINDS)}.")
    kinds = [each.kind for each in guardrails]
    for each in guardrails:
        if kinds.count(each.kind) > 1:
            raise UsageError(f"There are two guardrails on {each.kind}; one is enough.")
        if each.margin < each.tolerance:
            raise UsageError(f"The margin of {each.kind}, {each.margin:g}, is below its tolerance, {each.tolerance:g}: both would hold.")
        if not 0 < each.weight < 1e6:
            raise UsageError(
                f"The weight of {each.kind} must be above 0, not {each.weight:g}.", "Leave a guardrail out that shall not count."
            )
        if each.required != "never" and each.margin == 0:
            raise UsageError(f"Nothing can show that {each.kind} did not rise at all.", "Give it a margin above 0, or required: never.")


def _guardrail(raw: object) -> Guardrail:
    values = mapping("A guardrail", raw)
    check_keys("guardrail key", values, (each.name for each in fields(Guardrail)))
    if "kind" not in values:
        raise UsageError("A guardrail needs its kind.", f"There are {', '.join(KINDS)}.")
    kind = word("guardrail", values["kind"], Kind)
    usual = next(each for each in GUARDRAILS if each.kind == kind)
    tolerance = amount("tolerance", values.get("tolerance", usual.tolerance))
    margin = amount("margin", values.get("margin", max(usual.margin, 2 * tolerance)))
    weight = amount("weight", values.get("weight", usual.weight))
    return Guardrail(kind, tolerance, margin, word("word for required", values.get("required", usual.required), Need), weight)


def _guardrails(name: str, raw: object) -> tuple[Guardrail, ...]:
    if not isinstance(raw, list | tuple):
        raise UsageError(f"{name} must be a list, not {raw!r}.")
    return tuple(_guardrail(each) for each in raw)


def _steps(name: str, raw: object) -> tuple[float, ...]:
    if not isinstance(raw, list | tuple):
        raise UsageError(f"{name} must be a list of shares, not {raw!r}.", "E.g. [1%, 5%, 25%, 50%, 100%].")
    return tuple(amount("Step", each) for each in raw)


def _seconds(name: str, raw: object) -> float:
    if isinstance(raw, str):
        from lowbit.pipeline.request import parse_duration

        return parse_duration(raw)
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise UsageError(f"{name} must be seconds, or a time such as 10m, not {raw!r}.")
    return float(max(min(raw, 1e9), -1.0))  # no float is as large as a whole number can be; both ends are refused


def _count(name: str, raw: object) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int):
        raise UsageError(f"{name} must be a whole number, not {raw!r}.")
    return raw


_READERS: Mapping[str, Any] = {
    "steps": _steps,
    "step_s": _seconds,
    "min_requests": _count,
    "deadline_s": _seconds,
    "overdue": lambda name, raw: word(f"word for {name}", raw, Overdue),
    "look_s": _seconds,
    "shadow": amount,
    "guardrails": _guardrails,
    "alpha": amount,
    "beta": amount,
}
