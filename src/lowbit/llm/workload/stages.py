"""What of a request is run in a turn, and how the whole request follows from it. Pure.

    start    reading the prompt, to the first token
    first    the first step after it, which may have something to set up
    near     some steps right after
    far      some steps at the other end of the answer, where the context is longer; only for long answers

Attention reads the whole context at each token, so the time of a token grows evenly with the context: the mean of the two ends
is the mean of all of them, and an answer of 2048 tokens need not be written out each time. Short answers are.

Several requests at once arrive together and end together, a wave: `start` lasts until all have their first token, `near` for some
steps more, or to the end where answers are short. With as many always in flight, a wave's time is what a request takes, and
their number over it is what is finished a second. Shapes are measured one after the other, a wave of each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowbit.llm.workload.speed import Round
from lowbit.llm.workload.workload import Shape

STEPS = 24
"""At each end of a long answer."""
MARGIN = 8
"""Tokens of context beyond the longest request."""
Counted = tuple[float, float, float]
"""Wall seconds, CPU seconds, joules."""


@dataclass(frozen=True)
class Plan:
    """What is run of a request.

    Attributes:
        prompt: Tokens to read.
        output: Tokens of the whole answer.
        first: 1 where the answer has a second token.
        near: Steps after it.
        far_prompt: Tokens to read for the other end.
        far: Steps there; 0: `near` is all that is left.
    """

    prompt: int
    output: int
    first: int
    near: int
    far_prompt: int = 0
    far: int = 0


def plan(shape: Shape, steps: int = STEPS) -> Plan:
    """What to run of a shape."""
    left = max(shape.output - 2, 0)
    first = int(shape.output > 1)
    if left <= 2 * steps:
        return Plan(shape.prompt, shape.output, first, left)
    return Plan(shape.prompt, shape.output, first, steps, shape.prompt + shape.output - 1 - steps, steps)


def is_sampled(shapes: Sequence[Shape], steps: int = STEPS) -> bool:
    """Whether some answer is not written out."""
    return any(plan(shape, steps).far > 0 for shape in shapes)


def round_of(answers: Sequence[Mapping[str, Any]], shapes: Sequence[Shape], concurrency: int, steps: int = STEPS) -> Round:
    """The mean request of a turn, from the counters of each shape."""
    found = [
        _one(answer, shape, plan(shape, steps)) if concurrency == 1 else _wave(answer, shape, concurrency)
        for answer, shape in zip(answers, shapes, strict=True)
    ]
    weights = [shape.weight for shape in shapes]

    def mean(figure: str) -> float:
        return sum(weight * getattr(each, figure) for weight, each in zip(weights, found, strict=True))

    prompt = sum(shape.weight * shape.prompt for shape in shapes)
    output = sum(shape.weight * shape.output for shape in shapes)
    # A request takes 1 / requests_per_s of the machine, whatever its shape; so these add up, and rates do not.
    seconds = sum(weight / each.requests_per_s for weight, each in zip(weights, found, strict=True))
    reading = sum(weight * shape.prompt / each.prefill_tokens_per_s for weight, shape, each in zip(weights, shapes, found, strict=True))
    joules = mean("joules") if all(each.joules is not None for each in found) else None
    return Round(
        ttft_s=mean("ttft_s"),
        prefill_tokens_per_s=prompt / reading,
        decode_s=mean("decode_s"),
        total_s=mean("total_s"),
        requests_per_s=1 / seconds,
        output_tokens_per_s=output / seconds,
        cpu_s=mean("cpu_s"),
        joules=joules,
    )


def _one(answer: Mapping[str, Any], shape: Shape, run: Plan) -> Round:
    """A request that was alone."""
    start, first = _counters(answer["start"]), _counters(answer.get("first"))
    near, far = _counters(answer.get("near")), _counters(answer.get("far"))
    if run.far:
        rest = max(shape.output - 2, 0)
        decode = [one + rest * (a / run.near + b / run.far) / 2 for one, a, b in zip(first, near, far, strict=True)]
    else:
        decode = [one + a for one, a in zip(first, near, strict=True)]
    wall, cpu, joules = (a + b for a, b in zip(start, decode, strict=True))
    return _round(start[0], shape.prompt / start[0], decode[0], wall, wall, shape, cpu, joules)


def _wave(answer: Mapping[str, Any], shape: Shape, concurrency: int) -> Round:
    """The mean of a wave of equal requests."""
    start, near = _counters(answer["start"]), _counters(answer["near"])
    left = max(shape.output * concurrency - answer["emitted"], 0)
    if "far" in answer:
        far, tokens = _counters(answer["far"]), (answer["near_emitted"], answer["far_emitted"])
        late = [left * (a / tokens[0] + b / tokens[1]) / 2 for a, b in zip(near, far, strict=True)]
    else:
        late = list(near)
    wall, cpu, joules = (a + b for a, b in zip(start, late, strict=True))
    reading = shape.prompt * concurrency / start[0]
    return _round(answer["ttft"], reading, wall - answer["ttft"], wall, wall / concurrency, shape, cpu / concurrency, joules / concurrency)


def _round(ttft: float, reading: float, decode: float, total: float, share: float, shape: Shape, cpu: float, joules: float) -> Round:
    """`share`: seconds of the machine that a request takes."""
    return Round(ttft, reading, decode, total, 1 / share, shape.output / share, cpu, None if math.isnan(joules) else joules)


def _counters(values: Sequence[float] | None) -> Counted:
    if values is None:
        return 0.0, 0.0, 0.0
    wall, cpu, joules = values
    return wall, cpu, joules
