"""A target's session around whatever answers: a runtime of lowbit's, or a worker in another process. And the files beside an artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from lowbit.export.neutral import Neutral
from lowbit.export.qdq_again import on_grid
from lowbit.quant.affine import Affine
from lowbit.runtimes.onnxruntime_cpu import OnnxRuntimeCpu
from lowbit.types import Array, Feeds, Tuning

ONE_THREAD = Tuning(threads=1)
"""As phones and browsers run it, and as the other targets are timed."""


class NamedSession:
    """See `lowbit.export.base.TargetSession`."""

    def __init__(
        self,
        ask: Callable[[Feeds], dict[str, Array]],
        close: Callable[[], None],
        grids: Mapping[str, Affine],
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Wraps what answers in the artifact's own names.

        Args:
            ask: Feeds -> outputs.
            close: Frees what answers.
            grids: Output in the artifact -> its grid, of the rounded ones.
            names: The source's name of an input or output -> the artifact's, where they differ.
        """
        self._ask, self._close, self._grids, self._names = ask, close, grids, dict(names or {})
        self._back = {theirs: ours for ours, theirs in self._names.items()}

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Answers samples; see `TargetSession.run`."""
        return self._ours(self._answers(feeds))

    def integers(self, feeds: Feeds) -> dict[str, Array] | None:
        """The answers as levels, where all outputs are rounded."""
        found = on_grid(self._answers(feeds), self._grids)
        return None if found is None else self._ours(found)

    def close(self) -> None:
        """Frees it."""
        self._close()

    def _answers(self, feeds: Feeds) -> dict[str, Array]:
        return self._ask({self._names.get(name, name): values for name, values in feeds.items()})

    def _ours(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        return {self._back.get(name, name): values for name, values in outputs.items()}


def on_onnxruntime(path: Path, grids: Mapping[str, Affine], names: Mapping[str, str] | None = None) -> NamedSession:
    """An .onnx or .ort file on onnxruntime's CPU provider, with one thread.

    Raises:
        RunError: it does not load.
    """
    session = OnnxRuntimeCpu().open(path, ONE_THREAD)
    return NamedSession(session.run, session.close, grids, names)


def write_beside(source: Neutral, folder: Path) -> tuple[Path, ...]:
    """Writes what people need who feed the artifact: `labels.txt`, one class a line, and `preprocess.yaml`; each where it is known."""
    found = []
    if source.labels:
        found.append(folder / "labels.txt")
        found[-1].write_text("".join(f"{' '.join(label.split())}\n" for label in source.labels), encoding="utf-8")
    if source.preprocess is not None:
        found.append(folder / "preprocess.yaml")
        found[-1].write_text(source.preprocess.to_yaml(), encoding="utf-8")
        for name, text in source.preprocess.files().items():
            found.append(folder / name)
            found[-1].write_text(text, encoding="utf-8")
    return tuple(found)


def float_words(floats: tuple[str, ...]) -> tuple[str, ...]:
    """What people should know of products that stay in floating point."""
    if not floats:
        return ()
    shown = ", ".join(floats[:3]) + (f" and {len(floats) - 3} more" if len(floats) > 3 else "")
    return (f"{len(floats)} of the products with weights stay in floating point, as in the candidate: {shown}.",)
