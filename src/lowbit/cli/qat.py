"""`lowbit qat BUNDLE --data DATA`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lowbit.cli.options import output, training_options


@click.command("qat", short_help="Train what integers lose back, without labels or training code.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="PATH", help="The data that the bundle was made with: a part of it judges.")
@click.option("--calibration", metavar="PATH", help="The samples that it was calibrated on, where they were given.")
@training_options
@output
def command(bundle: Path, data: str, calibration: str | None, qat_time: float, train: str | None, train_labels: bool, form: str) -> None:
    """Train the best integer model of BUNDLE to answer as its FP32 model does, then decide again.

    No labels and no training code are needed: the FP32 model teaches. What is trained is the graph that ships. The trained model is
    one more candidate; it passes the same gate. An interrupted training goes on where it was.

    \b
    lowbit qat build/resnet20 --data val/ --train more-images/ --qat-time 15m
    """
    from lowbit.cli.live import reporter_for
    from lowbit.cli.optimize import command_line
    from lowbit.cli.show import show_result
    from lowbit.pipeline.again import qat

    with reporter_for(sys.stderr) as reporter:
        result = qat(
            bundle,
            data,
            calibration=calibration,
            train=train,
            train_labels=train_labels,
            minutes=qat_time / 60,
            reporter=reporter,
            command=command_line(),
        )
    show_result(result.bundle, form)
