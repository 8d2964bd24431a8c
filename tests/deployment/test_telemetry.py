"""Traces and metrics: read in memory, and exported by a real process to a collector on loopback."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry import _logs, metrics, trace
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from tests.support.api import BearerIsIdentity, CheckedClient, Person, error, new_account
from tests.support.patience import deadline
from tests.support.postgres import locked, settings_for, waiting_backend
from tests.support.serving import uvicorn
from todo_api.main import create_app
from todo_api.settings import Settings

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
NOWHERE = "postgresql://todo:s3cret-pa55word@127.0.0.1:1/todo"


class Recorder:
    """Collects the spans, metrics and logs that an application reports."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider([self._reader])
        self.logs: Any = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]  # not annotated in the SDK
        self.loggers = LoggerProvider()
        self.loggers.add_log_record_processor(SimpleLogRecordProcessor(self.logs))

    def spans(self) -> list[dict[str, Any]]:
        """Return the ended spans, in the order in which they ended."""
        return [json.loads(span.to_json()) for span in self._spans.get_finished_spans()]

    def points(self, name: str) -> list[dict[str, Any]]:
        """Return the current data points of one metric."""
        data = self._reader.get_metrics_data()
        assert data
        found: list[dict[str, Any]] = [
            point
            for resource in json.loads(data.to_json())["resource_metrics"]
            for scope in resource["scope_metrics"]
            for metric in scope["metrics"]
            if metric["name"] == name
            for point in metric["data"]["data_points"]
        ]
        return found


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Switch telemetry on, with in-memory exporters."""
    recorder = Recorder()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: recorder.tracers)
    monkeypatch.setattr(_logs, "get_logger_provider", lambda: recorder.loggers)
    monkeypatch.setattr(_logs, "get_logger", lambda name, *_, **__: recorder.loggers.get_logger(name))
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: recorder.meters)
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    return recorder


@pytest.fixture
def carol(recorder: Recorder, settings: Settings, database_url: str) -> Iterator[Person]:
    """A user of the application with telemetry on."""
    with CheckedClient(create_app(settings, BearerIsIdentity())) as client:
        yield Person(client, database_url, new_account(database_url))


def test_missing_lifespan_is_logged(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:1")
    client = TestClient(Starlette(routes=[Mount("/todo", create_app(settings))]))

    for _ in range(2):
        assert client.get("/todo/health/live").status_code == 200

    said = "traces and metrics are off: the lifespan, which sets up their export, did not run"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [said]


def test_providers_need_no_lifespan(recorder: Recorder, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    assert TestClient(create_app(settings)).get("/health/live").status_code == 200

    assert len(recorder.spans()) == 1
    assert "traces and metrics are off" not in caplog.text


def test_request_span_contains_its_statement_span(recorder: Recorder, carol: Person) -> None:
    answer = carol.ask(
        "POST",
        "?s3cret-query",
        json={"title": "s3cret-title", "description": "s3cret-description"},
        headers={"X-Request-ID": "find-me"},
    )

    assert answer.status_code == 201
    statement, request = recorder.spans()
    assert statement["parent_id"] == request["context"]["span_id"]
    assert (statement["name"], statement["kind"], statement["status"]) == (
        "INSERT tasks",
        "SpanKind.CLIENT",
        {"status_code": "UNSET"},
    )
    text = statement["attributes"].pop("db.query.text")
    assert text.startswith("WITH written AS \n(INSERT INTO tasks (user_id, title, description) VALUES ($1::VARCHAR, ")
    assert statement["attributes"] == {
        "db.system.name": "postgresql",
        "db.namespace": carol.database_url.partition("?")[0].rpartition("/")[2],
        "db.operation.name": "INSERT",
        "db.collection.name": "tasks",
    }
    assert (request["name"], request["kind"]) == ("POST /api/{user_id}/tasks", "SpanKind.SERVER")
    assert request["attributes"] == {
        "http.request.method": "POST",
        "http.response.status_code": 201,
        "http.request.header.x-request-id": ["find-me"],
        "http.route": "/api/{user_id}/tasks",
        "network.protocol.version": "1.1",
        "server.address": "testserver",
        "server.port": 80,
        "url.path": "REDACTED",
        "url.query": "REDACTED",
        "url.scheme": "http",
    }
    reported = json.dumps(recorder.spans())
    assert "s3cret" not in reported
    assert carol.id not in reported


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        ("GET", "", "SELECT"),
        ("GET", "?status=complete", "SELECT"),
        ("GET", "/1", "SELECT"),
        ("PUT", "/1", "UPDATE"),
        ("PATCH", "/1/complete", "UPDATE"),
        ("DELETE", "/1", "DELETE"),
    ],
)
def test_each_operation_is_one_statement(
    recorder: Recorder, carol: Person, method: str, path: str, operation: str
) -> None:
    carol.ask(method, path, json={"title": "x"})

    assert [span["name"] for span in recorder.spans()[:-1]] == [f"{operation} tasks"]


def test_request_without_statement_has_one_span(recorder: Recorder, carol: Person) -> None:
    carol.client.get("/s3cret-path")
    carol.client.options(
        "/s3cret-path", headers={"Origin": "https://x.example", "Access-Control-Request-Method": "GET"}
    )
    carol.client.get(carol.path)

    assert [span["name"] for span in recorder.spans()] == ["GET", "OPTIONS", "GET /api/{user_id}/tasks"]
    assert "s3cret" not in json.dumps(recorder.spans())


def test_failed_statement_span_hides_exception_text(recorder: Recorder) -> None:
    client = CheckedClient(create_app(settings_for(NOWHERE, wake_seconds=0), BearerIsIdentity()))

    answer = client.get("/api/carol/tasks", headers={"Authorization": "Bearer carol"})

    assert answer.json() == error("Internal server error")
    statement, request = recorder.spans()
    assert statement["status"] == request["status"] == {"status_code": "ERROR"}
    assert statement["attributes"]["error.type"] == "DatabaseUnavailable"
    assert statement["events"] == request["events"] == []
    [duration] = recorder.points("db.client.operation.duration")
    assert duration["attributes"]["error.type"] == "DatabaseUnavailable"
    assert "pa55word" not in json.dumps(recorder.spans())


def test_crash_span_hides_exception_text(recorder: Recorder, settings: Settings) -> None:
    class Crashing:
        def __init__(self, app: object) -> None: ...

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            raise ZeroDivisionError("s3cret-text")

    app = create_app(settings)
    app.user_middleware.insert(0, Middleware(Crashing))  # outside of what answers crashes
    TestClient(app, raise_server_exceptions=False).get("/health/live")

    [span] = recorder.spans()
    assert span["attributes"]["error.type"] == "ZeroDivisionError"
    assert "s3cret" not in json.dumps(span)
    assert recorder.logs.get_finished_logs() == ()


def test_requests_and_statements_are_measured(recorder: Recorder, carol: Person) -> None:
    for _ in range(3):
        carol.ask("GET")

    [request] = recorder.points("http.server.request.duration")
    [statement] = recorder.points("db.client.operation.duration")
    assert request["count"] == statement["count"] == 3
    assert request["attributes"]["http.route"] == "/api/{user_id}/tasks"
    assert 0 < statement["sum"] < request["sum"]
    assert statement["attributes"] == {
        "db.system.name": "postgresql",
        "db.namespace": carol.database_url.partition("?")[0].rpartition("/")[2],
        "db.operation.name": "SELECT",
        "db.collection.name": "tasks",
    }


def test_pool_metrics_count_connections(recorder: Recorder, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.database.waiting.MOST_SECONDS", 60)
    name = {"db.client.connection.pool.name": database_url.partition("?")[0].rpartition("/")[2]}
    used, idle = ({"db.client.connection.state": state} for state in ("used", "idle"))

    def wait_until(metric: str, *values: tuple[dict[str, str], int]) -> None:
        end = deadline()
        while True:
            points = recorder.points(f"db.client.connection.{metric}")
            if [(point["attributes"], point["value"]) for point in points] == list(values):
                return
            assert time.monotonic() < end, points

    app = create_app(settings_for(database_url, pool_size=2), BearerIsIdentity())
    with ThreadPoolExecutor() as threads, CheckedClient(app) as client:
        carol = Person(client, database_url, new_account(database_url))
        with locked(database_url):
            answers = [threads.submit(carol.tasks) for _ in range(3)]
            wait_until("pending_requests", (name, 1))
            wait_until("count", (name | used, 2), (name | idle, 0))
        assert [answer.result() for answer in answers] == [[], [], []]

        wait_until("count", (name | used, 0), (name | idle, 2))
        wait_until("max", (name, 2))
        wait_until("pending_requests", (name, 0))
        [wait] = recorder.points("db.client.connection.wait_time")
        assert wait["attributes"] == name
        assert wait["count"] >= 1
        assert wait["sum"] > 0


def test_refused_requests_are_counted(recorder: Recorder, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(settings_for(database_url, pool_size=1), BearerIsIdentity())
    with ThreadPoolExecutor() as threads, CheckedClient(app) as client:
        carol = Person(client, database_url, new_account(database_url))
        assert carol.tasks() == []
        for bound, seconds in (("RATE", 0), ("BURST_TARGET", -1)):
            monkeypatch.setattr(f"todo_api.database.waiting.{bound}_SECONDS", seconds)
        with locked(database_url):
            holding = threads.submit(carol.tasks)
            waiting_backend(database_url)
            assert [carol.ask("GET").status_code for _ in range(2)] == [503, 503]
        assert holding.result() == []

    [refused] = recorder.points("todo_api.requests.refused")
    assert (refused["attributes"], refused["value"]) == ({"where": "queue"}, 2)


@pytest.mark.parametrize("environment", [{}, {ENDPOINT: "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}])
def test_sdk_is_imported_only_when_enabled(environment: dict[str, str]) -> None:
    code = """if True:
        import sys
        from todo_api.main import create_app
        from starlette.testclient import TestClient
        with TestClient(create_app()) as client:
            client.get("/health/live")
            print(type(client.app.state.database).__name__)
        print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
    """
    environment = {"DATABASE_URL": NOWHERE, "WAKE_SECONDS": "0", **environment}

    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert ran.stdout == "Database\n[]\n"


@contextmanager
def receiver() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Run an OTLP collector; yield its URL, and the path and body of each POST."""
    posted: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", posted
        finally:
            server.shutdown()


def test_production_exports_to_the_otlp_endpoint(database_url: str, tmp_path: Path) -> None:
    owner = new_account(database_url)
    with receiver() as (endpoint, posted):
        environment = {
            "DATABASE_URL": database_url,
            "AUTH_BACKEND": "tests.support.api:BearerIsIdentity",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            ENDPOINT: endpoint,
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            "OTEL_SERVICE_NAME": "todo-api-under-test",
        }
        with uvicorn(environment, tmp_path) as url:
            answer = httpx2.get(f"{url}/api/{owner}/tasks", headers={"Authorization": f"Bearer {owner}"})
            assert answer.json() == []

    traces = [ExportTraceServiceRequest.FromString(body) for path, body in posted if path == "/v1/traces"]
    spans = [
        span.name
        for export in traces
        for resource in export.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert {"SELECT tasks", "GET /api/{user_id}/tasks"} <= set(spans)
    assert "todo-api-under-test" in str(traces[0])
    measured = [ExportMetricsServiceRequest.FromString(body) for path, body in posted if path == "/v1/metrics"]
    names = {
        metric.name
        for export in measured
        for resource in export.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert names >= {
        "http.server.request.duration",
        "http.server.active_requests",
        "db.client.operation.duration",
        "db.client.connection.count",
        "db.client.connection.max",
        "db.client.connection.pending_requests",
    }
    assert {path for path, _ in posted} == {"/v1/traces", "/v1/metrics"}
    assert owner.encode() not in b"".join(body for _, body in posted)
