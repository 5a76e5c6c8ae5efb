"""What requests to a deployment need beside the deployment, worked out once: thresholds, and the cache's namespaces.

All that lies in the bundle's folder is read when a study begins, right after loading: another version may be there later.
"""

from __future__ import annotations

from lowbit.errors import UsageError
from lowbit.serving.answer import certainty
from lowbit.serving.answer.answered import Plan
from lowbit.serving.answer.routing import Escalate, Route, RoutingPolicy
from lowbit.serving.cache import images, keys
from lowbit.serving.cache.cache import Cache
from lowbit.serving.protocol.refusals import NotServed
from lowbit.serving.run.deployment import CHOSEN, Deployment, Variant


class Study:
    """Of one deployment.

    Attributes:
        deployment: That is studied.
    """

    def __init__(self, deployment: Deployment, cache: Cache | None) -> None:
        """Reads what is to be read; nothing is worked out yet."""
        self.deployment = deployment
        self._cache = cache
        bundle, ids = deployment.bundle, {variant.id for variant in deployment.variants.values()}
        self._samples = {} if deployment.reader is None else {each: certainty.samples(bundle, each) for each in ids}
        self._digests = {**keys.unlisted(bundle, ids), **deployment.digests}
        self._thresholds: dict[tuple[str, str, str], float | None] = {}
        self._plans: dict[tuple[str, Escalate | None, bool, Escalate | None], Plan] = {}

    @property
    def similar_spaces(self) -> set[bytes]:
        """Namespaces of similar answers that its plans use."""
        return {plan.similar_space for plan in list(self._plans.values()) if plan.pixels is not None}

    def below(self, variant: Variant, rule: Escalate) -> float | None:
        """The threshold that a rule gives, or that the samples do which a variant answered itself; None where they do not.

        Where the variant is the one that would be asked again, what ships is what it is compared with.
        """
        if rule.below is not None:
            return rule.below
        key = (variant.id, rule.to, rule.by)
        if key not in self._thresholds:
            target = self.deployment.variant(rule.to)
            other = self.deployment.variants[CHOSEN] if target is None or target.id == variant.id else target
            self._thresholds[key] = certainty.threshold(self._samples.get(variant.id, {}), self._samples.get(other.id, {}), rule.by)
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
        manifest, variant = self.deployment.bundle.manifest, self._loaded(way.variant)
        again = self._loaded(way.escalate.to) if way.escalate else None
        again = None if again is variant else again
        looks = again is not None or way.review or (self._cache is not None and self._cache.looks)
        reader = self.deployment.reader if looks else None
        below = self.below(variant, rule) if reader is not None else None
        if below is None:
            again = None
        how = "" if reader is None else f"{again.id if again else 'alone'} {rule.by} {below}"
        space = None if self._cache is None else keys.namespace(manifest, variant.id, self._digests, how)
        similar = self._cache is not None and self._cache.looks
        pixels = images.pixels_of(self.deployment.preprocess, self.deployment.inputs) if similar else None
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
        rule = policy.escalate or Escalate()
        for needed in self._needed(policy):
            if self.deployment.reader is not None and self.below(self._loaded(needed), rule) is None:
                raise UsageError(
                    f"Variant '{needed}' of model '{name}' does not say below which {rule.by} its answers are uncertain: its samples' "
                    "outcomes are gone.",
                    "Give a number from 0 to 1 as `below` under `escalate` in the policy.",
                )

    def _needed(self, policy: RoutingPolicy) -> list[str]:
        """Variants whose threshold a policy needs."""
        if self.deployment.language is not None:
            return []  # its answers are not asked again
        name, always, again = self.deployment.name, policy.review != "never", policy.escalate is not None
        rules = [rule for rule in policy.rules if not rule.when.model or name in rule.when.model]
        found = {rule.use for rule in rules if always or rule.review or (again and rule.escalate)}
        return sorted(found | {policy.default} if always or again else found)
