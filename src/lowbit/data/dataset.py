"""The data set: samples, labels, slices and content hashes; read in batches, never all at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from lowbit.data.content import hash_blocks
from lowbit.data.fit import fit, main_input, some, stack
from lowbit.data.parallel import ordered_map, workers
from lowbit.data.preprocess import Preprocess, as_numbers
from lowbit.data.records import gather
from lowbit.data.source import Source
from lowbit.data.steps import Raw, Unreadable, is_image
from lowbit.data.texts import KEY
from lowbit.errors import DataError
from lowbit.types import Array, Batch, Feeds, TensorInfo

MIN_SAMPLES = 8
"""Fewer samples than this say nothing about a model."""

MAX_SKIPPED = 0.05
"""Share of unreadable samples up to which the rest is used."""

_SCAN_BYTES = 4 * 2**20
_SCAN_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples for one model; a view on a source, so that subsets cost nothing.

    Attributes:
        source: Where raw samples come from.
        inputs: What the model wants.
        preprocess: Settled: nothing in it is "auto".
        rows: Positions of these samples in the source, int64 [n].
        hashes: Content of every sample's inputs (not its label), uint64 [n]; see `content`.
        skipped: Names of samples of the source that could not be read.
    """

    source: Source
    inputs: Sequence[TensorInfo]
    preprocess: Preprocess
    rows: Array
    hashes: Array
    skipped: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Base name of the source, never a path."""
        return self.source.name

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names by id, where the data has names."""
        return self.source.classes

    @cached_property
    def labels(self) -> Array | None:
        """[n] class ids int64, or targets float64 in the model's scale; None where there are none."""
        found = self.source.labels
        return None if found is None else self.preprocess.labels(found[self.rows])

    @cached_property
    def slices(self) -> Mapping[str, Array]:
        """Slice column -> [n] values."""
        return {name: values[self.rows] for name, values in self.source.slices.items()}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, hex, over all hashes with their labels, whatever their order."""
        digest = sha256(f"lowbit data 1 {len(self)}\n".encode())
        labels = None if self.labels is None else self.labels.reshape(len(self), -1)
        columns = [] if labels is None else [labels[:, index] for index in range(labels.shape[1])]
        order = np.lexsort((*reversed(columns), self.hashes))
        digest.update(self.hashes[order].astype("<u8").tobytes())
        if labels is not None:
            digest.update(labels[order].astype("<i8" if labels.dtype.kind == "i" else "<f8").tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, rows: Array) -> Dataset:
        """The samples at these positions, in this order; nothing is copied or decoded."""
        chosen = np.asarray(rows, np.int64)
        return replace(self, rows=self.rows[chosen], hashes=self.hashes[chosen])

    def sample_name(self, position: int) -> str:
        """What a person finds a sample by: a file, a line, a row."""
        return self.source.sample_name(int(self.rows[position]))

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches in order, the last one perhaps smaller; decoded ahead on threads, a bounded number of samples.

        Args:
            size: Samples a batch, at least 1.

        Raises:
            DataError: samples differ in shape, or do not fit the model.
        """
        size = max(1, int(size))
        positions = np.arange(len(self), dtype=np.int64)
        chunks = [positions[start : start + size] for start in range(0, len(self), size)]
        # Costly samples are decoded one by one on all cores, whatever the batch size; cheap ones a batch at a time, one ahead.
        costly = self.source.costly
        pieces = (piece for chunk in chunks for piece in (chunk[:, np.newaxis] if costly else [chunk]))
        threads = workers() if costly else 1
        loaded = ordered_map(self._feeds, pieces, threads, 4 * threads if costly else 2)
        for chunk in chunks:
            parts = [next(loaded) for _ in range(len(chunk) if costly else 1)]
            feeds = {info.name: self._joined([part[info.name] for part in parts], chunk) for info in self.inputs}
            yield Batch(chunk, feeds, None if self.labels is None else self.labels[chunk])

    def _joined(self, parts: list[Array], positions: Array) -> Array:
        if len(parts) == 1:
            return parts[0]
        for position, part in zip(positions.tolist(), parts, strict=True):
            if part.shape[1:] != parts[0].shape[1:]:
                raise DataError(
                    f"Samples differ in shape: {self.sample_name(int(positions[0]))} is {list(parts[0].shape[1:])}, "
                    f"{self.sample_name(position)} is {list(part.shape[1:])}.",
                    "Give `resize` and `crop` in the preprocessing.",
                )
        return np.concatenate(parts)

    def _feeds(self, positions: Array) -> Feeds:
        """Preprocessed inputs of the samples at these positions."""
        raw = self.source.read(self.rows[positions])
        return prepare_raw(raw, self.inputs, self.preprocess, lambda index: self.sample_name(int(positions[index])))


def prepare_raw(raw: Mapping[str, Any], inputs: Sequence[TensorInfo], preprocess: Preprocess, name_of: Any = "sample {}".format) -> Feeds:
    """Raw values by input, as the model takes them: the main input preprocessed, the others cast."""
    if preprocess.text is not None:
        tokens = preprocess.text.feeds(raw[KEY], inputs)
        return {info.name: fit(tokens[info.name], info) for info in inputs}
    main = main_input(inputs)
    feeds: Feeds = {}
    for info in inputs:
        values = raw[info.name]
        block = preprocess.batch(values, name_of) if info is main else stack(values, name_of)
        feeds[info.name] = fit(block, info)
    return feeds


def prepare(samples: Sequence[Raw], inputs: Sequence[TensorInfo], preprocess: Preprocess) -> Feeds:
    """Feeds for samples that come one by one, as in serving: the very steps that `Dataset.batches` applies.

    Args:
        samples: N Pillow images, paths, arrays without the batch axis, or mappings: a table's row by column, or values by
            input name where the model has several inputs.
        inputs: What the model wants.
        preprocess: Settled, as in a bundle's `preprocess.yaml`.

    Returns:
        Input name -> [N, ...].

    Raises:
        DataError: a sample cannot be read or does not fit the model.
    """
    if not samples:
        raise DataError("There is no sample to prepare.", "Give at least one.")
    if preprocess.text is not None:
        return prepare_raw({KEY: samples}, inputs, preprocess)
    if len(inputs) == 1:
        name = inputs[0].name
        named = name not in preprocess.columns  # else that key is one column of a row
        bare = [sample[name] if named and isinstance(sample, Mapping) and name in sample else sample for sample in samples]
        return prepare_raw({name: gather(bare)}, inputs, preprocess)
    raw: dict[str, Any] = {}
    for info in inputs:
        if any(not isinstance(sample, Mapping) or info.name not in sample for sample in samples):
            raise DataError(f"A sample lacks input {info.name}. Each is a mapping with {', '.join(item.name for item in inputs)}.")
        raw[info.name] = gather([sample[info.name] if is_image(sample[info.name]) else as_numbers(sample[info.name]) for sample in samples])
    return prepare_raw(raw, inputs, preprocess)


def _scan_width(source: Source, rows: Array) -> int:
    """Rows read at once: about 4 MB, so that the scan's memory does not grow with the size of a sample."""
    if source.costly or len(rows) == 0:
        return 1
    size = sum(np.asarray(values[0]).nbytes for values in source.read(rows[:1]).values())
    return min(_SCAN_ROWS, max(1, _SCAN_BYTES // max(1, size)))


def scan(source: Source, rows: Array) -> tuple[Array, Array, tuple[str, ...]]:
    """Reads every sample once: content hashes, NaN and inf, images that cannot be decoded.

    Args:
        source: The source.
        rows: Which rows, int64 [n].

    Returns:
        The readable rows, their hashes, and the names of the others.

    Raises:
        DataError: too many are unreadable, or values are NaN or infinite.
    """
    width = _scan_width(source, rows)

    def examine(piece: Array) -> tuple[Array, Array] | Unreadable:
        try:
            return hash_blocks(source.read(piece), len(piece))
        except Unreadable as error:
            return error

    pieces = [rows[start : start + width] for start in range(0, len(rows), width)]
    threads = workers() if source.costly else 1
    good: list[Array] = []
    hashes: list[Array] = []
    bad: list[str] = []
    broken: list[int] = []
    first: Unreadable | None = None
    for piece, result in zip(pieces, ordered_map(examine, pieces, threads, 4 * threads), strict=True):
        if isinstance(result, Unreadable):
            first = first or result
            bad.extend(source.sample_name(row) for row in piece.tolist())
            continue
        good.append(piece)
        hashes.append(result[0])
        broken.extend(piece[result[1]].tolist())
    if broken:
        names = some([source.sample_name(row) for row in broken])
        raise DataError(f"{len(broken)} of {len(rows)} samples hold NaN or infinite values: {names}.", "Remove or fill them.")
    if first is not None and len(bad) > MAX_SKIPPED * len(rows):
        raise DataError(
            f"{len(bad)} of {len(rows)} images cannot be read, more than {MAX_SKIPPED:.0%}: {some(bad)}. The first: {first.message}",
            "Repair or remove them.",
        )
    empty: list[Array] = [np.empty(0, np.int64)]
    return np.concatenate(good or empty), np.concatenate(hashes or empty).astype(np.uint64), tuple(bad)
