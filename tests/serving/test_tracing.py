"""Tracing: off unless asked for, right spans when it is on, and nothing but the trace context read from a request."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from recsys.errors import ConfigError
from serving.logs import PROBES
from serving.tracing import Tracing, build

ROUTE = "/v1/users/{user_id}/recommendations"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TIMINGS = {"state": 0.5, "retrieval": 1.25, "queue": 0.25, "novel": 0.125, "total": 3.0}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def on(exporter: InMemorySpanExporter) -> Iterator[Tracing]:
    made = Tracing(SimpleSpanProcessor(exporter), "0.1.0")
    yield made
    made.close()


def spans(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_request_and_its_stages(on: Tracing, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_795_000_000_000_000_000)
    on.request(ROUTE, "GET", 200, 0.004, "abc-1", {"authorization": "Bearer k3y"}, TIMINGS, ["ranking"])
    found = spans(exporter)
    whole = found.pop(f"GET {ROUTE}")
    assert whole.kind is SpanKind.SERVER
    assert whole.parent is None
    assert whole.status.status_code is StatusCode.UNSET
    assert dict(whole.attributes or {}) == {
        "http.request.method": "GET",
        "http.route": ROUTE,
        "http.response.status_code": 200,
        "recsys.request_id": "abc-1",
        "recsys.degraded": ("ranking",),
    }
    assert whole.start_time == 1_795_000_000_000_000_000 - 4_000_000
    assert whole.end_time == 1_795_000_000_000_000_000
    assert whole.resource.attributes["service.name"] == "recsys"
    assert whole.resource.attributes["service.version"] == "0.1.0"
    laid = [(name, s.start_time - whole.start_time, s.end_time - whole.start_time) for name, s in found.items()]
    assert laid == [
        ("queue", 0, 250_000),
        ("state", 250_000, 750_000),
        ("retrieval", 750_000, 2_000_000),
        ("novel", 2_000_000, 2_125_000),
    ]
    for stage in found.values():
        assert stage.parent is not None
        assert stage.parent.span_id == whole.context.span_id
        assert stage.context.trace_id == whole.context.trace_id
    assert "k3y" not in "".join(span.to_json() for span in exporter.get_finished_spans())


def test_a_request_without_stages_is_one_span(on: Tracing, exporter: InMemorySpanExporter) -> None:
    on.request("/v1/model", "GET", 200, 0.001, "abc-1", {})
    (span,) = exporter.get_finished_spans()
    assert "recsys.degraded" not in (span.attributes or {})


@pytest.mark.parametrize(
    ("status", "code"), [(404, StatusCode.UNSET), (500, StatusCode.ERROR), (503, StatusCode.ERROR)]
)
def test_a_failure_of_ours_is_an_error(
    on: Tracing, exporter: InMemorySpanExporter, status: int, code: StatusCode
) -> None:
    on.request(ROUTE, "GET", status, 0.001, "abc-1", {})
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is code


@pytest.mark.parametrize("route", sorted(PROBES))
def test_probes_and_scrapes_leave_no_trace(on: Tracing, exporter: InMemorySpanExporter, route: str) -> None:
    on.request(route, "GET", 200, 0.001, "abc-1", {})
    assert exporter.get_finished_spans() == ()


def test_the_callers_trace_goes_on(on: Tracing, exporter: InMemorySpanExporter) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
    on.request(ROUTE, "GET", 200, 0.004, "abc-1", headers, TIMINGS)
    found = spans(exporter)
    assert {format(span.context.trace_id, "032x") for span in found.values()} == {TRACE}
    whole = found[f"GET {ROUTE}"]
    assert whole.parent is not None
    assert format(whole.parent.span_id, "016x") == PARENT
    assert whole.context.trace_state.get("vendor") == "1"


def test_the_caller_decides_what_is_recorded(exporter: InMemorySpanExporter) -> None:
    never = Tracing(SimpleSpanProcessor(exporter), "0.1.0", ratio=0.0)
    never.request(ROUTE, "GET", 200, 0.004, "abc-1", {}, TIMINGS)
    never.request(ROUTE, "GET", 200, 0.004, "abc-1", {"traceparent": f"00-{TRACE}-{PARENT}-00"}, TIMINGS)
    assert exporter.get_finished_spans() == ()
    never.request(ROUTE, "GET", 200, 0.004, "abc-1", {"traceparent": f"00-{TRACE}-{PARENT}-01"}, TIMINGS)
    assert len(exporter.get_finished_spans()) == 5
    never.close()


@pytest.mark.parametrize("broken", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", "00-\n-"])
def test_a_broken_trace_context_is_ignored(on: Tracing, exporter: InMemorySpanExporter, broken: str) -> None:
    on.request(ROUTE, "GET", 200, 0.004, "abc-1", {"traceparent": broken, "tracestate": broken})
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_off_unless_an_endpoint_is_set() -> None:
    code = "import sys, serving.tracing as t; print(t.build(None, '1'), [m for m in sys.modules if 'opentel' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None []\n"


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:4318", "grpc://127.0.0.1:4317", "http://"])
def test_an_endpoint_is_a_url(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"RECSYS_OTEL_ENDPOINT is .*; a URL such as http://127.0.0.1:4318/v1/traces"):
        build(endpoint, "0.1.0")


def test_a_missing_exporter_is_told_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"RECSYS_OTEL_ENDPOINT needs opentelemetry.*\[tracing\]"):
        build("http://127.0.0.1:4318", "0.1.0")


@pytest.mark.parametrize("path", ["", "/", "/v1/traces", "/custom"])
def test_spans_reach_a_collector(path: str) -> None:
    received: list[tuple[str, ExportTraceServiceRequest]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        made = build(f"http://127.0.0.1:{server.server_port}{path}", "0.1.0")
        assert made is not None
        made.request(ROUTE, "GET", 200, 0.004, "abc-1", {}, TIMINGS)
        made.close()
        server.shutdown()
        thread.join()
    ((asked, message),) = received
    assert asked == ("/custom" if path == "/custom" else "/v1/traces")
    names = [span.name for span in message.resource_spans[0].scope_spans[0].spans]
    assert sorted(names) == sorted([f"GET {ROUTE}", "queue", "state", "retrieval", "novel"])


def test_a_collector_that_hangs_does_not_hold_up_the_end(caplog: pytest.LogCaptureFixture) -> None:
    released = threading.Event()

    class Hanging(InMemorySpanExporter):
        def shutdown(self) -> None:
            released.wait(20)

    made = Tracing(SimpleSpanProcessor(Hanging()), "0.1.0")
    started = time.monotonic()
    made.close(timeout_s=0.1)
    assert time.monotonic() - started < 10
    assert "the last spans could not be sent within 0.1 s" in caplog.text
    released.set()
