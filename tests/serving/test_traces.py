"""Spans of requests, as an exporter sees them."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import missing
from lowbit.serving.answer.answered import Answered, Caller
from lowbit.serving.protocol.refusals import Malformed, Unavailable
from lowbit.serving.protocol.requests import InferRequest
from lowbit.serving.watch.traces import Traces

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Model:
    name, version = "tiny", "1"


class Variant:
    id = "int8@onnxruntime"


@pytest.fixture
def exporter() -> Any:
    try:
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    except ImportError:
        missing("opentelemetry-sdk")
    return InMemorySpanExporter()


def seconds(span: Any) -> float:
    return (span.end_time - span.start_time) / 1e9


def test_a_request_is_a_span_with_its_queue_and_its_run(exporter: Any) -> None:
    traces = Traces(exporter)
    found: Any = Answered({}, Variant(), "default", batch=4, queued_s=0.25, ran_s=0.5)  # type: ignore[arg-type]
    traces.answered(Model(), InferRequest({}), Caller("an-id", {"traceparent": PARENT}), found, 1.0)  # type: ignore[arg-type]
    traces.close()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"infer", "queue", "run"}
    assert f"{spans['infer'].context.trace_id:x}" in PARENT
    assert f"{spans['infer'].parent.span_id:x}" in PARENT
    assert all(spans[name].parent.span_id == spans["infer"].context.span_id for name in ("queue", "run"))
    assert [round(seconds(spans[name]), 6) for name in ("infer", "queue", "run")] == [1.0, 0.25, 0.5]
    assert spans["queue"].end_time == spans["run"].start_time
    about = spans["infer"].attributes
    assert (about["lowbit.model"], about["lowbit.variant"], about["lowbit.batch"]) == ("tiny", "int8@onnxruntime", 4)
    assert about["lowbit.request_id"] == "an-id"


def test_refusals_are_spans_and_only_ours_are_errors(exporter: Any) -> None:
    traces = Traces(exporter)
    traces.refused(None, Caller(), Malformed("no"), 0.1)
    traces.refused(None, Caller(), Unavailable("full"), 0.2)
    traces.close()
    theirs, ours = exporter.get_finished_spans()
    assert (theirs.attributes["lowbit.outcome"], theirs.status.status_code.name) == ("malformed", "UNSET")
    assert (ours.attributes["http.response.status_code"], ours.status.status_code.name) == (503, "ERROR")
    assert theirs.parent is None
