"""Energy of an inference, and how it was found: measured where a counter can be read, else modelled with a range.

In this order:

    nvml      the GPU's own counter; only for what runs on the GPU
    rapl      the processor's counter of the whole package: other programs' work and idle power are in it,
              cores that sleep included. Kernels since 5.10 let only root read it; virtual machines have none
    modelled  busy and idle watts a core, typical of servers, times measured CPU seconds; low and high
              ends are those of economical and of hungry processors
    unavailable

"Inference" is one sample, not one call. CPU seconds are measured whatever the method; to compare two
variants on one machine they are the better number, since the coefficients cancel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lowbit.types import Energy

Device = Literal["cpu", "gpu"]

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Watts:
    """Of one logical core of a server: idle and fully busy, its share of everything else in the box included."""

    idle: float
    busy: float


TYPICAL = Watts(0.74, 3.5)
LOW = Watts(0.45, 2.02)
HIGH = Watts(1.14, 5.42)
"""Cloud Carbon Footprint's coefficients (from SPECpower_ssj2008 results): the average over one large cloud's
processors, AMD EPYC 3rd generation, and Coffee Lake."""

MODELLED = f"modelled ({TYPICAL.idle} W idle to {TYPICAL.busy} W busy a core; range {LOW.idle}-{LOW.busy} to {HIGH.idle}-{HIGH.busy} W)"


@dataclass(frozen=True)
class Meter:
    """A counter of joules that only rises; `read` gives its value now."""

    method: str
    read: Callable[[], float]


def find_meter(device: Device = "cpu", powercap: Path = POWERCAP) -> Meter | None:
    """The counter for what runs on `device`, None where there is none that can be read."""
    return _nvml() if device == "gpu" else _rapl(powercap)


def energy(
    *,
    wall_s: float,
    cpu_s: float,
    cores: int,
    joules: float | None = None,
    method: str | None = None,
) -> Energy:
    """Energy of one inference: the counter's where there was one, else modelled, each with its method.

    Args:
        wall_s: Seconds one inference takes.
        cpu_s: CPU seconds it takes, of all threads.
        cores: Cores that are there for it, busy or idle.
        joules: What a meter counted for it.
        method: The meter's; None without a meter.
    """
    if joules is not None and method is not None:
        return Energy(joules, method, cpu_seconds_per_inference=cpu_s)
    if wall_s <= 0 or cores < 1:
        return Energy(None, "unavailable", cpu_seconds_per_inference=cpu_s)
    value, low, high = (_modelled(watts, wall_s, cpu_s, cores) for watts in (TYPICAL, LOW, HIGH))
    return Energy(value, MODELLED, low, high, cpu_s)


def _modelled(watts: Watts, wall_s: float, cpu_s: float, cores: int) -> float:
    """All cores idle for the wall time, and the difference to busy for the CPU time:
    the usual `idle + utilisation * (busy - idle)` a core, written with seconds."""
    return wall_s * cores * watts.idle + min(cpu_s, wall_s * cores) * (watts.busy - watts.idle)


def _rapl(powercap: Path) -> Meter | None:
    """Sums the packages (`intel-rapl:0`, `:1`, ...; AMD's are listed under the same name). Sub-zones are within them."""
    packages = [Unwrapped.of(zone) for zone in sorted(powercap.glob("intel-rapl:[0-9]*")) if zone.name.count(":") == 1]
    found = [package for package in packages if package is not None]
    if not found:
        return None
    return Meter("rapl (whole processor package)", lambda: sum(package.joules() for package in found))


class Unwrapped:
    """A counter file of microjoules that starts over at its maximum, as one that only rises."""

    def __init__(self, counter: Path, maximum: int, start: int) -> None:
        self._counter, self._maximum = counter, maximum
        self._last, self._total = start, 0

    @classmethod
    def of(cls, zone: Path) -> Unwrapped | None:
        """None where the counter is absent or may not be read."""
        try:
            maximum = int((zone / "max_energy_range_uj").read_text())
            return cls(zone / "energy_uj", maximum, int((zone / "energy_uj").read_text()))
        except (OSError, ValueError):
            return None

    def joules(self) -> float:
        """Since the first reading. Read at least once a minute: one wrap between two readings is seen, two are not."""
        now = int(self._counter.read_text())
        self._total += now - self._last + (self._maximum if now < self._last else 0)
        self._last = now
        return self._total / 1e6


def _nvml() -> Meter | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    except Exception:  # not installed, no driver, no device, or a GPU without the counter (before Volta)
        return None
    return Meter("nvml (whole GPU)", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1e3)
