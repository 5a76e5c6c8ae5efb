"""A sample of recent inputs, to calibrate on; kept only where the operator asked for that.

A reservoir (Vitter 1985, "Random Sampling with a Reservoir", algorithm R) by model: each request that was offered is in it with the same
chance, however many came. What is too old is deleted, and deleted bytes are overwritten; the requests that were offered are then taken to
be fewer in the same measure, so that room is made use of little by little, and not by whoever comes next. Named inputs can be dropped or
blurred before anything is written.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowbit.errors import UsageError
from lowbit.monitoring.database import Database
from lowbit.types import Array, Feeds

BLOCK = 8
"""A blurred image keeps the means of blocks of so many by so many places."""
CHANNELS = 4
"""So many are the last axis of an image at most, where its channels are that: it is rows and columns that are blurred."""
MAX_BYTES = 4 << 20
"""Of one sample; larger ones are not kept."""


@dataclass(frozen=True)
class Redaction:
    """What is done to inputs before they are written.

    Attributes:
        drop: Inputs that are not kept at all. A sample without all inputs cannot calibrate.
        blur: Inputs of which only the coarse is kept.
    """

    drop: frozenset[str] = frozenset()
    blur: frozenset[str] = frozenset()

    def __call__(self, inputs: Mapping[str, Array]) -> Feeds:
        """The inputs of one row as they may be written."""
        return {name: blurred(array) if name in self.blur else array for name, array in inputs.items() if name not in self.drop}

    def check(self, names: Iterable[str]) -> None:
        """Compares the names with those of a model.

        Raises:
            UsageError: an input is named that the model does not have.
        """
        known = set(names)
        if lacking := sorted((self.drop | self.blur) - known):
            raise UsageError(f"The model has no input '{lacking[0]}' to redact. Its inputs: {', '.join(sorted(known))}.")


def blurred(array: Array) -> Array:
    """Without the fine: the means of blocks of 8 x 8 places of an image, channels first or last; other numbers to two significant bits.

    Args:
        array: One row of an input; whole numbers (tokens) are refused to be blurred, as their neighbours mean something else.

    Raises:
        UsageError: it holds no floating-point numbers.
    """
    if array.dtype.kind != "f":
        raise UsageError("Only inputs of floating-point numbers can be blurred.", "Drop this one instead.")
    last = array.ndim > 2 and array.shape[-1] <= CHANNELS < min(array.shape[-3:-1])
    axes = (-3, -2) if last else (-2, -1)
    if array.ndim < 2 or min(array.shape[axis] for axis in axes) < 2:
        mantissa, exponent = np.frexp(array)
        return np.ldexp(np.round(mantissa * 4) / 4, exponent).astype(array.dtype)
    found = array.astype(np.float64)
    for axis in axes:
        size = found.shape[axis]
        starts = np.arange(0, size, BLOCK)
        lengths = np.diff(np.append(starts, size))
        shape = [1] * found.ndim
        shape[axis] = len(lengths)
        means = np.add.reduceat(found, starts, axis=axis) / lengths.reshape(shape)
        found = np.repeat(means, lengths, axis=axis)
    return found.astype(array.dtype)


@dataclass(frozen=True)
class Sample:
    """One row that was kept.

    Attributes:
        model: Whose.
        version: That answered it.
        request_id: By which its label is found.
        at: Seconds since 1970.
        inputs: By name, without the batch axis.
    """

    model: str
    version: str
    request_id: str
    at: float
    inputs: Mapping[str, Array] = field(repr=False)


class Samples:
    """The reservoirs of one state folder."""

    def __init__(self, database: Database, *, most: int = 2_000, seed: int | None = None) -> None:
        """In an open database.

        Args:
            database: The state folder's.
            most: Rows of each model.
            seed: Of the choice; None for a new one each time.
        """
        self._database, self.most = database, most
        self._chance = random.Random(seed)

    def offer(self, samples: Iterable[Sample], redaction: Redaction = Redaction()) -> int:
        """Takes some of what is offered, each with the chance that keeps the reservoir fair; to be called away from the requests.

        Returns:
            How many were written.

        Raises:
            sqlite3.Error: the disk is full.
        """
        taken, states = 0, dict[str, tuple[int, int]]()
        with self._database.writing() as connection:
            for sample in samples:
                seen, n = states[sample.model] if sample.model in states else self._state(sample.model)
                states[sample.model] = (seen + 1, n)
                if seen >= self.most and self._chance.randrange(seen + 1) >= self.most:
                    continue
                body = packed(redaction(sample.inputs))
                if len(body) > MAX_BYTES:
                    continue
                if n >= self.most:
                    victim = "select id from samples where model = ? order by id limit 1 offset ?"
                    connection.execute(f"delete from samples where id = ({victim})", (sample.model, self._chance.randrange(n)))
                values = (sample.model, sample.version, sample.request_id, sample.at, body)
                connection.execute("insert into samples (model, version, request_id, at, inputs) values (?, ?, ?, ?, ?)", values)
                states[sample.model] = (seen + 1, n + (n < self.most))
                taken += 1
            rows = [(model, seen) for model, (seen, _) in states.items()]
            connection.executemany("insert or replace into reservoirs values (?, ?)", rows)
        return taken

    def listed(self, model: str | None = None, *, since: float = 0.0) -> list[Sample]:
        """All that are kept, the oldest first.

        Args:
            model: Of one model alone.
            since: That came after this, seconds since 1970.
        """
        statement = "select * from samples where model = coalesce(?, model) and at >= ? order by at, id"
        return [
            Sample(row["model"], row["version"], row["request_id"], row["at"], unpacked(row["inputs"]))
            for row in self._database.rows(statement, model, since)
        ]

    def count(self) -> dict[str, int]:
        """Rows of each model."""
        return {
            row["model"]: row["n"] for row in self._database.rows("select model, count(*) as n from samples group by model order by model")
        }

    def forget(self, model: str | None = None) -> int:
        """Deletes what is kept of a model, or of all; how many rows went."""
        with self._database.writing() as connection:
            gone = connection.execute("delete from samples where model = coalesce(?, model)", (model,)).rowcount
            connection.execute("delete from reservoirs where model = coalesce(?, model)", (model,))
        self._database.settle()
        return gone

    def prune(self, before: float) -> int:
        """Deletes what came before a time, and what is more than may be kept; how many rows went."""
        with self._database.writing() as connection:
            gone = 0
            for model, n in self.count().items():
                old = connection.execute("delete from samples where model = ? and at < ?", (model, before)).rowcount
                excess = "select id from samples where model = ? order by random() limit max(0, ?)"
                gone += old + connection.execute(f"delete from samples where id in ({excess})", (model, n - old - self.most)).rowcount
                connection.execute("update reservoirs set seen = seen * ? / ? where model = ?", (n - old, n, model))
        return gone

    def _state(self, model: str) -> tuple[int, int]:
        """Rows that were offered, and that are kept."""
        seen = self._database.rows("select seen from reservoirs where model = ?", model)
        (n,) = self._database.rows("select count(*) from samples where model = ?", model)[0]
        return max(seen[0]["seen"] if seen else 0, n), n


def packed(inputs: Mapping[str, Array]) -> bytes:
    """Arrays as the bytes of an .npz file; names of inputs may be anything, so that they stand in an array of their own."""
    stream = io.BytesIO()
    arrays: dict[str, Any] = {f"input{index}": np.asarray(array) for index, array in enumerate(inputs.values())}
    np.savez_compressed(stream, names=np.array(json.dumps(list(inputs))), **arrays)
    return stream.getvalue()


def unpacked(body: bytes) -> Feeds:
    """What `packed` took; pickled objects are refused."""
    with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
        return {name: arrays[f"input{index}"] for index, name in enumerate(json.loads(str(arrays["names"])))}
