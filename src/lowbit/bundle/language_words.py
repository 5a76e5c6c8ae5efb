"""Numbers and sentences about language models, shared by the report, the card and the terminal. Perplexity is written as its rise."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from lowbit.bundle import words
from lowbit.bundle.schema import CandidateEntry, DeltaEntry, LanguageCandidateEntry, LanguageEntry, Manifest, RatioEntry, SpeedEntry
from lowbit.types import Budget

SOURCE, SOURCE_32 = "16 bit", "float32"
"""A source's own precision, as a candidate's `precision` says it: every engine's format keeps what the source stores."""
WIDE_BITS = 8
"""From so many bits on the budget of INT8 holds."""

_ACTIONS = {
    "ship": "Ship it",
    "provisional": "Ship it behind a canary",
    "recover": "Not yet: over the budget",
}


def is_source(precision: str) -> bool:
    """Whether weights are as the source has them."""
    return precision in (SOURCE, SOURCE_32)


def as_adjective(precision: str) -> str:
    """
    >>> as_adjective("16 bit"), as_adjective("float32")
    ('16-bit', 'float32')
    """
    return precision.replace(" bit", "-bit")


def perplexity(manifest: Manifest, entry: CandidateEntry) -> float | None:
    """On the text of the search, as everybody has it: what finalists have on unseen text cannot stand beside it."""
    own = manifest.language.candidates.get(entry.id) if manifest.language else None
    return own.perplexity if own else None


def rise(delta: DeltaEntry | None) -> str:
    """How much perplexity rose: "+0.41 %"; minus where it fell."""
    return words.NONE if delta is None or not math.isfinite(delta.value) else f"{words.signed(delta.value)} %"


def rise_interval(delta: DeltaEntry) -> str:
    """ "[+0.10, +0.72]"."""
    return f"[{words.signed(delta.ci_low)}, {words.signed(delta.ci_high)}]"


def speed_of(manifest: Manifest, ident: str) -> SpeedEntry | None:
    """How fast a candidate is on the workload; None where it was not timed."""
    language = manifest.language
    entry = language.candidates.get(ident) if language else None
    return entry.speed if entry else None


def best_source(manifest: Manifest) -> CandidateEntry:
    """The version in the source's precision that answers a request soonest; the baseline where none was timed."""
    pool = [entry for entry in (manifest.baseline, *manifest.candidates) if is_source(entry.precision) and entry.status == "done"]

    def seconds(entry: CandidateEntry) -> tuple[float, str]:
        speed = speed_of(manifest, entry.id)
        return (speed.total_s.value if speed else math.inf), entry.id

    return min(pool, key=seconds, default=manifest.baseline)


def rate(value: RatioEntry | None) -> str:
    """Tokens a second."""
    return words.NONE if value is None else words.digits(value.value)


def budget(language: LanguageEntry, precision: str) -> float:
    """Allowed rise of perplexity for weights of that precision, as a fraction."""
    digits = re.search(r"\d+", precision)  # the first: "Q4_0" has 4 bits
    wide = digits is None or int(digits[0]) >= WIDE_BITS
    return Budget.parse(language.budgets["int8" if wide else "int4"]).value


def headline(manifest: Manifest) -> words.Headline:
    """One sentence with what matters: speed of a request, size, perplexity."""
    chosen, source = manifest.chosen, best_source(manifest)
    name = f"{chosen.recipe} on {chosen.runtime}"
    parts = []
    ours, theirs = speed_of(manifest, chosen.id), speed_of(manifest, source.id)
    if ours and theirs and chosen.id != source.id:
        times = words.times(theirs.total_s.value / ours.total_s.value)
        parts.append(f"answers a request {times} as fast as the best {as_adjective(source.precision)} version")
    ratio = words.smaller(manifest, chosen)
    if ratio and abs(ratio - 1) > 0.02:
        parts.append(f"is {words.times(ratio)} smaller" if ratio > 1 else f"is {words.times(1 / ratio)} larger")
    text = f"{name} {' and '.join(parts) or 'is what to run'}"
    if chosen.delta and math.isfinite(chosen.delta.value) and chosen.id != manifest.baseline.id:
        text += f"; perplexity changes by {rise(chosen.delta)} {rise_interval(chosen.delta)}"
    if manifest.decision.verdict == "recover":
        text = f"Until then, {text}"
    action = f"Keep {source.precision}" if manifest.decision.verdict == "keep" else _ACTIONS[manifest.decision.verdict]
    return words.Headline(action, text + ".")


def tuning(entry: LanguageCandidateEntry) -> str:
    """What is not an engine's plain way: "cache int8, activations in groups of 32, bf16"."""
    asked = entry.tuning
    parts = [f"cache {asked.kv}"]
    if asked.activations is not None:
        parts.append("activations not quantized" if asked.activations == 0 else f"activations in groups of {asked.activations}")
    if asked.threads:
        parts.append(f"{asked.threads} threads")
    if asked.precision != "f32":
        parts.append(f"the rest in {asked.precision}")
    return ", ".join(parts)


def workload(text: str) -> str:
    """ "prompt=512,output=128,concurrency=1" -> "prompts of 512 tokens, answers of 128, one at a time"; a log's name stays."""
    parts: Mapping[str, str] = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    if "prompt" not in parts or "output" not in parts:
        return text
    at_once = parts.get("concurrency", "1")
    many = "one at a time" if at_once == "1" else f"{at_once} at once"
    return f"prompts of {parts['prompt']} tokens, answers of {parts['output']}, {many}"
