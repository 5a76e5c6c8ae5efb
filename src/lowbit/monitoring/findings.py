"""What a rule found in a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["confidence", "low_tail", "predictions", "inputs", "accuracy", "perplexity", "length", "refusals", "errors", "latency"]
KINDS: tuple[Kind, ...] = (
    "confidence",
    "low_tail",
    "predictions",
    "inputs",
    "accuracy",
    "perplexity",
    "length",
    "refusals",
    "errors",
    "latency",
)


@dataclass(frozen=True)
class Finding:
    """One rule's answer.

    Attributes:
        kind: Which rule.
        value: What was found.
        limit: From which on it counts.
        review: Whether it is over the limit, and a person should look.
        text: In a sentence.
        n: Rows, requests or labels it rests on.
        numbers: What else was worked out on the way.
    """

    kind: Kind
    value: float
    limit: float
    review: bool
    text: str
    n: int = 0
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        plain = {name: getattr(self, name) for name in ("kind", "value", "limit", "review", "text", "n")}
        return {**plain, "numbers": dict(self.numbers)}
