"""A listing of chosen samples: which rows of which data, and what they must contain. `--calibration` takes it like data.

    {"lowbit_selection": 1, "pool": "train", "target": null, "of": 5000, "method": "mixed", "seed": 0,
     "samples": [{"row": 12, "hash": "0a1b2c3d4e5f6071", "name": "cat/0012.png"}, ...]}

`pool` is relative to the listing's own folder, so the two can be moved together. Opening a listing reads the
listed samples alone, and their content hashes must be those of the listing.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lowbit.data.custom import is_custom
from lowbit.data.dataset import Dataset
from lowbit.data.fit import some
from lowbit.errors import DataError, UsageError
from lowbit.types import Array

SCHEMA = 1
_MARK = "lowbit_selection"


@dataclass(frozen=True)
class Sample:
    """One chosen sample: its row in the pool, its content hash in hex, and what a person finds it by."""

    row: int
    hash: str
    name: str


@dataclass(frozen=True)
class Listing:
    """Chosen samples.

    Attributes:
        pool: Path relative to the listing's folder, or `module:callable`.
        target: The label's column, where one was named.
        of: Samples they were chosen from.
        method: How; see `lowbit.data.selection`.
        seed: Of everything random.
        samples: In the order of the pool.
    """

    pool: str
    target: str | None
    of: int
    method: str
    seed: int
    samples: tuple[Sample, ...]

    @property
    def rows(self) -> Array:
        """int64 [n]."""
        return np.array([sample.row for sample in self.samples], np.int64)

    @property
    def hashes(self) -> Array:
        """uint64 [n]."""
        return np.array([int(sample.hash, 16) for sample in self.samples], np.uint64)

    def pool_beside(self, path: Path) -> str | Path:
        """Where the pool is when the listing lies at `path`."""
        return self.pool if is_custom(self.pool) else path.parent / self.pool

    def save(self, path: Path) -> None:
        """Writes the listing; `path` appears whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps({_MARK: SCHEMA, **asdict(self)}, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Listing:
        """Reads what `save` wrote.

        Raises:
            DataError: it cannot be read, or is no listing.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw.pop(_MARK) != SCHEMA:
                raise DataError(f"'{path.name}' is a listing of another version; this one reads schema {SCHEMA}.", "Select again.")
            found = cls(**{**raw, "samples": tuple(Sample(**entry) for entry in raw["samples"])})
            if not isinstance(found.pool, str) or len(found.rows) != len(found.hashes) or (found.rows < 0).any():
                raise ValueError
        except OSError as error:
            raise DataError(f"'{path.name}' cannot be read: {error.strerror or error}.") from error
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise DataError(
                f"'{path.name}' is not a listing of samples.", "`lowbit calibrate select` writes one; data itself is no .json."
            ) from error
        return found


def is_listing(path: Path) -> bool:
    """Whether a file is a listing, by its first bytes: other data may come as .json, and be large."""
    try:
        if path.suffix.lower() != ".json" or not path.is_file():
            return False
        with path.open("rb") as file:
            return f'"{_MARK}"'.encode() in file.read(64)
    except OSError:  # whoever opens it as data says why
        return False


def listing_of(data: Dataset, pool: str | Path, path: Path, *, target: str | None, of: int, method: str, seed: int) -> Listing:
    """The listing of a data set's samples, to be saved at `path`. Of a pool that is a listing itself, its own pool is named."""
    if is_listing(Path(pool)):
        pool = Listing.load(Path(pool)).pool_beside(Path(pool))
    place = str(pool)
    if not is_custom(place) or Path(place).exists():
        place = Path(os.path.relpath(Path(pool).resolve(), path.resolve().parent)).as_posix()
    order = np.argsort(data.rows, kind="stable")
    samples = tuple(Sample(int(data.rows[i]), f"{int(data.hashes[i]):016x}", data.sample_name(int(i))) for i in order)
    return Listing(place, target, of, method, seed, samples)


def check_place(path: Path) -> None:
    """Refuses a place where a listing would overwrite something else.

    Raises:
        UsageError: there is a folder, or a file that is no listing.
    """
    if path.suffix.lower() != ".json":
        raise UsageError(f"'{path.name}' does not end in .json, by which a listing is known.", "Give e.g. --out selection.json.")
    if path.is_dir():
        raise UsageError(f"'{path}' is a folder.", "Give a file, e.g. --out selection.json.")
    if path.is_file() and not is_listing(path):
        raise UsageError(f"'{path}' exists and is no listing of samples.", "Give another --out.")


def check_unchanged(listing: Listing, wanted: Array, rows: Array, hashes: Array, name: str) -> None:
    """Refuses a pool whose samples are no longer those that were chosen.

    Args:
        listing: What was chosen.
        wanted: Rows of it that were asked for, int64 [n].
        rows: Rows that could be read, int64 [m].
        hashes: Their content now, uint64 [m].
        name: Of the pool.

    Raises:
        DataError: one is missing or another.
    """
    now = dict(zip(rows.tolist(), hashes.tolist(), strict=True))
    asked = set(wanted.tolist())
    moved = [sample.name for sample in listing.samples if sample.row in asked and now.get(sample.row) != int(sample.hash, 16)]
    if moved:
        raise DataError(
            f"{len(moved)} of {len(asked)} listed samples of '{name}' are no longer what they were: {some(moved)}.",
            "The pool changed since it was selected from: select again.",
        )
