"""What tells the samples of a data set apart: a few numbers and the ranges of every tensor, per sample, from one pass.

With a model, the pass is calibration's own: the same probes give the extrema, and a few channel means (`graph.means`) come
beside them. Without one, the inputs themselves are looked at: pixels made small, columns, counts of tokens.
Memory is a few hundred numbers a sample, whatever the size of samples and model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowbit.compress.sessions import misfit, one_more, open_session, read_model
from lowbit.data.dataset import Dataset
from lowbit.errors import DataError, ModelError
from lowbit.graph import means, observe, probes
from lowbit.types import Array, Feeds

WIDTH = 128
"""Most columns one tensor adds; wider ones are projected onto as many random directions, which keeps distances."""

COMPONENTS = 32
VARIANCE = 0.95
SIDE = 8
"""Pixels a side to which images are reduced where there is no model."""

BATCH = 32


@dataclass(frozen=True)
class Features:
    """What is known of N samples.

    Attributes:
        values: float32 [N, F]: channel means, or the reduced inputs.
        blocks: int64 [F]: which tensor each column comes from.
        tensors: Names of the T tensors whose ranges are known.
        low: float32 [N, T]: the lowest value of each tensor for each sample.
        high: float32 [N, T]: the highest.
    """

    values: Array
    blocks: Array
    tensors: tuple[str, ...]
    low: Array
    high: Array

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Space:
    """The coordinates in which samples are compared: standardised, every tensor with the same weight, principal components.

    Attributes:
        mean: [F] of the pool.
        weight: [F]: 1 / standard deviation / root of the number of columns of the tensor; 0 for constant columns.
        basis: [F, K], orthonormal.
    """

    mean: Array
    weight: Array
    basis: Array

    @classmethod
    def fit(cls, features: Features) -> Space:
        """The space of a pool: as many components as hold `VARIANCE` of it, at most `COMPONENTS`."""
        values = features.values
        mean, spread = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
        width = np.bincount(features.blocks)[features.blocks]
        steady = spread <= 1e-6 * np.abs(mean).max(initial=1e-6)
        weight = np.where(steady, 0.0, 1.0 / np.where(steady, 1.0, spread)) / np.sqrt(width)
        products = np.zeros((values.shape[1], values.shape[1]))
        for block in _blocks(values):
            scaled = (block - mean) * weight
            products += scaled.T @ scaled
        power, basis = np.linalg.eigh(products)
        power, basis = power[::-1].clip(0), basis[:, ::-1]
        kept = int(np.searchsorted(np.cumsum(power), VARIANCE * power.sum())) + 1
        return cls(mean, weight, basis[:, : min(kept, COMPONENTS)])

    def transform(self, features: Features) -> Array:
        """float32 [N, K]: coordinates of samples, of the pool or of others."""
        found = [(((block - self.mean) * self.weight) @ self.basis).astype(np.float32) for block in _blocks(features.values)]
        return np.concatenate(found) if found else np.zeros((0, self.basis.shape[1]), np.float32)


def _blocks(values: Array, rows: int = 8192) -> list[Array]:
    """Views of a few rows each, so that what is computed in double precision stays small."""
    return [values[start : start + rows] for start in range(0, len(values), rows)]


def extract(data: Dataset, model: Path | None = None, *, threads: int = 0, progress: Callable[[int], None] | None = None) -> Features:
    """Features of every sample, in the order of the data, from one pass.

    Args:
        data: Samples that fit the model.
        model: An ONNX file, not changed; None takes the features from the inputs alone.
        threads: For the runtime; 0 means all cores.
        progress: Called after each batch with the number of samples done.

    Raises:
        ModelError: the model cannot be read or run, or gives NaN or infinity.
        DataError: the samples do not fit the model.
    """
    first = data.inputs[0].shape[0] if data.inputs[0].shape else None
    own = first if model is not None and isinstance(first, int) and first > 0 else None
    rows: list[tuple[Array, Array, Array]] = []
    pass_: _Pass | _Raw | None = None
    done = 0
    for batch in data.batches(own or BATCH):
        n = len(batch.rows)
        feeds = {name: _filled(values, own) for name, values in batch.feeds.items()} if own else batch.feeds
        pass_ = pass_ or (_Raw() if model is None else _Pass.prepare(model, feeds, threads))
        found = [part[:n] for part in pass_.look(feeds)]
        if not all(np.isfinite(part).all() for part in found):
            raise ModelError(
                f"The model gives NaN or infinity for {data.sample_name(done)} or one of the {n - 1} samples after it.",
                "Check the model in FP32 first.",
            )
        rows.append((found[0], found[1], found[2]))
        done += n
        if progress is not None:
            progress(done)
    if pass_ is None:
        raise DataError("There are no samples to look at.", "Give at least one.")
    values, low, high = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return Features(values, pass_.blocks, tuple(pass_.tensors), low, high)


def _filled(values: Array, count: int) -> Array:
    """The rows again and again up to a fixed batch size."""
    return np.concatenate([values] * -(-count // len(values)))[:count]


class _Pass:
    """A session of the probed copy of a model."""

    def __init__(self, session: object, found: list[probes.Probe], outputs: dict[str, str], inputs: list[str]) -> None:
        self.session, self.probes, self.means, self.inputs = session, found, outputs, inputs
        self.tensors = [*inputs, *(probe.tensor for probe in found)]
        self.blocks: Array = np.zeros(0, np.int64)

    @classmethod
    def prepare(cls, path: Path, feeds: Feeds, threads: int) -> _Pass:
        model = read_model(path)
        sizes = {name: feed.shape for name, feed in feeds.items()}
        one, two = probes.infer(model, sizes), probes.infer(model, one_more(model, sizes))
        plan = observe.plan(one)
        shapes = means.per_sample(one, two, len(next(iter(feeds.values()))))
        types = {v.name: v.type.tensor_type.elem_type for v in [*one.graph.value_info, *one.graph.output]}
        inner = [name for name in plan.observed if name not in feeds]
        wanted = means.feature_tensors(inner, [v.name for v in model.graph.output], shapes)
        if not wanted:
            raise ModelError(
                f"No tensor of '{path.name}' has a row for each sample, so samples cannot be told apart by it.",
                "Leave --model out: then the inputs themselves are compared.",
            )
        model, found = probes.instrument(model, plan, one, two, sample=False)
        outputs = means.add_means(model, wanted, shapes, types)
        fed = [name for name in plan.observed if name in feeds and feeds[name].dtype.kind == "f"]
        session = open_session(model, path, threads, "with probes")
        return cls(session, [probe for probe in found if probe.tensor in shapes], outputs, fed)

    def look(self, feeds: Feeds) -> tuple[Array, Array, Array]:
        """Values [n, F], low [n, T] and high [n, T] of one batch."""
        names = sorted({*self.means.values(), *(p.high for p in self.probes), *(p.low for p in self.probes if p.low)})
        try:
            out = dict(zip(names, self.session.run(names, feeds), strict=True))  # type: ignore[attr-defined]
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise misfit(self.session, feeds, error) from error
        columns = [_narrowed(np.asarray(out[name], np.float32), index) for index, name in enumerate(self.means.values())]
        self.blocks = np.repeat(np.arange(len(columns)), [part.shape[1] for part in columns])
        n = len(columns[0])
        high = [_top(feeds[name], n) for name in self.inputs] + [_top(out[probe.high], n) for probe in self.probes]
        low = [-_top(-feeds[name], n) for name in self.inputs] + [_bottom(probe, out, n) for probe in self.probes]
        return np.concatenate(columns, axis=1), np.stack(low, axis=1), np.stack(high, axis=1)


def _top(values: Array, n: int) -> Array:
    return np.asarray(values.reshape(n, -1).max(axis=1), np.float32)


def _bottom(probe: probes.Probe, out: dict[str, Array], n: int) -> Array:
    if probe.low is None:
        return np.zeros(n, np.float32)
    return -_top(out[probe.low] if probe.negated else -out[probe.low], n)


def _narrowed(values: Array, index: int) -> Array:
    """At most `WIDTH` columns; the directions depend on the place of the tensor alone."""
    if values.shape[1] <= WIDTH:
        return values
    directions = np.random.default_rng(index).normal(size=(values.shape[1], WIDTH)) / np.sqrt(WIDTH)
    return np.asarray(values @ directions.astype(np.float32))


class _Raw:
    """The inputs themselves: small images, columns, counts of tokens."""

    def __init__(self) -> None:
        self.tensors: list[str] = []
        self.blocks: Array = np.zeros(0, np.int64)

    def look(self, feeds: Feeds) -> tuple[Array, Array, Array]:
        """Values [n, F], low [n, T] and high [n, T] of one batch; every column of a table has a range of its own."""
        columns, low, high, names = [], [], [], []
        for index, (name, block) in enumerate(feeds.items()):
            n = len(block)
            columns.append(_narrowed(_reduced(block), index))
            flat = block.reshape(n, -1)
            table = block.ndim == 2 and block.dtype.kind == "f" and flat.shape[1] <= WIDTH
            low.append(flat if table else flat.min(axis=1, keepdims=True))
            high.append(flat if table else flat.max(axis=1, keepdims=True))
            names += [f"{name}[{i}]" for i in range(flat.shape[1])] if table and flat.shape[1] > 1 else [name]
        self.tensors = names
        self.blocks = np.repeat(np.arange(len(columns)), [part.shape[1] for part in columns])
        whole, lowest, highest = (np.concatenate(parts, axis=1).astype(np.float32) for parts in (columns, low, high))
        return whole, lowest, highest


def _reduced(block: Array) -> Array:
    """[n, F] float32 of one input."""
    n = len(block)
    if block.dtype.kind in "iu" and block.ndim == 2:  # tokens: which there are, by their number's remainder
        hashed = (block.astype(np.int64) % WIDTH) + WIDTH * np.arange(n)[:, np.newaxis]
        return np.bincount(hashed.reshape(-1), minlength=n * WIDTH).reshape(n, WIDTH).astype(np.float32)
    values = block.astype(np.float32)
    if values.ndim == 4 and values.shape[1] > 4:  # channels last
        values = values.transpose(0, 3, 1, 2)
    if values.ndim in (3, 4):
        for axis in (-2, -1):
            values = _pooled(values, axis)
    return values.reshape(n, -1)


def _pooled(values: Array, axis: int) -> Array:
    """Means of `SIDE` stretches along an axis."""
    size = values.shape[axis]
    if size <= SIDE:
        return values
    edges = (np.arange(SIDE) * size) // SIDE
    widths = np.diff([*edges, size]).astype(np.float32)
    shape = [1] * values.ndim
    shape[axis] = SIDE
    return np.add.reduceat(values, edges, axis=axis) / widths.reshape(shape)
