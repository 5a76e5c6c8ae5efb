"""Answers and inputs that are kept where the operator asked for them: the hot path holds on to them, a thread makes records out of them.

An answer is kept so that a label which comes days later finds it, an input so that a challenger can be calibrated on what came lately.
Holding on to an array costs a request well under a microsecond; what is made of it costs no request anything.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowbit.monitoring.labels import Prediction
from lowbit.monitoring.samples import Sample
from lowbit.monitoring.tally import Key
from lowbit.serving.answer.certainty import ClassReader
from lowbit.serving.keep.backlog import Backlog
from lowbit.serving.watch.observing import Observer
from lowbit.types import Array, Feeds

if TYPE_CHECKING:
    from lowbit.serving.answer.answered import Answered, Caller
    from lowbit.serving.protocol.requests import InferRequest
    from lowbit.serving.run.deployment import Deployment

ANSWERS, ANSWER_BYTES = 50_000, 64 << 20
SAMPLES, SAMPLE_BYTES = 2_000, 64 << 20
"""That wait for the disk, at most."""
RECORD_BYTES = 400
"""What an entry takes beside its arrays, roughly."""


@dataclass(frozen=True, slots=True)
class Given:
    """An answer as the hot path keeps it."""

    request_id: str
    key: Key
    at: float
    reader: ClassReader
    scores: Array


class Predictions(Observer):
    """Holds on to the classes that requests were answered with."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.waiting: Backlog[Given] = Backlog(ANSWERS, ANSWER_BYTES)

    def answered(self, deployment: Deployment, request: InferRequest, caller: Caller, found: Answered, seconds: float) -> None:  # noqa: ARG002
        """One more, where answers are classes."""
        reader = deployment.reader
        if reader is None:
            return
        scores = found.outputs[reader.output]
        key = Key(deployment.name, deployment.version, found.variant.id)
        self.waiting.add(Given(caller.request_id, key, time.time(), reader, scores), scores.nbytes + RECORD_BYTES)


def predictions_of(given: Sequence[Given]) -> list[Prediction]:
    """The records of answers, one for each row; rows that are no numbers have none."""
    found: list[Prediction] = []
    alike: dict[tuple[Key, ClassReader, tuple[int, ...]], list[Given]] = {}
    for each in given:
        alike.setdefault((each.key, each.reader, each.scores.shape[1:]), []).append(each)
    for (key, reader, _), group in alike.items():  # a thousand rows at once cost little more than one
        confidence, classes = (part.tolist() for part in reader.top({reader.output: np.concatenate([each.scores for each in group])}))
        rows = ((each, part) for each in group for part in range(len(each.scores)))
        for (each, part), certain, label in zip(rows, confidence, classes, strict=True):
            if label >= 0:
                found.append(Prediction(each.request_id, key, each.at, label, certain, part))
    return found


@dataclass(frozen=True, slots=True)
class Taken:
    """A request's inputs as the hot path keeps them."""

    model: str
    version: str
    request_id: str
    at: float
    inputs: Feeds


class Sampler(Observer):
    """Holds on to the inputs of a share of requests.

    Attributes:
        share: Of requests.
        left_out: (model, version) whose inputs must not be kept.
        waiting: For the disk.
    """

    def __init__(self, share: float, seed: int | None = None) -> None:
        """Of that share, chosen by chance."""
        self.share = share
        self.left_out: set[tuple[str, str]] = set()
        self.waiting: Backlog[Taken] = Backlog(SAMPLES, SAMPLE_BYTES)
        self._chance = random.Random(seed).random

    def answered(self, deployment: Deployment, request: InferRequest, caller: Caller, found: Answered, seconds: float) -> None:  # noqa: ARG002
        """One more, perhaps."""
        if self._chance() >= self.share or (deployment.name, deployment.version) in self.left_out:
            return
        size = sum(array.nbytes for array in request.inputs.values()) + RECORD_BYTES
        self.waiting.add(Taken(deployment.name, deployment.version, caller.request_id, time.time(), request.inputs), size)


def samples_of(taken: Sequence[Taken]) -> list[Sample]:
    """The records of inputs, one for each row. The label of a request of several rows is not that of a row: those have no id."""
    found = []
    for each in taken:
        rows = len(next(iter(each.inputs.values())))
        name = each.request_id if rows == 1 else ""
        for row in range(rows):
            found.append(Sample(each.model, each.version, name, each.at, {key: array[row] for key, array in each.inputs.items()}))
    return found
