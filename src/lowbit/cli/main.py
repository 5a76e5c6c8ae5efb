"""The `lowbit` command. Subcommands are imported when they are asked for, so that start-up stays quick."""

from __future__ import annotations

import importlib
import os
import signal
import sys

import click

from lowbit import __version__

COMMANDS = {
    "optimize": "Find the smallest, fastest version of a model that is still right.",
    "validate": "Score one model on one data set and keep every sample's outcome.",
    "compare": "Compare two results of `validate`, sample by sample, and give a verdict.",
    "calibrate": "Choose the samples that a model is calibrated on.",
    "analyze": "Say layer by layer what 8-bit integers do to a model, and why.",
    "qat": "Train what integers lose back, without labels or training code.",
    "llm": "The stages for language models one by one: quantize, write, perplexity, bench.",
    "bench": "Time models against each other, each alone in its process.",
    "serve": "Serve bundles over the Open Inference Protocol.",
    "loadtest": "Load a server as its users would, and find what it holds.",
    "registry": "Keep versions of models, and say which one answers.",
    "rollout": "Let a version in step by step, and take it back when it is worse.",
    "assess": "Say what a model costs to run, and whether changing it is worth it.",
    "monitor": "Show windows of a server's traffic; write alert rules and a dashboard.",
    "reviews": "Answer shifts that wait for a person.",
    "recalibrate": "Find a bundle's ranges anew on recent inputs, as a challenger.",
    "export": "Write a bundle for another target (LiteRT, Cortex-M, QNN, ...) or server (Triton, KServe).",
    "targets": "List what this machine can write, run, emulate, or only check.",
    "report": "Write a bundle's report again, or open it.",
    "doctor": "Say what this machine can run, and what is missing.",
    "demo": "Optimize the built-in model on the built-in images, offline.",
    "completion": "Print the completion script of a shell.",
}


class LazyGroup(click.Group):
    """A group whose commands live in modules of the same name, imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"lowbit.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        # From the table, so that `--help` imports none of them.
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from lowbit.errors import unknown

            error = unknown("command", args[0], COMMANDS)
            raise click.UsageError(str(error), ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="lowbit")
def cli() -> None:
    """Make a trained model cheap to run without making it wrong.

    Give a model, some data and an accuracy budget; lowbit finds the fastest version that
    stays within it on this machine, and proves it.

    Exit codes: 0 decided and written (also when the answer is "keep"), 2 the call is wrong,
    3 the model or data is unusable, 4 interrupted and resumable, 1 a bug of ours.
    """


def main() -> None:
    """Entry point: runs the command and turns errors into a message and an exit code."""
    from lowbit.errors import LowbitError

    signal.signal(signal.SIGTERM, interrupt)  # a scheduler's polite end is Ctrl-C to us: say what is kept, exit 4
    try:
        cli.main(prog_name="lowbit", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        sys.exit(4)
    except LowbitError as error:
        click.secho(f"error: {error.message}", fg="red", err=True)
        if error.hint:
            click.echo(f"       {error.hint}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output went away (`lowbit ... | head`): not an error of anyone's.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        sys.exit(report_bug(error))


def interrupt(signum: int, frame: object) -> None:  # noqa: ARG001
    """Ends the run as Ctrl-C does."""
    raise KeyboardInterrupt


def report_bug(error: Exception) -> int:
    """Shows one line, keeps the traceback in a file, returns exit code 1."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="lowbit-bug-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.write(f"lowbit {__version__}, Python {sys.version.split()[0]}, {' '.join(sys.argv[1:])}\n\n")
        traceback.print_exception(error, file=file)
    click.secho(f"error: this is a bug in lowbit: {type(error).__name__}: {error}", fg="red", err=True)
    click.echo(f"       Please report it with {file.name}", err=True)
    return 1


if __name__ == "__main__":
    main()
