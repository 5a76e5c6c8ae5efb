"""A server's life: bind, load, answer, drain, end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowbit.serving import deployment
from lowbit.serving.deployment import Deployment
from lowbit.serving.http_server import bound, http_server
from lowbit.serving.rest import Rest
from lowbit.serving.service import Service
from lowbit.serving.settings import Settings


@dataclass(frozen=True)
class Source:
    """A bundle to serve.

    Attributes:
        folder: Of the bundle.
        name: Of the model; the folder's if None.
    """

    folder: Path
    name: str | None = None


@dataclass(frozen=True)
class Listening:
    """Told once requests are answered.

    Attributes:
        url: Of REST.
        models: What is served.
    """

    url: str
    models: tuple[Deployment, ...]


async def serve(sources: Sequence[Source], settings: Settings, on_ready: Callable[[Listening], None]) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what was accepted and returns.

    Raises:
        UsageError: the address is taken, or a bundle, variant or policy is wrong.
        ModelError: a bundle was changed or cannot be run.
    """
    listening = bound(settings.host, settings.port)
    try:
        service = Service(settings)
        for source in sources:
            service.put(deployment.load(source.folder, name=source.name, roles=settings.roles, limits=settings.limits))
    except BaseException:
        listening.close()
        raise
    web = http_server(Rest(service), settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    running = asyncio.create_task(web.serve(sockets=[listening]))
    scheme, port = ("https" if settings.certificate else "http"), listening.getsockname()[1]
    on_ready(Listening(f"{scheme}://{settings.host}:{port}", tuple(service.models.values())))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
    await drain(service)
    web.should_exit = True
    await running
    for each in service.models.values():
        each.close()


async def drain(service: Service) -> None:
    """Admits nothing more, and waits for what was accepted, as long as the settings allow."""
    service.draining = True
    try:
        async with asyncio.timeout(service.settings.drain_s):
            while service.inside:
                await asyncio.sleep(0.005)
            for each in service.models.values():
                await each.drained()
    except TimeoutError:
        pass
