"""`lowbit serve BUNDLE`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.options import Duration, output
from lowbit.cli.serve_keeping import keeping, read_keeping
from lowbit.cli.serve_language import language, read_language
from lowbit.errors import UsageError

if TYPE_CHECKING:
    from lowbit.serving.server import Listening

KEYS = "LOWBIT_API_KEYS"
MIB = 1 << 20
PORT = click.IntRange(0, 65535)
FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("serve", short_help="Serve bundles over the Open Inference Protocol.")
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=PORT, help="For REST; 0 takes a free one.")
@click.option("--grpc-port", default=8001, show_default=True, type=PORT, help="For gRPC; 0 takes a free one.")
@click.option("--no-grpc", is_flag=True, help="REST alone.")
@click.option("--variants", default="chosen,full", show_default=True, metavar="NAMES", help="To load: chosen, full, or candidates' ids.")
@click.option("--max-batch", type=click.IntRange(1), metavar="N", help="Rows in a batch.  [default: what was measured to be best]")
@click.option("--window", type=Duration(), default="0ms", show_default=True, metavar="TIME", help="Wait so long for a batch to fill.")
@click.option("--queue", type=click.IntRange(1), default=256, show_default=True, metavar="N", help="Rows that may wait for each variant.")
@click.option("--deadline", type=Duration(), default="30s", show_default=True, metavar="TIME", help="Of a request that says none, or more.")
@click.option("--max-body", type=click.IntRange(1), default=64, show_default=True, metavar="MIB", help="Largest request.")
@click.option("--max-requests", type=click.IntRange(1), default=1024, show_default=True, metavar="N", help="In the server at once.")
@click.option("--body-timeout", type=Duration(), default="20s", show_default=True, metavar="TIME", help="A body must be whole by then.")
@click.option("--api-key-file", type=FILE, metavar="FILE", help=f"Keys, one a line; requests must bring one. {KEYS} works, too.")
@click.option("--tls-certificate", type=FILE, metavar="PEM", help="Certificate chain: speak TLS.")
@click.option("--tls-key", type=FILE, metavar="PEM", help="Its private key.")
@click.option("--policy", type=FILE, metavar="YAML", help="How requests are routed between variants.")
@click.option(
    "--registry", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Serve NAME, NAME@ALIAS or NAME@3 from it."
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="For what outlives the server.  [default: state in the registry]",
)
@click.option("--keep-inputs", is_flag=True, help="Keep the inputs of questions to people; else a digest of them.")
@click.option("--cache", default=0, show_default=True, type=click.IntRange(0), metavar="MIB", help="Keep answers in so much memory.")
@click.option("--cache-ttl", type=Duration(), default="1h", show_default=True, metavar="TIME", help="Keep an answer so long.")
@click.option("--redis", metavar="URL", help="Keep answers in a Redis that replicas share, e.g. redis://127.0.0.1:6379/0.")
@click.option("--similar", is_flag=True, help="Answer images that are nearly the same as one that was answered from the cache.")
@click.option("--drain", type=Duration(), default="25s", show_default=True, metavar="TIME", help="For what was accepted to end.")
@click.option(
    "--linger", type=Duration(), metavar="TIME", help="Still answer so long when told to stop.  [default: 0s; 1s with --reuse-port]"
)
@click.option("--reuse-port", is_flag=True, help="Share the ports with a predecessor or successor, for a change without a gap.")
@click.option(
    "--spot", type=click.Choice(["off", "auto", "aws", "gcp", "azure"]), default="off", show_default=True, help="Watch for interruptions."
)
@click.option("--metadata-url", metavar="URL", help="Of the cloud's metadata service.  [default: the provider's]")
@click.option("--access-log", type=click.FloatRange(0, 1), default=0.0, show_default=True, metavar="SHARE", help="Of answers to log.")
@click.option("--traces", is_flag=True, help="Send OpenTelemetry traces; OTEL_* variables say where to.")
@click.option("--record/--no-record", default=True, show_default=True, help="Keep statistics of confidences and inputs.")
@keeping
@language
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Where the models run.")
@click.option("--replicas", default="1", show_default=True, metavar="N|MIN:MAX", help="Ray: of each variant; a range follows the load.")
@click.option("--ray-address", metavar="HOST:PORT", envvar="RAY_ADDRESS", help="Ray: a running cluster's.  [default: one of its own]")
@output
def command(bundles: tuple[str, ...], form: str, **options: Any) -> None:
    """Serve each BUNDLE (a folder that `lowbit optimize` made) until SIGTERM or Ctrl-C, then finish what was accepted.

    \b
    lowbit serve build/demo
    lowbit serve fashion=build/demo --port 9000 --variants chosen
    lowbit serve fashion@champion --registry registry

    From a registry it follows what an alias names, and takes part in rollouts. SIGHUP loads bundles that changed. Logs go to stderr, a JSON
    object a line.
    """
    from lowbit.serving.server import serve
    from lowbit.serving.watch import logs

    settings = read_settings(options)
    sources = [_source(text, options["registry"]) for text in bundles]
    logs.configure()
    _run(serve(sources, settings, _tell_json if form == "json" else _tell))


def read_settings(options: dict[str, Any]) -> Any:
    """The server's settings from the command line's.

    Raises:
        UsageError: options that do not go together.
    """
    from lowbit.serving.run.deployment import Limits
    from lowbit.serving.settings import Settings

    for name in ("api_key_file", "tls_certificate", "tls_key", "policy"):
        if options[name] is not None and not options[name].is_file():
            raise UsageError(f"--{name.replace('_', '-')}: there is no file '{options[name]}'.", "Check the path.")
    certificate, key = options["tls_certificate"], options["tls_key"]
    if (certificate is None) != (key is None):
        raise UsageError("TLS needs a certificate and its key.", "Give both --tls-certificate and --tls-key.")
    if certificate is not None:
        from lowbit.serving.web.http_server import check_certificate

        check_certificate(certificate, key)
    linger = options["linger"]
    if linger is None:
        linger = 1.0 if options["reuse_port"] else 0.0
    if linger >= options["drain"] > 0:
        raise UsageError(f"Lingering for {linger:g} s leaves nothing of {options['drain']:g} s of draining.", "Give a longer --drain.")
    return Settings(
        host=options["host"],
        port=options["port"],
        grpc_port=None if options["no_grpc"] else options["grpc_port"],
        reuse_port=options["reuse_port"],
        roles=tuple(part.strip() for part in options["variants"].split(",") if part.strip()),
        limits=Limits(options["max_batch"], options["window"], options["queue"]),
        deadline_s=options["deadline"],
        max_body_bytes=options["max_body"] * MIB,
        max_requests=options["max_requests"],
        body_timeout_s=options["body_timeout"],
        linger_s=linger,
        drain_s=options["drain"],
        api_keys=_keys(options["api_key_file"]),
        certificate=certificate,
        private_key=key,
        policy=options["policy"],
        cache=_cache(options),
        keep_inputs=options["keep_inputs"],
        state=_state(options),
        spot=options["spot"],
        metadata_url=options["metadata_url"],
        access_log=options["access_log"],
        traces=options["traces"],
        record=options["record"],
        keep=read_keeping(options),
        ray=_ray(options),
        registry=options["registry"],
        language=read_language(options),
    )


def _state(options: dict[str, Any]) -> Path | None:
    """What was asked for, else a folder in the registry."""
    given: Path | None = options["state"]
    if given is not None or options["registry"] is None:
        return given
    registry: Path = options["registry"]
    if not (registry / "registry.sqlite").is_file():  # which is said soon
        return None
    try:
        (registry / "state").mkdir(exist_ok=True)
    except OSError:  # read-only
        return None
    return registry / "state"


def _cache(options: dict[str, Any]) -> Any:
    from lowbit.serving.cache.settings import CacheSettings

    if (options["redis"] or options["similar"]) and not options["cache"]:
        raise UsageError("The cache has no room.", "Give --cache MIB, e.g. --cache 256.")
    return CacheSettings(options["cache"] * MIB, options["cache_ttl"], options["redis"], options["similar"])


def _ray(options: dict[str, Any]) -> Any:
    from lowbit.serving.run.ray_engine import RaySettings

    least, colon, most = options["replicas"].partition(":")
    if not all(part.isascii() and part.isdigit() and len(part) < 5 for part in (least, most or least)) or (colon and not most):
        raise UsageError(f"--replicas: '{options['replicas']}' is neither a number nor a range.", "Give e.g. 4, or 1:4.")
    low, high = int(least), int(most or least)
    if not 1 <= low <= high:
        raise UsageError(f"--replicas: {low} to {high} is no range.", "The first is at least 1, the second no less.")
    if options["engine"] == "local":
        if high > 1:
            raise UsageError("Several replicas need Ray.", "Add --engine ray, or leave --replicas out.")
        return None
    return RaySettings(high, low, options["ray_address"])


def _keys(file: Path | None) -> tuple[str, ...]:
    """From a file and from the environment; never from the command line, which other users see."""
    given = os.environ.get(KEYS)
    keys = [] if given is None else _listed(given.replace(",", "\n"), KEYS, f"Write keys into it, separated by commas, or unset {KEYS}.")
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UsageError(f"The keys in {file.name} cannot be read: {why}.", "Give a text file with one key a line.") from None
        keys += _listed(text, file.name, "Write one key a line.")
    return tuple(dict.fromkeys(keys))


def _listed(text: str, where: str, hint: str) -> list[str]:
    """A source of keys without one is a mistake: the server would be open to everybody."""
    lines = (line.strip() for line in text.splitlines())
    if not (keys := [line for line in lines if line and not line.startswith("#")]):
        raise UsageError(f"There is no key in {where}.", hint)
    return keys


def _source(text: str, registry: Path | None) -> Any:
    name, equals, rest = text.partition("=")
    if registry is not None:
        from lowbit.serving.fleet.followed import Followed

        followed = Followed(rest, name) if equals else Followed(text)
        followed.parsed  # noqa: B018 - a reference that is none is said before anything is loaded
        return followed
    from lowbit.serving.reloading import Source

    if "@" in text and not Path(rest or text).exists():
        raise UsageError(f"There is no bundle '{rest or text}'.", "Versions come from a registry: --registry DIR.")
    folder = Path(rest if equals else text)
    if not folder.exists() and Path("registry", "registry.sqlite").is_file():
        raise UsageError(f"There is no folder {folder}.", f"If it is in the registry here: lowbit serve {text} --registry registry")
    return Source(folder, name) if equals else Source(folder)


def _run(server: Any) -> None:
    try:
        import uvloop
    except ImportError:  # Windows has none
        import asyncio

        asyncio.run(server)
        return
    uvloop.run(server)


def _tell(listening: Listening) -> None:
    """A short table of what is served."""
    doors = f"REST on {listening.url}" + (f", gRPC on {listening.grpc}" if listening.grpc else "")
    rows = [
        (model.name, model.version, variant.role, variant.id, f"batch up to {variant.batcher.settings.max_batch}")
        for model in listening.models
        for variant in model.variants.values()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        click.echo("  ".join(part.ljust(width) for part, width in zip(row, widths, strict=True)).rstrip())
    if any(model.language is not None for model in listening.models):
        doors += f", OpenAI's protocol on {listening.url}/v1"
    click.echo(f"{doors}, a page for people on {listening.url}/ui")


def _tell_json(listening: Listening) -> None:
    """One line for whoever started the server."""
    models = [
        {"name": model.name, "version": model.version, "variants": {variant.role: variant.id for variant in model.variants.values()}}
        for model in listening.models
    ]
    click.echo(json.dumps({"url": listening.url, "grpc": listening.grpc, "models": models}))
