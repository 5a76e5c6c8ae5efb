"""What requests to a deployment need beside the deployment, worked out once: readers of certainties, thresholds, the cache's namespaces."""

from __future__ import annotations

from functools import cached_property

from lowbit.errors import UsageError
from lowbit.serving import certainty
from lowbit.serving.answered import Plan
from lowbit.serving.cache.cache import Cache
from lowbit.serving.certainty import ClassReader
from lowbit.serving.deployment import Deployment, Variant
from lowbit.serving.refusals import NotServed
from lowbit.serving.routing import Escalate, Route, RoutingPolicy


class Study:
    """Of one deployment.

    Attributes:
        deployment: That is studied.
    """

    def __init__(self, deployment: Deployment, cache: Cache | None) -> None:
        """Nothing is worked out yet."""
        self.deployment = deployment
        self._cache = cache
        self._thresholds: dict[tuple[str, str], float | None] = {}
        self._plans: dict[tuple[str, Escalate | None, bool, Escalate | None], Plan] = {}

    @cached_property
    def reader(self) -> ClassReader | None:
        """Of the certainty of answers; None where they are no classes."""
        return certainty.reader_for(self.deployment.bundle, self.deployment.outputs)

    def below(self, rule: Escalate) -> float | None:
        """The threshold that a rule gives, or that the bundle's samples do; None where they do not."""
        if rule.below is not None:
            return rule.below
        key = (rule.to, rule.by)
        if key not in self._thresholds:
            bundle, target = self.deployment.bundle, self.deployment.variant(rule.to)
            full = target.id if target else bundle.manifest.baseline.id
            self._thresholds[key] = certainty.threshold(bundle, bundle.manifest.decision.chosen, full, rule.by)
        return self._thresholds[key]

    def plan(self, way: Route, policy: RoutingPolicy) -> Plan:
        """What a route does.

        Raises:
            NotServed: the variant is not loaded.
        """
        key = (way.variant, way.escalate, way.review, policy.escalate)
        found = self._plans.get(key)
        if found is None:
            found = self._plans[key] = self._made(way, way.escalate or policy.escalate or Escalate())
        return found

    def _made(self, way: Route, rule: Escalate) -> Plan:
        bundle, variant = self.deployment.bundle, self._loaded(way.variant)
        again = self._loaded(way.escalate.to) if way.escalate else None
        again = None if again is variant else again
        looks = again is not None or way.review or (self._cache is not None and self._cache.looks)
        reader = self.reader if looks else None
        below = self.below(rule) if reader is not None else None
        if below is None:
            again = None
        how = "" if reader is None else f"{again.id if again else 'alone'} {rule.by} {below}"
        space = None if self._cache is None else self._cache.namespace(bundle, variant.id, how)
        pixels = None if self._cache is None else self._cache.pixels(bundle, self.deployment.inputs)
        return Plan(variant, again, reader, rule.by, below or 0.0, space, pixels)

    def _loaded(self, name: str) -> Variant:
        found = self.deployment.variant(name)
        if found is None:
            raise NotServed(f"Model '{self.deployment.name}' has no variant {name!r} loaded. Loaded: {self._known}.")
        return found

    @property
    def _known(self) -> str:
        return ", ".join(f"{variant.role} ({variant.id})" for variant in self.deployment.variants.values())

    def check(self, policy: RoutingPolicy) -> None:
        """Compares a policy with what is loaded.

        Raises:
            UsageError: it names a variant that is not loaded, or a threshold that cannot be found.
        """
        name = self.deployment.name
        named = {policy.default, *(rule.use for rule in policy.rules if not rule.when.model or name in rule.when.model)}
        named |= {policy.escalate.to} if policy.escalate else set()
        for variant in sorted(named):
            if self.deployment.variant(variant) is None:
                raise UsageError(
                    f"The policy names variant '{variant}', which is not loaded for model '{name}'. Loaded: {self._known}.",
                    "Load it too: --variants chosen,full,ID.",
                )
        needs = policy.escalate is not None or policy.reviews
        rule = policy.escalate or Escalate()
        if needs and self.reader is not None and self.below(rule) is None:
            raise UsageError(
                f"Model '{name}' does not say below which {rule.by} its answers are uncertain: its samples' outcomes are gone.",
                "Give a number from 0 to 1 as `below` under `escalate` in the policy.",
            )
