"""What may watch a server: metrics, logs, traces and recordings hang on here, so that answering knows none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowbit.serving.answer.answered import Answered, Caller
    from lowbit.serving.language.measures import Spoken
    from lowbit.serving.protocol.refusals import Refusal
    from lowbit.serving.protocol.requests import InferRequest
    from lowbit.serving.run.deployment import Deployment


class Observer:
    """Told of every request once it has ended, on the event loop: what it does here, the next request waits for."""

    def answered(self, deployment: Deployment, request: InferRequest, caller: Caller, found: Answered, seconds: float) -> None:
        """A request was answered.

        Args:
            deployment: That answered.
            request: What was asked.
            caller: Who asked.
            found: The answer with where it came from.
            seconds: From admission to the answer.
        """

    def spoke(self, deployment: Deployment, variant: str, answers: Sequence[Spoken]) -> None:
        """A language model's request was answered; `answered` is told, too.

        Args:
            deployment: That answered.
            variant: Id of the one that did.
            answers: All of the request's.
        """

    def rescored(self, deployment: Deployment, variant: str, tokens: int, own: float, full: float) -> None:
        """An answer of a language model was scored by the 16-bit model, too.

        Args:
            deployment: That answered.
            variant: Id of the one that did.
            tokens: Of the answer.
            own: Sum of -log p over them, of the variant that answered; NaN where its engine does not tell.
            full: The same of the 16-bit model.
        """

    def refused(self, deployment: Deployment | None, caller: Caller, refusal: Refusal, seconds: float) -> None:
        """A request was refused, failed, or was given up by its client.

        Args:
            deployment: That was asked; None where it did not come so far.
            caller: Who asked.
            refusal: Why.
            seconds: Since it came.
        """

    def labelled(self, model: str, version: str, variant: str, right: bool) -> None:
        """What an answer should have been is known now; once for each row, whichever server answered.

        Args:
            model: That answered.
            version: Of it.
            variant: Id of the one that did.
            right: Whether it said the same.
        """
