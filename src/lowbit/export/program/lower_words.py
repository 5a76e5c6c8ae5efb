"""What people are told when a graph has what the integer program lacks."""

from __future__ import annotations

from lowbit.errors import ModelError
from lowbit.export.program.lower_steps import Net, Step


def lacking(net: Net, step: Step, why: str, hint: str | None = None) -> ModelError:
    """An error that names the operator, the node, what would have to be computed elsewhere, and what to do.

    Args:
        net: The whole graph.
        step: What cannot be expressed.
        why: In words, without a full stop.
        hint: What to do; a general word where None.
    """
    behind = downstream(net, step)
    share = f"{len(behind)} of {len(net.steps)} operators"
    ends = ", ".join(f"'{name}'" for name in net.outputs if any(name in each.outputs for each in behind))
    part = f"From there to {ends} {share} would fall back to floating point" if ends else f"{share} would fall back to floating point"
    return ModelError(
        f"{step.op} '{step.nodes[-1]}' has no integer form here: {why}. {part}, which an integer program has not.",
        hint
        or f"Cut the model before '{step.nodes[-1]}' and compute the rest outside, or take a target that runs ONNX: optimum, ort-mobile.",
    )


def downstream(net: Net, step: Step) -> list[Step]:
    """A step and everything that needs what it gives."""
    reached, found = set(step.outputs), [step]
    for each in net.steps:
        if each is not step and reached & set(each.inputs):
            reached |= set(each.outputs)
            found.append(each)
    return found
