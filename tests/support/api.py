"""A client of the application in this process, and users whose bearer token is their id."""

import asyncio
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Never
from urllib.parse import quote, unquote

import httpx2
from fastapi import FastAPI
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.testclient import TestClient

from tests.support.openapi import Document
from tests.support.postgres import sql
from todo_api.main import create_app
from todo_api.settings import Settings

JSON = {"Content-Type": "application/json"}
NEW_ACCOUNT = 'INSERT INTO "user" (id, name, email, "emailVerified") VALUES ($1, $1, $1, true)'


class BearerIsIdentity(AuthenticationBackend):
    """Take the percent-decoded bearer token as the identity, so that a test can be any user."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        token = conn.headers.get("authorization", "").removeprefix("Bearer ")
        return (AuthCredentials(), SimpleUser(unquote(token, errors="surrogatepass"))) if token else None


class Holding(AuthenticationBackend):
    """Hold requests with the header `Hold` until `released` is set, and count all."""

    def __init__(self) -> None:
        self.asked = 0
        self.released = asyncio.Event()

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        self.asked += 1
        if "hold" in conn.headers:
            await self.released.wait()
        return await BearerIsIdentity().authenticate(conn)


class Leaving:
    """The interrupt of a request whose client leaves before the given check, and when awaited."""

    def __init__(self, check: int = sys.maxsize) -> None:
        self.is_awaited = False
        self._checks_left = check

    def check(self) -> None:
        self._checks_left -= 1
        if not self._checks_left:
            raise ClientDisconnect

    async def wait(self) -> Never:
        self.is_awaited = True
        raise ClientDisconnect


class CheckedClient(TestClient):
    """A client that validates every response against the OpenAPI document."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(app, raise_server_exceptions=False)
        self._document = Document(app.openapi())

    def request(self, method: str, url: Any, **arguments: Any) -> httpx2.Response:
        answer: httpx2.Response = super().request(method, url, **arguments)
        path = answer.request.url.raw_path.decode().partition("?")[0]
        self._document.check(method, path, answer)
        return answer


class Person:
    """A user with an account, and the requests about their tasks."""

    def __init__(self, client: CheckedClient, database_url: str, user_id: str) -> None:
        self.client = client
        self.id = user_id
        self.database_url = database_url
        self.path = f"/api/{quote(user_id, safe='')}/tasks"
        self.headers = {"Authorization": f"Bearer {quote(user_id)}"}

    def ask(self, method: str, path: str = "", **arguments: Any) -> httpx2.Response:
        """Send a request about this person's tasks; `path` is appended to `/api/{user_id}/tasks`."""
        headers = {**self.headers, **arguments.pop("headers", {})}
        return self.client.request(method, self.path + path, headers=headers, **arguments)

    def create(self, title: str = "Buy milk", **fields: Any) -> dict[str, Any]:
        """Create a task and return it."""
        answer = self.ask("POST", json={"title": title, **fields})
        assert answer.status_code == 201, answer.text
        task: dict[str, Any] = answer.json()
        return task

    def tasks(self) -> list[dict[str, Any]]:
        """List this person's tasks."""
        tasks: list[dict[str, Any]] = self.ask("GET").json()
        return tasks

    def stored(self) -> list[dict[str, Any]]:
        """Read this person's rows directly from the table."""
        return sql(self.database_url, "SELECT * FROM tasks WHERE user_id = $1 ORDER BY id DESC", self.id)


@contextmanager
def on_one_connection(settings: Settings, person: Person) -> Iterator[None]:
    """Let a person use an application with one connection, on which their statements are prepared."""
    with CheckedClient(create_app(settings.model_copy(update={"pool_size": 1}), BearerIsIdentity())) as client:
        person.client = client
        task = person.create()
        assert person.ask("DELETE", f"/{task['id']}").status_code == 204
        assert person.tasks() == []
        yield


def new_account(database_url: str, user_id: str | None = None) -> str:
    """Create an account as the authentication layer would, and return its id."""
    user_id = user_id or uuid.uuid4().hex
    sql(database_url, NEW_ACCOUNT, user_id)
    return user_id


def error(message: str) -> dict[str, str]:
    """Build the body of an error response."""
    return {"error": message}


PersonMaker = Callable[..., Person]
