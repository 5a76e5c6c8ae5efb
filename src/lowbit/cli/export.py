"""`lowbit export BUNDLE --to TARGET`: another target, or another server (Triton, KServe)."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.options import Duration, output
from lowbit.errors import UsageError

if TYPE_CHECKING:
    from lowbit.export.servers.write import Written
    from lowbit.pipeline.reporting import Reporter

FOLDER = click.Path(path_type=Path)
SERVERS = ("triton", "kserve")
FOR_KSERVE = ("storage_uri", "canary", "triton_version")
FOR_SERVERS = ("name", "full", "max_batch", "window", *FOR_KSERVE)
FOR_TARGETS = ("data", "samples", "kernels", "settings", "time")


@click.command("export", short_help="Write a bundle for another target (LiteRT, Cortex-M, QNN, ...) or server (Triton, KServe).")
@click.argument("bundle", type=FOLDER)
@click.option("--to", "target", required=True, metavar="TARGET", help="A target (`lowbit targets` lists them), or triton, or kserve.")
@click.option("--out", type=FOLDER, metavar="FOLDER", help="Where to write.  [default: BUNDLE-TARGET; servers have none]")
@click.option("--candidate", metavar="ID", help="To export.  [default: what ships; for targets the best that has a table]")
@click.option("--data", metavar="PATH", help="Targets: samples to judge it by; random draws, and no verdict, where not given.")
@click.option(
    "--samples",
    type=click.IntRange(1),
    metavar="N",
    help="Targets: how many are asked.  [default: 500; emulated 200; without data 256 at most]",
)
@click.option("--kernels", multiple=True, metavar="NAME", help="Targets: ask this kernel set alone. Repeatable.  [default: all here]")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Targets: a setting; see `lowbit targets NAME`. Repeatable.")
@click.option("--time/--no-time", default=True, show_default=True, help="Targets: measure latency, where this machine can.")
@click.option("--name", metavar="NAME", help="Servers: of the model.  [default: the bundle's folder's]")
@click.option("--full/--no-full", default=True, show_default=True, help="Servers: also the full-precision model, as NAME_full.")
@click.option(
    "--max-batch",
    type=click.IntRange(0),
    metavar="N",
    help="Servers: rows in a batch; 0 puts none together.  [default: as measured]",
)
@click.option(
    "--window", type=Duration(), default="0ms", show_default=True, metavar="TIME", help="Servers: wait so long for a batch to fill."
)
@click.option("--storage-uri", metavar="URI", help="KServe: where models/ will lie for the cluster, e.g. s3://bucket/models/demo.")
@click.option("--canary", type=click.IntRange(0, 100), metavar="PERCENT", help="KServe: share of requests for this revision.")
@click.option("--triton-version", metavar="TAG", help="KServe: of Triton's image, e.g. 25.11-py3.  [default: the cluster's]")
@click.option("--force", is_flag=True, help="Replace what an earlier export left there.")
@output
@click.pass_context
def command(context: click.Context, /, bundle: Path, target: str, out: Path | None, form: str, **options: Any) -> None:
    """Write BUNDLE (a folder that `lowbit optimize` made) for another target, or as a model repository for a server.

    \b
    lowbit export build/demo --to litert --data val/
    lowbit export build/demo --to cortex-m --data val/ --set board=mps2-an500
    lowbit export build/demo --to triton --out models
    lowbit export build/demo --to kserve --out deploy --storage-uri s3://bucket/models/demo --canary 10

    A target's artifact is written from the table of quantization parameters, checked against the target's rules, asked the same samples as
    the bundle's own artifact on the target's runtime or emulator where there is one, and moved into place. On servers, runtime, tuning and
    batch size are those of the candidate's measurements.
    """
    given = {name for name in options if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE}
    if target not in SERVERS:
        _refuse(given & set(FOR_SERVERS), f"for servers, not for {target}", "Leave it out, or say --to triton.")
        to_target(bundle, target, out, form, **options)
        return
    _refuse(given & set(FOR_TARGETS), f"not for {target}", "Leave it out, or name a target: `lowbit targets` lists them.")
    if out is None:
        raise UsageError(f"{target} needs a folder to write to.", "Say which: --out FOLDER. Other models there stay.")
    to_server(bundle, target, out, form, **options)


def _refuse(given: set[str], why: str, hint: str) -> None:
    if given:
        name = {"settings": "set"}.get(min(given), min(given))
        raise UsageError(f"--{name.replace('_', '-')} is {why}.", hint)


@contextmanager
def told_before(reporter: Reporter) -> Iterator[None]:
    """Passes on what a target says before it writes anything, e.g. what memory it is going to take."""
    log, handler = logging.getLogger("lowbit.export"), logging.Handler(logging.INFO)
    handler.emit = lambda record: reporter.note(record.getMessage())  # type: ignore[method-assign]
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def to_target(bundle: Path, target: str, out: Path | None, form: str, **options: Any) -> None:
    """LiteRT, Cortex-M and so on."""
    from lowbit.bundle.bundle import Bundle
    from lowbit.cli.live import reporter_for
    from lowbit.cli.show_targets import show_target
    from lowbit.export import registry
    from lowbit.pipeline.targets.leave import leave

    registry.get(target)  # before the bundle is read
    folder = out or bundle.resolve().with_name(f"{bundle.resolve().name}-{target}")
    with reporter_for(sys.stderr) as reporter, told_before(reporter):
        found = leave(
            Bundle.load(bundle),
            target,
            folder,
            data=options["data"],
            candidate=options["candidate"],
            settings=options["settings"],
            samples=options["samples"],
            kernels=options["kernels"],
            force=options["force"],
            time=options["time"],
            reporter=reporter,
        )
    if form == "json":
        click.echo(json.dumps(found.model_dump(mode="json"), indent=1, allow_nan=False))
        return
    show_target(found, folder)


def to_server(bundle: Path, target: str, out: Path, form: str, **options: Any) -> None:
    """Triton, or Triton with KServe's manifest."""
    from lowbit.export.servers.write import Wishes, export

    _check(target, options)
    wishes = Wishes(
        name=options["name"],
        candidate=options["candidate"],
        full=options["full"],
        max_batch=options["max_batch"],
        window_s=options["window"],
        storage_uri=options["storage_uri"],
        canary=options["canary"],
        version=options["triton_version"],
        force=options["force"],
    )
    found = export(bundle, out, wishes)
    if form == "json":
        click.echo(json.dumps(_document(found), indent=1))
        return
    for model, config in found.models:
        batching = f"batches up to {config.batching.most}" if config.batching.most else "requests as they come"
        click.echo(f"{model.name}  {model.candidate.id}, {batching}")
    click.echo(found.manifest or found.repository)
    for note in found.notes:
        click.secho(note, fg="yellow", err=True)


def _check(target: str, options: dict[str, Any]) -> None:
    given = [name for name in FOR_KSERVE if options[name] is not None]
    if target != "kserve" and given:
        raise UsageError(f"--{given[0].replace('_', '-')} is for KServe.", "Leave it out, or say --to kserve.")
    if target == "kserve" and options["storage_uri"] is None:
        raise UsageError("KServe fetches models from a store.", "Say where models/ will lie, e.g. --storage-uri s3://bucket/models/demo.")


def _document(found: Written) -> dict[str, Any]:
    models = [
        {
            "name": model.name,
            "candidate": model.candidate.id,
            "backend": model.candidate.runtime,
            "max_batch_size": config.batching.most,
            "preferred_batch_size": config.batching.preferred,
        }
        for model, config in found.models
    ]
    written = {"repository": str(found.repository), "manifest": str(found.manifest) if found.manifest else None}
    return {**written, "models": models, "notes": list(found.notes)}
