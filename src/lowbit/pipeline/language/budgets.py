"""How much perplexity may rise, by how many bits the weights have. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lowbit.bundle.language_words import SOURCE, SOURCE_32
from lowbit.types import Budget

DEFAULTS: Mapping[str, Budget] = {"int8": Budget(0.02, relative=True), "int4": Budget(0.08, relative=True)}
"""What is usual: INT8 is expected to be nearly free, INT4 to pay a little for half of that size."""


def bits_of(precision: str) -> int:
    """Bits of the weights that a candidate's precision says.

    >>> bits_of("int4"), bits_of("Q4_K_M"), bits_of("16 bit"), bits_of("mixed-4.5")
    (4, 4, 16, 4)
    """
    match = re.search(r"\d+", precision)
    return int(match[0]) if match else 16


def source_precision(dtype: str) -> str:
    """The source's own precision in words, as `Candidate.precision` says it of language models.

    Args:
        dtype: Of the source's weights, in numpy's words.

    >>> source_precision("bfloat16"), source_precision("float32")
    ('16 bit', 'float32')
    """
    return SOURCE_32 if dtype == "float32" else SOURCE


def budget_of(precision: str, asked: Budget | None) -> Budget:
    """What the user asked for, else the usual one: that of INT8 from 8 bits on, that of INT4 below."""
    if asked is not None:
        return asked
    return DEFAULTS["int8" if bits_of(precision) >= 8 else "int4"]
