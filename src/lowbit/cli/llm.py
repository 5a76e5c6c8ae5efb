"""`lowbit llm ...`: the stages of a language model's search, one by one."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lowbit.cli.options import output

FOLDER = click.Path(path_type=Path)


@click.group("llm", short_help="The stages for language models one by one: quantize, write, perplexity, bench.")
def command() -> None:
    """The stages of `lowbit optimize` for language models, one by one.

    \b
    lowbit llm quantize llama/ --recipe int4-gptq --calibration texts/ --out int4/
    lowbit llm write int4/ --to gguf --out int4-gguf/
    lowbit llm perplexity int4-gguf/model.gguf --model llama/ --data held-back/
    lowbit llm bench int4-gguf/model.gguf llama/ --workload prompt=512,output=128
    """


@command.command("recipes", short_help="List the recipes that a model's sizes allow.")
@click.argument("model", type=FOLDER)
@output
def recipes(model: Path, form: str) -> None:
    """List the recipes that the sizes of MODEL (a Hugging Face folder) allow, and which of them are tried by default."""
    from lowbit.llm.folder import SourceFolder
    from lowbit.pipeline.language.recipes import DEFAULT, catalogue

    source = SourceFolder.open(model)
    found = catalogue(source.decoder)
    if form == "json":
        click.echo(json.dumps({name: asdict(recipe) for name, recipe in found.items()}, indent=1))
        return
    for name, recipe in found.items():
        grid = recipe.grid
        shared = f"groups of {grid.group}" if grid and grid.group else "a scale a row"
        what = f"the model's own weights ({source.dtype})" if grid is None else f"{grid.bits} bit, {shared}"
        if recipe.preset:
            what = f"llama.cpp's {recipe.preset}"
        click.echo(f"{name:<20} {what}, {recipe.method}{'  (tried by default)' if name in DEFAULT else ''}")


@command.command("quantize", short_help="Quantize a model's weights, block by block.")
@click.argument("model", type=FOLDER)
@click.option(
    "--recipe", "name", default="int4-gptq", show_default=True, metavar="NAME|YAML", help="A built-in recipe, or a file with one."
)
@click.option("--calibration", metavar="PATH", help="Text (.txt, .jsonl, folder of .txt); not needed for plain rounding.")
@click.option("--windows", type=click.IntRange(1), default=128, show_default=True, help="Windows of text to calibrate on.")
@click.option("--window", type=click.IntRange(2), default=256, show_default=True, metavar="TOKENS", help="Tokens of each.")
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="Where the table of quantized weights goes.")
@output
def quantize(model: Path, name: str, calibration: str | None, windows: int, window: int, out: Path, form: str) -> None:
    """Quantize the weights of MODEL (a Hugging Face folder) and keep them as a table, from which every format is written.

    One block is in memory at a time. The same command resumes an interrupted run.
    """
    from lowbit.cli.live import reporter_for
    from lowbit.pipeline.language.stages import quantize_model

    with reporter_for(sys.stderr) as reporter:
        table = quantize_model(model, name, calibration, out, windows=windows, window=window, reporter=reporter)
    told = {"table": str(out), "recipe": table.recipe.name, "size_bytes": table.size_bytes}
    click.echo(json.dumps(told) if form == "json" else f"{out}: {table.recipe.name}, {table.size_bytes / 1e6:,.1f} MB")


@command.command("write", short_help="Write a table or a model in an engine's format.")
@click.argument("weights", type=FOLDER)
@click.option("--to", "target", required=True, metavar="FORMAT", help="gguf, openvino, onnx or safetensors (compressed-tensors).")
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="Folder for the artifact.")
@output
def write(weights: Path, target: str, out: Path, form: str) -> None:
    """Write WEIGHTS (a table of `lowbit llm quantize`, or a Hugging Face folder) in the format of an engine.

    What a format cannot hold exactly is refused, with what it can.
    """
    from lowbit.cli.live import reporter_for
    from lowbit.pipeline.language.stages import write_format

    with reporter_for(sys.stderr) as reporter:
        artifact = write_format(weights, target, out, reporter)
    click.echo(json.dumps({"artifact": str(artifact)}) if form == "json" else artifact)


@command.command("perplexity", short_help="Judge an artifact by perplexity on text.")
@click.argument("artifact", type=FOLDER)
@click.option("--data", required=True, metavar="PATH", help="Text: .txt, .jsonl, or a folder of .txt.")
@click.option("--model", type=FOLDER, metavar="FOLDER", help="Where the tokenizer is, if not beside the artifact.")
@click.option("--engine", metavar="NAME", help="What runs it; by its format where not given.")
@click.option("--window", type=click.IntRange(2), default=256, show_default=True, metavar="TOKENS", help="Tokens of a window.")
@click.option("--stride", type=click.IntRange(1), metavar="TOKENS", help="From window to window; without overlap where not given.")
@output
def perplexity(artifact: Path, data: str, model: Path | None, engine: str | None, window: int, stride: int | None, form: str) -> None:
    """Judge ARTIFACT (model.gguf, openvino_model.xml, model.onnx, a table or a Hugging Face folder) by perplexity on text.

    Without --stride the text is cut in rows that do not overlap, and the first token of each is not scored.
    """
    from lowbit.cli.live import reporter_for
    from lowbit.pipeline.language.stages import judge

    with reporter_for(sys.stderr) as reporter:
        found = judge(artifact, data, model, engine, window=window, stride=stride, reporter=reporter)
    if form == "json":
        click.echo(json.dumps(asdict(found)))
        return
    width = max(len(document.name) for document in found.documents)
    for document in found.documents:
        click.echo(f"{document.name:<{width}}  {document.perplexity:10.3f}  {document.tokens:>9,} tokens")
    click.echo(f"{'all':<{width}}  {found.value:10.3f}  {found.tokens:>9,} tokens")


@command.command("bench", short_help="Time artifacts on a workload, each alone in its process.")
@click.argument("artifacts", nargs=-1, required=True, type=FOLDER)
@click.option("--workload", default="prompt=512,output=128,concurrency=1", show_default=True, metavar="SPEC|LOG", help="What is asked.")
@click.option("--engine", "engines", multiple=True, metavar="NAME", help="What runs them; by format where none is given. Repeatable.")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Turns of each.")
@click.option("--price-per-hour", type=float, metavar="USD", help="Of this machine, for the cost of a million tokens.")
@output
def bench(
    artifacts: tuple[Path, ...], workload: str, engines: tuple[str, ...], rounds: int, price_per_hour: float | None, form: str
) -> None:
    """Time ARTIFACTS (as for `lowbit llm perplexity`) on a workload: one process each, the others blocked, rounds in turn."""
    from lowbit.cli.live import reporter_for
    from lowbit.pipeline.language.stages import bench_artifacts

    with reporter_for(sys.stderr) as reporter:
        found = bench_artifacts(artifacts, workload, engines, rounds=rounds, price_per_hour=price_per_hour, reporter=reporter)
    if form == "json":
        click.echo(json.dumps({ident: asdict(speed) for ident, speed in found.items()}))
        return
    from rich.console import Console

    from lowbit.cli.show import WIDE

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 2 * WIDE  # a pipe or a file has room for everything
    console.print(speed_table(found))


def speed_table(found: dict[str, Any]) -> Any:
    """Speeds as a table, the fastest request first."""
    from rich.table import Table

    from lowbit.bundle import words

    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, head in enumerate(("artifact", "request", "first token", "reads/s", "writes/s", "all/s", "memory", "$ a million")):
        table.add_column(head, justify="right" if index else "left", no_wrap=True)
    for speed in sorted(found.values(), key=lambda s: s.total_s.value if s.usable else float("inf")):
        if not speed.usable:
            table.add_row(speed.id, speed.error or "")
            continue
        rates = (speed.prefill_tokens_per_s, speed.decode_tokens_per_s, speed.output_tokens_per_s)
        cost = speed.per_million_tokens.dollars if speed.per_million_tokens else None
        table.add_row(
            speed.id,
            f"{'~ ' if speed.noisy else ''}{words.digits(speed.total_s.value)} s",
            words.milliseconds(speed.ttft_ms.value),
            *(words.digits(rate.value) if rate else words.NONE for rate in rates),
            words.size(speed.peak_memory_bytes),
            words.digits(cost) if cost is not None else words.NONE,
        )
    return table
