"""`lowbit registry`: versions of models, their aliases, and the log of every change."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.options import Command, output
from lowbit.errors import ModelError, UsageError

if TYPE_CHECKING:
    from lowbit.registry.records import AliasEvent, ModelVersion
    from lowbit.registry.registry import Registry

FOLDER = click.Path(path_type=Path)
CHAMPION = "champion"


def os_user() -> str:
    """Who is logged in; "unknown" where the system does not say."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


place = click.option(
    "--registry",
    "folder",
    type=FOLDER,
    envvar="LOWBIT_REGISTRY",
    default=Path("registry"),
    show_default=True,
    metavar="DIR",
    help="Folder of the registry; LOWBIT_REGISTRY names another one.",
)
author = click.option(
    "--by",
    envvar="LOWBIT_BY",
    callback=lambda _context, _option, value: value or os_user(),
    metavar="NAME",
    help="Who does this, for the log.  [default: LOWBIT_BY, or your user name]",
)
dry = click.option("--dry-run", is_flag=True, help="Only say what would be done.")


def why(default: str) -> Callable[[Command], Command]:
    """--why with a default for a person in a hurry."""
    return click.option("--why", default=default, metavar="TEXT", help="The reason, for the log.")


@click.group("registry", short_help="Keep versions of models, and say which one answers.", no_args_is_help=True)
def command() -> None:
    """Keep versions of models with where they come from, say by aliases which one answers, and log every change.

    A version is written as fashion@3, fashion@champion, fashion@sha256:12ab, or fashion: its champion, else the newest.
    """


@command.command("push", short_help="Put a bundle in.")
@click.argument("bundle", type=FOLDER)
@click.option("--model", metavar="NAME", help="Name of the model.  [default: the source file's]")
@click.option("--sign", "key", type=FOLDER, metavar="KEY.pem", help="Sign what is new with this private key.")
@place
@author
@output
def push(bundle: Path, model: str | None, key: Path | None, folder: Path, by: str, form: str) -> None:
    """Put BUNDLE (a folder that `lowbit optimize` made) in: what it ships, and the model in its own precision as its parent.

    \b
    lowbit registry push build/demo --model fashion

    Pushing the same bundle twice changes nothing.
    """
    if key is not None:  # before anything is registered
        from lowbit.registry.signing import private_key

        private_key(key)
    with _open(folder, create=True) as registry:
        pushed = registry.push(bundle, model, by=by)
        if key is not None:
            for version in filter(None, (pushed.source, pushed.quantized)):
                registry.sign(version, key, by=by)
        if form == "json":
            names = {"source": pushed.source, "quantized": pushed.quantized}
            shown = {name: version and _document(registry, version) for name, version in names.items()}
            _print({**shown, "new": [version.ref for version in pushed.new], "head": registry.head()})
            return
        for version in filter(None, (pushed.source, pushed.quantized)):
            state = ("new" if version in pushed.new else "was there already") + (f", signed by {key.name}" if key else "")
            click.echo(f"{version.ref}  {version.candidate}, {version.precision}: {state}")
        _head(registry)
        if CHAMPION not in registry.aliases(pushed.source.model):
            click.echo(f"Nothing answers under {pushed.source.model} yet: lowbit registry promote {pushed.version.ref}", err=True)


@command.command("list", short_help="Show models and versions.")
@click.argument("model", required=False)
@place
@output
def list_(model: str | None, folder: Path, form: str) -> None:
    """Show all versions, or those of MODEL, with their aliases."""
    from lowbit.cli import registry_tables

    with _open(folder) as registry:
        if model is not None:
            model = registry.resolve(model).model
        found = {name: registry.versions(name) for name in ([model] if model else registry.models())}
        if form == "json":
            rows = [_document(registry, version) for versions in found.values() for version in versions]
            aliases = {name: {alias: v.number for alias, v in registry.aliases(name).items()} for name in found}
            _print({"versions": rows, "aliases": aliases})
            return
        if not found:
            click.echo("The registry is empty.")
        for name, versions in found.items():
            registry_tables.show_versions(versions, registry.aliases(name))


@command.command("show", short_help="Show where a version comes from.")
@click.argument("ref")
@place
@output
def show(ref: str, folder: Path, form: str) -> None:
    """Show REF with all its lineage: source, recipe, calibration and validation data, tools, hardware, score, files."""
    from lowbit.cli import registry_tables

    with _open(folder) as registry:
        version = registry.resolve(ref)
        files = registry.files(version)
        if form == "json":
            _print({**_document(registry, version), "files": [asdict(file) for file in files]})
            return
        aliases = [alias for alias, named in registry.aliases(version.model).items() if named == version]
        parents = [parent.ref if (parent := registry.version(version.model, digest)) else digest[:12] for digest in version.parents]
        registry_tables.show_version(version, aliases, parents, files)


@command.command("diff", short_help="Compare two versions.")
@click.argument("first")
@click.argument("second")
@place
@output
def diff(first: str, second: str, folder: Path, form: str) -> None:
    """Say what differs from version FIRST to SECOND in files, lineage, score and latency.

    \b
    lowbit registry diff fashion@1 fashion@2
    """
    from lowbit.cli import registry_tables
    from lowbit.registry.diff import difference

    with _open(folder) as registry:
        one, other = registry.resolve(first), registry.resolve(second)
        found = difference(one, other, (registry.files(one), registry.files(other)))
    if form == "json":
        _print({"first": one.ref, "second": other.ref, **asdict(found)})
        return
    registry_tables.show_difference(one, other, found)


@command.command("promote", short_help="Let an alias name a version.")
@click.argument("ref")
@click.option("--alias", default=CHAMPION, show_default=True, metavar="ALIAS", help="Which one; champion answers.")
@click.option("--expect", metavar="REF", help="Only if the alias names this version now; 'none': only if it does not exist.")
@why("promoted by hand")
@dry
@place
@author
@output
def promote(ref: str, alias: str, expect: str | None, why: str, dry_run: bool, folder: Path, by: str, form: str) -> None:
    """Let an alias name REF. The champion before becomes the fallback, in the same step.

    \b
    lowbit registry promote fashion@2 --why "same accuracy on last week's images, 3 times as fast"
    """
    from lowbit.registry.aliases import ANY

    with _open(folder) as registry:
        version = registry.resolve(ref)
        expected = ANY if expect is None else None if expect == "none" else registry.resolve(expect).digest
        _move(registry, lambda: registry.promote(version, alias=alias, expect=expected, by=by, why=why), dry_run, form)


@command.command("rollback", short_help="Let an alias name again what it named before.")
@click.argument("model")
@click.option("--alias", default=CHAMPION, show_default=True, metavar="ALIAS", help="Which one.")
@click.option("--to", metavar="REF|EVENT", help="A version that it named once, or an event's number.  [default: the one before]")
@why("rolled back by hand")
@dry
@place
@author
@output
def rollback(model: str, alias: str, to: str | None, why: str, dry_run: bool, folder: Path, by: str, form: str) -> None:
    """Let an alias of MODEL name again what it named before its last move, or --to.

    \b
    lowbit registry rollback fashion --why "confidences fell on the night shift"

    Doing it twice changes nothing more; to go further back say where to.
    """
    if "@" in model:
        name = model.partition("@")[0]
        raise UsageError(f"A rollback takes a model, and '{model}' is a version.", f"lowbit registry rollback {name} --to {model}")
    with _open(folder) as registry:
        target = None if to is None else int(to) if to.isdecimal() else registry.resolve(to if "@" in to else f"{model}@{to}").digest
        _move(registry, lambda: registry.rollback(model, alias=alias, to=target, by=by, why=why), dry_run, form)


@command.command("history", short_help="Show every move of a model's aliases.")
@click.argument("model")
@click.option("--alias", metavar="ALIAS", help="Of this one alone.")
@place
@output
def history(model: str, alias: str | None, folder: Path, form: str) -> None:
    """Show who moved which alias of MODEL when, from what, to what, and why."""
    from lowbit.cli import registry_tables

    with _open(folder) as registry:
        name = registry.resolve(model).model
        events = registry.history(name, alias)
        if form == "json":
            _print({"events": [asdict(event) for event in events]})
            return
        if not events:
            click.echo(f"No alias of {name} was moved yet." if alias is None else f"{name} never had an alias '{alias}'.")
            return
        numbers = {version.digest: version.ref for version in registry.versions(name)}
        registry_tables.show_history(events, numbers)


@command.command("audit", short_help="Show the log of every change.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="The last N rows.")
@click.option("--subject", metavar="SUBJECT", help="Of this subject alone, e.g. fashion@champion.")
@place
@output
def audit(limit: int, subject: str | None, folder: Path, form: str) -> None:
    """Show the audit log. Each row holds the digest of the row before: `lowbit registry verify` checks the chain."""
    from lowbit.cli import registry_tables

    with _open(folder) as registry:
        rows = registry.audit(subject=subject)[-limit:]
        if form == "json":
            _print({"rows": [asdict(row) for row in rows], "head": registry.head()})
            return
        registry_tables.show_audit(rows)


@command.command("verify", short_help="Find whatever was changed.")
@click.argument("ref", required=False)
@click.option("--head", metavar="DIGEST", help="The head of the log as noted once: that row must still be there.")
@click.option("--trusted", type=FOLDER, multiple=True, metavar="KEY.pub.pem", help="Every version must be signed by one. Repeatable.")
@place
@output
def verify(ref: str | None, head: str | None, trusted: tuple[Path, ...], folder: Path, form: str) -> None:
    """Read all files, or those of REF alone, and all tables, and hold them against each other and against the log.

    \b
    lowbit registry verify
    lowbit registry verify fashion@2 --trusted release.pub.pem

    Exit code 3 if anything was changed.
    """
    with _open(folder) as registry:
        problems = registry.verify(ref, head=head, trusted=trusted)
        if form == "json":
            _print({"problems": [asdict(problem) for problem in problems], "head": registry.head()})
        else:
            for problem in problems:
                click.secho(problem.text, fg="red")
            if not problems:
                signed = f", and {ref or 'every version'} is signed by a trusted key" if trusted else ""
                click.secho(f"Everything is as it was written{signed}.", fg="green")
                _head(registry)
    if problems:
        raise ModelError(
            f"Not as it was written: {len(problems):,} {'thing' if len(problems) == 1 else 'things'}.",
            "A server refuses files that were changed.",
        )


@command.command("gc", short_help="Remove what nobody needs.")
@click.option("--keep", type=click.IntRange(1), default=10, show_default=True, metavar="N", help="Newest versions of each model that stay.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry
@place
@author
@output
def gc(keep: int, yes: bool, dry_run: bool, folder: Path, by: str, form: str) -> None:
    """Remove versions that are neither new, nor named by an alias, nor what a rollback would lead to, nor a parent of those.

    Also files that a push left behind when it was killed. Numbers are never used again.
    """
    with _open(folder) as registry:
        found = registry.gc(keep=keep, dry_run=True, by=by)
        if not dry_run:
            _certain(f"Remove {len(found.versions)} versions and {found.blobs} files ({_megabytes(found.size_bytes)})?", yes)
            found = registry.gc(keep=keep, by=by)
        if form == "json":
            _print({**asdict(found), "versions": [version.ref for version in found.versions], "dry_run": dry_run})
            return
        for version in found.versions:
            click.echo(version.ref)
        verb = "would be removed" if dry_run else "removed"
        click.echo(f"{len(found.versions)} versions and {found.blobs} files {verb}: {_megabytes(found.size_bytes)}.")


@command.command("checkout", short_help="Give a version's folder.")
@click.argument("ref")
@click.option("--out", type=FOLDER, metavar="FOLDER", help="Copy it here, to do with as you like.")
@click.option("--trusted", type=FOLDER, multiple=True, metavar="KEY.pub.pem", help="Only if it is signed by one of these. Repeatable.")
@place
@output
def checkout(ref: str, out: Path | None, trusted: tuple[Path, ...], folder: Path, form: str) -> None:
    """Check every file of REF and print the folder with them: a bundle to load or to serve.

    \b
    lowbit registry checkout fashion@champion --out build/champion
    """
    with _open(folder, trusted=trusted) as registry:
        version = registry.resolve(ref)
        found = registry.checkout(version) if out is None else registry.export(version, out)
    if form == "json":
        _print({"ref": version.ref, "digest": version.digest, "folder": str(found)})
        return
    click.echo(found)


@command.command("sign", short_help="Sign a version.")
@click.argument("ref")
@click.option("--key", type=FOLDER, required=True, metavar="KEY.pem", help="Private Ed25519 key.")
@place
@author
def sign(ref: str, key: Path, folder: Path, by: str) -> None:
    """Sign REF: whoever has the public key can tell that the holder of KEY answers for exactly these files."""
    with _open(folder) as registry:
        version = registry.resolve(ref)
        click.echo(f"{version.ref} is signed by {registry.sign(version, key, by=by)[:12]}.")


@command.command("keygen", short_help="Make a pair of keys to sign with.")
@click.argument("file", type=FOLDER)
def keygen(file: Path) -> None:
    """Write a private Ed25519 key to FILE and the public one beside it, as FILE with the ending .pub.pem."""
    from lowbit.registry.signing import keygen as make

    public = make(file)
    click.echo(f"{file}  private: keep it from others\n{public}  public: give it to whoever verifies")


@command.command("mirror", short_help="Show the registry in MLflow.")
@click.option("--to", "uri", required=True, metavar="URI", help="Of an MLflow server, e.g. http://localhost:5000, or sqlite:///FILE.")
@click.option("--model", metavar="MODEL", help="This one alone.")
@place
@output
def mirror(uri: str, model: str | None, folder: Path, form: str) -> None:
    """Write what MLflow lacks: a run for each version, with its data sets, a model version, and the aliases as they are now.

    \b
    lowbit registry mirror --to http://localhost:5000

    This registry stays the one of record: doing it again brings MLflow up to date, and nothing is ever read back.
    """
    from lowbit.registry.mlflow_mirror import mirror as write

    with _open(folder) as registry:
        name = registry.resolve(model).model if model else None
        found = write(registry, uri, name)
    if form == "json":
        _print(asdict(found))
        return
    click.echo(f"{found.versions} versions, {found.new} of them new, {found.aliases} aliases at {uri}.")


def _open(folder: Path, *, create: bool = False, trusted: tuple[Path, ...] = ()) -> Registry:
    from lowbit.registry.registry import Registry

    return Registry.open(folder, create=create, trusted=trusted)


class _Undone(Exception):
    """Ends a transaction that was only tried."""


@contextmanager
def attempt(registry: Registry, dry_run: bool) -> Iterator[None]:
    """A transaction; one that is rolled back at its end where it is a dry run."""
    with suppress(_Undone), registry.transaction():
        yield
        if dry_run:
            raise _Undone


def _move(registry: Registry, move: Callable[[], AliasEvent], dry_run: bool, form: str) -> None:
    """Moves an alias, or tries it, and says so once it is done."""
    with attempt(registry, dry_run):
        head = registry.head()
        event = move()
        after = registry.head()
    _moved(registry, event, (head, after), dry_run, form)


def _moved(registry: Registry, event: AliasEvent, heads: tuple[str, str], dry_run: bool, form: str) -> None:
    """Says what was done, or would be: `heads` are those of the log before and after."""
    changed = heads[0] != heads[1]
    if form == "json":
        _print({**asdict(event), "changed": changed and not dry_run, "dry_run": dry_run, "head": heads[0 if dry_run else 1]})
        return
    known = {version.digest: version.ref for version in registry.versions(event.model)}
    before, after = (known.get(digest or "", "nothing") for digest in (event.before, event.after))
    name = f"{event.model}@{event.alias}"
    if not changed:
        click.echo(f"{name} names {after} already, since event {event.id}: nothing was changed.")
        return
    click.echo(f"{name}: {before} → {after}" + ("  not done: --dry-run" if dry_run else f"  event {event.id}"))
    if not dry_run:
        click.echo(f"head of the log: {heads[1]}", err=True)


def _document(registry: Registry, version: ModelVersion) -> dict[str, Any]:
    aliases = [alias for alias, named in registry.aliases(version.model).items() if named == version]
    return {"ref": version.ref, **asdict(version), "aliases": aliases}


def _head(registry: Registry) -> None:
    click.echo(f"head of the log: {registry.head()}", err=True)


def _certain(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("This removes files and nobody is there to ask.", "Say --yes, or look first with --dry-run.")
    click.confirm(question, abort=True, err=True)


def _megabytes(size: int) -> str:
    from lowbit.bundle import words

    return words.size(size)


def _print(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=1))
