"""A bundle on disk: load it, check it, run it.

session = Bundle.load("build/resnet50").session()
outputs = session.run(batch)                     # model-ready array, or a dict of them
outputs = session.predict(Image.open("cat.jpg")) # the bundle's own preprocessing applied first
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.bundle.manifest import candidate_of, decision_of, digest, read_manifest
from lowbit.bundle.schema import CandidateEntry, Manifest
from lowbit.errors import DataError, ModelError, UsageError, unknown
from lowbit.types import Array, Candidate, Decision, Feeds, TensorInfo, Tuning

if TYPE_CHECKING:
    from lowbit.data.preprocess import Preprocess
    from lowbit.llm.engines.base import LanguageSession
    from lowbit.runtimes.base import Runtime, Session

FALLBACK = "onnxruntime"
NO_STEPS = "This bundle has no preprocessing: its samples were fed as they are."


@dataclass(frozen=True)
class Bundle:
    """The folder that an optimization leaves behind.

    Attributes:
        folder: Where it is.
        manifest: `bundle.json`, checked.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = True) -> Bundle:
        """Reads a bundle and checks its files against their digests.

        Args:
            folder: What `lowbit optimize --out` wrote.
            verify: False skips the digests (a second or so for a gigabyte), not the files' existence and size.

        Raises:
            UsageError: no such folder, not a bundle, or written by a newer lowbit.
            ModelError: `bundle.json` is damaged, or a file is missing or was changed.
        """
        bundle = cls(Path(folder), read_manifest(Path(folder)))
        for entry in bundle.manifest.files:
            file = bundle.folder / entry.path
            if not file.is_file():
                raise ModelError(f"The bundle lacks {entry.path}, which its manifest lists.", "Copy the whole folder again.")
            if (size := file.stat().st_size) != entry.size_bytes:
                raise ModelError(f"{entry.path} has {size:,} bytes, not {entry.size_bytes:,} as listed.", "Copy the whole folder again.")
            if verify and digest(file) != entry.sha256:
                raise ModelError(f"{entry.path} was changed after it was measured: its digest differs.", "Copy the whole folder again.")
        return bundle

    @property
    def decision(self) -> Decision:
        """What was decided, with the judgement on every candidate."""
        return decision_of(self.manifest)

    @property
    def chosen(self) -> Candidate:
        """What ships, with all its evidence."""
        return candidate_of(self.manifest.chosen)

    @property
    def preprocess(self) -> Preprocess | None:
        """The very steps that the validation samples went through; None where samples are fed as they are."""
        if self.manifest.preprocess is None:
            return None
        from lowbit.data.preprocess import Preprocess

        return Preprocess.load(self.folder / self.manifest.preprocess)

    def session(
        self, runtime: str | None = None, batch: int | None = None, *, candidate: str | None = None, preprocess: bool = False
    ) -> BundleSession:
        """Opens what ships on its runtime, as it was tuned.

        Args:
            runtime: Another runtime than the chosen one; it gets its default tuning.
            batch: Samples per call, where only one number will come: the tuning found for it is used, and the shape is
                fixed where that was faster. None takes any number.
            candidate: Open another candidate instead, e.g. the baseline's id to compare with.
            preprocess: True makes `run` take raw samples, like `predict`.

        Raises:
            UsageError: no such candidate or runtime, the artifact was pruned, or there is no preprocessing to apply.
            RunError: the runtime cannot run the artifact.
        """
        if self.manifest.language is not None:
            raise UsageError("This bundle is of a language model.", "Open it with bundle.language(), or serve it: lowbit serve FOLDER.")
        entry = self._entry(candidate)
        steps = self.preprocess
        if preprocess and steps is None:
            raise UsageError(NO_STEPS, "Feed model-ready arrays: session().run(x).")
        artifact = self._artifact(entry)
        engine, own = _runtime(runtime or entry.runtime, artifact, fallback=runtime is None)
        if not own and artifact.suffix != ".onnx":
            artifact = self._artifact(self.manifest.baseline)
        tuning = tuning_for(entry, batch) if own and engine.name == entry.runtime else Tuning()
        return BundleSession(engine.open(artifact, tuning, batch), engine.name, tuning, steps, preprocess)

    def language(self, candidate: str | None = None) -> LanguageSession:
        """Opens what ships of a language model on its engine, as it was tuned: `logits`, `start` and `step` over token ids.

        Args:
            candidate: Open another candidate instead, e.g. the baseline's id.

        Raises:
            UsageError: no language model, no such candidate, its artifact was pruned, or its engine is not installed.
            RunError: the engine cannot run the artifact.
        """
        from lowbit.llm.engines import registry
        from lowbit.llm.engines.base import EngineTuning

        told = self.manifest.language
        if told is None:
            raise UsageError("This bundle is not of a language model.", "Open it with bundle.session().")
        entry = self._entry(candidate)
        facts = told.candidates[entry.id]
        engine = registry.get(facts.engine)
        return engine.open(self._artifact(entry), EngineTuning(**facts.tuning.model_dump()), context=told.context)

    def artifact(self, candidate: str | None = None) -> Path:
        """The file of a candidate; of what ships if None.

        Raises:
            UsageError: no such candidate, or its artifact was pruned.
        """
        return self._artifact(self._entry(candidate))

    def _entry(self, candidate: str | None) -> CandidateEntry:
        ids = {entry.id: entry for entry in (self.manifest.baseline, *self.manifest.candidates)}
        name = candidate or self.manifest.decision.chosen
        if name not in ids:
            raise unknown("candidate", name, ids)
        return ids[name]

    def _artifact(self, entry: CandidateEntry) -> Path:
        if entry.id == self.manifest.decision.chosen:
            return self.folder / self.manifest.model.artifact
        if entry.artifact is None or not (self.folder / entry.artifact).is_file():
            raise UsageError(f"The artifact of '{entry.id}' is not in this bundle.", "`lowbit optimize` without --prune keeps all of them.")
        return self.folder / entry.artifact


def tuning_for(entry: CandidateEntry, batch: int | None) -> Tuning:
    """The tuning to open a candidate with.

    Args:
        entry: The candidate.
        batch: Samples per call; the tuning measured at that batch size wins over the candidate's own. With None a
            fixed shape is dropped, so that any number of samples can come.
    """
    tuning = candidate_of(entry).tuning
    if batch is None:
        return replace(tuning, fixed_shape=False)
    for measurement in candidate_of(entry).measurements:
        if measurement.batch == batch and measurement.streams == tuning.streams:
            return measurement.tuning
    return tuning


def _runtime(name: str, artifact: Path, *, fallback: bool) -> tuple[Runtime, bool]:
    """The runtime of that name and True; where it is not installed and may be replaced, onnxruntime and False.

    What only the missing one opens is replaced, too, by the baseline.
    """
    from lowbit.runtimes import registry

    try:
        return registry.get(name), True
    except UsageError as error:
        if not fallback or name == FALLBACK:
            raise
        if artifact.suffix == ".onnx":
            instead = f"Running on {FALLBACK} instead: outputs may differ a little, and the measured speed does not hold."
        else:
            instead = f"'{artifact.name}' runs nowhere else. Running the baseline on {FALLBACK} instead: as right, not as small or fast."
        warnings.warn(f"{error.message} {instead}", stacklevel=3)
        return registry.get(FALLBACK), False


class BundleSession:
    """A loaded bundle, ready to run; safe to call from several threads. Also a context manager.

    Attributes:
        inputs: What must be fed.
        outputs: What comes back.
        runtime: Name of the runtime it runs on.
        tuning: How the runtime was asked to run it.
    """

    def __init__(self, session: Session, runtime: str, tuning: Tuning, preprocess: Preprocess | None, raw: bool) -> None:
        self.inputs: tuple[TensorInfo, ...] = session.inputs
        self.outputs: tuple[TensorInfo, ...] = session.outputs
        self.runtime = runtime
        self.tuning = tuning
        self._session = session
        self._preprocess = preprocess
        self._raw = raw

    def run(self, x: Any) -> dict[str, Array]:
        """Runs one batch.

        Args:
            x: A model-ready array [N, ...] where the model has one input, else a dict of them by input name. An array
                of another width of the same kind (float64 for float32) is converted. In a session opened with
                `preprocess=True`: what `predict` takes.

        Returns:
            Output name -> array [N, ...], always a dict.

        Raises:
            DataError: an array alone for a model with several inputs.
            RunError: a name, shape or dtype is not the model's.
        """
        return self.predict(x) if self._raw else self._session.run(self._feeds(x))

    def predict(self, raw: Any) -> dict[str, Array]:
        """Applies the bundle's own preprocessing, then runs.

        Args:
            raw: One raw sample (image, path, array, row of a table by column), or a list or tuple of them.

        Returns:
            Output name -> array [N, ...]; N = 1 for one sample.

        Raises:
            UsageError: the bundle has no preprocessing.
            DataError: no sample, one that cannot be read, or a model with several inputs.
        """
        if self._preprocess is None:
            raise UsageError(NO_STEPS, "Feed model-ready arrays to run.")
        samples = raw if isinstance(raw, list | tuple) else [raw]
        if not samples:
            raise DataError("There is no sample to predict.", "Give one raw sample or a list of them.")
        batch = self._prepared(samples)
        size = self.inputs[0].shape[0] if self.inputs[0].shape else None
        split = {name: _parts(values, size if isinstance(size, int) else None) for name, values in batch.items()}
        parts = [self._session.run(self._feeds(dict(zip(split, values, strict=True)))) for values in zip(*split.values(), strict=True)]
        return {name: np.concatenate([part[name] for part in parts])[: len(samples)] for name in parts[0]}

    def _prepared(self, samples: Any) -> Feeds:
        assert self._preprocess is not None, "predict asks first"
        if self._preprocess.text is not None:
            return self._preprocess.text.feeds(samples, self.inputs)
        batch = self._preprocess.batch(samples)
        if len(self.inputs) != 1:
            names = ", ".join(info.name for info in self.inputs)
            raise DataError(f"One array was given, and the model has {len(self.inputs)} inputs: {names}.", "Give a dict by input name.")
        return {self.inputs[0].name: batch}

    def close(self) -> None:
        """Frees the model."""
        self._session.close()

    def __enter__(self) -> BundleSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _feeds(self, x: Any) -> Feeds:
        if not isinstance(x, Mapping):
            if len(self.inputs) != 1:
                names = ", ".join(info.name for info in self.inputs)
                raise DataError(f"One array was given, and the model has {len(self.inputs)} inputs: {names}.", "Give a dict by input name.")
            x = {self.inputs[0].name: x}
        dtypes = {info.name: np.dtype(info.dtype) for info in self.inputs}
        return {name: _as_kind(np.asarray(array), dtypes.get(name)) for name, array in x.items()}


def _as_kind(array: Array, dtype: np.dtype[Any] | None) -> Array:
    """Converts float to float and integer to integer; uint8 pixels for a float input are left for the runtime to refuse."""
    kinds = {"f": "f", "i": "i", "u": "i"}
    same = dtype is not None and kinds.get(array.dtype.kind, "") == kinds.get(dtype.kind)
    return array.astype(dtype) if same and array.dtype != dtype else array


def _parts(batch: Array, size: int | None) -> list[Array]:
    """The batch as it is, or in parts of a fixed size, the last one filled up with its last sample."""
    if size is None:
        return [batch]
    missing = -len(batch) % size
    filled = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch
    return [filled[start : start + size] for start in range(0, len(filled), size)]
