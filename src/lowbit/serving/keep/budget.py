"""How fast a promise's allowance is used up, as windows come in: told when it begins, and when it is over."""

from __future__ import annotations

from collections.abc import Callable

from lowbit.monitoring.alerts import Alert
from lowbit.monitoring.sla import PAIRS, Burn, Sla, burns
from lowbit.monitoring.store import Monitoring
from lowbit.monitoring.tally import Tally
from lowbit.monitoring.windows import Window, buckets

RECENT_S = PAIRS[1].long_s
BUCKET_S, OLD_BUCKET_S = 300.0, 3600.0
"""Windows are put together to these lengths, older ones to the second: three days of them are few, then. The shortest burn rate needs no
less than the first."""
LATE_S = 5.0
"""Windows that other servers write are here by then."""
SPAN_S = max(pair.long_s for pair in PAIRS)


class Budget:
    """Of all models of a state folder, whichever server answered. Windows are read once each."""

    def __init__(self, sla: Sla, tell: Callable[[Alert], None]) -> None:
        """Nothing is known yet: the first look reads what earlier servers wrote.

        Args:
            sla: What was promised.
            tell: Told of what begins and ends.
        """
        self._sla, self._tell = sla, tell
        self._windows: list[Window] = []
        self._seen = 0.0
        self._burning: set[tuple[str, str, str]] = set()

    def look(self, store: Monitoring, now: float) -> list[tuple[str, Burn]]:
        """Takes what is new, and tells of changes.

        Args:
            store: Of the state folder.
            now: Seconds since 1970.

        Returns:
            What burns too fast, with its model.

        Raises:
            sqlite3.Error: the file cannot be read.
        """
        until = now - LATE_S
        new = [_light(window) for window in store.windows(since=max(self._seen, now - SPAN_S)) if window.until <= until]
        self._seen = max(self._seen, until)  # a clock that was put back makes no window count twice
        kept = [each for each in (*self._windows, *new) if each.until > now - SPAN_S]
        old = [each for each in kept if each.until <= now - RECENT_S]
        recent = [each for each in kept if each.until > now - RECENT_S]
        self._windows = [*buckets(old, OLD_BUCKET_S), *buckets(recent, BUCKET_S)]
        found = []
        for model in sorted({window.key.model for window in self._windows}):
            for burn in burns([each for each in self._windows if each.key.model == model], self._sla, now):
                if burn.alert:
                    found.append((model, burn))
                self._change(model, burn, now)
        return found

    def _change(self, model: str, burn: Burn, now: float) -> None:
        name = (model, burn.objective, burn.pair.severity + f"{burn.pair.long_s:g}")
        if burn.alert == (name in self._burning):
            return
        (self._burning.add if burn.alert else self._burning.discard)(name)
        hours = burn.pair.long_s / 3600
        facts = {"model": model, "objective": burn.objective, "burn_rate": burn.long, "limit": burn.pair.rate, "hours": hours, "n": burn.n}
        text = f"{model}: the allowance for {burn.objective} was used up {burn.long:.1f} times too fast over {hours:g} h"
        if burn.alert:
            self._tell(Alert("budget burns", burn.pair.severity, f"{text}; {burn.pair.rate:g} times is the limit.", now, facts))
        else:
            self._tell(Alert("budget burns no more", "info", f"{text}; that is within the limit again.", now, facts))


def _light(window: Window) -> Window:
    """What burn rates need of it."""
    tally = window.tally
    return Window(window.key, window.since, window.until, Tally(requests=tally.requests, errors=tally.errors, seconds=tally.seconds))
