"""Who asks, what is done with it, and what is to be known of the answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from lowbit.serving.answer.certainty import ClassReader
from lowbit.serving.cache.images import Pixels
from lowbit.serving.protocol.requests import Parameter
from lowbit.serving.run.deployment import Variant
from lowbit.types import Array


@dataclass(frozen=True)
class Caller:
    """What the transport knows of a request.

    Attributes:
        request_id: For logs; the client's own or one that the transport made.
        headers: Lower-case name -> value; gRPC's metadata are the same.
        deadline_s: What the client is willing to wait, None if it did not say.
    """

    request_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    deadline_s: float | None = None


@dataclass(frozen=True)
class Answered:
    """An answer and where it came from.

    Attributes:
        outputs: By name, all of the model's, [N, ...].
        variant: That gave it, or first gave it where rows were asked again.
        route: Why that variant: "default", "asked", or a rule's name.
        batch: Rows that ran together; 0 where none had to.
        queued_s: Time in the queue.
        ran_s: Time of the run, the second one included.
        cache: "off", "miss", "exact", "similar", "shared" (the same request was under way), or "shadow" (a similar image's answer was kept;
            this one was worked out to check it).
        escalated: Rows that were asked again.
        escalated_to: Id of the variant that was.
        uncertain: Rows that still are; None where nobody looked.
        review: Id of the question to a person; None where there is none.
    """

    outputs: Mapping[str, Array]
    variant: Variant
    route: str = "default"
    batch: int = 0
    queued_s: float = 0.0
    ran_s: float = 0.0
    cache: str = "off"
    escalated: int = 0
    escalated_to: str | None = None
    uncertain: int | None = None
    review: str | None = None
    _top: list[tuple[Array, Array]] = field(default_factory=list, init=False, compare=False, repr=False)

    def top(self, reader: ClassReader) -> tuple[Array, Array]:
        """Confidence and class of each row, by the reader of the deployment that answered; worked out once, whoever asks."""
        if not self._top:
            self._top.append(reader.top(self.outputs))
        return self._top[0]


def said(found: Answered) -> dict[str, Parameter]:
    """What a client is told of where its answer came from."""
    told: dict[str, Parameter] = {
        "variant": found.variant.id,
        "precision": found.variant.precision,
        "route": found.route,
        "cache": found.cache,
    }
    if found.escalated:
        told |= {"escalated": found.escalated, "escalated_to": found.escalated_to or ""}
    if found.uncertain:
        told["uncertain"] = found.uncertain
    if found.review is not None:
        told["review"] = found.review
    return told


@dataclass(frozen=True)
class Plan:
    """What one route does to one deployment's requests; worked out once.

    Attributes:
        variant: That answers.
        again: That is asked again; None for none.
        reader: Of certainties; None where the outputs are no classes, or nobody asks.
        by: Which certainty counts.
        below: Rows below this are uncertain.
        space: Of the cache's keys; None where there is no cache.
        pixels: How the input is looked at as an image; None where similar images are not answered from the cache.
    """

    variant: Variant
    again: Variant | None
    reader: ClassReader | None
    by: str
    below: float
    space: bytes | None
    pixels: Pixels | None = None

    @cached_property
    def similar_space(self) -> bytes:
        """The namespace of similar answers: the same, told apart by how images are looked at."""
        return hashlib.sha256(repr(self.pixels).encode() + (self.space or b"")).digest()

    def uncertain(self, outputs: Mapping[str, Array]) -> Array:
        """Positions of the uncertain rows; none where nobody asks."""
        return np.empty(0, np.intp) if self.reader is None else np.flatnonzero(self.reader(outputs).by(self.by) < self.below)
