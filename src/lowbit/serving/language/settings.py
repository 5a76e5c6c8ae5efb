"""How a server treats its language models."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.serving.language.refusing import PHRASES


@dataclass(frozen=True)
class LanguageSettings:
    """Of one server.

    Attributes:
        slots: Answers that are computed at once by each variant; None takes the workload's concurrency, and at least four.
        answer_s: A whole answer may take so long; the server's deadline is for its first token.
        refusals: Beginnings by which an answer counts as a refusal; see `refusing`.
        shadow: Share of the answers that are scored again by the 16-bit model, 0-1, while nobody waits.
    """

    slots: int | None = None
    answer_s: float = 600.0
    refusals: tuple[str, ...] = PHRASES
    shadow: float = 0.0
