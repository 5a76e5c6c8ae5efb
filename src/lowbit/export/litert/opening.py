"""Open a .tflite file that `lowbit export` wrote, whichever way it was made."""

from __future__ import annotations

from lowbit.export.litert import outline, sessions
from lowbit.export.litert.recalibrated import ends
from lowbit.export.litert.recalibrated.session import RecalibratedSession
from lowbit.export.litert.writer import schema


def opened(content: bytes, kernels: str, *, threads: int = 1) -> sessions.LiteRtSession | RecalibratedSession:
    """A session on one set of kernels.

    Args:
        content: Of the file.
        kernels: One of `sessions.kernel_sets()`; a recalibrated file has LiteRT's own alone.
        threads: Of LiteRT's.

    Raises:
        RunError: somebody else wrote it, or it does not load.
        UsageError: no such kernels here.
    """
    sessions.check_file(content, kernels)
    found = ends.read(content, schema())
    if found is not None:
        return RecalibratedSession(content, found, kernels, schema(), threads=threads)
    return sessions.LiteRtSession(content, outline.read(content, schema()), kernels, threads=threads)
