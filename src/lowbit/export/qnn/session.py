"""Run a model on QNN's HTP, which onnxruntime's plugin emulates on x86."""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lowbit.errors import RunError
from lowbit.export.named_session import in_calls
from lowbit.measure.lane import Lane
from lowbit.plugins import installed_version
from lowbit.types import Array, Feeds

KERNELS = "htp-emulated"
WORKER = "lowbit.export.qnn.worker"

AT_ONCE = 16
"""Samples that are fed before an answer is waited for."""

OPEN_S, SAMPLE_S = 600.0, 120.0
"""Longest that compiling, and one sample, may take: the emulator needs a second for a small network, minutes for a large one."""


def plugin_version() -> str | None:
    """Of the package `onnxruntime-qnn`, None where it is not installed."""
    return installed_version("onnxruntime_qnn", "onnxruntime-qnn")


def emulates() -> bool:
    """Whether the HTP can be emulated here: the plugin's libraries for Linux on x86-64."""
    return plugin_version() is not None and sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")


class Htp:
    """A model on the HTP, in a process of its own."""

    def __init__(self, path: Path, options: Mapping[str, str], *, context: Path | None = None) -> None:
        """Compiles a model.

        Args:
            path: A QDQ file by QNN's rules.
            options: Of the provider: "soc_model", "htp_arch".
            context: Where the compiled graph is written; None writes none.

        Raises:
            RunError: QNN does not take the model, or ended on it.
        """
        self._name = path.name
        self._folder = tempfile.TemporaryDirectory()
        self._lane: Lane | None = Lane(WORKER)
        spec = {"model": str(path), "options": dict(options), "context": None if context is None else str(context)}
        self._lane.load(spec, OPEN_S)
        if self._lane.error is not None:
            said = self._lane.error
            self.close()
            raise RunError(f"QNN does not compile '{path.name}': {said}", "Try --set activations=8, or another candidate.")
        self._size = int(self._lane.ready["size"])

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Answers samples, as many a call as the model takes: one, where that was open."""
        count = len(next(iter(feeds.values()), ()))
        if count == 0:
            raise RunError("There are no samples to run.", "Feed at least one.")
        if self._size > 1:
            return in_calls(self._part, feeds, self._size)
        parts = [
            self._part({name: values[start : start + AT_ONCE] for name, values in feeds.items()}) for start in range(0, count, AT_ONCE)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def close(self) -> None:
        """Ends the process; closing twice is fine."""
        if self._lane is not None:
            self._lane.__exit__(None, None, None)
            self._lane = None
            self._folder.cleanup()

    def _part(self, feeds: Feeds) -> dict[str, Array]:
        if self._lane is None:
            raise RunError(f"The session of '{self._name}' is closed.", "Open it again.")
        samples, outputs = (Path(self._folder.name) / f"{each}.npz" for each in ("feeds", "outputs"))
        with samples.open("wb") as file:
            np.savez(file, allow_pickle=False, **feeds)
        answer = self._lane.ask({"feeds": str(samples), "outputs": str(outputs)}, SAMPLE_S * AT_ONCE)
        if answer is None:
            raise RunError(f"QNN failed on '{self._name}': {self._lane.error}")
        with np.load(outputs) as arrays:
            return {name: arrays[name] for name in arrays.files}
