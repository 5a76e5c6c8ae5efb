"""Routing policies: what they accept, and that a route is a pure function of policy and facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import UsageError
from lowbit.serving.answer.routing import Escalate, Facts, Route, RoutingPolicy, Rule, When, on, route, share

POLICY = """
schema: 1
rules:
  - name: critical
    when: {critical: true}
    use: full
    review: true
  - name: gold
    when: {tenant: [gold, platinum]}
    use: full
  - name: hurry
    when: {budget_below_ms: 20}
    use: chosen
    escalate: false
  - name: trial
    when: {flag: trial, model: demo, header: {X-Experiment: [b, c]}}
    use: bf16@openvino
escalate: {to: full, below: 0.2, by: confidence}
review: critical
flags: {trial: 100%, half: 50%}
tenant_header: X-Team
"""

WORDS = st.sampled_from(["chosen", "full", "bf16@openvino"])
TENANTS = st.sampled_from(["gold", "silver"])
WHENS = st.builds(
    When,
    header=st.dictionaries(st.sampled_from(["a", "b"]), st.tuples(st.sampled_from(["1", "2"]))),
    tenant=st.lists(TENANTS, max_size=2).map(tuple),
    model=st.lists(st.sampled_from(["demo", "other"]), max_size=1).map(tuple),
    critical=st.none() | st.booleans(),
    budget_below_ms=st.none() | st.floats(0.1, 1e4),
    flag=st.none() | st.sampled_from(["one", "two"]),
)
RULES = st.lists(st.builds(Rule, st.just("x"), WHENS, WORDS, st.booleans(), st.booleans()), max_size=5).map(
    lambda rules: tuple(replace(rule, name=f"rule-{number}") for number, rule in enumerate(rules))
)
POLICIES = st.builds(
    RoutingPolicy,
    rules=RULES,
    default=WORDS,
    asked=st.sampled_from(["first", "never"]),
    escalate=st.none() | st.builds(Escalate, WORDS, st.none() | st.floats(0, 1), st.sampled_from(["margin", "confidence"])),
    review=st.sampled_from(["never", "critical", "always"]),
    flags=st.fixed_dictionaries({"one": st.floats(0, 1), "two": st.floats(0, 1)}),
)
FACTS = st.builds(
    Facts,
    model=st.sampled_from(["demo", "other"]),
    headers=st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["1", "2", "3"])),
    tenant=st.none() | TENANTS,
    critical=st.booleans(),
    budget_ms=st.none() | st.floats(0.01, 1e5),
    asked=st.none() | WORDS,
    session=st.text(max_size=8),
)


def chosen(**facts: object) -> Route:
    return route(RoutingPolicy.from_yaml(POLICY), Facts(**{"model": "demo", **facts}))  # type: ignore[arg-type]


def test_the_first_rule_that_holds_decides() -> None:
    escalate = Escalate("full", 0.2, "confidence")
    assert chosen() == Route("chosen", "default", escalate)
    assert chosen(critical=True, tenant="gold") == Route("full", "critical", escalate, review=True)
    assert chosen(tenant="platinum", budget_ms=5) == Route("full", "gold", escalate)
    assert chosen(budget_ms=5) == Route("chosen", "hurry", None)
    assert chosen(budget_ms=20).reason == "default"  # not below
    assert chosen(headers={"x-experiment": "c"}) == Route("bf16@openvino", "trial", escalate)
    assert chosen(headers={"x-experiment": "a"}).reason == "default"
    assert chosen(model="other", headers={"x-experiment": "c"}).reason == "default"


def test_a_client_that_names_a_variant_gets_it_unless_the_policy_says_never() -> None:
    assert chosen(asked="full") == Route("full", "asked", None)
    assert chosen(asked="full", critical=True) == Route("full", "asked", None, review=True)
    never = RoutingPolicy.from_yaml(POLICY + "asked: never\n")
    assert route(never, Facts("demo", asked="full")).reason == "default"


def test_without_a_file_the_chosen_variant_answers() -> None:
    assert route(RoutingPolicy(), Facts("demo")) == Route("chosen", "default")
    assert route(RoutingPolicy(), Facts("demo", asked="full")) == Route("full", "asked")


@given(POLICIES, FACTS)
def test_routing_is_total_and_deterministic(policy: RoutingPolicy, facts: Facts) -> None:
    found = route(policy, facts)
    assert found == route(policy, replace(facts))
    rules = {rule.name: rule for rule in policy.rules}
    if found.reason == "asked":
        assert found.variant == facts.asked
        assert policy.asked == "first"
    elif found.reason == "default":
        assert found.variant == policy.default
    else:
        assert found.variant == rules[found.reason].use
    assert found.variant in policy.variants | {facts.asked}


@given(POLICIES)
def test_policies_survive_their_yaml(policy: RoutingPolicy) -> None:
    assert RoutingPolicy.from_yaml(policy.to_yaml()) == policy


@given(st.text(max_size=6), st.floats(0, 1), st.floats(0, 1))
def test_shares_are_nested(session: str, first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert not on("flag", low, session) or on("flag", high, session)
    assert on("flag", 1.0, session)
    assert not on("flag", 0.0, session)


def test_a_flags_share_is_its_share_of_sessions() -> None:
    found = sum(on("trial", 0.1, f"session {number}") for number in range(20_000))
    assert abs(found / 20_000 - 0.1) < 0.01
    both = sum(on("trial", 0.5, f"{number}") and on("other", 0.5, f"{number}") for number in range(20_000))
    assert abs(both / 20_000 - 0.25) < 0.02  # flags are drawn apart


def test_values_of_flags() -> None:
    assert [share(value) for value in (True, False, "10%", " 2.5 %", 0.25, 1)] == [1.0, 0.0, 0.1, 0.025, 0.25, 1.0]
    for value in ("yes", "110%", 1.5, -0.1, None, [], "nan"):
        with pytest.raises(UsageError, match="no value of a flag"):
            share(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [", "not YAML"),
        ("- a", "must be a mapping"),
        ("schema: 2", "schema 2 is not known"),
        ("rulez: []", "Did you mean 'rules'"),
        ("rules: 3", "must be a list"),
        ("rules: [{name: a, use: full, wenn: {}}]", "Unknown rule key 'wenn'"),
        ("rules: [{name: a}]", "needs a name and the variant"),
        ("rules: [{name: 'a b', use: full}]", "cannot name a rule"),
        ("rules: [{name: default, use: full}]", "cannot name a rule"),
        ("rules: [{name: a, use: full}, {name: a, use: full}]", "another has it"),
        ("rules: [{name: a, use: full, when: {tenants: x}}]", "Did you mean 'tenant'"),
        ("rules: [{name: a, use: full, when: {tenant: 3}}]", "must be a word, not 3"),
        ("rules: [{name: a, use: full, when: {critical: maybe}}]", "true or false"),
        ("rules: [{name: a, use: full, when: {budget_below_ms: -1}}]", "above 0"),
        ("rules: [{name: a, use: full, when: {flag: trial}}]", "Unknown flag 'trial'"),
        ("escalate: {below: 2}", "from 0 to 1"),
        ("escalate: {by: entropy}", "Unknown certainty 'entropy'"),
        ("review: sometimes", "Unknown word for review"),
        ("flags: {a: soon}", "no value of a flag"),
    ],
)
def test_a_policy_that_is_wrong_is_refused_in_words(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        RoutingPolicy.from_yaml(text)
    assert message in str(error.value)


def test_the_guides_policy_is_one() -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "serving.md").read_text(encoding="utf-8")
    (text,) = [block.partition("```")[0] for block in guide.split("```yaml\n")[1:] if block.startswith("rules:")]
    policy = RoutingPolicy.from_yaml(text)
    assert [rule.name for rule in policy.rules] == ["critical", "gold", "hurry", "trial"]
    assert policy.escalate == Escalate("full", None, "margin")
