"""A server's life: bind, load, answer, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lowbit.errors import UsageError
from lowbit.serving import notices
from lowbit.serving.answer.answering import Answers
from lowbit.serving.language.openai_api import OpenAi
from lowbit.serving.reloading import Reloader, Source
from lowbit.serving.rpc.grpc_server import GrpcServer, start_grpc
from lowbit.serving.run import deployment
from lowbit.serving.run.deployment import Deployment
from lowbit.serving.run.ray_engine import Opener, opener_for
from lowbit.serving.service import Service
from lowbit.serving.settings import Settings
from lowbit.serving.ui.files import Ui
from lowbit.serving.watch import logs
from lowbit.serving.watch.metrics import Metrics
from lowbit.serving.watch.watching import Watching
from lowbit.serving.web import admin, monitoring_pages, registry_pages
from lowbit.serving.web.handover import give_away, turn_away
from lowbit.serving.web.http_server import HttpServer, bound, http_server
from lowbit.serving.web.openapi import Docs
from lowbit.serving.web.pages import server_pages
from lowbit.serving.web.predict import Predict
from lowbit.serving.web.rest import Rest

if TYPE_CHECKING:
    from lowbit.serving.fleet.followed import Followed
    from lowbit.serving.fleet.follower import Follower
    from lowbit.serving.keep.keeping import Keeper

STOPPING = (signal.SIGTERM, signal.SIGINT)
RELOADING = signal.SIGHUP
ACCEPT_S = 0.05
"""So long for what is in the kernel's queue to be accepted."""
FIRST_S = 1.0
"""And so long for the first request on a connection that has had none: who has just connected has one in hand."""
LAST_S = 0.2
"""Behind the last new connection so long: requests on their way are answered, if only with a refusal."""


@dataclass(frozen=True)
class Listening:
    """Told once requests are answered.

    Attributes:
        url: Of REST.
        grpc: "host:port" of gRPC; None without it.
        models: What is served.
    """

    url: str
    grpc: str | None
    models: tuple[Deployment, ...]


@dataclass(frozen=True)
class Wishes:
    """What signals and notices ask of a running server."""

    stop: asyncio.Event
    reload: asyncio.Event


async def serve(sources: Sequence[Source | Followed], settings: Settings, on_ready: Callable[[Listening], None]) -> None:
    """Serves until SIGTERM, SIGINT or a cloud's notice, then finishes what was accepted and returns. SIGHUP loads changed bundles.

    What comes from a registry is `Followed`, and the settings name the registry.

    Raises:
        UsageError: the address is taken, or a bundle, variant or policy is wrong.
        ModelError: a bundle was changed or cannot be run.
    """
    _check(sources, settings)
    folders = tuple(source for source in sources if isinstance(source, Source))
    wishes = Wishes(asyncio.Event(), asyncio.Event())
    async with contextlib.AsyncExitStack() as stack:
        listening = stack.enter_context(contextlib.closing(bound(settings.host, settings.port, shared=settings.reuse_port)))
        stack.enter_context(_signals(wishes))
        watching = stack.enter_context(contextlib.closing(Watching.of(settings)))
        answers = await stack.enter_async_context(Answers.of(settings))
        service = Service(settings, watching.observers, answers)
        keeper = await stack.enter_async_context(watching.keeping(service))
        opener = await stack.enter_async_context(opener_for(settings.ray))
        load = partial(_load, settings=settings, watching=watching, opener=opener)
        stack.callback(service.close)
        for source in folders:
            made = await asyncio.to_thread(load, source)
            try:
                service.put(made)
            except BaseException:
                made.close()
                raise
            watching.metrics.put(made)
            if wishes.stop.is_set():
                return
        follower = await stack.enter_async_context(_following(sources, service, load, watching.metrics))
        reloader = Reloader(service, folders, load, watching.metrics, settings.drain_s)
        watching.check(service)
        pages = server_pages(settings, watching.metrics, watching.recorder, reloader)
        monitoring_pages.mount(pages, keeper, service, keyed=bool(settings.api_keys), rollback=_hold(follower, keeper))
        admin.mount(pages, answers, keyed=bool(settings.api_keys))
        registry_pages.mount(pages, follower, keyed=bool(settings.api_keys))
        web = http_server(OpenAi(service, Rest(service, Predict(service, Docs(service, Ui(settings, pages))))), settings)
        grpc = await stack.enter_async_context(_grpc(service))
        url = await stack.enter_async_context(_rest(web, listening, settings))
        await stack.enter_async_context(_noticing(settings, wishes))
        on_ready(Listening(url, f"{settings.host}:{grpc.port}" if grpc else None, tuple(service.models.values())))
        await _until(wishes, reloader)
        await drain(service, web, listening, grpc)


def _check(sources: Sequence[Source | Followed], settings: Settings) -> None:
    names = [source.model for source in sources]
    if double := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"Two bundles are named '{double.pop()}'.", "Name them: lowbit serve first=FOLDER second=FOLDER.")
    if not settings.grpc_port:
        return
    if settings.grpc_port == settings.port:
        raise UsageError(f"REST and gRPC cannot share port {settings.port}.", "Another --grpc-port (0 takes a free one), or --no-grpc.")
    try:
        bound(settings.host, settings.grpc_port, shared=settings.reuse_port).close()  # a busy port is an error before models are loaded
    except UsageError as error:
        raise UsageError(error.message, "Another --grpc-port (0 takes a free one), or --no-grpc.") from None


def _load(source: Source, *, settings: Settings, watching: Watching, opener: Opener) -> Deployment:
    made = deployment.load(
        source.folder,
        name=source.name,
        version=source.version,
        digest=source.digest,
        roles=settings.roles,
        limits=settings.limits,
        on_batch=watching.metrics.on_batch,
        opener=opener,
        language=settings.language,
    )
    watching.meet(made)
    return made


@contextlib.asynccontextmanager
async def _following(
    sources: Sequence[Source | Followed], service: Service, load: Callable[[Source], Deployment], metrics: Metrics
) -> AsyncIterator[Follower | None]:
    """Serves what comes from a registry, as long as it lasts."""
    if (folder := service.settings.registry) is None:
        yield None
        return
    from lowbit.serving.fleet.follower import following

    followed = [source for source in sources if not isinstance(source, Source)]
    async with following(folder, followed, service, load, metrics) as follower:
        yield follower


def _hold(follower: Follower | None, keeper: Keeper | None) -> monitoring_pages.Rollback | None:
    """Has rollouts wait while a review is open.

    Returns:
        What rolls a model back when a person answers so; None where there is no registry.
    """
    if follower is None:
        return None
    if keeper is not None:
        from lowbit.serving.fleet.holding import Holding

        follower.reports.beats.append(Holding(follower.rollouts, follower.models, lambda: keeper.books.reviews).beat)
    return follower.roll_back


@contextlib.contextmanager
def _signals(wishes: Wishes) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in STOPPING:
        loop.add_signal_handler(number, wishes.stop.set)
    loop.add_signal_handler(RELOADING, wishes.reload.set)
    try:
        yield
    finally:
        for number in (*STOPPING, RELOADING):
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def _grpc(service: Service) -> AsyncIterator[GrpcServer | None]:
    if service.settings.grpc_port is None:
        yield None
        return
    grpc = await start_grpc(service, service.settings)
    try:
        yield grpc
    finally:
        await grpc.stop(1.0)


@contextlib.asynccontextmanager
async def _rest(web: HttpServer, listening: socket.socket, settings: Settings) -> AsyncIterator[str]:
    running = asyncio.create_task(web.serve(sockets=[listening]))
    try:
        while not web.started and not running.done():
            await asyncio.sleep(0.001)
        scheme, port = ("https" if settings.certificate else "http"), listening.getsockname()[1]
        yield f"{scheme}://{settings.host}:{port}"
    finally:
        web.should_exit = True
        await running


@contextlib.asynccontextmanager
async def _noticing(settings: Settings, wishes: Wishes) -> AsyncIterator[None]:
    if settings.spot == "off":
        yield
        return
    watch = notices.watch(settings.spot, lambda _: wishes.stop.set(), settings.metadata_url)
    task = logs.logged("notices are not watched any more", watch)
    try:
        yield
    finally:
        task.cancel()


async def _until(wishes: Wishes, reloader: Reloader) -> None:
    """Waits for the end, and loads changed bundles when asked to."""
    ending = asyncio.create_task(wishes.stop.wait())
    while not wishes.stop.is_set():
        asked = asyncio.create_task(wishes.reload.wait())
        await asyncio.wait((ending, asked), return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if wishes.reload.is_set():
            wishes.reload.clear()
            reloading = logs.logged("loading again failed", _reloaded(reloader))
            await asyncio.wait((ending, reloading), return_when=asyncio.FIRST_COMPLETED)


async def _reloaded(reloader: Reloader) -> None:
    await reloader.reload()


async def drain(service: Service, web: HttpServer, listening: socket.socket, grpc: GrpcServer | None) -> None:
    """Says that the server is not ready, lingers, admits nothing more, and waits for what was accepted as long as the settings allow.

    What is not answered by then is refused with a 503.
    """
    settings = service.settings
    logs.say("draining", inside=service.inside)
    service.leaving = True
    handing_over = [asyncio.create_task(grpc.stop(settings.drain_s))] if grpc and settings.reuse_port else []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.drain_s):
            if settings.reuse_port:
                give_away(listening)
            await asyncio.sleep(settings.linger_s)
            if settings.reuse_port:  # the successor answers what comes now
                await _close(web, listening)
            service.draining = True
            await service.idle()
            await asyncio.gather(*handing_over)  # its clients were sent to the successor when this began
    left = service.inside
    service.draining = True
    service.close()
    if not settings.reuse_port:
        await _close(web, listening)
    (logs.warn if left else logs.say)("drained", refused=left)


async def _close(web: HttpServer, listening: socket.socket) -> None:
    """Takes no more connections; those that are there stay, so that what is on its way on them still gets its answer."""
    turn_away(listening)
    await asyncio.sleep(ACCEPT_S)
    for server in web.servers:
        server.close()
    await asyncio.sleep(LAST_S)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_S):
            while any(getattr(each, "cycle", each) is None for each in web.server_state.connections):
                await asyncio.sleep(LAST_S / 10)
