"""From a checked request to an answer: which variant, and what is to be known of how it was found.

route → cache → run → ask uncertain rows again → mark what stays uncertain for a person
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from lowbit.errors import UsageError
from lowbit.serving.answer import escalation
from lowbit.serving.answer.answered import Answered, Caller, Plan
from lowbit.serving.answer.live_policy import LivePolicy
from lowbit.serving.answer.planning import Study
from lowbit.serving.answer.questions import Question, Questions
from lowbit.serving.answer.routing import Facts, Route, RoutingPolicy, route
from lowbit.serving.cache.cache import Cache
from lowbit.serving.protocol.refusals import Malformed, Refusal
from lowbit.serving.protocol.requests import InferRequest, Parameter
from lowbit.serving.run.deployment import CHOSEN, FULL, Deployment, Variant
from lowbit.serving.settings import Settings
from lowbit.types import Array, Feeds

VARIANT, CRITICAL, SESSION = "x-lowbit-variant", "x-lowbit-critical", "x-lowbit-session"
_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
RESERVE_S, RESERVE = 0.005, 0.1
"""Of the time left, asking again leaves so much for sending the first answer should the second not come."""


class Answers:
    """Answers requests whose inputs fit the model.

    Attributes:
        policy: In force.
        cache: None keeps nothing.
        questions: For people; None where no policy may mark any.
    """

    def __init__(self, policy: LivePolicy | None = None, cache: Cache | None = None, questions: Questions | None = None) -> None:
        """Knows no model yet: see `prepare`."""
        self.policy = policy or LivePolicy()
        self.cache, self.questions = cache, questions
        self._studies: dict[int, Study] = {}  # by id of the deployment, which its study keeps alive
        self._before: dict[int, Study] = {}
        self.policy.checks.append(self._check)
        self._check_reviews(self.policy.now)

    @classmethod
    def of(cls, settings: Settings) -> Answers:
        """What a server's settings describe.

        Raises:
            UsageError: the policy is wrong, or the state folder cannot be used.
        """
        questions = None if settings.state is None else Questions(settings.state, keep_inputs=settings.keep_inputs)
        return cls(LivePolicy(file=settings.policy, state=settings.state), Cache.of(settings.cache), questions)

    async def __aenter__(self) -> Answers:
        """Follows changes of the policy's file."""
        if self.cache is not None:
            await self.cache.open()
        self._watching = asyncio.create_task(self.policy.watch())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Lets stores go."""
        self._watching.cancel()
        await self.close()

    def prepare(self, deployment: Deployment) -> None:
        """Works out beforehand what requests to a deployment need; it takes the place of those with its name.

        Raises:
            UsageError: the policy names a variant that is not loaded, or a threshold that cannot be found.
        """
        before = [each.deployment for each in self._studies.values() if each.deployment.name == deployment.name]
        self.adopt(self.studied(deployment))
        for each in before:
            if each is not deployment:
                self.leave(each)

    def studied(self, deployment: Deployment) -> Study:
        """The slow part of `prepare`, which changes nothing here: it may run in a thread.

        Raises:
            UsageError: as `prepare` does.
        """
        study, policy = Study(deployment, self.cache), self.policy.now
        study.check(policy)
        for way in (Route(policy.default, escalate=policy.escalate), *(Route(rule.use, escalate=policy.escalate) for rule in policy.rules)):
            if deployment.variant(way.variant) is not None:
                study.plan(way, policy)
        return study

    def adopt(self, study: Study) -> None:
        """The rest of it. Other versions of the model stay beside it until they `leave`.

        Raises:
            UsageError: the policy has changed meanwhile, and does not fit.
        """
        study.check(self.policy.now)
        self._before.pop(id(study.deployment), None)
        self._studies[id(study.deployment)] = study
        self._only()

    def leave(self, deployment: Deployment) -> None:
        """No policy has to fit this one any more; the requests within it still end as they began."""
        if (study := self._studies.pop(id(deployment), None)) is not None:
            self._before[id(deployment)] = study

    def forget(self, deployment: Deployment) -> None:
        """This one has no requests any more, and gets none."""
        self._studies.pop(id(deployment), None)
        self._before.pop(id(deployment), None)
        self._only()

    def _only(self) -> None:
        if self.cache is not None:
            self.cache.only(set().union(*(each.similar_spaces for each in (*self._studies.values(), *self._before.values()))))

    async def answer(self, deployment: Deployment, request: InferRequest, caller: Caller, deadline: float) -> Answered:
        """Answers one.

        Args:
            deployment: The model.
            request: Its parameters and the caller's headers steer: `VARIANT`, `CRITICAL`, `SESSION`.
            caller: Who asks.
            deadline: On the event loop's clock.

        Raises:
            Refusal: of the kind that fits.
        """
        policy = self.policy.now
        facts = facts_of(deployment.name, request, caller, policy.tenant_header)
        way = route(policy, facts)
        plan = self._study(deployment).plan(way, policy)

        async def work() -> Answered:
            return await _run(plan, way, request.inputs, deadline)

        if self.cache is None or plan.space is None or not _may_be_kept(request, caller):
            found = await work()
        else:
            found = await self.cache.answered(plan, request.inputs, facts.critical or way.review, work, deadline)
            found = replace(found, variant=plan.variant, route=way.reason)
        if way.review and found.uncertain:
            found = replace(found, review=await self._ask(deployment, request, caller, facts, found, plan))
        return found

    def facts(self) -> dict[str, float]:
        """Numbers for metrics, by name."""
        found = {"policy_reload_failures": float(self.policy.failed)}
        if self.cache is not None:
            found |= {f"cache_{name}": value for name, value in self.cache.facts().items()}
        if self.questions is not None:
            found |= {f"questions_{name}": value for name, value in self.questions.facts().items()}
        return found

    async def close(self) -> None:
        """Lets stores go."""
        if self.cache is not None:
            await self.cache.close()
        if self.questions is not None:
            await self.questions.close()

    def _study(self, deployment: Deployment) -> Study:
        """Of a deployment: one that is served, or one before, which still has requests."""
        found = self._studies.get(id(deployment)) or self._before.get(id(deployment))
        if found is None:
            found = self._before[id(deployment)] = Study(deployment, self.cache)
        return found

    async def _ask(
        self, deployment: Deployment, request: InferRequest, caller: Caller, facts: Facts, found: Answered, plan: Plan
    ) -> str | None:
        if self.questions is None:
            return None
        reason = "critical" if facts.critical else found.route
        rows = plan.uncertain(found.outputs)
        question = Question(deployment.name, deployment.version, found.variant.id, reason, caller.request_id, rows.tolist())
        return await self.questions.ask(question, request.inputs, found.outputs, rows)

    def _check(self, policy: RoutingPolicy) -> None:
        self._check_reviews(policy)
        for study in self._studies.values():
            study.check(policy)

    def _check_reviews(self, policy: RoutingPolicy) -> None:
        if policy.reviews and self.questions is None:
            raise UsageError("The policy marks answers for a person, and there is nowhere to keep them.", "Give a folder: --state FOLDER.")


async def _run(plan: Plan, way: Route, inputs: Feeds, deadline: float) -> Answered:
    try:
        first = await plan.variant.batcher.submit(inputs, deadline=deadline)
    except Refusal as refusal:
        refusal.variant = plan.variant.id
        raise
    found = Answered(first.outputs, plan.variant, way.reason, first.batch, first.queued_s, first.ran_s)
    if plan.reader is None:
        return found
    low = plan.uncertain(found.outputs)
    found = replace(found, uncertain=len(low))
    if plan.again is None or not len(low) or not escalation.can_merge(found.outputs, len(next(iter(inputs.values())))):
        return found
    return await _again(plan, plan.again, found, inputs, low, deadline)


async def _again(plan: Plan, variant: Variant, found: Answered, inputs: Feeds, low: Array, deadline: float) -> Answered:
    """Asks uncertain rows again; the first answer stays where there is no time or no room for it."""
    left = deadline - asyncio.get_running_loop().time()
    try:
        second = await variant.batcher.submit(escalation.rows_of(inputs, low), deadline=deadline - max(RESERVE_S, RESERVE * left))
    except Refusal:
        return found
    outputs = escalation.merged(found.outputs, second.outputs, low)
    return replace(
        found,
        outputs=outputs,
        escalated=len(low),
        escalated_to=variant.id,
        uncertain=len(plan.uncertain(outputs)),
        queued_s=found.queued_s + second.queued_s,
        ran_s=found.ran_s + second.ran_s,
    )


def facts_of(model: str, request: InferRequest, caller: Caller, tenant_header: str = "x-tenant") -> Facts:
    """What routing may know.

    Raises:
        Malformed: a parameter or header that steers has a value of the wrong kind.
    """
    headers, parameters = caller.headers, request.parameters
    asked = parameters.get("variant", headers.get(VARIANT))
    if asked is not None and (not isinstance(asked, str) or not asked):
        raise Malformed(f"The parameter variant must be a word, such as {CHOSEN} or {FULL}.")
    critical = _critical(parameters.get("critical"), headers.get(CRITICAL))
    budget = None if caller.deadline_s is None else caller.deadline_s * 1000
    return Facts(model, headers, headers.get(tenant_header), critical, budget, asked, session_of(caller, tenant_header))


def session_of(caller: Caller, tenant_header: str = "x-tenant") -> str:
    """What shares are drawn by: the session, else the tenant, else the request alone."""
    return caller.headers.get(SESSION) or caller.headers.get(tenant_header) or caller.request_id


def _critical(parameter: Parameter | None, header: str | None) -> bool:
    """Either may say it."""
    if parameter is not None and not isinstance(parameter, bool):
        raise Malformed("The parameter critical must be true or false.")
    if header is not None and header.lower() not in _TRUTH:
        raise Malformed(f"The header {CRITICAL} must be true or false.")
    return bool(parameter) or (header is not None and _TRUTH[header.lower()])


def _may_be_kept(request: InferRequest, caller: Caller) -> bool:
    """A client may ask for an answer that is worked out for it: parameter cache false, or Cache-Control: no-cache or no-store."""
    wish = request.parameters.get("cache", True)
    if not isinstance(wish, bool):
        raise Malformed("The parameter cache must be true or false.")
    control = caller.headers.get("cache-control", "")
    return wish and "no-cache" not in control and "no-store" not in control
