"""`lowbit export BUNDLE --to triton|kserve`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.options import Duration, output
from lowbit.errors import UsageError

if TYPE_CHECKING:
    from lowbit.export.servers.write import Written

FOLDER = click.Path(path_type=Path)


@click.command("export", short_help="Write a bundle for another server: Triton or KServe.")
@click.argument("bundle", type=FOLDER)
@click.option("--to", "target", type=click.Choice(["triton", "kserve"]), required=True, help="The server.")
@click.option("--out", type=FOLDER, required=True, metavar="FOLDER", help="Where to write; other models there stay.")
@click.option("--name", metavar="NAME", help="Of the model.  [default: the bundle's folder's]")
@click.option("--candidate", metavar="ID", help="To export.  [default: what ships]")
@click.option("--full/--no-full", default=True, show_default=True, help="Also the full-precision model, as NAME_full.")
@click.option(
    "--max-batch",
    type=click.IntRange(0),
    metavar="N",
    help="Rows in a batch; 0 puts none together.  [default: as measured]",
)
@click.option("--window", type=Duration(), default="0ms", show_default=True, metavar="TIME", help="Wait so long for a batch to fill.")
@click.option("--storage-uri", metavar="URI", help="KServe: where models/ will lie for the cluster, e.g. s3://bucket/models/demo.")
@click.option("--canary", type=click.IntRange(0, 100), metavar="PERCENT", help="KServe: share of requests for this revision.")
@click.option("--triton-version", metavar="TAG", help="KServe: of Triton's image, e.g. 25.11-py3.  [default: the cluster's]")
@click.option("--force", is_flag=True, help="Replace these models where they are there already.")
@output
def command(bundle: Path, target: str, out: Path, form: str, **options: Any) -> None:
    """Write BUNDLE (a folder that `lowbit optimize` made) as a model repository for Triton, or with a manifest for KServe.

    \b
    lowbit export build/demo --to triton --out models
    lowbit export build/demo --to kserve --out deploy --storage-uri s3://bucket/models/demo --canary 10

    The runtime, its tuning and the batch size are those of the candidate's measurements.
    """
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
    given = [name for name in ("storage_uri", "canary", "triton_version") if options[name] is not None]
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
