"""OpenTelemetry traces: a span for each request, made by OpenTelemetry's own FastAPI instrumentation, and one a stage.

Off unless RECSYS_OTEL_ENDPOINT names an OTLP collector; then it needs the extra `tracing`. Sampling and resource
attributes follow OpenTelemetry's own variables (OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES).
"""

import logging
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from recsys.errors import ConfigError
from serving.observability.logs import PROBES

if TYPE_CHECKING:
    from fastapi import FastAPI
    from opentelemetry.sdk.trace import SpanProcessor

    from serving.recommending.answers import RequestTrace

PATH: Final = "/v1/traces"  # where collectors take spans over HTTP
INSTALL: Final = "pip install -c constraints.txt -e '.[tracing]'"
STAGES: Final = ("queue", "state", "retrieval", "features", "ranking", "ordering", "explain")  # in their order
log = logging.getLogger(__name__)


def build(app: "FastAPI", endpoint: str | None, version: str) -> "Tracing | None":
    """Instrument the app; None, and nothing imported, where no endpoint is set. Raises ConfigError where the endpoint
    is no URL or the extra is not installed."""
    if endpoint is None:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"RECSYS_OTEL_ENDPOINT is {endpoint!r}; a URL such as http://127.0.0.1:4318{PATH} is needed.")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        address = endpoint if parts.path.strip("/") else f"{endpoint.rstrip('/')}{PATH}"
        tracing = Tracing(app, BatchSpanProcessor(OTLPSpanExporter(endpoint=address, timeout=2)), version)
    except ImportError as error:
        raise ConfigError(f"RECSYS_OTEL_ENDPOINT needs {error.name}, which is not installed: {INSTALL}") from error
    log.info("traces go to %s", parts.hostname)
    return tracing


class Tracing:
    """The spans of one app; `processor` sends them, from a thread of its own."""

    def __init__(self, app: "FastAPI", processor: "SpanProcessor", version: str) -> None:
        from opentelemetry import trace
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        resource = Resource.create({"service.name": "recsys", "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("recsys.serving", version)
        self._current_span = trace.get_current_span
        FastAPIInstrumentor.instrument_app(
            app,
            tracer_provider=self._provider,
            excluded_urls=",".join(f"{probe}$" for probe in sorted(PROBES)),
            exclude_spans=["receive", "send"],
        )

    def describe(self, request_id: str, elapsed_s: float, trace: "RequestTrace | None") -> None:
        """Add what is known of the current request once its answer is ready. A stage's length is exact; its place is
        the sum of those before it."""
        span = self._current_span()
        if not span.is_recording():
            return
        span.set_attribute("recsys.request_id", request_id)
        if trace is None:
            return
        if trace.degraded:
            span.set_attribute("recsys.degraded", trace.degraded)
        at = time.time_ns() - int(elapsed_s * 1e9)
        for stage in (stage for stage in STAGES if stage in trace.timings_ms):
            end = at + int(trace.timings_ms[stage] * 1e6)
            self._tracer.start_span(stage, start_time=at).end(end)
            at = end

    def close(self) -> None:
        """Send what waits; a collector that does not answer is given up after two seconds."""
        self._provider.shutdown()
