"""`lowbit serve BUNDLE`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("serve", short_help="Serve bundles over the Open Inference Protocol.")
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="For REST; 0 takes a free one.")
def command(bundles: tuple[str, ...], host: str, port: int) -> None:
    """Serve each BUNDLE (a folder that `lowbit optimize` made) until SIGTERM or Ctrl-C, then finish what was accepted."""
    import uvloop

    from lowbit.serving.server import Listening, Source, serve
    from lowbit.serving.settings import Settings

    def ready(listening: Listening) -> None:
        for model in listening.models:
            variants = ", ".join(f"{variant.role}: {variant.id}" for variant in model.variants.values())
            click.echo(f"Serving {model.name} ({variants}) on {listening.url}", err=True)

    def source(text: str) -> Source:
        name, equals, folder = text.partition("=")
        return Source(Path(folder), name) if equals else Source(Path(text))

    uvloop.run(serve([source(text) for text in bundles], Settings(host=host, port=port), ready))
