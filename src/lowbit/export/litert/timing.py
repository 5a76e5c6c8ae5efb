"""LiteRT's kernels as runtimes that a race can time (`lowbit.measure.race`).

They open files that lowbit wrote, in calls of their own size, on as many threads as the others have. They are not in the list of runtimes,
because no model is searched for on them: a race names them by module and class.
"""

from __future__ import annotations

from pathlib import Path

from lowbit.errors import RunError
from lowbit.export.litert import sessions
from lowbit.export.litert.opening import opened
from lowbit.export.litert.recalibrated.session import RecalibratedSession
from lowbit.measure.load import cores
from lowbit.plugins import installed_version
from lowbit.runtimes.base import DEFAULT, need_file
from lowbit.runtimes.hardware import Hardware
from lowbit.types import Tuning


class Xnnpack:
    """XNNPACK's kernels; see `lowbit.runtimes.base.Runtime`."""

    name = "litert-xnnpack"
    kernels = sessions.XNNPACK

    def version(self) -> str | None:
        return installed_version("ai_edge_litert", "ai-edge-litert")

    def describe(self) -> dict[str, str]:
        if self.version() is None:
            return {"name": self.name, "version": "not installed"}
        import ai_edge_litert.interpreter  # noqa: F401 - so that its own size is not counted as a model's

        return {"name": self.name, "version": str(self.version()), "device": "CPU", "precisions": "f32"}

    def tunings(self, hardware: Hardware) -> tuple[Tuning, ...]:
        """All cores, or one."""
        return (Tuning(),) if hardware.cores == 1 else (Tuning(), Tuning(threads=1))

    def open(
        self,
        path: Path,
        tuning: Tuning = DEFAULT,
        batch: int | None = None,  # noqa: ARG002  # files take one number of samples, and sessions make calls of it
    ) -> sessions.LiteRtSession | RecalibratedSession:
        """See `lowbit.runtimes.base.Runtime`; streams are sessions of their own.

        Raises:
            RunError: the file is missing or not lowbit's, it does not load, or the tuning cannot be had.
        """
        if tuning.precision != "f32" or tuning.streams > 1:
            raise RunError("LiteRT is timed with one stream and in f32.", "Leave the tuning as it is.")
        need_file(path)
        return opened(path.read_bytes(), self.kernels, threads=tuning.threads or cores())


class BuiltIn(Xnnpack):
    """LiteRT's own kernels, without XNNPACK."""

    name = "litert-built-in"
    kernels = sessions.BUILT_IN
