"""What the variants of a server cost: CPU seconds, energy and money, each with how it was found.

The CPU seconds of this process are measured. No runtime says how much of them each variant took: they are shared out by the time that the
variants' runs took, and reading requests, waiting and writing answers with them. So is what a meter of energy counts. Where models run
elsewhere (Ray), the time of their runs counts instead, on each of a run's threads: an upper bound.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lowbit.cost.bill import cost_per_million
from lowbit.measure.energy import Meter, energy, find_meter
from lowbit.monitoring.tally import Key
from lowbit.types import Energy

SHARED = "CPU seconds of the server's process, shared out by run time"
ELSEWHERE = "run time x threads: the models run in other processes"
AT_FULL_USE = "CPU seconds x price / cores: an instance that is busy all the time; idle time costs extra"
AT_THIS_LOAD = "price x hours / requests: what this server's traffic cost, idle time included"
HOUR_S = 3600.0


@dataclass(frozen=True)
class Price:
    """Of the machine.

    Attributes:
        usd_per_hour: For all of its cores.
        source: Who says so.
    """

    usd_per_hour: float
    source: str


@dataclass(frozen=True)
class Ran:
    """What one variant has done since the server began.

    Attributes:
        seconds: Time of its runs; a row has its share of its batch's.
        threads: Of one run.
        requests: That it answered.
        rows: That were run.
    """

    seconds: float = 0.0
    threads: int = 1
    requests: int = 0
    rows: int = 0


@dataclass(frozen=True)
class Spent:
    """Of one variant since the server began.

    Attributes:
        ran_s: Time of its runs; a row has its share of its batch's.
        cpu_s: CPU seconds.
        joules: That a meter counted; None without one.
    """

    ran_s: float = 0.0
    cpu_s: float = 0.0
    joules: float | None = None


def process_cpu_s() -> float:
    """CPU seconds of this process so far, of all its threads."""
    return time.process_time()


def find_gpu() -> Callable[[], float] | None:
    """What reads the use of the machine's first GPU, 0-1; None where there is none, or no library to ask it with."""
    try:
        import pynvml

        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetUtilizationRates(device)
    except Exception:  # not installed, no driver, no device
        return None

    def use() -> float:
        try:
            return float(pynvml.nvmlDeviceGetUtilizationRates(device).gpu) / 100
        except pynvml.NVMLError:
            return 0.0

    return use


class Spending:
    """Shares out what was spent since it was asked last. Not for several threads at once.

    Attributes:
        cores: That this process may use.
        cpu_s: Of the process since the beginning, variants or not.
        use: Share of the cores that it kept busy between the last two times it was asked, 0-1.
        gpu_use: Share of the time in which the machine's first GPU worked lately, 0-1; None where there is none.
        method: How CPU seconds are found.
    """

    def __init__(
        self,
        *,
        elsewhere: bool = False,
        meter: Meter | None = None,
        gpu: Callable[[], float] | None = None,
        cpu: Callable[[], float] = process_cpu_s,
        clock: Callable[[], float] = time.monotonic,
        cores: int | None = None,
    ) -> None:
        """Begins now.

        Args:
            elsewhere: Whether the models run in other processes.
            meter: Of energy; None for none.
            gpu: Use of the GPU now, 0-1; None for none.
            cpu: CPU seconds of the process.
            clock: Seconds.
            cores: None finds out.
        """
        self.cores = cores or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
        self.method = ELSEWHERE if elsewhere else SHARED
        self._elsewhere, self._meter, self._cpu, self._clock = elsewhere, meter, cpu, clock
        self.cpu_s, self.use, self._gpu = 0.0, 0.0, gpu
        self.gpu_use: float | None = None
        self._first = self._last = (clock(), cpu())
        self._joules = None if meter is None else meter.read()
        self._spent: dict[Key, Spent] = {}

    @classmethod
    def here(cls, *, elsewhere: bool = False) -> Spending:
        """Of this process, with the machine's meter where it has one."""
        return cls(elsewhere=elsewhere, meter=None if elsewhere else find_meter("cpu"), gpu=find_gpu())

    @property
    def up_s(self) -> float:
        """Seconds since it began."""
        return self._last[0] - self._first[0]

    def share(self, ran: Mapping[Key, Ran]) -> Mapping[Key, Spent]:
        """Shares out what was spent since the last time.

        Args:
            ran: What each variant has done since the server began.

        Returns:
            What each has spent since the server began.
        """
        now, cpu = self._clock(), self._cpu()
        wall, burnt = now - self._last[0], cpu - self._last[1]
        self._last = (now, cpu)
        self.cpu_s += burnt
        self.use = min(burnt / (wall * self.cores), 1.0) if wall > 0 else self.use
        joules, self.gpu_use = self._read(), None if self._gpu is None else self._gpu()
        weight = {key: (each.seconds - self._of(key).ran_s) * each.threads for key, each in ran.items()}
        total = sum(weight.values())
        for key, each in ran.items():
            before, part = self._of(key), weight[key] / total if total else 0.0
            cpu_s = weight[key] if self._elsewhere else burnt * part
            counted = before.joules if joules is None else (before.joules or 0.0) + joules * part
            self._spent[key] = Spent(each.seconds, before.cpu_s + cpu_s, counted)
        return dict(self._spent)

    def _of(self, key: Key) -> Spent:
        return self._spent.get(key, Spent())

    def _read(self) -> float | None:
        """Joules since the last time."""
        if self._meter is None:
            return None
        try:
            now = self._meter.read()
        except OSError:  # taken away while the server runs
            self._meter = None
            return None
        before, self._joules = self._joules or 0.0, now
        return now - before

    def energy(self, spent: Spent, rows: int) -> Energy:
        """Of one row: the meter's where there was one, else modelled, with its range; the time between requests is in the meter's alone."""
        if not rows:
            return Energy(None, "unavailable")
        metered = spent.joules is not None and self._meter is not None
        return energy(
            wall_s=spent.ran_s / rows,
            cpu_s=spent.cpu_s / rows,
            cores=self.cores,
            joules=(spent.joules or 0.0) / rows if metered else None,
            method=f"{self._meter.method}, shared out by run time" if metered and self._meter is not None else None,
        )


def bill(key: Key, ran: Ran, spent: Spent, spending: Spending, price: Price | None) -> dict[str, Any]:
    """What one variant costs, as `GET /v1/cost` shows it.

    Args:
        key: Which one.
        ran: What it did.
        spent: On that.
        spending: Of the server.
        price: Of the machine; None where nobody said.
    """
    found = spending.energy(spent, ran.rows)
    each = spent.cpu_s / ran.requests if ran.requests else None
    dollars = None
    if price is not None and each is not None:
        usd = cost_per_million(each, spending.cores, price.usd_per_hour)
        dollars = {"usd": usd, "method": AT_FULL_USE, "price": asdict(price)}
    told = {"joules_per_inference": found.joules_per_inference, "method": found.method, "low": found.low, "high": found.high}
    return {
        **key._asdict(),
        "requests": ran.requests,
        "rows": ran.rows,
        "run_seconds": ran.seconds,
        "cpu_seconds": spent.cpu_s,
        "cpu_seconds_per_request": each,
        "cpu_method": spending.method,
        "per_million": dollars,
        "energy": told,
    }


def of_server(requests: int, spending: Spending, price: Price | None) -> dict[str, Any]:
    """The same of the whole server at the load that it has."""
    dollars = None
    if price is not None and requests:
        usd = price.usd_per_hour * spending.up_s / HOUR_S / requests * 1e6
        dollars = {"usd": usd, "method": AT_THIS_LOAD, "price": asdict(price)}
    return {
        "seconds": spending.up_s,
        "cores": spending.cores,
        "cpu_seconds": spending.cpu_s,
        "cpu_use": spending.use,
        "gpu_use": spending.gpu_use,
        "requests": requests,
        "per_million": dollars,
    }
