"""Tables of models through targets, from benchmarks/results/targets.json: a page of their own, and the tables in guides between marks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from lowbit.bundle import report_targets, words
from lowbit.bundle.schema import KernelsEntry, TargetEntry

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "targets.json"
MARKS = re.compile(r"<!-- measured: (?P<name>[\w-]+) -->\n.*?<!-- end -->\n", re.DOTALL)

NAMES = {
    "demo": "demo (Fashion-MNIST)",
    "resnet20": "ResNet-20 (CIFAR-10)",
    "squeezenet": "SqueezeNet 1.1 (ImageNet)",
    "mcunet": "MCUNet 320 KB (ImageNet)",
    "sst2": "MiniLM-L6 with a head (SST-2), 64 tokens",
}
VISION = ("demo", "resnet20", "squeezenet", "mcunet")
RECALIBRATED = (("sst2", "litert"), ("sst2", "litert-static"), ("resnet20", "litert-static"), ("resnet20", "litert-dynamic"))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def measured() -> dict[str, dict[str, TargetEntry]]:
    """Model -> row -> what was found; empty where nothing was measured."""
    models = json.loads(RESULTS.read_text(encoding="utf-8"))["models"] if RESULTS.exists() else {}
    return {model: {row: TargetEntry.model_validate(told) for row, told in found.items()} for model, found in models.items()}


def guide(path: Path) -> str:
    """A guide with its tables as they were last measured."""

    def written(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- measured: {name} -->\n{BLOCKS[name]()}<!-- end -->\n"

    return MARKS.sub(written, path.read_text(encoding="utf-8"))


def matrix() -> str:
    """What works where at a glance: one row a target and kernel set, one column a model."""
    models = measured()
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for model, found in models.items():
        for told in found.values():
            for each in told.kernels:
                cells.setdefault((told.title, each.kernels), {})[model] = glance(each)
    refused = {(told.title, model) for model, found in models.items() for told in found.values() if told.refused is not None}
    rows = [
        (f"{title}, {kernels}", *(told.get(model, "refused" if (title, model) in refused else "") for model in models))
        for (title, kernels), told in cells.items()
    ]
    return table(["target", *models], rows)


def glance(each: KernelsEntry) -> str:
    """The same class as the bundle's artifact, or the cosine to it; and the gate's verdict."""
    if each.error is not None:
        return "not run"
    same = report_targets.same_class(each)
    return f"{same}, {each.verdict}" if each.verdict else same


def page() -> str:
    """Everything that was measured: one row a model, target and kernel set."""
    rows = [row for model, found in measured().items() for told in found.values() for row in matrix_rows(model, told)]
    heads = ["model", "target", "tried", "same class", "against its reference", "metric", "gate", "size", "memory", "latency"]
    lead = (
        "# Models through targets\n\nMeasured by `python benchmarks/targets.py`, from whose results this page is written; the words are\n"
        "explained in the [guide](../guides/targets.md). Samples differ where an emulator takes long; latency is of a call on\n"
        "all cores, beside full precision.\n\n"
    )
    return lead + table(heads, rows)


def latency(each: KernelsEntry) -> str:
    """Of a call, and over full precision in the same run; empty where it was not timed."""
    if each.latency_ms is None or each.speedup is None:
        return ""
    slower = ", slower" if each.speedup.ci_high < 1 else ""
    return f"{words.milliseconds(each.latency_ms.p50)} ({words.times(each.speedup.value)}{slower})"


def matrix_rows(model: str, told: TargetEntry) -> list[tuple[str, ...]]:
    if told.refused is not None:
        return [(model, told.title, "not written", told.refused.split("\n")[0].replace("|", "\\|"), *[""] * 6)]
    size, memory = report_targets.artifact_size(told), report_targets.working_memory(told)
    if not told.kernels:
        return [(model, told.title, told.level, *[""] * 4, size, memory, "")]
    rows = []
    for each in told.kernels:
        if each.error is not None:
            rows.append((model, f"{told.title}, {each.kernels}", "not run", each.error.split("\n")[0].replace("|", "\\|"), *[""] * 6))
            continue
        same = f"{report_targets.same_class(each)} of {each.samples:,}"
        value = words.metric_value(each.metric.name, each.metric.value) if each.metric else ""
        exact = report_targets.identical(each).replace(words.NONE, "")
        judged = (value, each.verdict or "")
        rows.append((model, f"{told.title}, {each.kernels}", told.level, same, exact, *judged, size, memory, latency(each)))
    return rows


def litert() -> str:
    """The table's own file on LiteRT's kernels."""
    heads = ["model", "samples", *("`xnnpack`", "`built-in`", "`reference`", "`tflite-micro`"), "identical on `tflite-micro`", "arena"]
    rows = []
    for model, told in rows_of(VISION, "litert"):
        by = {each.kernels: each for each in told.kernels}
        same = [report_targets.same_class(by[name]) for name in ("xnnpack", "built-in", "reference", "tflite-micro")]
        micro = by["tflite-micro"]
        rows.append([model, str(micro.samples), *same, words.share(micro.identical), f"{told.facts['arena_bytes']:,} B"])
    return table(heads, rows)


def recalibrated() -> str:
    """LiteRT's files with scales of their own, and beside them ResNet-20 by the bundle's table."""
    heads = ["model", "recipe", "samples", "same class, `xnnpack` / `built-in`", "metric (change)", "verdict", "file", "latency, `xnnpack`"]
    found = measured()
    rows = []
    for model, row in (*RECALIBRATED, ("resnet20", "litert")):
        told = found.get(model, {}).get(row)
        if told is None or not told.kernels:
            continue
        fast, own = told.kernels[:2]
        assert fast.metric is not None, "there were data"
        assert fast.delta is not None, "likewise"
        recipe = str(told.facts.get("recipe", "the bundle's table"))
        same = f"{words.share(fast.agreement)} / {words.share(own.agreement)}"
        metric = f"{words.metric_value(fast.metric.name, fast.metric.value)} ({words.change(fast.delta)})"
        judged = [same, metric, fast.verdict or ""]
        rows.append([NAMES[model], recipe, f"{fast.samples:,}", *judged, words.size(told.size_bytes), latency(fast)])
    return table(heads, rows)


def optimum() -> str:
    """Optimum's folders, by its classes and by the runtimes below."""
    sets = ("optimum", "onnxruntime", "optimum-intel", "openvino")
    heads = ["model", "samples", *(f"`{name}`" for name in sets), "metric: onnxruntime, OpenVINO"]
    rows = []
    for model, told in rows_of((*VISION, "sst2"), "optimum"):
        by = {each.kernels: each for each in told.kernels if each.error is None}
        values = [words.metric_value(by[name].metric.name, by[name].metric.value) for name in sets[1::2] if name in by and by[name].metric]
        same = [words.share(by[name].agreement) if name in by else words.NONE for name in sets]
        rows.append([model, str(next(iter(by.values())).samples), *same, ", ".join(values)])
    return table(heads, rows)


def qnn() -> str:
    """The emulated HTP against the written file and against the bundle, with both widths of activations."""
    heads = ["model", "8 bit: its file", "the bundle", "16-bit activations: its file", "the bundle", "images"]
    wide = dict(rows_of(VISION, "qnn-16"))
    rows = []
    for model, told in rows_of(VISION, "qnn"):
        pair = [(words.share(each.kernels[0].agreement_exact), report_targets.same_class(each.kernels[0])) for each in (told, wide[model])]
        rows.append([model, *pair[0], *pair[1], str(told.kernels[0].samples)])
    return table(heads, rows)


def executorch() -> str:
    """Same class and how much XNNPACK takes."""
    heads = ["model", "samples", "same class", "verdict", "parts for XNNPACK", "operators left to portable kernels"]
    rows = []
    for model, told in rows_of(VISION, "executorch"):
        each, facts = told.kernels[0], told.facts
        parts = [str(facts["delegates"]), str(facts["operators_left"])]
        rows.append([model, str(each.samples), report_targets.same_class(each), each.verdict or "", *parts])
    return table(heads, rows)


def rows_of(models: Sequence[str], row: str) -> list[tuple[str, TargetEntry]]:
    """Full name -> what was found, of those that were written and asked."""
    found = measured()
    return [(NAMES[model], found[model][row]) for model in models if row in found.get(model, {}) and found[model][row].kernels]


BLOCKS: Mapping[str, Callable[[], str]] = {
    "matrix": matrix,
    "litert": litert,
    "recalibrated": recalibrated,
    "optimum": optimum,
    "qnn": qnn,
    "executorch": executorch,
}
GUIDES = ("targets.md", *(f"targets/{name}.md" for name in ("litert", "optimum", "qnn", "executorch")))
