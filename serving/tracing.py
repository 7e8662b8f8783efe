"""OpenTelemetry spans of requests and their stages, where somebody wants them.

Stage: serving. In: what is known of a request once it is answered. Out: spans to an OTLP collector over HTTP. Absent:
any cost while it is off (there is no `Tracing` then), global providers, and instrumentation of libraries.

Spans are made when the answer is out, from durations that were measured anyway, so that computing never waits for
them; a recorded request costs some 300 µs all the same, which `ratio` is for. A stage's length is exact; its place
inside the request is laid out by adding up, since only lengths are known.
A caller's W3C `traceparent` makes the request a part of the caller's trace, and decides whether it is recorded.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from recsys.errors import ConfigError
from serving.logs import PROBES

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

PATH = "/v1/traces"  # where collectors take spans over HTTP
INSTALL = "pip install -c constraints.txt -e '.[tracing]'"
ORDER = ("queue", "state", "retrieval", "features", "ranking", "ordering", "explain")
NS = 1_000_000_000
log = logging.getLogger(__name__)


def build(endpoint: str | None, version: str, ratio: float = 1.0) -> "Tracing | None":
    """None where no endpoint is set: nothing is imported then. `ratio`: share of the traces recorded that no caller
    decided about. Raises ConfigError where the endpoint is no URL or the exporter is not installed."""
    if endpoint is None:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"RECSYS_OTEL_ENDPOINT is {endpoint!r}; a URL such as http://127.0.0.1:4318{PATH} is needed.")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(f"RECSYS_OTEL_ENDPOINT needs {error.name}, which is not installed: {INSTALL}") from error
    address = endpoint if parts.path.strip("/") else f"{endpoint.rstrip('/')}{PATH}"
    log.info("traces go to %s", parts.hostname)
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint=address, timeout=5)), version, ratio)


class Tracing:
    """Makes the spans. Safe to share between threads; `processor` hands them on, from a thread of its own."""

    def __init__(self, processor: "SpanProcessor", version: str, ratio: float = 1.0) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            resource=Resource.create({"service.name": "recsys", "service.version": version}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("recsys.serving", version)
        self._propagator = TraceContextTextMapPropagator()
        self._server, self._failed = SpanKind.SERVER, Status(StatusCode.ERROR)
        self._inside = set_span_in_context

    def request(
        self,
        route: str,
        method: str,
        status: int,
        seconds: float,
        request_id: str,
        headers: Mapping[str, str],
        timings_ms: Mapping[str, float] | None = None,
        degraded: Sequence[str] = (),
    ) -> None:
        """One request that has just been answered. `headers`: with lower-case names; of them only the trace context is
        read. `timings_ms`: stage to milliseconds; "total" is the request itself and no stage of it."""
        if route in PROBES:
            return
        end = time.time_ns()
        begin = end - int(seconds * NS)
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        attributes: dict[str, str | int | Sequence[str]] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "recsys.request_id": request_id,
        }
        if degraded:
            attributes["recsys.degraded"] = list(degraded)
        span = self._tracer.start_span(
            f"{method} {route}",
            context=self._propagator.extract(carrier),
            kind=self._server,
            attributes=attributes,
            start_time=begin,
        )
        if status >= 500:
            span.set_status(self._failed)
        if span.is_recording():
            context = self._inside(span)
            at = begin
            timings = timings_ms or {}
            known = [stage for stage in ORDER if stage in timings]
            for stage in (*known, *(stage for stage in timings if stage not in ORDER and stage != "total")):
                until = at + int(timings[stage] * NS / 1_000)
                self._tracer.start_span(stage, context=context, start_time=at).end(until)
                at = until
        span.end(end)

    def close(self, timeout_s: float = 3.0) -> None:
        """Send what waits. A collector that does not answer is given up: a service that stops has no time for it."""
        ending = threading.Thread(target=self._provider.shutdown, name="end-tracing", daemon=True)
        ending.start()
        ending.join(timeout_s)
        if ending.is_alive():
            log.warning("the last spans could not be sent within %.1f s", timeout_s)
