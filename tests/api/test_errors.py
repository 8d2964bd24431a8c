"""One body shape for every error, on every path, with CORS headers and without internal details."""

import asyncio
import json
import logging
from typing import Any
from urllib.parse import unquote

import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import Message, Receive, Scope, Send

from tests.support.api import BearerIsIdentity, CheckedClient, Person, error
from tests.support.postgres import settings_for, sql
from todo_api.main import create_app
from todo_api.settings import Settings

ORIGIN = "https://app.example.com"
NOWHERE = "postgresql://todo:s3cret-pa55word@127.0.0.1:1/todo"


def assert_error(answer: Any, status: int, message: str) -> None:
    assert (answer.status_code, answer.json()) == (status, error(message))
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["x-request-id"]


PATHS = [
    ("GET", "/nothing", 404, "Not found"),
    ("GET", "/api", 404, "Not found"),
    ("GET", "/api/", 404, "Not found"),
    ("GET", "/api/alice", 404, "Not found"),
    ("POST", "/api/alice/tasks/", 404, "Not found"),
    ("GET", "/api//tasks", 404, "Not found"),
    ("GET", "/health/", 404, "Not found"),
    ("GET", "/health/live/", 404, "Not found"),
    ("GET", "/health/live%0A", 404, "Not found"),
    ("GET", "/redoc", 404, "Not found"),
    ("GET", "/docs/oauth2-redirect", 404, "Not found"),
    ("GET", "/%C3%BC%E2%80%A8%00", 404, "Not found"),
    ("PUT", "/api/alice/tasks", 405, "Method not allowed"),
    ("POST", "/", 405, "Method not allowed"),
    ("PUT", "/openapi.json", 405, "Method not allowed"),
    ("POST", "/health/live", 405, "Method not allowed"),
    ("POST", "/docs", 405, "Method not allowed"),
    ("OPTIONS", "/api/alice/tasks", 405, "Method not allowed"),
    ("TRACE", "/api/alice/tasks", 405, "Method not allowed"),
    ("GET", "/api/alice/tasks", 401, "Unauthorized"),
]


@pytest.mark.parametrize(("method", "path", "status", "message"), PATHS)
@pytest.mark.parametrize("credentials", [{}, {"Authorization": "Bearer x/y"}])
def test_error_for_method_and_path(
    client: CheckedClient, credentials: dict[str, str], method: str, path: str, status: int, message: str
) -> None:
    answer = client.request(method, path, headers={"Origin": ORIGIN, **credentials})

    assert_error(answer, status, message)


@pytest.mark.parametrize(("method", "path", "status", "message"), PATHS)
def test_scope_without_optional_keys(settings: Settings, method: str, path: str, status: int, message: str) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(sending: Message) -> None:
        sent.append(sending)

    scope = {"type": "http", "method": method, "path": unquote(path), "query_string": b"", "headers": []}
    asyncio.run(create_app(settings, BearerIsIdentity())(scope, receive, send))

    assert (sent[0]["status"], json.loads(sent[1]["body"])) == (status, error(message))


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/api/alice/tasks", "GET, HEAD, POST"),
        ("/api/alice/tasks/1", "DELETE, GET, HEAD, PUT"),
        ("/api/alice/tasks/x/complete", "PATCH"),
        ("/health/live", "GET, HEAD"),
        ("/openapi.json", "GET, HEAD"),
        ("/docs", "GET, HEAD"),
    ],
)
def test_405_allow_lists_every_method(client: CheckedClient, path: str, methods: str) -> None:
    assert client.request("BREW", path).headers["allow"] == methods


def test_400_404_and_413_carry_cors_headers(alice: Person) -> None:
    headers = {"Origin": ORIGIN}

    assert_error(alice.ask("GET", "/0", headers=headers), 400, "Invalid task ID")
    assert_error(alice.ask("GET", "/1", headers=headers), 404, "Task not found")
    assert_error(alice.ask("POST", content=b"x" * 70_000, headers=headers), 413, "Request body is too large")


def test_crash_is_500_and_logged(settings: Settings, alice: Person, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(settings, BearerIsIdentity())

    async def crash(*_: object, **__: object) -> str:
        raise ZeroDivisionError("the cause")

    app.state.database.run = crash
    headers = {**alice.headers, "Origin": ORIGIN, "X-Request-ID": "find-me"}
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.get(alice.path, headers=headers)

    assert_error(answer, 500, "Internal server error")
    assert answer.headers["cache-control"] == "private, no-cache"
    assert "retry-after" not in answer.headers
    assert caplog.text.count("Traceback") == 1
    assert "ZeroDivisionError: the cause" in caplog.text


def test_middleware_crash_has_error_shape(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(settings)

    class Crashing:
        def __init__(self, app: object) -> None: ...

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            raise ZeroDivisionError

    app.add_middleware(Crashing)
    answer = TestClient(app).get("/api/alice/tasks", headers={"Origin": ORIGIN})

    assert_error(answer, 500, "Internal server error")
    assert answer.headers["cache-control"] == "private, no-cache"
    assert caplog.text.count("Traceback") == 1


def test_failing_statement_is_500_without_details(
    alice: Person, caplog: pytest.LogCaptureFixture, client: CheckedClient
) -> None:
    sql(alice.database_url, "ALTER TABLE tasks RENAME COLUMN title TO heading")
    try:
        answer = alice.ask("GET", headers={"Origin": ORIGIN})
        ready = client.get("/health/ready")
    finally:
        sql(alice.database_url, "ALTER TABLE tasks RENAME COLUMN heading TO title")

    assert_error(answer, 500, "Internal server error")
    assert "retry-after" not in answer.headers
    assert alice.id not in caplog.text.partition("crashed")[2]
    assert (ready.status_code, ready.json()) == (503, error("Service is not ready"))


def test_websocket_handshake_has_error_shape(settings: Settings) -> None:
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        TestClient(create_app(settings)).websocket_connect("/api/alice/tasks"),
    ):
        pass

    assert (denied.value.status_code, denied.value.json()) == (404, error("Not found"))


class TestWithoutADatabase:
    @pytest.fixture
    def client(self) -> CheckedClient:
        settings = settings_for(NOWHERE, cors_origins=ORIGIN, wake_seconds=0)
        return CheckedClient(create_app(settings, BearerIsIdentity()))

    @pytest.fixture
    def headers(self) -> dict[str, str]:
        return {"Authorization": "Bearer alice", "Origin": ORIGIN, "Content-Type": "application/json"}

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("GET", "", None),
            ("POST", "", b'{"title": "x"}'),
            ("GET", "/1", None),
            ("PUT", "/1", b'{"title": "x"}'),
            ("DELETE", "/1", None),
            ("PATCH", "/1/complete", None),
        ],
    )
    def test_operations_are_500_with_retry_after(
        self,
        client: CheckedClient,
        headers: dict[str, str],
        caplog: pytest.LogCaptureFixture,
        method: str,
        path: str,
        body: bytes | None,
    ) -> None:
        answer = client.request(method, "/api/alice/tasks" + path, headers=headers, content=body)

        assert_error(answer, 500, "Internal server error")
        assert int(answer.headers["retry-after"]) > 0
        lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(lines) == 1
        assert "ConnectionRefusedError" in lines[0]
        assert "pa55word" not in caplog.text

    def test_refused_requests_need_no_database(self, client: CheckedClient, headers: dict[str, str]) -> None:
        assert_error(client.get("/api/alice/tasks", headers={"Origin": ORIGIN}), 401, "Unauthorized")
        assert_error(client.get("/api/bob/tasks", headers=headers), 404, "User not found")
        assert_error(client.get("/api/bob/tasks/1", headers=headers), 404, "Task not found")
        assert_error(client.get("/api/alice/tasks/x", headers=headers), 400, "Invalid task ID")
        assert_error(client.post("/api/alice/tasks", content=b"{}", headers=headers), 400, "Title is required")
        assert_error(client.put("/api/alice/tasks", headers=headers), 405, "Method not allowed")

    def test_service_is_live_but_not_ready(self, client: CheckedClient) -> None:
        assert client.get("/health/live").json() == {"status": "ok"}
        answer = client.get("/health/ready", headers={"Origin": ORIGIN})

        assert_error(answer, 503, "Service is not ready")
