"""How busy the cores that this process may use are, its own work included. From the operating system's counters."""

from __future__ import annotations

import os

IDLE_FIELDS = ("idle", "iowait")
GUEST_FIELDS = ("guest", "guest_nice")
"""Linux counts these within user and nice already."""


def cores() -> int:
    """How many cores this process may run on."""
    return len(_allowed())


def busy_seconds() -> float:
    """CPU seconds that those cores have been busy since the machine started, for anyone. Steps of 10 ms on Linux.

    In a virtual machine that includes stolen time, in which the host ran somebody else.
    """
    import psutil

    found = psutil.cpu_times(percpu=True)
    skipped = (*IDLE_FIELDS, *GUEST_FIELDS)
    return sum(value for core in _allowed() if core < len(found) for name, value in found[core]._asdict().items() if name not in skipped)


def others_share(busy_s: float, own_s: float, wall_s: float, cores: int) -> float:
    """Share of the cores' time that went to other processes, 0-1."""
    return min(1.0, max(0.0, (busy_s - own_s) / (wall_s * cores)))


def _allowed() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
