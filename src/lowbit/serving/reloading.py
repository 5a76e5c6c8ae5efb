"""A bundle that changed on disk takes the place of the one that is served: loaded beside it, swapped, the old one freed when it is idle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lowbit.bundle.bundle import Bundle
from lowbit.errors import LowbitError
from lowbit.serving.run.deployment import Deployment, version_of
from lowbit.serving.service import Service
from lowbit.serving.watch import logs
from lowbit.serving.watch.metrics import Metrics


@dataclass(frozen=True)
class Source:
    """A bundle to serve.

    Attributes:
        folder: Of the bundle.
        name: Of the model; the folder's if None.
        version: To be known by; the manifest's if None.
        digest: Of the version in the registry that it comes from; empty where it does not.
    """

    folder: Path
    name: str | None = None
    version: str | None = None
    digest: str = ""

    @property
    def model(self) -> str:
        """The model's name."""
        return self.name or self.folder.resolve().name


@dataclass(frozen=True)
class Reloaded:
    """What became of one bundle.

    Attributes:
        model: Its name.
        result: "swapped", "unchanged" or "failed".
        version: That is served now.
        why: It failed, without paths.
    """

    model: str
    result: str
    version: str
    why: str = ""


class Reloader:
    """Loads again what changed. One reload at a time; whoever asks meanwhile waits for its own turn."""

    def __init__(
        self, service: Service, sources: tuple[Source, ...], load: Callable[[Source], Deployment], metrics: Metrics, patience_s: float
    ) -> None:
        """Uses `load` for every source that changed, in a thread; the old one may take `patience_s` to end what it accepted."""
        self._service, self._sources, self._load, self._metrics, self._patience_s = service, sources, load, metrics, patience_s
        self._turn = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()

    async def reload(self) -> list[Reloaded]:
        """Looks at every bundle. A file that is missing, changed or cannot be run leaves the old version in its place."""
        async with self._turn:
            return [await self._one(source) for source in self._sources]

    async def _one(self, source: Source) -> Reloaded:
        current = self._service.models[source.model]
        try:
            found = await self._tried(source, current)
        except Exception as error:  # whatever it was, the other bundles still have their turn
            why = error.message if isinstance(error, LowbitError) else type(error).__name__
            found = Reloaded(source.model, "failed", self._service.models[source.model].version, why)
            if not isinstance(error, LowbitError | OSError):
                logs.failed("loading again failed", model=source.model)
        self._metrics.reloads.labels(found.model, found.result).inc()
        (logs.warn if found.result == "failed" else logs.say)("reload", **vars(found))
        return found

    async def _tried(self, source: Source, current: Deployment) -> Reloaded:
        """In threads, so that requests are answered meanwhile; what they wait for is the exchange alone."""
        if not await asyncio.to_thread(changed, source.folder, current.version):
            return Reloaded(source.model, "unchanged", current.version)
        made = await asyncio.to_thread(self._load, source)
        try:
            before = self._service.put(made, await asyncio.to_thread(self._service.answers.studied, made))
        except BaseException:
            made.close()
            raise
        if before is not None:
            task = logs.logged("freeing the old version failed", self._free(before))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        self._metrics.put(made, before)
        return Reloaded(source.model, "swapped", made.version)

    async def _free(self, before: Deployment) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                await before.drained()
        except TimeoutError:
            logs.warn("the old version did not get idle", model=before.name, version=before.version)
        self._service.free(before)


def changed(folder: Path, version: str) -> bool:
    """Whether a bundle is another version now; checks the digests of all its files.

    Raises:
        UsageError: it is no bundle any more.
        ModelError: a file is missing, or is not what its manifest says.
    """
    Bundle.load(folder)
    return version_of(folder) != version
