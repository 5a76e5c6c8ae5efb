"""`lowbit optimize MODEL --data DATA`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from lowbit.cli.optimize_language import OWN, check_unused, fields_of, language_options
from lowbit.cli.options import Duration, Numbers, budget_options, data_options, output, training_options


@click.command("optimize", short_help="Find the smallest, fastest version of a model that is still right.")
@click.argument("model", type=click.Path(path_type=Path))
@data_options
@budget_options
@click.option(
    "--weights", type=click.Path(path_type=Path), metavar="FILE", help="Checkpoint (.pt, .pth, .safetensors) for package.module:function."
)
@click.option(
    "--example-shape",
    "example_shapes",
    type=Numbers(),
    multiple=True,
    metavar="SHAPE",
    help="One sample of a PyTorch model's input, e.g. 3,224,224; from the data where not given. Repeatable.",
)
@click.option("--allow-pickle", is_flag=True, help="Let --weights or a .pt2 file run the code that is in it. Only for files you trust.")
@click.option("--calibration", metavar="PATH", help="Samples to calibrate on; a part of --data where not given.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="The bundle's folder.  [default: build/MODEL]")
@click.option(
    "--objective",
    type=click.Choice(["latency", "throughput", "size"]),
    default="latency",
    show_default=True,
    help="What decides among the versions that are right.",
)
@click.option("--batch", type=Numbers(), default="1,8", show_default=True, help="Batch sizes that matter.")
@click.option("--max-latency", type=Duration(), metavar="TIME", help="Ceiling of p95 at the smallest batch size, e.g. 60ms.")
@click.option("--time-limit", type=Duration(), metavar="TIME", help="Decide with what is found by then, e.g. 10m.")
@click.option(
    "--runtime", "runtimes", multiple=True, metavar="NAME", help="Search only these runtimes; torch only where it is named. Repeatable."
)
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    metavar="NAME",
    help="Try only these recipes (and FP32, the yardstick), e.g. fp16, int8-fitted-mse. Repeatable.",
)
@click.option("--nncf/--no-nncf", default=True, show_default=True, help="Let NNCF make a candidate where it is installed.")
@click.option(
    "--qat",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Train by distillation: where nothing else holds the budget, in any case, or not at all.",
)
@training_options
@click.option(
    "--rounds",
    type=click.IntRange(3, 1000),
    default=12,
    show_default=True,
    help="Turns of each finalist in the final timing (language models: 7).",
)
@click.option("--safety-critical", is_flag=True, help="A wrong answer can hurt someone: be told what that means here.")
@click.option(
    "--to", "targets", multiple=True, metavar="TARGET", help="Also write the result for a target; `lowbit targets` lists them. Repeatable."
)
@click.option("--prune", is_flag=True, help="Keep only the artifact that ships, not every candidate's.")
@click.option("--force", is_flag=True, help="Start anew: replace what an earlier run left in --out.")
@language_options
@output
@click.pass_context
def command(
    context: click.Context,
    /,
    model: Path,
    data: str,
    form: str,
    max_latency: float | None,
    time_limit: float | None,
    qat_time: float,
    **options: Any,
) -> None:
    """Find the smallest, fastest version of MODEL that stays within the accuracy budget here.

    MODEL is an .onnx file, a Hugging Face folder, a .pt2 program, or package.module:function that builds a torch.nn.Module.
    A Hugging Face folder with a language model is judged by perplexity on text (.txt, .jsonl or a folder of .txt), and timed on
    the requests that --workload describes. The same command resumes an interrupted search.

    \b
    lowbit optimize resnet50.onnx --data val/ --max-drop 1%
    lowbit optimize fraud.onnx --data transactions.csv --max-drop 0.5pp --max-latency 60ms
    lowbit optimize nets.resnet:build --weights best.pt --data val/ --max-drop 1pp
    lowbit optimize llama/ --data texts/ --workload prompt=512,output=128,concurrency=1
    """
    from lowbit.cli.live import reporter_for
    from lowbit.cli.show import show_result
    from lowbit.llm.detect import is_language_model
    from lowbit.pipeline.optimize import optimize

    if is_language_model(model):
        language(model, fields_of(context), form)
        return
    check_unused(context)
    options = {name: value for name, value in options.items() if name not in OWN}
    with reporter_for(sys.stderr) as reporter:
        result = optimize(
            model,
            data,
            out=options.pop("out"),
            reporter=reporter,
            command=command_line(),
            max_latency_ms=None if max_latency is None else max_latency * 1000,
            time_limit_s=time_limit,
            qat_minutes=qat_time / 60,
            **options,
        )
    show_result(result.bundle, form)


def language(model: Path, asked: dict[str, Any], form: str) -> None:
    """The same for a language model."""
    from lowbit.cli.live import reporter_for
    from lowbit.cli.show_language import show_language_result
    from lowbit.pipeline.language.optimize import optimize_language

    with reporter_for(sys.stderr) as reporter:
        result = optimize_language(model, asked.pop("data"), reporter=reporter, command=command_line(), **asked)
    show_language_result(result.bundle, form)


def command_line() -> str:
    """What the user typed, with quotes where a shell needs them."""
    import shlex

    return shlex.join(["lowbit", *sys.argv[1:]])
