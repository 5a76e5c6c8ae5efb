"""Should this be quantized at all? Said before the search; the user is obeyed all the same. Pure."""

from __future__ import annotations

from lowbit.pipeline import sentences as say
from lowbit.types import Candidate, Model, Policy

SMALL_BYTES = 10_000_000
SMALL_PARAMETERS = 1_000_000
NARROW = 0.002
"""A budget below 0.2 points or percent leaves quantization next to no room."""
BARELY = 1.5
"""Accuracy below this many times chance: the model, its labels or its preprocessing is the thing to mend first."""
BOTTLENECK = 0.5
"""Share of the time for one request that inference should have, for its speed to matter."""


def advise(
    model: Model,
    baseline: Candidate | None,
    policy: Policy,
    *,
    inference_ms: float | None = None,
    request_ms: float | None = None,
) -> tuple[str, ...]:
    """Reasons to hesitate, in sentences; empty if there are none.

    Args:
        model: The source.
        baseline: Its evaluation, None before it has one.
        policy: What the user asked for.
        inference_ms: Time of one inference, where it is known.
        request_ms: Time of one whole request (loading, decoding, preprocessing, inference), where it is known.
    """
    found = [*_small(model), *_accuracy_edge(model, baseline, policy)]
    if policy.safety_critical:
        found.append(
            "Safety-critical use: one changed answer in a thousand can matter here, and averages hide it. "
            "Source precision is the safe choice."
        )
    if policy.task == "regression":
        found.append(
            "Regression: rounding goes straight into the answer, where a classifier's largest score often survives it. "
            "16 bit is the usual choice."
        )
    if inference_ms is not None and request_ms and inference_ms / request_ms < BOTTLENECK:
        found.append(
            f"Inference takes {say.ms(inference_ms)} of the {say.ms(request_ms)} of a request ({say.percent(inference_ms / request_ms)}): "
            "a faster model changes little, profile the rest first."
        )
    return tuple(found)


def _small(model: Model) -> list[str]:
    if model.size_bytes >= SMALL_BYTES and model.parameters >= SMALL_PARAMETERS:
        return []
    return [
        f"The model is small ({say.size(model.size_bytes)}, {model.parameters:,} parameters): there is little to save, "
        "and small models lose more accuracy than large ones."
    ]


def _accuracy_edge(model: Model, baseline: Candidate | None, policy: Policy) -> list[str]:
    """A model with nothing to give away: the budget leaves no room, or it hardly beats guessing."""
    found = []
    if policy.max_drop.value < NARROW:
        found.append(
            f"A budget of {policy.max_drop} leaves next to no room: 16 bit may hold it, 8 bit seldom does, and proof takes many samples."
        )
    evidence = baseline.evidence if baseline is not None else None
    classes = model.outputs[0].shape[-1] if model.outputs and len(model.outputs[0].shape) == 2 else None
    if evidence is None or policy.metric != "top1" or not isinstance(classes, int) or classes < 2:
        return found
    right = evidence.metric.value
    if right < BARELY / classes:
        found.append(
            f"The source model itself is right on {say.percent(right)} of the samples, hardly more than guessing among {classes} classes: "
            "check labels and preprocessing before anything else."
        )
    return found
