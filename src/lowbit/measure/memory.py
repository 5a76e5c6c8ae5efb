"""Memory of this process, from the operating system."""

from __future__ import annotations

import re
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """The most memory this process has held at once (resident set), since it started.

    Not `ru_maxrss` where it can be avoided: on Linux a new process inherits that from the one
    that started it, so a small worker of a large parent would report the parent's size.
    """
    if STATUS.exists():
        status = STATUS.read_text()
        # The kernel brings the high-water mark up to date now and then only; the present size may be above it.
        return max(_status_bytes(status, "VmHWM"), _status_bytes(status, "VmRSS"))
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def current_bytes() -> int:
    """What this process holds now (resident set)."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def _status_bytes(status: str, field: str) -> int:
    match = re.search(rf"^{field}:\s*(\d+) kB$", status, re.MULTILINE)
    assert match, f"/proc/self/status has no {field}"
    return int(match[1]) * 1024


def anonymous_bytes() -> int | None:
    """What this process holds now that no file backs: mapped weights are not in it. None where the system does not tell (Linux does)."""
    return _status_bytes(STATUS.read_text(), "RssAnon") if STATUS.exists() else None
