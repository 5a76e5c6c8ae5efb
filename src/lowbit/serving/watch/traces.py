"""OpenTelemetry traces of requests: one span each, its time in the queue and its run within. Needs the extra `otel`.

Spans are made after the fact, out of times that are measured anyway, so that a request pays for them once it has been answered.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lowbit.errors import UsageError
from lowbit.serving.watch.observing import Observer

if TYPE_CHECKING:
    from lowbit.serving.answer.answered import Answered, Caller
    from lowbit.serving.protocol.refusals import Refusal
    from lowbit.serving.protocol.requests import InferRequest
    from lowbit.serving.run.deployment import Deployment

SERVICE = "lowbit"


class Traces(Observer):
    """Turns requests into spans; continues the trace that a client's `traceparent` header names."""

    def __init__(self, exporter: Any = None) -> None:
        """Starts exporting.

        Args:
            exporter: Where spans go; None takes OTLP over HTTP, as the standard's OTEL_EXPORTER_OTLP_* variables say.

        Raises:
            UsageError: the extra is not installed.
        """
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            if exporter is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

                exporter = OTLPSpanExporter()
        except ImportError as error:
            raise UsageError(f"Traces need OpenTelemetry: {error.name} is missing.", "pip install 'lowbit[otel]'") from None
        self._provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("lowbit.serving")

    def answered(self, deployment: Deployment, request: InferRequest, caller: Caller, found: Answered, seconds: float) -> None:  # noqa: ARG002
        """A span with its queue and its run."""
        from opentelemetry.trace import set_span_in_context

        end = time.time_ns()
        facts = {"lowbit.variant": found.variant.id, "lowbit.route": found.route, "lowbit.batch": found.batch}
        span = self._begin(deployment, caller, end, seconds, facts)
        if found.batch:
            ran = end - int(found.ran_s * 1e9)
            within = set_span_in_context(span)
            self._tracer.start_span("queue", within, start_time=ran - int(found.queued_s * 1e9)).end(ran)
            self._tracer.start_span("run", within, start_time=ran).end(end)
        span.end(end)

    def refused(self, deployment: Deployment | None, caller: Caller, refusal: Refusal, seconds: float) -> None:
        """A span with why; an error where it was ours."""
        from opentelemetry.trace import Status, StatusCode

        end = time.time_ns()
        facts = {"lowbit.outcome": refusal.outcome, "http.response.status_code": refusal.status}
        span = self._begin(deployment, caller, end, seconds, facts)
        if refusal.status >= 500:
            span.set_status(Status(StatusCode.ERROR, refusal.message))
        span.end(end)

    def _begin(self, deployment: Deployment | None, caller: Caller, end: int, seconds: float, facts: dict[str, Any]) -> Any:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        about = {"lowbit.request_id": caller.request_id, **facts}
        if deployment is not None:
            about |= {"lowbit.model": deployment.name, "lowbit.version": deployment.version}
        parent = TraceContextTextMapPropagator().extract(dict(caller.headers))
        return self._tracer.start_span("infer", parent, SpanKind.SERVER, about, start_time=end - int(seconds * 1e9))

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()
