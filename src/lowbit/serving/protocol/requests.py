"""What is asked and what is answered, whichever way it came: REST, gRPC, or a call within the process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lowbit.types import Array, Feeds

Parameter = str | int | float | bool


@dataclass(frozen=True)
class Wanted:
    """An output that is asked for.

    Attributes:
        name: Of the output.
        binary: Raw bytes rather than JSON; None leaves it to the request.
        classification: The top so many classes as strings "value:index" instead of the tensor; 0 for the tensor.
    """

    name: str
    binary: bool | None = None
    classification: int = 0


@dataclass(frozen=True)
class InferRequest:
    """One question.

    Attributes:
        inputs: By name, [N, ...].
        id: The client's own, given back.
        outputs: What is wanted; empty means everything.
        parameters: The client's; `lowbit` ones steer routing (docs/guides/serving.md).
        binary: Answer in raw bytes where an output does not say.
    """

    inputs: Feeds
    id: str = ""
    outputs: tuple[Wanted, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    binary: bool = False


@dataclass(frozen=True)
class InferResponse:
    """One answer.

    Attributes:
        model: Name of the model.
        version: Of the model.
        outputs: By name, [N, ...].
        id: The request's.
        parameters: What is to be known of the answer: the variant that gave it, whether it came from a cache, and so on.
    """

    model: str
    version: str
    outputs: Mapping[str, Array]
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
