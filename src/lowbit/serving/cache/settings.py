"""What is kept, where, and for how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheSettings:
    """Of a server's cache.

    Attributes:
        max_bytes: For exact answers, and the same again for similar ones; 0 keeps nothing.
        ttl_s: Seconds for which an answer is kept.
        redis: URL of a Redis that several replicas share, e.g. redis://127.0.0.1:6379/0; None keeps answers in the process.
        similar: Also answer images that are nearly the same as one that was answered.
        similar_budget: The share of such answers that may name another class than the model would.
        shadow: Share of them that is worked out again to know.
        seed: Of the draw.
    """

    max_bytes: int = 0
    ttl_s: float = 3600.0
    redis: str | None = None
    similar: bool = False
    similar_budget: float = 0.005
    shadow: float = 0.02
    seed: int = 0
