"""Evaluate a candidate the way it will run: on its runtime, with its tuning, at the batch sizes that were asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lowbit.data.dataset import Dataset
from lowbit.measure.outcomes import Outcomes
from lowbit.pipeline.context import Context
from lowbit.pipeline.evaluate import BATCH, Reference, Stop, evaluate
from lowbit.pipeline.recipes import BATCH_SCALED
from lowbit.recipe import Recipe
from lowbit.runtimes import registry
from lowbit.types import Candidate


def score(
    context: Context, candidate: Candidate, artifact: Path, data: Dataset, reference: Reference, stop: Stop | None = None
) -> Outcomes:
    """Outcomes of a candidate on some samples; the worst, where they depend on the batch size.

    Raises:
        RunError: the runtime cannot load or run the artifact.
    """
    runs = []
    for size in call_sizes(context, candidate):
        session = registry.get(candidate.runtime).open(artifact, replace(candidate.tuning, streams=1), size)
        try:
            runs.append(evaluate(session, data, context.metric, size=size, reference=reference, stop=stop))
        finally:
            session.close()
    least = min(run.n for run in runs)  # one that was stopped early has fewer samples than the others
    best_first = sorted((run for run in runs if run.n == least), key=lambda run: context.metric.value(run.columns), reverse=True)
    return best_first[-1] if context.metric.higher_is_better else best_first[0]


def call_sizes(context: Context, candidate: Candidate) -> tuple[int, ...]:
    """Samples per call when a candidate is evaluated.

    Dynamic quantization takes one activation scale for the whole batch, so an answer depends on its neighbours: it
    is evaluated at every asked batch size. A fixed shape is evaluated as it was compiled.
    """
    recipe = recipe_of(context, candidate)
    if recipe.method in BATCH_SCALED:
        return context.policy.batch
    return (max(context.policy.batch),) if candidate.tuning.fixed_shape or context.fixed_batch else (BATCH,)


def recipe_of(context: Context, candidate: Candidate) -> Recipe:
    """The recipe of a candidate: one of the search's, or the one in the candidate's folder that the run made for it."""
    planned = next((recipe for recipe in context.recipes if recipe.name == candidate.recipe), None)
    return planned or Recipe.from_yaml((context.store.candidate(candidate.id) / "recipe.yaml").read_text())
