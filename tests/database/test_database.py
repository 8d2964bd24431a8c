"""Requests whose database connection breaks or whose client disconnects."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.testclient import TestClient
from starlette.types import Message, Scope

from tests.support.api import BearerIsIdentity, CheckedClient, Person, error, on_one_connection
from tests.support.patience import deadline
from tests.support.postgres import locked, sql, waiting_backend
from tests.support.threads import thread_pool
from todo_api.main import create_app
from todo_api.settings import Settings


@pytest.fixture
def alice(settings: Settings, alice: Person) -> Iterator[Person]:
    with on_one_connection(settings, alice):
        yield alice


@contextmanager
def waiting_create(alice: Person) -> Iterator[tuple[int, Future[httpx2.Response]]]:
    """Send a create that is blocked in the database; yield its backend's process id and the future response."""
    with thread_pool(1) as threads, locked(alice.database_url):
        answer = threads.submit(alice.ask, "POST", json={"title": "x"})
        yield waiting_backend(alice.database_url), answer


def assert_unavailable(answer: httpx2.Response) -> None:
    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    assert int(answer.headers["retry-after"]) > 0


def test_connection_broken_mid_statement_is_500(alice: Person) -> None:
    with waiting_create(alice) as (backend, answer):
        sql(alice.database_url, "SELECT pg_terminate_backend($1)", backend)
        assert_unavailable(answer.result())

    assert alice.tasks() == []
    assert alice.create()["user_id"] == alice.id


def test_statement_timeout_is_500(settings: Settings, alice: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_api.database.connections.STATEMENT_SECONDS", 0.3)
    with on_one_connection(settings, alice):
        with waiting_create(alice) as (backend, answer):
            assert_unavailable(answer.result())
            end = deadline()
            while sql(alice.database_url, "SELECT FROM pg_stat_activity WHERE pid = $1", backend):
                assert time.monotonic() < end

        assert alice.tasks() == []
        assert alice.create()["user_id"] == alice.id


def test_connections_stay_within_pool_size(settings: Settings, alice: Person) -> None:
    mine = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    before = sql(alice.database_url, mine)[0]["count"]
    with (
        CheckedClient(create_app(settings.model_copy(update={"pool_size": 3}), BearerIsIdentity())) as client,
        thread_pool(20) as threads,
    ):
        alice.client = client
        assert {answer.status_code for answer in threads.map(lambda _: alice.ask("GET"), range(200))} == {200}
        assert sql(alice.database_url, mine)[0]["count"] <= before + 3


def scope_of(alice: Person, method: str = "GET", **headers: str) -> Scope:
    return {
        "type": "http",
        "method": method,
        "path": alice.path,
        "raw_path": alice.path.encode(),
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in (alice.headers | headers).items()],
    }


def test_disconnect_before_body_creates_nothing(
    settings: Settings, alice: Person, caplog: pytest.LogCaptureFixture
) -> None:
    messages: list[Message] = [
        {"type": "http.request", "body": b'{"title": "x"}', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    statuses = []

    async def send(message: Message) -> None:
        statuses.append(message.get("status"))

    scope = scope_of(alice, "POST", **{"Content-Type": "application/json"})
    asyncio.run(create_app(settings, BearerIsIdentity())(scope, receive, send))

    assert alice.stored() == []
    assert statuses == [400, None], "nobody reads it, but middleware around the service waits for an answer"
    assert "crashed" not in caplog.text


def test_disconnect_mid_response_sends_no_second(settings: Settings, alice: Person) -> None:
    sent = []

    async def receive() -> Message:
        return await asyncio.Event().wait() and {}

    async def send(message: Message) -> None:
        sent.append(message["type"])
        if message["type"] == "http.response.body":
            raise OSError("the client left")

    app = create_app(settings, BearerIsIdentity())

    async def serve() -> None:
        try:
            await app(scope_of(alice), receive, send)
        finally:
            await app.state.database.close()

    with pytest.raises(OSError, match="the client left"):
        asyncio.run(serve())
    assert sent == ["http.response.start", "http.response.body"]


def test_http_exception_in_backend_is_crash(
    settings: Settings, alice: Person, caplog: pytest.LogCaptureFixture
) -> None:
    class Forbidding(AuthenticationBackend):
        async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
            raise HTTPException(429, "said by someone else")

    answer: Any = TestClient(create_app(settings, Forbidding())).get(alice.path)

    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    assert "said by someone else" in caplog.text
