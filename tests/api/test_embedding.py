"""Root paths, mounts and added middleware: the application inside others, and others inside it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Request, Response
from starlette.applications import Starlette
from starlette.authentication import AuthenticationError
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.support.api import BearerIsIdentity, Person, error
from todo_api.inputs import Disconnect
from todo_api.main import create_app
from todo_api.settings import Settings

ORIGIN = "https://app.example.com"
Next = Callable[[Request], Awaitable[Response]]


def prefixed(app: ASGIApp, root_path: str, before: str) -> ASGIApp:
    """Run an application like a server with a root path, which prefixes each path with `before`."""

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "root_path": root_path, "path": before + scope["path"]}
        await app(scope, receive, send)

    return server


def lifespan_of(app: FastAPI) -> Any:
    """Run its lifespan in that of the application that it is mounted in."""
    return lambda _: app.router.lifespan_context(app)


def mounted(app: FastAPI, *paths: str) -> ASGIApp:
    """Mount an application under a path, or several, and run its lifespan."""
    routes = [Mount(paths[-1], app)]
    for path in paths[-2::-1]:
        routes = [Mount(path, routes=routes)]
    outer = Starlette(routes=routes, lifespan=lifespan_of(app))
    return prefixed(outer, "", "".join(paths))


WAYS: dict[str, tuple[Callable[[FastAPI], ASGIApp], str]] = {
    "none": (lambda app: app, ""),
    "slash": (lambda app: prefixed(app, "/", ""), ""),
    "prefixed": (lambda app: prefixed(app, "/todo", "/todo"), "/todo"),
    "slash at the end": (lambda app: prefixed(app, "/todo/", "/todo/"), "/todo"),
    "slash at the end, joined": (lambda app: prefixed(app, "/todo/", "/todo"), "/todo"),
    "not prefixed": (lambda app: prefixed(app, "/todo/", ""), "/todo"),
    "begins like a path": (lambda app: prefixed(app, "/a", ""), "/a"),
    "like a path": (lambda app: prefixed(app, "/api", "/api"), "/api"),
    "mounted": (lambda app: mounted(app, "/todo"), "/todo"),
    "mounted twice": (lambda app: mounted(app, "/a", "/b"), "/a/b"),
}


@pytest.mark.parametrize(("way", "root_path"), WAYS.values(), ids=WAYS)
def test_root_path_matches_whole_segments(
    settings: Settings, alice: Person, way: Callable[[FastAPI], ASGIApp], root_path: str
) -> None:
    with TestClient(way(create_app(settings, BearerIsIdentity())), headers=alice.headers) as client:
        created = client.post(alice.path, json={"title": "Buy milk"})
        listed = client.get(f"{alice.path}?limit=1")

    assert created.headers["location"] == f"{root_path}{alice.path}/{created.json()['id']}"
    assert listed.json() == [created.json()]
    for answer in (created, listed, client.get("/api/nothing")):
        assert answer.headers["cache-control"] == "private, no-cache"
    for path in ("/docs", "/openapi.json", "/health", "/nothing"):
        assert "private" not in client.get(path).headers.get("cache-control", "")
    assert client.get("/", follow_redirects=False).headers["location"] == "docs"
    servers = client.get("/openapi.json").json().get("servers")
    assert servers == ([{"url": root_path}] if root_path else None)


def test_405_of_a_mounted_application(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "tasks").touch()
    app = create_app(settings)
    app.mount("/docs/static", StaticFiles(directory=tmp_path))
    client = TestClient(app)

    assert client.get("/docs/static/tasks").status_code == 200
    answer = client.post("/docs/static/tasks")
    assert (answer.status_code, answer.json()) == (405, error("Method not allowed"))
    assert client.post("/docs").headers["allow"] == "GET, HEAD"


def test_add_route_keeps_methods(settings: Settings) -> None:
    app = create_app(settings)
    app.add_route("/both", lambda request: PlainTextResponse(request.method), methods=["POST", "PUT"])
    client = TestClient(app)

    assert [client.request(method, "/both").status_code for method in ("POST", "PUT", "GET")] == [200, 200, 405]
    assert client.get("/both").headers["allow"] == "POST, PUT"


REJECTIONS = [HTTPException(401, "secret"), HTTPException(403), AuthenticationError("secret")]


@pytest.mark.parametrize("raised", REJECTIONS, ids=repr)
def test_rejection_by_added_middleware_is_401(
    settings: Settings, caplog: pytest.LogCaptureFixture, raised: Exception
) -> None:
    caplog.set_level("INFO")
    app = create_app(settings)

    @app.middleware("http")
    async def reject(request: Request, call_next: Next) -> Response:
        raise raised

    answer = TestClient(app).get("/api/alice/tasks", headers={"Origin": ORIGIN, "X-Request-ID": "find-me"})

    assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["x-request-id"] == "find-me"
    assert f"rejected by a middleware: {type(raised).__name__}" in caplog.messages
    assert "secret" not in caplog.text


async def pass_on(request: Request, call_next: Next) -> Response:
    return await call_next(request)


def wrapped(app: FastAPI) -> ASGIApp:
    return BaseHTTPMiddleware(app, pass_on)


def added(app: FastAPI) -> ASGIApp:
    app.middleware("http")(pass_on)
    return app


def zipped(app: FastAPI) -> ASGIApp:
    app.add_middleware(GZipMiddleware, minimum_size=1)
    return app


def zipped_outside(app: FastAPI) -> ASGIApp:
    return GZipMiddleware(app, minimum_size=1)


def inside_of_another(app: FastAPI) -> ASGIApp:
    outer = Starlette(routes=[Mount("/", app)], lifespan=lifespan_of(app))
    outer.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    return outer


WRAPPERS = [wrapped, added, zipped, zipped_outside, inside_of_another]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_disconnect_mid_body_is_no_crash(
    settings: Settings, alice: Person, caplog: pytest.LogCaptureFixture, wrapper: Callable[[FastAPI], ASGIApp]
) -> None:
    caplog.set_level("INFO")
    app = wrapper(create_app(settings, BearerIsIdentity()))
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}])
    sent: list[Message] = []

    async def receive() -> Message:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"authorization", alice.headers["Authorization"].encode()), (b"content-type", b"application/json")]
    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": alice.path, "raw_path": alice.path.encode(), "query_string": b"", "root_path": "",
        "headers": headers, "client": ("x", 1), "server": ("x", 80), "state": {},
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 10))

    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == []
    assert "500" not in json.dumps([message.get("status") for message in sent])
    assert alice.tasks() == []


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_operations_under_wrappers(
    settings: Settings, alice: Person, caplog: pytest.LogCaptureFixture, wrapper: Callable[[FastAPI], ASGIApp]
) -> None:
    caplog.set_level("INFO")
    with TestClient(wrapper(create_app(settings, BearerIsIdentity())), headers=alice.headers) as client:
        created = client.post(alice.path, json={"title": "Buy milk"})
        path = f"{alice.path}/{created.json()['id']}"
        etag = client.get(path).headers["etag"]

        assert client.get(path, headers={"If-None-Match": etag}).status_code == 304
        assert client.head(path).content == b""
        assert client.put(path, json={"title": "x"}, headers={"If-Match": etag}).json()["title"] == "x"
        assert client.get(f"{path}0").json() == error("Task not found")
        assert client.delete(path).status_code == 204
    assert "DELETE /api/{user_id}/tasks/{id} 204" in caplog.text


def test_repeated_end_of_body_is_no_disconnect() -> None:
    received = 0

    async def receive() -> Message:
        nonlocal received
        received += 1
        assert received < 5, "polled without a pause"
        return {"type": "http.request", "body": b""}

    async def wait() -> None:
        async with asyncio.timeout(0.05):
            await Disconnect({}, receive).wait()

    with pytest.raises(TimeoutError):
        asyncio.run(wait())
