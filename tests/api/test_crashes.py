"""Any exception of an authentication backend is answered with 500; cancelling a request from outside is not."""

import asyncio
import json
import logging
from collections.abc import Coroutine
from typing import Any

import pytest
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.types import Message

from tests.support.api import BearerIsIdentity, error
from tests.support.postgres import settings_for
from todo_api.main import create_app

ORIGIN = "https://app.example.com"
SETTINGS = settings_for("postgresql://todo@127.0.0.1:1/todo", cors_origins=ORIGIN)
HEADERS = [(b"origin", ORIGIN.encode()), (b"x-request-id", b"find-me"), (b"authorization", b"Bearer alice")]
RAISED = [
    KeyError("x"),
    ExceptionGroup("several", [KeyError("x")]),
    ClientDisconnect(),
    asyncio.CancelledError(),
    SystemExit(3),
    KeyboardInterrupt(),
    BaseExceptionGroup("several", [SystemExit(3), KeyError("x")]),
]


class Backend(AuthenticationBackend):
    """Raise an error, or hang until it is cancelled."""

    def __init__(self, raised: BaseException | None = None) -> None:
        self._raised = raised
        self.hangs = asyncio.Event()

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        if self._raised:
            raise self._raised
        self.hangs.set()
        await asyncio.Event().wait()
        return None


class Request:
    """One ASGI request, without a client, which would replace the exceptions that the application raises."""

    def __init__(self, backend: AuthenticationBackend, method: str = "GET", *, disconnects: bool = False) -> None:
        self.sent: list[Message] = []
        self._disconnects = disconnects
        self._scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": "/api/alice/tasks", "raw_path": b"/api/alice/tasks", "query_string": b"", "root_path": "",
            "headers": [*HEADERS, (b"content-type", b"application/json")], "client": ("x", 1), "server": ("x", 80),
            "state": {},
        }  # fmt: skip
        self.app = create_app(SETTINGS, backend)

    async def _receive(self) -> Message:
        return {"type": "http.disconnect"} if self._disconnects else {"type": "http.request", "body": b""}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    def __await__(self) -> Any:
        return self.serve().__await__()

    def serve(self) -> Coroutine[Any, Any, None]:
        """Run the application on this request."""
        return self.app(self._scope, self._receive, self._send)

    def assert_crashed(self) -> None:
        start, body = self.sent
        headers = dict(start["headers"])
        assert (start["status"], json.loads(body["body"])) == (500, error("Internal server error"))
        assert headers[b"content-type"] == b"application/json"
        assert headers[b"access-control-allow-origin"] == ORIGIN.encode()
        assert headers[b"x-request-id"] == b"find-me"
        assert headers[b"cache-control"] == b"private, no-cache"


@pytest.mark.parametrize("raised", RAISED, ids=lambda raised: type(raised).__name__)
def test_any_backend_exception_is_answered_with_500(raised: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "todo_api")
    request = Request(Backend(raised))
    passed_on = None

    async def run() -> None:
        nonlocal passed_on
        try:
            await request
        except BaseException as error:  # noqa: BLE001  # an event loop would end the process
            passed_on = error

    asyncio.run(run())

    request.assert_crashed()
    assert passed_on is (None if isinstance(raised, Exception) else raised)
    crash, line = caplog.records
    assert crash.exc_info
    assert crash.exc_info[1] is raised
    assert line.getMessage().startswith("GET /api/{user_id}/tasks 500 ")


def test_cancelled_request_stays_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> Request:
        backend = Backend()
        request = Request(backend)
        serving = asyncio.create_task(request.serve())
        await backend.hangs.wait()
        serving.cancel("by whoever called the application")
        with pytest.raises(asyncio.CancelledError, match="by whoever"):
            await serving
        return request

    assert asyncio.run(run()).sent == []
    assert caplog.records == []


def test_shutdown_waits_for_requests_in_flight() -> None:
    async def run() -> list[str]:
        ended: list[str] = []
        backend = Backend()
        request = Request(backend)
        serving = asyncio.create_task(request.serve())
        serving.add_done_callback(lambda _: ended.append("request"))
        await backend.hangs.wait()
        messages: list[Message] = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]

        async def receive() -> Message:
            if len(messages) == 1:
                asyncio.get_running_loop().call_later(0.05, serving.cancel)
            return messages.pop()

        async def send(message: Message) -> None:
            ended.append(message["type"])

        await request.app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
        return ended

    assert asyncio.run(run()) == ["lifespan.startup.complete", "request", "lifespan.shutdown.complete"]


def test_client_disconnect_is_no_crash(caplog: pytest.LogCaptureFixture) -> None:
    request = Request(BearerIsIdentity(), "POST", disconnects=True)

    asyncio.run(request.serve())

    assert [message.get("status") for message in request.sent] == [400, None], "what a middleware around may wait for"
    assert caplog.records == []


def test_server_may_refuse_to_send_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Gone(Request):
        async def _send(self, message: Message) -> None:
            raise OSError

    asyncio.run(Gone(BearerIsIdentity(), "POST", disconnects=True).serve())

    assert caplog.records == []


def test_failure_after_response_started_is_raised() -> None:
    class Reset(Request):
        async def _send(self, message: Message) -> None:
            if message["type"] == "http.response.body":
                raise ConnectionResetError
            await super()._send(message)

    request = Reset(Backend(), "PUT")

    with pytest.raises(ConnectionResetError):
        asyncio.run(request.serve())
    assert [message["type"] for message in request.sent] == ["http.response.start"]


def test_closed_coroutine_sends_nothing() -> None:
    async def run() -> Request:
        request = Request(Backend())
        serving = request.serve()
        serving.send(None)  # run it up to its first suspension
        serving.close()
        return request

    assert asyncio.run(run()).sent == []


def test_http_exception_of_an_added_route_is_500() -> None:
    def raising(_: StarletteRequest) -> Response:
        raise HTTPException(418)

    request = Request(Backend(HTTPException(418)))
    request.app.add_route("/api/alice/tasks", raising)
    request.app.router.routes.reverse()

    asyncio.run(request.serve())

    request.assert_crashed()
