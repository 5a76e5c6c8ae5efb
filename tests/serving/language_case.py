"""A small real bundle of a language model, and an engine that needs nothing installed: what the tests of language serving share.

The engine is a table of bigrams: the next token depends on the last one. It is a model like any other, small enough to be checked by hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from bundle_examples import ENVIRONMENT, comparison
from serving_case import Running, running

from lowbit.bundle.manifest import build_manifest, file_entries, write_manifest
from lowbit.bundle.schema import (
    CalibrationEntry,
    DataEntry,
    EngineTuningEntry,
    LanguageCandidateEntry,
    LanguageEntry,
    LanguageVariantEntry,
    ValidationEntry,
)
from lowbit.errors import RunError
from lowbit.llm.engines.base import Emitted, EngineTuning, Sampling
from lowbit.llm.engines.sampling import choose, generator
from lowbit.runtimes.hardware import Hardware
from lowbit.types import Array, Budget, Candidate, Decision, Judgement, Latency, Measurement, Model, Policy, Tuning

BASELINE, CHOSEN = "f16@bigram", "int4@bigram"
"""Ids of the two variants: `full` and `chosen`."""
ENGINE = "bigram"
SIZE = 320
"""Tokens of the tokenizer: <s> is 0, </s> is 1."""
ONE = Tuning(threads=1)
DEFAULT = EngineTuning()


@dataclass
class Bigrams:
    """An engine's continuous batch over a table of logits [V, V].

    Attributes:
        step_s: Time that a step takes.
        fails: Raised by the next step, once.
        kv_use: As some engines tell it.
        closed: Whether it was.
    """

    table: Array
    context: int
    slots: int
    step_s: float = 0.0
    tells: bool = True
    fails: Exception | None = None
    closed: bool = False
    running: dict[int, tuple[int, int, Sampling, np.random.Generator, int]] = field(default_factory=dict)
    waiting: list[tuple[int, list[int], Sampling]] = field(default_factory=list)
    most: int = 0
    """Answers that were computed in one step, at most."""

    @property
    def vocabulary(self) -> int:
        return len(self.table)

    @property
    def kv_use(self) -> float:
        return len(self.running) / self.slots

    def add(self, request: int, tokens: Sequence[int], sampling: Sampling) -> None:
        if not tokens or len(tokens) >= self.context:
            raise RunError("There is no room for an answer.")
        self.waiting.append((request, list(tokens), sampling))

    def step(self) -> list[Emitted]:
        if self.step_s:
            time.sleep(self.step_s)
        if self.fails is not None:
            error, self.fails = self.fails, None
            raise error
        while self.waiting and len(self.running) < self.slots:
            request, tokens, sampling = self.waiting.pop(0)
            self.running[request] = (tokens[-1], len(tokens), sampling, generator(sampling), 0)
        self.most = max(self.most, len(self.running))
        return [self._one(request, *state) for request, state in list(self.running.items())]

    def _one(self, request: int, last: int, length: int, sampling: Sampling, rng: np.random.Generator, given: int) -> Emitted:
        token, logprob = choose(self.table[last], sampling, rng)
        told = logprob if self.tells else None
        if token in sampling.eos:
            del self.running[request]
            return Emitted(request, None, told, "stop")
        if given + 1 >= sampling.tokens or length + 1 >= self.context:
            del self.running[request]
            return Emitted(request, token, told, "length")
        self.running[request] = (token, length + 1, sampling, rng, given + 1)
        return Emitted(request, token, told)

    def drop(self, request: int) -> None:
        self.running.pop(request, None)
        self.waiting = [each for each in self.waiting if each[0] != request]

    def close(self) -> None:
        self.closed = True


class BigramSession:
    """The same table, one text at a time."""

    precision = "f32"

    def __init__(self, table: Array, context: int) -> None:
        self._table, self.context, self.vocabulary, self.closed = table, context, len(table), False

    def logits(self, tokens: Sequence[int]) -> Array:
        return self._table[list(tokens)]

    def start(self, tokens: Sequence[int]) -> Array:
        return self._table[tokens[-1]]

    def step(self, token: int) -> Array:
        return self._table[token]

    def close(self) -> None:
        self.closed = True


class BigramEngine:
    """Opens tables: `table.npy` or whatever its name is."""

    name = ENGINE
    opens = "safetensors"
    extra = "language"
    step_s = 0.0
    tells = True

    def __init__(self) -> None:
        self.opened: list[Bigrams] = []

    def version(self) -> str | None:
        return "1"

    def tunings(self, hardware: Hardware) -> tuple[EngineTuning, ...]:  # noqa: ARG002
        return (EngineTuning(),)

    def open(self, artifact: Path, tuning: EngineTuning = DEFAULT, *, context: int = 2048) -> Any:  # noqa: ARG002
        return BigramSession(np.load(artifact, allow_pickle=False), context)

    def batch(self, artifact: Path, tuning: EngineTuning = DEFAULT, *, context: int = 2048, slots: int = 4) -> Bigrams:  # noqa: ARG002
        made = Bigrams(np.load(artifact, allow_pickle=False), context, slots, self.step_s, self.tells)
        self.opened.append(made)
        return made


def table(seed: int = 0, sharpness: float = 3.0) -> Array:
    """Logits of what follows each token, float32 [V, V]; </s> follows rarely."""
    found = np.random.default_rng(seed).normal(0, sharpness, (SIZE, SIZE)).astype(np.float32)
    found[:, 0] = -30.0
    found[:, 1] = -30.0
    return found


def chain(words: Sequence[int], sharpness: float = 12.0) -> Array:
    """Logits by which each of these tokens is followed by the next one, and the last one by </s>; anything else leads to the first."""
    found = np.zeros((SIZE, SIZE), np.float32)
    found[:, words[0]] = sharpness
    for one, other in zip(words, [*words[1:], 1], strict=True):
        found[one] = 0.0
        found[one, other] = sharpness
    return found


def language_bundle(
    folder: Path,
    *,
    chosen: Array | None = None,
    full: Array | None = None,
    chat: bool = True,
    context: int = 128,
    engine: str = ENGINE,
    workload: str = "prompt=16,output=16,concurrency=2",
    note: str = "",
) -> Path:
    """Writes a bundle through the real writer: a table of bigrams for `chosen`, and another for `full`. Times in it are test data."""
    from decoder_case import write_tokenizer

    paths = {}
    for name, values, default in (("model", chosen, table(1)), ("baseline", full, table(2))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        np.save(folder / name / "model.npy", default if values is None else values)
        paths[name] = f"{name}/model.npy"
    write_tokenizer(folder / "tokenizer", SIZE, chat=chat)
    return write_bundle(folder, paths, engine=engine, form="safetensors", context=context, workload=workload, note=note)


def write_bundle(
    folder: Path, paths: dict[str, str], *, engine: str, form: Any, context: int = 128, workload: str = "", note: str = ""
) -> Path:
    """The manifest over artifacts that are there: `paths` has "model", and "baseline" where there is one; the tokenizer in "tokenizer"."""
    ids = {"model": f"int4@{engine}", "baseline": f"f16@{engine}"}
    candidates = {name: _candidate(ids[name], name, paths.get(name)) for name in ids}
    entries = {
        name: LanguageVariantEntry(engine=engine, format=form, artifact=path, tuning=EngineTuningEntry(threads=1))
        for name, path in paths.items()
    }
    manifest = build_manifest(
        model=Model(folder, hashlib.sha256(b"a model").hexdigest(), (), (), 1000, 2000, 0),
        policy=Policy("language", "perplexity", Budget.parse("8%")),
        data=DataEntry(
            source="texts",
            calibration=CalibrationEntry(sha256="c1" * 32, n=64, how_selected="every second window"),
            validation=ValidationEntry(sha256="d2" * 32, n=400),
        ),
        environment=ENVIRONMENT,
        baseline=candidates["baseline"],
        candidates=(candidates["model"],),
        decision=Decision("ship", ids["model"], ("It is the fastest.",), (), (Judgement(ids["model"], "ship", ("Within the budget.",)),)),
        command="lowbit optimize small",
        artifact=paths["model"],
        files=file_entries(folder, ("model", *(("baseline",) if "baseline" in paths else ()), "tokenizer")),
        notes=(note,) if note else (),
        created=datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
        form="huggingface",
        language=LanguageEntry(
            chosen=entries["model"],
            baseline=entries.get("baseline"),
            context=context,
            tokenizer="tokenizer",
            workload=workload or "prompt=16,output=16,concurrency=1",
            window=256,
            stride=256,
            tokens=1000,
            budgets={"int4": "8%"},
            candidates={ids[name]: LanguageCandidateEntry(**entry.model_dump()) for name, entry in entries.items()},
        ),
    )
    write_manifest(manifest, folder)
    return folder


def _candidate(id: str, precision: str, artifact: str | None) -> Candidate:
    recipe, engine = id.split("@")
    one = Measurement(1, 1, Latency(1, 1, 1, 1, 1), 1000, None, None, 9, False, ONE)
    found = comparison(0.0)
    return Candidate(id, recipe, engine, precision, ONE, search=found, measurements=(one,), artifact=artifact)


def events(body: bytes) -> list[Any]:
    """What came as server-sent events; the last one of a stream that ended well is "[DONE]"."""
    found = []
    for block in body.decode().split("\n\n"):
        if block:
            assert block.startswith("data: "), block
            text = block.removeprefix("data: ")
            found.append(text if text == "[DONE]" else json.loads(text))
    return found


def install(engine: BigramEngine | None = None) -> BigramEngine:
    """Makes `registry.get("bigram")` find the engine, in this process; other names go where they did."""
    from lowbit.llm.engines import registry

    made, found = engine or BigramEngine(), getattr(registry.get, "before", registry.get)

    def get(name: str) -> Any:
        return made if name == ENGINE else found(name)

    get.before = found  # type: ignore[attr-defined]
    registry.get = get  # type: ignore[assignment]
    return made


@contextlib.contextmanager
def running_language(*bundles: Path | str, step_s: float = 0.0, options: tuple[object, ...] = ()) -> Iterator[Running]:
    """`lowbit serve BUNDLES` in a process of its own, where a step of the bigrams' engine takes so long."""
    program = (Path(__file__).with_name("language_server.py"), step_s)
    with running(*bundles, options=("--no-grpc", *options), program=program) as found:
        yield found


class Client:
    """One connection that can be left in the middle of a stream."""

    def __init__(self, server: Running, timeout_s: float = 30.0) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout_s)

    def post(self, path: str, headers: Mapping[str, str] | None = None, **fields: Any) -> http.client.HTTPResponse:
        """Asks; the body of what comes is still to be read."""
        self.connection.request("POST", path, json.dumps(fields), {"content-type": "application/json", **(headers or {})})
        return self.connection.getresponse()

    def get(self, path: str) -> bytes:
        self.connection.request("GET", path)
        return self.connection.getresponse().read()

    def metric(self, name: str, more: str = "") -> float:
        """The sum of a metric's samples."""
        lines = self.get("/metrics").decode().splitlines()
        found = [line for line in lines if line.startswith((name + "{", name + " ")) and more in line]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def close(self) -> None:
        self.connection.close()


def streamed(response: http.client.HTTPResponse) -> Iterator[Any]:
    """Events as they come."""
    while line := response.readline():
        if line.startswith(b"data: "):
            text = line.removeprefix(b"data: ").decode().strip()
            yield text if text == "[DONE]" else json.loads(text)
