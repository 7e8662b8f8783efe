"""Tracing: off unless asked for, and a span for each request with its stages where it is on."""

import asyncio
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from fastapi import FastAPI, Request
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from recsys.errors import ConfigError
from serving.http.middleware import RequestMiddleware
from serving.observability.metrics import Metrics
from serving.observability.tracing import Tracing, build
from serving.recommending.answers import RequestTrace
from serving.settings import ServiceSettings

TIMINGS = {"state": 0.5, "retrieval": 1.25, "queue": 0.25, "total": 3.0}


def app() -> FastAPI:
    """A service in small, behind the middleware that describes its requests."""
    made = FastAPI()

    @made.get("/users/{user_id}")
    async def user(request: Request, user_id: int) -> int:
        request.state.trace = RequestTrace("abc-1", 0.0, None, ["ranking"], TIMINGS)  # type: ignore[arg-type]
        return user_id

    @made.get("/broken")
    async def broken() -> None:
        raise ValueError("why")

    @made.get("/healthz")
    async def health() -> str:
        return "ok"

    return made


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(exporter: InMemorySpanExporter) -> FastAPI:
    made = app()
    tracing = Tracing(made, SimpleSpanProcessor(exporter), "0.1.0")
    settings = ServiceSettings.model_construct(max_in_flight=1)
    made.add_middleware(RequestMiddleware, settings=settings, metrics=Metrics(), tracing=tracing)
    return made


def get(asked: FastAPI, path: str, **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(asked), base_url="http://service") as client:
            return await client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return asyncio.run(send())


def spans(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_request_and_its_stages(traced: FastAPI, exporter: InMemorySpanExporter) -> None:
    get(traced, "/healthz")
    assert exporter.get_finished_spans() == (), "probes leave no trace"
    get(traced, "/users/7", x_request_id="abc-1", authorization="Bearer k3y-0123456789")
    found = spans(exporter)
    whole = found.pop("GET /users/{user_id}")
    assert whole.kind is SpanKind.SERVER
    assert whole.attributes is not None
    assert whole.attributes["http.route"] == "/users/{user_id}"
    assert whole.attributes["recsys.request_id"] == "abc-1"
    assert whole.attributes["recsys.degraded"] == ("ranking",)
    assert whole.resource.attributes["service.version"] == "0.1.0"
    assert list(found) == ["queue", "state", "retrieval"]
    lengths = {name: ((s.end_time or 0) - (s.start_time or 0)) / 1e6 for name, s in found.items()}
    assert lengths == {"queue": 0.25, "state": 0.5, "retrieval": 1.25}
    assert found["state"].start_time == found["queue"].end_time
    assert {span.parent.span_id for span in found.values() if span.parent} == {whole.context.span_id}
    assert "k3y" not in "".join(span.to_json() for span in exporter.get_finished_spans())
    assert get(traced, "/broken").status_code == 500
    assert spans(exporter)["GET /broken"].status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:4318", "grpc://127.0.0.1:4317", "http://"])
def test_an_endpoint_is_a_url(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"RECSYS_OTEL_ENDPOINT is .*; a URL such as http://127.0.0.1:4318/v1/traces"):
        build(app(), endpoint, "0.1.0")


@pytest.mark.parametrize(
    "missing", ["opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.instrumentation.fastapi"]
)
def test_a_missing_package_is_named_with_the_way_to_get_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"RECSYS_OTEL_ENDPOINT needs opentelemetry.*\[tracing\]"):
        build(app(), "http://127.0.0.1:4318", "0.1.0")


@pytest.mark.parametrize("path", ["", "/", "/custom"])
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
        traced = app()
        tracing = build(traced, f"http://127.0.0.1:{server.server_port}{path}", "0.1.0")
        assert tracing is not None
        get(traced, "/users/7")
        tracing.close()
        server.shutdown()
        thread.join()
    ((address, message),) = received
    assert address == ("/custom" if path == "/custom" else "/v1/traces")
    assert [span.name for span in message.resource_spans[0].scope_spans[0].spans] == ["GET /users/{user_id}"]
