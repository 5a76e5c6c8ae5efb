"""The server's application without sockets, and a bundle of a model with inputs of many types: what tests of the protocol share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from bundle_examples import ENVIRONMENT, comparison
from onnx import TensorProto, helper

from lowbit.bundle.manifest import build_manifest, file_entries, write_manifest
from lowbit.bundle.schema import CalibrationEntry, DataEntry, ValidationEntry
from lowbit.graph.load import load_model
from lowbit.serving.run import deployment
from lowbit.serving.service import Service
from lowbit.serving.settings import Settings
from lowbit.serving.web.rest import Rest
from lowbit.types import Budget, Candidate, Decision, Judgement, Latency, Measurement, Policy, Tuning
from small_models import save

Result = TypeVar("Result")
Parts = Sequence[bytes]


@dataclass(frozen=True)
class Answered:
    """What came back over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The refusal's message."""
        found: str = self.json["error"]
        return found


async def call(
    app: Any,
    method: str,
    path: str,
    body: bytes | Parts = b"",
    headers: Mapping[str, str] | None = None,
    *,
    query: str = "",
    gone: bool = False,
) -> Answered:
    """One request to an ASGI application.

    Args:
        app: The application.
        method: In capitals.
        path: Without the query.
        body: Whole, or in the parts in which it comes.
        headers: Content-Length is added.
        query: Behind the question mark.
        gone: The client closes the connection behind its last part.
    """
    parts = [body] if isinstance(body, bytes) else list(body)
    given = {"content-length": str(sum(map(len, parts))), **(headers or {})}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()],
    }
    messages = [{"type": "http.request", "body": part, "more_body": gone or number < len(parts)} for number, part in enumerate(parts, 1)]
    messages += [{"type": "http.disconnect"}] if gone else []
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError("nobody sets that event")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    if gone and not sent:
        return Answered(0, {}, b"")
    start, *rest = sent
    found = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    return Answered(start["status"], found, b"".join(each["body"] for each in rest))


@contextmanager
def served(*folders: Path, **settings: Any) -> Iterator[Service]:
    """A service with these bundles; needs a running event loop only once it is asked."""
    service = Service(Settings(**settings))
    try:
        for folder in folders:
            service.put(deployment.load(folder, roles=service.settings.roles, language=service.settings.language))
        yield service
    finally:
        for each in service.models.values():
            each.close()


def ask(folders: Sequence[Path], work: Callable[[Rest], Awaitable[Result]], **settings: Any) -> Result:
    """Runs `work` with an application that serves these bundles."""

    async def run() -> Result:
        with served(*folders, **settings) as service:
            return await work(Rest(service))

    return asyncio.run(run())


def mixed_bundle(folder: Path) -> Path:
    """A model with three inputs [N, 4] and an output for each: INT64 + 1, FP16 twice, BOOL turned round. Only the baseline is in it."""
    kinds = {"count": TensorProto.INT64, "half": TensorProto.FLOAT16, "flag": TensorProto.BOOL}
    nodes = [
        helper.make_node("Constant", [], ["one"], value=helper.make_tensor("one", TensorProto.INT64, [], [1])),
        helper.make_node("Add", ["count", "one"], ["next"]),
        helper.make_node("Add", ["half", "half"], ["twice"]),
        helper.make_node("Not", ["flag"], ["not"]),
    ]
    (folder / "baseline").mkdir(parents=True)
    results = {"next": TensorProto.INT64, "twice": TensorProto.FLOAT16, "not": TensorProto.BOOL}
    path = save(
        folder / "baseline" / "model.onnx",
        nodes,
        {name: (kind, ["N", 4]) for name, kind in kinds.items()},
        {name: (kind, ["N", 4]) for name, kind in results.items()},
        {},
    )
    return kept_bundle(folder, path)


def echo_bundle(folder: Path) -> Path:
    """A model that gives strings back: "words" [N, 2] as "same"."""
    (folder / "baseline").mkdir(parents=True)
    sides = [{name: (TensorProto.STRING, ["N", 2])} for name in ("words", "same")]
    path = save(folder / "baseline" / "model.onnx", [helper.make_node("Identity", ["words"], ["same"])], *sides, {})
    return kept_bundle(folder, path)


def kept_bundle(folder: Path, model: Path, *, preprocess: str | None = None, task: str = "regression") -> Path:
    """A bundle whose answer is `keep`, through the real writer: the model as it came, on onnxruntime. Times in it are test data."""
    files: tuple[str, ...] = (str(model.relative_to(folder)),)
    if preprocess is not None:
        (folder / "preprocess.yaml").write_text(preprocess)
        files += tuple(path.name for path in folder.iterdir() if path.is_file() and path.name != "bundle.json")
    one = Tuning(threads=1)
    times = tuple(
        Measurement(size, 1, Latency(ms, ms, ms, ms, ms), 1000 * size / ms, None, None, 9, False, one) for size, ms in ((1, 1.0), (8, 4.0))
    )
    baseline = Candidate(
        "fp32@onnxruntime", "fp32", "onnxruntime", "fp32", one, search=comparison(0.0), measurements=times, artifact=files[0]
    )
    manifest = build_manifest(
        model=load_model(model),
        policy=Policy(task, "rmse" if task == "regression" else "top1", Budget.parse("1%")),
        data=DataEntry(
            source="rows.npz",
            calibration=CalibrationEntry(sha256="c1" * 32, n=64, how_selected="the 64 lowest content hashes"),
            validation=ValidationEntry(sha256="d2" * 32, n=400),
        ),
        environment=ENVIRONMENT,
        baseline=baseline,
        candidates=(),
        decision=Decision("keep", baseline.id, ("Nothing is faster.",), (), (Judgement(baseline.id, "keep", ("The baseline.",)),)),
        command="lowbit optimize model.onnx --data rows.npz",
        artifact=files[0],
        files=file_entries(folder, files),
        preprocess=None if preprocess is None else "preprocess.yaml",
        created=datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
    )
    write_manifest(manifest, folder)
    return folder
