"""A target's session around whatever answers: a runtime of lowbit's, or a worker in another process. And the files beside an artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lowbit.errors import RunError
from lowbit.export.neutral import Neutral
from lowbit.export.program.program import Program
from lowbit.export.qdq_again import on_grid
from lowbit.quant.affine import Affine
from lowbit.runtimes.onnxruntime_cpu import OnnxRuntimeCpu
from lowbit.types import Array, Feeds, TensorInfo, Tuning

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
        size: int | None = None,
    ) -> None:
        """Wraps what answers in the artifact's own names.

        Args:
            ask: Feeds -> outputs.
            close: Frees what answers.
            grids: Output in the artifact -> its grid, of the rounded ones.
            names: The source's name of an input or output -> the artifact's, where they differ.
            size: Samples a call, where the artifact takes no other number.
        """
        self._size = size
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
        theirs = {self._names.get(name, name): values for name, values in feeds.items()}
        return self._ask(theirs) if self._size is None else in_calls(self._ask, theirs, self._size)

    def _ours(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        return {self._back.get(name, name): values for name, values in outputs.items()}


def on_onnxruntime(path: Path, grids: Mapping[str, Affine], names: Mapping[str, str] | None = None) -> NamedSession:
    """An .onnx or .ort file on onnxruntime's CPU provider, with one thread.

    Raises:
        RunError: it does not load.
    """
    session = OnnxRuntimeCpu().open(path, ONE_THREAD)
    return NamedSession(session.run, session.close, grids, names, fixed_size(session.inputs))


def fixed_size(inputs: Sequence[TensorInfo]) -> int | None:
    """How many samples a model takes in a call, where its inputs leave no choice; None where any number will do."""
    sizes = {info.shape[0] for info in inputs if info.shape}
    fixed = {size for size in sizes if isinstance(size, int) and size > 0}
    return fixed.pop() if len(fixed) == 1 else None


def calls_of(n: int, size: int) -> Array:
    """Which of `n` samples go into each call of `size`, int [calls, size]: the last call is filled up with the last sample."""
    return np.minimum(np.arange(-(-n // size) * size), n - 1).reshape(-1, size)


def in_calls(run: Callable[[Feeds], dict[str, Array]], feeds: Feeds, size: int) -> dict[str, Array]:
    """Runs samples through what takes so many a call. The last call is filled up with the last sample, whose further answers are dropped.

    Args:
        run: Feeds of `size` samples -> outputs.
        feeds: Input -> [N, ...].
        size: Samples a call.

    Raises:
        RunError: no samples, or not as many of each input; an output that has no rows for each sample; or the run failed.
    """
    counts = {len(values) for values in feeds.values()}
    if len(counts) != 1 or 0 in counts:
        raise RunError(f"Samples are fed in equal numbers, at least one; there were {sorted(counts)}.", "Feed [N, ...] for every input.")
    n = counts.pop()
    answers = [run({name: values[row] for name, values in feeds.items()}) for row in calls_of(n, size)]
    return answers[0] if n == size else {name: _joined(name, [answer[name] for answer in answers], n, size) for name in answers[0]}


def _joined(name: str, parts: Sequence[Array], n: int, size: int) -> Array:
    """The answers to `n` samples, of calls of `size`; a sample may have several rows, as many as every other."""
    if any(part.ndim == 0 or len(part) % size for part in parts):
        raise RunError(f"The output '{name}' has no rows for each of {size} samples.", f"Feed {size} samples at a time.")
    if any(len(part) != len(parts[0]) for part in parts) and n % size:
        raise RunError(f"The output '{name}' has another number of rows in each call.", f"Feed {size} samples at a time.")
    return np.concatenate(parts)[: n * len(parts[0]) // size] if n % size else np.concatenate(parts)


def in_layout(source: Neutral, program: Program) -> Neutral:
    """The model with its preprocessing in the layout that an integer program is fed in: channels last."""
    steps = source.preprocess
    if steps is None or steps.layout != "nchw" or all(port.permutation is None for port in program.inputs):
        return source
    return replace(source, preprocess=replace(steps, layout="nhwc"))


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
