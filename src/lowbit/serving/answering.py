"""From a checked request to an answer: which variant, and what is to be known of how it was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lowbit.serving.deployment import CHOSEN, Deployment, Variant
from lowbit.serving.refusals import NotServed
from lowbit.serving.requests import InferRequest
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
        variant: That gave it.
        route: Why that variant: "default", "asked".
        batch: Rows that ran together.
        queued_s: Time in the queue.
        ran_s: Time of the run.
    """

    outputs: Mapping[str, Array]
    variant: Variant
    route: str = "default"
    batch: int = 0
    queued_s: float = 0.0
    ran_s: float = 0.0


async def answer(deployment: Deployment, request: InferRequest, caller: Caller, deadline: float) -> Answered:  # noqa: ARG001
    """Answers a request whose inputs fit the model.

    Args:
        deployment: The model.
        request: Its parameter "variant" names one by role or id.
        caller: Who asks.
        deadline: On the event loop's clock.

    Raises:
        Refusal: of the kind that fits.
    """
    variant, route = _variant(deployment, request)
    found = await variant.batcher.submit(request.inputs, deadline=deadline)
    return Answered(found.outputs, variant, route, found.batch, found.queued_s, found.ran_s)


def _variant(deployment: Deployment, request: InferRequest) -> tuple[Variant, str]:
    asked = request.parameters.get("variant", CHOSEN)
    found = deployment.variant(asked) if isinstance(asked, str) else None
    if found is None:
        known = ", ".join(f"{variant.role} ({variant.id})" for variant in deployment.variants.values())
        raise NotServed(f"Model '{deployment.name}' has no variant {asked!r} loaded. Loaded: {known}.")
    return found, "asked" if "variant" in request.parameters else "default"
