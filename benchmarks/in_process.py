"""Measures the processor time of a request in the service alone, without server, network and database.

Prints microseconds of processor time as JSON: the medians of interleaved rounds.
"""

import asyncio
import gc
import json
import logging
import os
import statistics
import time
from typing import Any, NamedTuple

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from benchmarks.identity import BearerIsIdentity
from todo_api import logs
from todo_api.main import create_app
from todo_api.settings import EXAMPLE_URL, Settings

ROUNDS = 40
REQUESTS = 200
TASK = {
    "id": 7,
    "user_id": "alice",
    "title": "Buy milk",
    "description": "Two litres, and the good bread from the market",
    "status": "incomplete",
    "created_at": "2026-11-23T09:30:00.123456Z",
    "updated_at": "2026-11-23T09:30:00.123456Z",
}
TEXT = json.dumps(TASK, separators=(",", ":"))
NEW = json.dumps({"title": TASK["title"], "description": TASK["description"]}).encode()
HEADERS = [(b"host", b"127.0.0.1:8000"), (b"user-agent", b"wrk"), (b"authorization", b"Bearer alice")]
JSON_HEADERS = [*HEADERS, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(NEW))]


class StubDatabase:
    """A database whose every statement returns the same task."""

    async def run(self, *_: object) -> str:
        """Return the task."""
        return TEXT


class Case(NamedTuple):
    """A request to an application, and the status of its response."""

    app: ASGIApp
    method: str
    path: str
    body: bytes = b""
    status: int = 200


async def read_task(_: Request) -> JSONResponse:
    """Answer as a bare Starlette route."""
    return JSONResponse(TASK)


async def read_task_by_id(user_id: str, task_id: int) -> JSONResponse:
    """Answer as a bare FastAPI route."""
    return JSONResponse({**TASK, "id": task_id, "user_id": user_id})


def cases() -> dict[str, Case]:
    """Create the applications and requests to compare."""
    fastapi = FastAPI()
    fastapi.get("/api/{user_id}/tasks/{task_id}")(read_task_by_id)
    service = create_app(Settings.read(database_url=EXAMPLE_URL, auth_backend=None), BearerIsIdentity())
    service.state.database = StubDatabase()
    path = "/api/alice/tasks"
    return {
        "Starlette route": Case(Starlette(routes=[Route("/api/{user_id}/tasks/{id}", read_task)]), "GET", f"{path}/7"),
        "FastAPI route": Case(fastapi, "GET", f"{path}/7"),
        "get": Case(service, "GET", f"{path}/7"),
        "create": Case(service, "POST", path, NEW, 201),
    }


async def serve(case: Case) -> None:
    """Send one request to the application."""
    statuses = []

    async def receive() -> Message:
        return {"type": "http.request", "body": case.body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": case.method,
        "scheme": "http",
        "path": case.path,
        "raw_path": case.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": list(JSON_HEADERS if case.body else HEADERS),
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "state": {},
    }
    await case.app(scope, receive, send)
    assert statuses == [case.status]


async def measure() -> dict[str, float]:
    """Measure all cases in interleaved rounds."""
    made = cases()
    gc.collect()
    gc.freeze()
    samples: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(ROUNDS):
        for name, case in made.items():
            started = time.process_time_ns()
            for _ in range(REQUESTS):
                await serve(case)
            samples[name].append((time.process_time_ns() - started) / REQUESTS / 1000)
    return {name: statistics.median(values) for name, values in samples.items()}


if __name__ == "__main__":
    with open(os.devnull, "w") as log:  # noqa: PTH123  # the service's log, written as in production
        handler = logging.StreamHandler(log)
        handler.setFormatter(logs.JSONFormatter())
        logging.getLogger().addHandler(handler)
        logging.getLogger("todo_api").setLevel(logging.INFO)
        print(json.dumps(asyncio.run(measure())))
