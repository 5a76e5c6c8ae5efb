"""Quantization-aware training, where nothing else has brought integers within the budget; or because it was asked for.

The static integer candidate that is least over its limits is trained by distillation (pipeline/training.py) and becomes a candidate like
any other: journaled, gated, confirmed, timed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lowbit.pipeline import training
from lowbit.pipeline.context import Context
from lowbit.pipeline.plan import Plan
from lowbit.pipeline.recipes import QAT, trained
from lowbit.pipeline.recover import least_over, worth_recovering
from lowbit.pipeline.score import recipe_of
from lowbit.pipeline.screen import QuickTimes
from lowbit.pipeline.search import try_candidate
from lowbit.types import Candidate

LEAST_MINUTES = 0.02
"""Training that has less time than this is not begun."""


def asked_to_train(context: Context) -> bool:
    """Whether training was asked for that has not happened yet; on a bundle that is there already it happens once more."""
    tried = any(each.recipe.startswith(QAT) for each in context.state.candidates.values())
    return context.training.when == "again" or (context.training.when == "always" and not tried)


def retrain(context: Context, quick: QuickTimes) -> None:
    """Adds a trained candidate where it may help, or where it was asked for, and says why where it cannot."""
    always = asked_to_train(context)
    base = base_of(context.state.candidates.values(), context, always=always)
    if base is None or context.training.when == "never" or context.out_of_time() or context.minutes_left() < LEAST_MINUTES:
        if always and base is None:
            context.reporter.note("There is no static integer candidate to train: all failed or are broken.")
        return
    if not training.installed():
        context.reporter.note("Training could win back what integers lose, but PyTorch is not installed: pip install 'lowbit[torch]'.")
        return
    number = 1 + sum(each.recipe.startswith(QAT) for each in context.state.candidates.values())
    if number > 1 and not always:
        return  # it has been tried
    recipe = trained(recipe_of(context, base), number)
    suffix = "" if base.tuning.precision == "f32" else f"+{base.tuning.precision}"
    tuning = replace(base.tuning, streams=1)
    candidate = try_candidate(context, Plan(f"{recipe.name}{suffix}@{base.runtime}", recipe, base.runtime, tuning, recipe.precision), quick)
    context.record("candidate", candidate=candidate)
    context.reporter.candidate(candidate)


def base_of(candidates: Iterable[Candidate], context: Context, *, always: bool) -> Candidate | None:
    """The candidate that training starts from; None where it is not needed, or would not get there. Pure."""
    tried = list(candidates)
    return least_over(tried, context.policy) if always else worth_recovering(tried, context.policy)
