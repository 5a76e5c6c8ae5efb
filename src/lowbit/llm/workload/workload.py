"""What the model will be asked: how long prompts and answers are, and how many requests at once.

    prompt=512,output=128,concurrency=1      one shape of request
    requests.jsonl                           a log of requests, one a line, summed up as a few shapes with weights

A line of a log has its two counts of tokens in one of these places:

    {"prompt": 812, "output": 64}            {"prompt_tokens": 812, "completion_tokens": 64}        {"usage": {...}}
    {"response": {"usage": {...}}}           {"response": {"body": {"usage": {...}}}}

The names are OpenAI's; input_tokens and output_tokens are known as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import DataError, UsageError
from lowbit.strict import check_keys
from lowbit.types import Array

EXAMPLE = "Write e.g. prompt=512,output=128,concurrency=1."
CELLS = 3
"""Parts that prompts, and within them answers, are cut in: at most nine shapes stand for a log."""
PLACES = ((), ("usage",), ("response", "usage"), ("response", "body", "usage"), ("body", "usage"))
PROMPT = ("prompt_tokens", "input_tokens", "prompt", "n_prompt")
OUTPUT = ("completion_tokens", "output_tokens", "output", "completion", "n_output")


@dataclass(frozen=True)
class Shape:
    """Requests of one kind.

    Attributes:
        prompt: Tokens that are read.
        output: Tokens that are written.
        weight: Share of all requests, 0-1.
    """

    prompt: int
    output: int
    weight: float = 1.0


@dataclass(frozen=True)
class Workload:
    """What candidates are measured with.

    Attributes:
        shapes: Kinds of requests; weights add up to 1.
        concurrency: Requests in flight at once.
        requests: Of the log; None where it was stated.
    """

    shapes: tuple[Shape, ...]
    concurrency: int = 1
    requests: int | None = None

    def __post_init__(self) -> None:
        assert self.shapes, "a workload has requests"
        assert abs(sum(shape.weight for shape in self.shapes) - 1) < 1e-6, self.shapes

    @classmethod
    def parse(cls, text: str) -> Workload:
        """Reads "prompt=512,output=128,concurrency=1"; concurrency may be left out.

        Raises:
            UsageError: not of that form, a key that is not known or comes twice, or a number below 1.
        """
        values: dict[str, int] = {}
        for part in text.split(","):
            key, equals, number = (each.strip() for each in part.partition("="))
            if not equals:
                raise UsageError(f"Workload '{text}' is not understood: '{part.strip()}' has no value.", EXAMPLE)
            check_keys("key of a workload", {key: number}, ("prompt", "output", "concurrency"))
            if key in values:
                raise UsageError(f"Workload '{text}' says {key} twice.", EXAMPLE)
            if not (number.isascii() and number.isdigit()) or int(number) < 1:
                raise UsageError(f"Workload '{text}': {key} is a whole number from 1 on, found '{number}'.", EXAMPLE)
            values[key] = int(number)
        if missing := [key for key in ("prompt", "output") if key not in values]:
            raise UsageError(f"Workload '{text}' lacks {' and '.join(missing)}.", EXAMPLE)
        return cls((Shape(values["prompt"], values["output"]),), values.get("concurrency", 1))

    @classmethod
    def from_log(cls, path: Path, *, concurrency: int = 1) -> Workload:
        """Sums up a log: a third of the requests by prompt, and each third by output, becomes a shape with its mean lengths.

        The means, and so all tokens read and written, stay the log's; what is lost is how lengths vary within a shape.

        Args:
            path: JSONL.
            concurrency: Requests in flight at once; the log's counts do not tell.

        Raises:
            DataError: the file cannot be read, or no line has counts.
        """
        counts = _read_counts(path)
        return cls(_shapes(counts), concurrency, len(counts))

    @classmethod
    def of(cls, text: str) -> Workload:
        """Reads either: the name of a file is a log, anything with "=" is a workload.

        Raises:
            UsageError: neither.
            DataError: as `from_log`.
        """
        if "=" in text:
            return cls.parse(text)
        if not Path(text).is_file():
            raise UsageError(f"Workload '{text}' is neither a log of requests nor of the form prompt=512,output=128.", EXAMPLE)
        return cls.from_log(Path(text))

    @property
    def context(self) -> int:
        """Tokens that the longest request has, prompt and answer together."""
        return max(shape.prompt + shape.output for shape in self.shapes)

    @property
    def prompt(self) -> float:
        """Mean tokens of a prompt."""
        return sum(shape.weight * shape.prompt for shape in self.shapes)

    @property
    def output(self) -> float:
        """Mean tokens of an answer."""
        return sum(shape.weight * shape.output for shape in self.shapes)

    def __str__(self) -> str:
        if len(self.shapes) == 1:
            return f"prompt={self.shapes[0].prompt},output={self.shapes[0].output},concurrency={self.concurrency}"
        told = f"{self.requests:,} requests" if self.requests else "requests"
        return f"{told} of {len(self.shapes)} shapes, mean prompt={self.prompt:.0f},output={self.output:.0f},concurrency={self.concurrency}"


def _read_counts(path: Path) -> Array:
    """Prompt and output tokens of each request, int64 [n, 2]."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise DataError(f"The log {path.name} cannot be read: {error}.", "Give a .jsonl file of requests.") from error
    found, skipped = [], 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            pair = _counts(json.loads(line))
        except ValueError as error:
            raise DataError(f"The log {path.name}, line {number}, is no JSON: {error}.", "Give one JSON object a line.") from error
        if pair is None:
            skipped += 1  # a failed request has no usage
        else:
            found.append(pair)
    if not found:
        why = f"none of its {skipped:,} lines has prompt_tokens and completion_tokens" if skipped else "it is empty"
        raise DataError(f"The log {path.name} cannot be used: {why}.", 'Write e.g. {"prompt": 812, "output": 64} a line.')
    return np.array(found, np.int64)


def _counts(row: object) -> tuple[int, int] | None:
    for place in PLACES:
        inner: Any = row
        for key in place:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping) and (prompt := _first(inner, PROMPT)) and (output := _first(inner, OUTPUT)):
            return prompt, output
    return None


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The first that is a number of tokens, at least one."""
    found = (values.get(name) for name in names)
    return next((each for each in found if isinstance(each, int) and not isinstance(each, bool) and each >= 1), None)


def _shapes(counts: Array) -> tuple[Shape, ...]:
    """Mean lengths of thirds of thirds, equal ones merged."""
    merged: dict[tuple[int, int], float] = {}
    by_prompt = counts[np.lexsort((counts[:, 1], counts[:, 0]))]
    for third in np.array_split(by_prompt, min(CELLS, len(counts))):
        by_output = third[np.argsort(third[:, 1], kind="stable")]
        for cell in np.array_split(by_output, min(CELLS, len(third))):
            prompt, output = (max(1, math.floor(mean + 0.5)) for mean in cell.mean(axis=0))
            merged[prompt, output] = merged.get((prompt, output), 0.0) + len(cell) / len(counts)
    return tuple(Shape(prompt, output, weight) for (prompt, output), weight in sorted(merged.items()))
