"""`lowbit demo`: the whole story on a model and images that come with the package."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lowbit.cli.options import output

DEMO = Path(__file__).resolve().parent.parent / "demo"

RECIPES = ("fp32", "fp16", "int8-fitted-mse", "int8-static-minmax", "int8-static-mse", "int8-nncf")
"""The likely winners: a demo should not take longer than a coffee. `lowbit optimize` tries all."""
ROUNDS = 8


@click.command("demo", short_help="Optimize the built-in model on the built-in images, offline.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("build/demo"), show_default=True, metavar="DIR", help="The bundle's folder."
)
@click.option("--max-drop", default="1%", show_default=True, metavar="BUDGET", help="1pp: absolute points; 1%: of the baseline's value.")
@click.option("--force", is_flag=True, help="Start anew instead of resuming what is in --out.")
@output
def command(out: Path, max_drop: str, force: bool, form: str) -> None:
    """Optimize a small residual network trained on Fashion-MNIST (5,000 test images, about three minutes, offline)."""
    from lowbit.cli.live import reporter_for
    from lowbit.cli.show import show_result
    from lowbit.graph.nncf_writer import installed
    from lowbit.pipeline.optimize import optimize

    with reporter_for(sys.stderr) as reporter:
        result = optimize(
            DEMO / "resnet_fashion.onnx",
            DEMO / "fashion_mnist.npz",
            out=out,
            reporter=reporter,
            command="lowbit demo",
            preprocess="fashion-mnist",
            max_drop=max_drop,
            recipes=tuple(name for name in RECIPES if name != "int8-nncf" or installed()),
            rounds=ROUNDS,
            force=force,
        )
    show_result(result.bundle, form)
