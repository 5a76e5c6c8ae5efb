"""Which variant answers: a policy as data, and a pure function from what is known of a request to a route.

In YAML:

    schema: 1
    asked: first                    # the parameter or header "variant" goes before the rules; never: it is refused
    rules:                          # tried in order; all conditions of one must hold
      - name: critical
        when: {critical: true}
        use: full                   # chosen, full, or a candidate's id
        review: true                # answers that stay uncertain are marked for a person
      - name: gold
        when: {tenant: [gold, platinum]}
        use: full
      - name: hurry
        when: {budget_below_ms: 20}
        use: chosen
        escalate: false
      - name: trial
        when: {flag: trial, model: demo, header: {x-experiment: b}}
        use: bf16@openvino
    default: chosen
    escalate: {to: full, below: auto, by: margin}    # null: nothing is asked again
    review: critical                # never, critical or always: which answers a person sees when they stay uncertain
    flags: {trial: 10%}             # true, false, or a share of sessions
    tenant_header: x-tenant
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import yaml

from lowbit.errors import UsageError, unknown
from lowbit.serving.run.deployment import CHOSEN, FULL
from lowbit.strict import check_keys, mapping, word

Asked = Literal["first", "never"]
By = Literal["margin", "confidence"]
Reviewed = Literal["never", "critical", "always"]
DEFAULT, ASKED = "default", "asked"
"""Reasons that are no rule's name."""


@dataclass(frozen=True)
class When:
    """Conditions of a rule; what is left out holds always.

    Attributes:
        header: Name -> values, one of which it must have.
        tenant: One of these.
        model: One of these.
        critical: Whether the request says that it is.
        budget_below_ms: The client waits less than this; one that says nothing waits for ever.
        flag: A flag that must be on for the request's session.
    """

    header: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tenant: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    critical: bool | None = None
    budget_below_ms: float | None = None
    flag: str | None = None


@dataclass(frozen=True)
class Rule:
    """One line of a policy.

    Attributes:
        name: The reason that answers give for their route; it is also a label in metrics.
        when: All of it must hold.
        use: `CHOSEN`, `FULL` or a candidate's id.
        escalate: False keeps answers as they are, however uncertain.
        review: True marks answers that stay uncertain for a person.
    """

    name: str
    when: When = When()
    use: str = CHOSEN
    escalate: bool = True
    review: bool = False


@dataclass(frozen=True)
class Escalate:
    """Uncertain answers of a quantized variant are asked again.

    Attributes:
        to: The variant that is asked.
        below: Rows whose certainty is below this are; None takes what the bundle's own samples say (`certainty.threshold`).
        by: "margin" (lead of the most probable class over the next) or "confidence" (its probability).
    """

    to: str = FULL
    below: float | None = None
    by: By = "margin"


@dataclass(frozen=True)
class RoutingPolicy:
    """Everything that decides on a route; see the module's text.

    Attributes:
        rules: In order; the first that holds decides.
        default: The variant where none does.
        asked: Whether a client may name its variant.
        escalate: None asks nothing again.
        review: Whose uncertain answers a person sees, beside those of rules that say so.
        flags: Name -> share of sessions for which it is on, 0-1.
        tenant_header: Where the tenant stands. Anybody may write there: it steers, and protects nothing.
    """

    rules: tuple[Rule, ...] = ()
    default: str = CHOSEN
    asked: Asked = "first"
    escalate: Escalate | None = None
    review: Reviewed = "never"
    flags: Mapping[str, float] = field(default_factory=dict)
    tenant_header: str = "x-tenant"

    @property
    def variants(self) -> frozenset[str]:
        """All that it names."""
        again = [self.escalate.to] if self.escalate else []
        return frozenset([self.default, *again, *(rule.use for rule in self.rules)])

    @property
    def reviews(self) -> bool:
        """Whether answers can be marked for a person."""
        return self.review != "never" or any(rule.review for rule in self.rules)

    def to_yaml(self) -> str:
        """The text that `from_yaml` reads."""
        raw = _plain(asdict(self))
        for rule in raw["rules"]:
            rule["when"] = {key: value for key, value in rule["when"].items() if value not in (None, [], {})}
        if self.escalate is not None and self.escalate.below is None:
            raw["escalate"]["below"] = "auto"
        return yaml.safe_dump({"schema": 1, **raw}, sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> RoutingPolicy:
        """Reads a policy.

        Raises:
            UsageError: not YAML, a key or word that is not known, a value of the wrong kind, or a flag that is not defined.
        """
        try:
            raw = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none is a ValueError
            raise UsageError(f"The routing policy is not YAML: {error}") from error
        values = mapping("A routing policy", {} if raw is None else raw)
        if (schema := values.pop("schema", 1)) != 1:
            raise UsageError(f"Routing policy schema {schema!r} is not known; this version reads schema 1.")
        check_keys("policy key", values, (each.name for each in fields(cls)))
        rules = values.get("rules") or []
        if not isinstance(rules, list):
            raise UsageError("The policy's rules must be a list.")
        policy = cls(
            rules=tuple(_rule(each) for each in rules),
            default=_text("default", values.get("default", CHOSEN)),
            asked=word("word for asked", values.get("asked", "first"), Asked),
            escalate=None if values.get("escalate") is None else _escalate(values["escalate"]),
            review=word("word for review", values.get("review", "never"), Reviewed),
            flags={_text("flag", name): share(value) for name, value in mapping("flags", values.get("flags") or {}).items()},
            tenant_header=_text("tenant_header", values.get("tenant_header", "x-tenant")).lower(),
        )
        _check_together(policy)
        return policy


@dataclass(frozen=True)
class Facts:
    """What is known of a request before it is answered.

    Attributes:
        model: Its name.
        headers: Lower-case name -> value.
        tenant: None where nobody says.
        critical: The client says so.
        budget_ms: What it is willing to wait; None if it did not say.
        asked: The variant that it names, None if it names none.
        session: What a flag's share is drawn by: the same session gets the same side.
    """

    model: str
    headers: Mapping[str, str] = field(default_factory=dict)
    tenant: str | None = None
    critical: bool = False
    budget_ms: float | None = None
    asked: str | None = None
    session: str = ""


@dataclass(frozen=True)
class Route:
    """What is to be done with a request.

    Attributes:
        variant: That answers: `CHOSEN`, `FULL` or a candidate's id.
        reason: `DEFAULT`, `ASKED` or the rule's name.
        escalate: How uncertain rows are asked again; None leaves them.
        review: Whether a person is to see rows that stay uncertain.
    """

    variant: str
    reason: str = DEFAULT
    escalate: Escalate | None = None
    review: bool = False


def route(policy: RoutingPolicy, facts: Facts) -> Route:
    """The way of a request. Pure: the same policy and facts always give the same route."""
    found = next((rule for rule in policy.rules if holds(rule.when, facts, policy.flags)), None)
    review = policy.review == "always" or (policy.review == "critical" and facts.critical) or (found is not None and found.review)
    if facts.asked is not None and policy.asked == "first":
        return Route(facts.asked, ASKED, None, review)  # who names a variant wants its answer and no other's
    if found is None:
        return Route(policy.default, DEFAULT, policy.escalate, review)
    return Route(found.use, found.name, policy.escalate if found.escalate else None, review)


def holds(when: When, facts: Facts, flags: Mapping[str, float]) -> bool:
    """Whether all conditions hold."""
    return (
        (when.critical is None or when.critical == facts.critical)
        and (not when.tenant or facts.tenant in when.tenant)
        and (not when.model or facts.model in when.model)
        and (when.budget_below_ms is None or (facts.budget_ms is not None and facts.budget_ms < when.budget_below_ms))
        and all(facts.headers.get(name) in values for name, values in when.header.items())
        and (when.flag is None or on(when.flag, flags.get(when.flag, 0.0), facts.session))
    )


def on(flag: str, share: float, session: str) -> bool:
    """Whether a flag is on for a session. Shares are nested: who has it at 10 % has it at 20 %."""
    if share <= 0 or share >= 1:
        return share >= 1
    drawn = int.from_bytes(hashlib.blake2b(f"{flag}\0{session}".encode("utf-8", "surrogateescape"), digest_size=8).digest())
    return drawn < share * 2**64


def share(value: object) -> float:
    """A flag's value as the share of sessions for which it is on.

    >>> share(True), share("10%"), share(0.25)
    (1.0, 0.1, 0.25)

    Raises:
        UsageError: none of true, false, a percentage, or a number from 0 to 1.
    """
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)):
        value = float(match[1]) / 100
    if isinstance(value, int | float) and 0 <= value <= 1:
        return float(value)
    raise UsageError(f"'{value}' is no value of a flag.", "Give true, false, a percentage such as 10%, or a share from 0 to 1.")


# ── YAML → records ──────────────────────────────────────────────────────────────────────────────────────────────────


def _check_together(policy: RoutingPolicy) -> None:
    names = [rule.name for rule in policy.rules]
    for name in names:
        if names.count(name) > 1 or name in (DEFAULT, ASKED):
            raise UsageError(f"'{name}' cannot name a rule: it is the reason that answers give, and another has it.")
    for rule in policy.rules:
        if rule.when.flag is not None and rule.when.flag not in policy.flags:
            raise unknown("flag", rule.when.flag, policy.flags)


def _rule(raw: object) -> Rule:
    values = mapping("A rule", raw)
    check_keys("rule key", values, (each.name for each in fields(Rule)))
    if "name" not in values or "use" not in values:
        raise UsageError("A rule needs a name and the variant to use.", "E.g. {name: critical, when: {critical: true}, use: full}.")
    name = _text("A rule's name", values["name"])
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}", name):
        raise UsageError(
            f"'{name}' cannot name a rule.", "Use letters, digits, '-', '_' and '.', at most 40: it becomes a label in metrics."
        )
    return Rule(
        name,
        _when(values.get("when") or {}),
        _text("use", values["use"]),
        _flag("escalate", values.get("escalate", True)),
        _flag("review", values.get("review", False)),
    )


def _when(raw: object) -> When:
    values = mapping("A rule's conditions", raw)
    check_keys("condition", values, (each.name for each in fields(When)))
    budget, critical, flag = values.get("budget_below_ms"), values.get("critical"), values.get("flag")
    headers = mapping("header", values.get("header") or {})
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < 1e12):
        raise UsageError(f"budget_below_ms must be milliseconds above 0, not {budget!r}.")
    return When(
        header={_text("header", name).lower(): _texts("header", value) for name, value in headers.items()},
        tenant=_texts("tenant", values.get("tenant", ())),
        model=_texts("model", values.get("model", ())),
        critical=None if critical is None else _flag("critical", critical),
        budget_below_ms=None if budget is None else float(budget),
        flag=None if flag is None else _text("flag", flag),
    )


def _escalate(raw: object) -> Escalate:
    values = mapping("escalate", raw)
    check_keys("escalation key", values, (each.name for each in fields(Escalate)))
    below = values.get("below", "auto")
    if below != "auto" and (isinstance(below, bool) or not isinstance(below, int | float) or not 0 <= below <= 1):
        raise UsageError(f"Escalation below {below!r} is not understood.", "Give a number from 0 to 1, or auto.")
    return Escalate(
        _text("to", values.get("to", FULL)), None if below == "auto" else float(below), word("certainty", values.get("by", "margin"), By)
    )


def _text(what: str, value: object) -> str:
    if isinstance(value, str) and value:
        return value
    raise UsageError(f"{what} must be a word, not {value!r}.", "Put quotation marks around numbers, yes and no.")


def _texts(what: str, value: object) -> tuple[str, ...]:
    return tuple(_text(what, each) for each in value) if isinstance(value, list | tuple) else (_text(what, value),)


def _flag(what: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise UsageError(f"{what} must be true or false, not {value!r}.")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
