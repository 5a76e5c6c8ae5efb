"""Users of a server, in a thread: each request is a few real images, and each answer is compared with what its version would say."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from lowbit.serving.load import http_client
from lowbit.serving.load.load_targets import body, parse_answer

CLIENTS, PAUSE_S = 6, 0.025
"""Users think between an answer and the next request: a server that is never idle has no time to answer again at full precision."""
ROWS = 4
"""Images in a request."""
LABELLED = 20
"""One answer of so many is told its label afterwards."""
CLOSE = 0.02
"""Of the largest output: so far may an answer be from its version's own, computed in another batch."""


@dataclass
class Seen:
    """What became of the requests.

    Attributes:
        answered: Version -> answers.
        lost: Requests without an answer, by what came instead.
        swapped: Answers that are not what their version says to that image.
        recent: The version and the time of the latest answers.
    """

    answered: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    swapped: int = 0
    recent: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=100_000))


class Crowd:
    """Sends images for as long as it is open.

    Attributes:
        seen: So far.
        answers: Version -> what it says to each image, [N, 10]; versions are added as they come.
    """

    def __init__(self, url: str, model: str, key: str, images: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """Nobody asks yet."""
        parts = urlsplit(url)
        self._host, self._port, self._model, self._key = parts.hostname or "", parts.port or 80, model, key
        self._labels = labels
        self._chosen = np.random.default_rng(0).permutation(len(images) // ROWS * ROWS).reshape(-1, ROWS)
        self._bodies = [body({"image": images[rows]}) for rows in self._chosen]
        self.seen, self.answers = Seen(), dict[str, NDArray[np.float32]]()
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), name="crowd")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def since(self, moment: float, version: str) -> float | None:
        """Seconds from a moment until a version answered for the first time; None if it has not."""
        return next((at - moment for at, who in list(self.seen.recent) if at >= moment and who == version), None)

    async def _all(self) -> None:
        await asyncio.gather(*(self._one(number) for number in range(CLIENTS)))

    async def _one(self, number: int) -> None:
        """One client: the next request follows the last answer."""
        rng, connection = np.random.default_rng(number), await http_client.connect(self._host, self._port)
        while not self._over.is_set():
            await asyncio.sleep(float(rng.exponential(PAUSE_S)))
            index = int(rng.integers(len(self._chosen)))
            name = uuid.UUID(bytes=rng.bytes(16)).hex
            raw, split = self._bodies[index]
            headers = {"x-api-key": self._key, "x-request-id": name, "Inference-Header-Content-Length": str(split)}
            try:
                if not connection.open:
                    connection = await http_client.connect(self._host, self._port)
                answer = await connection.ask(self._request(f"/v2/models/{self._model}/infer", headers, raw))
            except http_client.Failed as error:
                self.seen.lost[str(error)] += 1
                continue
            if answer.status != 200:
                self.seen.lost[f"{answer.status} {answer.body[:80].decode(errors='replace')}"] += 1
                continue
            self._check(self._chosen[index], answer)
            if rng.integers(LABELLED) == 0:
                told = json.dumps({"request_id": name, "label": self._labels[self._chosen[index]].tolist()}).encode()
                await connection.ask(self._request("/v1/feedback", {"x-api-key": self._key}, told))

    def _check(self, rows: NDArray[np.int64], answer: http_client.Response) -> None:
        found = parse_answer(answer)
        self.seen.answered[found.version] += 1
        self.seen.recent.append((time.time(), found.version))
        wanted = self.answers[found.version][rows]
        self.seen.swapped += not np.allclose(found.outputs["logits"], wanted, atol=CLOSE * float(np.abs(wanted).max()))

    def _request(self, target: str, headers: Mapping[str, str], raw: bytes) -> bytes:
        return http_client.request("POST", target, f"{self._host}:{self._port}", headers, raw)
