"""Times all artifacts of a subject against each other: every variant alone in its process, in interleaved rounds.

At each shape the race has the source model on every lane and one artifact of every producer on every lane.
OpenVINO gets files whose inputs have exactly the timed shape; onnxruntime, whose FP32 model is the baseline, the
artifact as it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.measure import ratios
from lowbit.measure.race import FINAL, QUICK, RaceResult, Variant, measurement, race
from panel import lanes, paths
from panel.subject import Feeds, Subject

Entry = dict[str, Any]


def times(
    subject: Subject, producers: Sequence[str], ours: Sequence[str], sound: Collection[str], quick: bool
) -> dict[str, dict[str, Entry]]:
    """Shape -> variant -> latency and ratios, or the error.

    Args:
        subject: Whose artifacts.
        producers: Names, "fp32" among them; each has an artifact on the first split.
        ours: Those among them that are ours.
        sound: Variants that still compute about the same as FP32: being faster than the others does not count.
        quick: Few short rounds, for seeing that all works.
    """
    effort = QUICK if quick else FINAL
    found = {}
    for shape, feeds in subject.timed().items():
        with tempfile.TemporaryDirectory(dir=paths.BUILD) as folder:
            variants = [_variant(subject, name, lane, feeds, Path(folder)) for name in producers for lane in lanes.ALL.values()]
            batch = len(next(iter(feeds.values())))
            results = race(variants, feeds, batch=batch, rounds=effort["rounds"], seconds_per_round=effort["seconds_per_round"])
        found[shape] = statements(results, ours, sound)
    return found


def statements(results: Mapping[str, RaceResult], ours: Sequence[str], sound: Collection[str]) -> dict[str, Entry]:
    """For each variant: latency, speedup over the baseline, and its time over that of the fastest sound one that is not ours."""
    baseline = results[lanes.BASELINE]
    others = {word: result for word, result in results.items() if result.usable and word in sound and producer_of(word) not in ours}
    peers = {word: result for word, result in others.items() if producer_of(word) != "fp32"}
    quickest = {"fastest_peer": _fastest(peers), "fastest_other": _fastest(others)}
    found: dict[str, Entry] = {}
    for word, result in results.items():
        if not result.usable:
            found[word] = {"error": result.error or "It did not finish a round."}
            continue
        measured = measurement(result, baseline)
        entry: Entry = {
            "latency_ms": vars(measured.latency_ms),
            "speedup": vars(measured.speedup) if measured.speedup else None,
            "noisy": measured.noisy,
            "precision": result.precision,
            "peak_bytes": result.peak_memory_bytes,
            "round_ms": [round(float(ms) * 1e3, 5) for ms in ratios.medians(result.rounds)],
        }
        for name, rival in quickest.items():
            if rival is not None and (over := ratios.speedup(result.rounds, results[rival].rounds)) is not None:
                # Our time over theirs: below 1 is faster than they are.
                entry[f"time_over_{name}"] = {"rival": rival, **vars(over)}
        found[word] = entry
    return found


def producer_of(word: str) -> str:
    return word.partition("@")[0]


def _fastest(results: Mapping[str, RaceResult]) -> str | None:
    return min(results, key=lambda word: float(np.median(ratios.medians(results[word].rounds))), default=None)


def _variant(subject: Subject, producer: str, lane: lanes.Lane, feeds: Feeds, folder: Path) -> Variant:
    path = paths.artifact(subject.name, producer, 0) / "model.onnx"
    if lane.fixed:
        path = with_shapes(path, feeds, folder / f"{producer}.onnx")
    return Variant(lanes.variant(producer, lane.name), lane.runtime, path, lane.tuning)


def with_shapes(model: Path, feeds: Feeds, out: Path) -> Path:
    """A copy whose inputs have exactly the shapes of the feeds; what was inferred from free axes is taken off."""
    import onnx

    if out.exists():
        return out
    proto = onnx.load(model)
    for info in proto.graph.input:
        if info.name in feeds:
            del info.type.tensor_type.shape.dim[:]
            for size in feeds[info.name].shape:
                info.type.tensor_type.shape.dim.add().dim_value = size
    del proto.graph.value_info[:]
    for info in proto.graph.output:
        info.type.tensor_type.ClearField("shape")
    onnx.save(proto, out)
    return out
