"""What a server keeps of its traffic, as one record."""

from __future__ import annotations

from dataclasses import dataclass, field

from lowbit.monitoring.samples import Redaction
from lowbit.monitoring.sla import Sla
from lowbit.monitoring.store import DAY_S, Retention
from lowbit.serving.keep.spending import Price

WINDOW_S = 60.0


@dataclass(frozen=True)
class KeepSettings:
    """Of one server. All but the price needs a folder for the state.

    Attributes:
        window_s: Length of the windows that traffic is cut into.
        feedback: Keep what was answered to each request, so that labels which come later can be compared with it.
        sample: Share of requests whose inputs are offered to the sample of recent ones; 0 keeps none.
        samples: Rows that are kept of each model.
        sample_age_s: After which they are deleted.
        redaction: What is done to inputs before they are written.
        webhook: URL that alerts are sent to; None for none.
        price: Of the machine; None where nobody said.
        sla: What was promised; None for nothing.
    """

    window_s: float = WINDOW_S
    feedback: bool = False
    sample: float = 0.0
    samples: int = 2_000
    sample_age_s: float = 7 * DAY_S
    redaction: Redaction = field(default_factory=Redaction)
    webhook: str | None = None
    price: Price | None = None
    sla: Sla | None = None

    @property
    def retention(self) -> Retention:
        """How long things are kept."""
        return Retention(samples_s=self.sample_age_s, samples=self.samples)

    @property
    def lasting(self) -> str | None:
        """The first wish that needs a folder, in words; None where there is none."""
        wishes = {"feedback": self.feedback, "samples of inputs": self.sample > 0, "alerts": self.webhook is not None}
        return next((name for name, wished in wishes.items() if wished), None)
