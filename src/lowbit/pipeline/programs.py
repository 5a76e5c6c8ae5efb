"""Make the artifact of a candidate that runs on PyTorch: a program (.pt2), from the torch twin of the prepared graph.

A graph whose shapes follow from the number of samples is written for one number; that will do where one batch size is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lowbit.errors import LowbitError, ModelError
from lowbit.pipeline.artifacts import format_of
from lowbit.pipeline.context import Context
from lowbit.pipeline.evaluate import call_batch, repeated
from lowbit.recipe import Recipe
from lowbit.runtimes.programs import describe_program
from lowbit.runtimes.torch_cpu import compiler
from lowbit.types import Feeds

SAMPLES = 8
"""That a program is traced with and calibrated on at once, where any number will do."""

SLOW_TO_OPEN_S = 5.0
"""A program that takes longer to open is said to: compiling is the price of its speed, and who starts processes often pays it often."""


def make_program(context: Context, recipe: Recipe, out: Path) -> Path:
    """Writes the program of a recipe; `out` appears whole or not at all.

    Args:
        context: The run. Calibration samples and the prepared model are its own.
        recipe: The source's, or one whose method is among `PROGRAM_METHODS`.
        out: The .pt2 file to write.

    Raises:
        ModelError: it cannot be made: operators or shapes that do not export, nothing to quantize, torchao is missing.
    """
    context.reporter.note(f"Writing {recipe.name} as a PyTorch program")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f"unfinished-{out.name}")
    try:
        for size in traced_with(context.policy.batch, context.fixed_batch):
            _write(context, recipe, unfinished, size)
            if (takes := batch_of(unfinished)) is None or context.policy.batch == (takes,):
                unfinished.replace(out)
                return out
    except (ModelError, OSError):
        raise
    except LowbitError as error:  # torchao is missing: evidence here, whatever it is elsewhere
        raise ModelError(f"{error.message} {error.hint or ''}".strip()) from error
    except Exception as error:  # torchao's quantizer raises anything
        raise ModelError(f"{recipe.name} cannot be made: {type(error).__name__}: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    asked = " and ".join(map(str, context.policy.batch))
    raise ModelError(
        f"PyTorch takes this graph for one number of samples at a time only, and batch sizes {asked} were asked for: ask for one of them."
    )


def traced_with(batches: Sequence[int], own: int) -> tuple[int, ...]:
    """Numbers of samples to trace a program with, one after the other until it takes what is asked for. Pure.

    Tracing with one sample would fix the number at one, so two are tried before.

    Args:
        batches: Asked for.
        own: That the source takes, 0 for any.
    """
    if own:
        return (own,)
    if len(batches) > 1:
        return (SAMPLES,)
    return (2, 1) if batches[0] == 1 else (batches[0],)


def batch_of(path: Path) -> int | None:
    """The number of samples that a program takes, None where any will do."""
    return call_batch(describe_program(path).inputs, 0) or None


def notes_on(path: Path, own_batch: int, opening: float) -> tuple[str, ...]:
    """What a reader should know about a program beside its numbers; nothing about other artifacts.

    Args:
        path: The artifact.
        own_batch: The number of samples that the source takes, 0 for any.
        opening: Seconds that opening it took in a process of its own.
    """
    if format_of(path) != "pt2":
        return ()
    found = []
    if (batch := batch_of(path)) is not None and not own_batch:
        found.append(f"It takes {batch} {'sample' if batch == 1 else 'samples'} at a time and no other number.")
    if compiler() is None:
        found.append("There is no C++ compiler here, so it ran node by node.")
    if opening >= SLOW_TO_OPEN_S:
        found.append(f"Opening it took {opening:.0f} s.")
    return tuple(found)


def _write(context: Context, recipe: Recipe, out: Path, size: int) -> None:
    from lowbit.train.pt2e import write_program, write_pt2e

    samples = _samples(context, size)
    if recipe.method == "none":
        write_program(context.store.prepared, out, next(samples))
    else:
        write_pt2e(context.store.prepared, out, samples, dynamic=recipe.method == "torch-dynamic")


def _samples(context: Context, size: int) -> Iterator[Feeds]:
    """The calibration samples, `size` at once; the last are filled up with the first of their own batch."""
    for batch in context.split.calibration.batches(size):
        yield {name: repeated(values, size) for name, values in batch.feeds.items()}
