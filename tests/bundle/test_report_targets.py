"""The report's matrix of targets: every state a target can be in, and nothing that was not shown."""

from __future__ import annotations

import math
from typing import Any

import pytest
from bundle_examples import delta, ship
from page_outline import EVIL, Outline

from lowbit.bundle.report import render_report
from lowbit.bundle.schema import DeltaEntry, FindingEntry, KernelsEntry, LatencyEntry, Manifest, MetricEntry, RatioEntry, TargetEntry


def kernels(name: str = "xnnpack", **more: Any) -> KernelsEntry:
    known: dict[str, Any] = {
        "kernels": name,
        "samples": 500,
        "drawn": False,
        "agreement": 0.994,
        "agreement_low": 0.983,
        "agreement_high": 0.998,
        "agreement_with_ties": 0.994,
        "cosine": 0.9991,
        "identical": 0.941,
        "largest_step": 2,
        "metric": MetricEntry(name="top1", value=0.798, n=500),
        "delta": DeltaEntry.model_validate(delta(0.004, 0.006, 500)),
        "verdict": "ship",
    }
    return KernelsEntry(**{**known, **more})


def target(**more: Any) -> TargetEntry:
    known: dict[str, Any] = {
        "target": "litert",
        "title": "LiteRT",
        "version": "2.3.0",
        "level": "run",
        "words": "run here on xnnpack",
        "candidate": "int8@onnxruntime",
        "artifact": "model.tflite",
        "size_bytes": 330_000,
        "kernels": (kernels(),),
    }
    return TargetEntry(**{**known, **more})


def page(*targets: TargetEntry) -> Outline:
    manifest: Manifest = ship().model_copy(update={"targets": targets})
    return Outline(render_report(manifest))


def section(outline: Outline) -> str:
    return outline.text.partition("Other targets")[2].partition("Turned down")[0]


def test_without_targets_there_is_no_section() -> None:
    assert "Other targets" not in page().headings


def test_a_row_has_all_that_was_measured() -> None:
    found = section(page(target(facts={"arena_bytes": 49_152})))
    for part in (
        "LiteRT",
        "xnnpack",
        "run",
        "99.4 %",
        "500 samples",
        "94.1 % of levels, off by at most 2",
        "79.8",
        "ship",
        "330 kB",
        "49.2 kB",
    ):
        assert part in found, part


def test_what_the_reference_answers_is_told_where_levels_differ() -> None:
    assert "94.1 % of levels, off by at most 2; same class 99.2 %" in section(page(target(kernels=(kernels(agreement_exact=0.992),))))
    floats = kernels(identical=math.nan, largest_step=None, agreement_exact=0.985)
    assert "same class 98.5 %" in section(page(target(kernels=(floats,))))
    exact = kernels(identical=1.0, largest_step=0, agreement_exact=1.0)
    assert "same class" not in section(page(target(kernels=(exact,))))


def test_ties_are_told_where_they_matter() -> None:
    assert "with ties" not in section(page(target()))
    assert "99.4 % (99.9 % with ties)" in section(page(target(kernels=(kernels(agreement_with_ties=0.999),))))


def test_each_kernel_set_has_its_row() -> None:
    found = section(page(target(kernels=(kernels(), kernels("tflite-micro", agreement=1.0, identical=1.0, largest_step=0)))))
    assert found.index("xnnpack") < found.index("tflite-micro")
    assert "100" in found
    assert "off by at most 0" not in found


def test_slower_than_full_precision_is_said() -> None:
    def timed(low: float, value: float, high: float) -> str:
        latency = LatencyEntry(p50=10.3, p95=11, p99=12, ci_low=10.1, ci_high=10.5)
        speedup = RatioEntry(value=value, ci_low=low, ci_high=high)
        return section(page(target(kernels=(kernels(latency_ms=latency, speedup=speedup),))))

    assert "slower than full precision" in timed(0.19, 0.20, 0.21)
    assert "slower than full precision" not in timed(0.95, 0.99, 1.02)
    assert "10.3 ms" in timed(2.0, 2.1, 2.2)


def test_made_up_samples_are_called_that() -> None:
    found = section(page(target(kernels=(kernels(drawn=True, metric=None, delta=None, verdict=None),))))
    assert "500 random draws" in found
    assert "ship" not in found


def test_what_was_not_run_says_how_far_it_was_tried() -> None:
    checked = target(title="Edge TPU", level="checked", words="meets documented conditions; not compiled", kernels=())
    found = section(page(checked))
    assert "checked" in found
    assert "meets documented conditions; not compiled" in found


def test_what_could_not_be_written_says_why() -> None:
    refused = target(title="Core ML", artifact=None, size_bytes=None, kernels=(), refused="No operator 'Erf' there.")
    found = section(page(refused))
    assert "Not written: No operator 'Erf' there." in found
    assert "run" not in found.partition("Core ML")[2].partition("Not written")[0], "it was not tried at all"


def test_what_could_not_be_run_says_why() -> None:
    failed = kernels(
        agreement=math.nan,
        agreement_low=math.nan,
        agreement_high=math.nan,
        agreement_with_ties=math.nan,
        cosine=math.nan,
        samples=0,
        error="It crashed.",
    )
    assert "Could not be run: It crashed." in section(page(target(kernels=(failed,))))


@pytest.mark.parametrize("field", ["title", "words", "refused"])
def test_words_are_escaped(field: str) -> None:
    assert "script" not in page(target(**{field: EVIL})).tags


def test_broken_rules_are_told() -> None:
    finding = FindingEntry(rule="zero points are 0", severity="error", text="Tensor 'c3' has zero point 12.")
    note = FindingEntry(rule="memory", severity="note", text="The peak is at 'stem'.")
    found = section(page(target(findings=(finding, note))))
    assert "Tensor 'c3' has zero point 12." in found
    assert "The peak is at" not in found
