"""What the application's lifespan does on startup and shutdown."""

import asyncio
import gc
import socket

import pytest
from starlette.testclient import TestClient
from starlette.types import Message

from tests.database.test_database import scope_of
from tests.support.api import BearerIsIdentity, Person
from tests.support.postgres import settings_for
from todo_api.main import GC_THRESHOLD, create_app
from todo_api.settings import Settings


def test_lifespan_freezes_the_garbage_collector(settings: Settings) -> None:
    app = create_app(settings)
    before = gc.get_freeze_count()

    with TestClient(app):
        assert gc.get_freeze_count() > before

    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize(("before", "meanwhile"), [(700, GC_THRESHOLD), (GC_THRESHOLD + 1, GC_THRESHOLD + 1), (0, 0)])
def test_garbage_collector_runs_less_often(settings: Settings, before: int, meanwhile: int) -> None:
    restored = gc.get_threshold()
    gc.set_threshold(before)
    try:
        with TestClient(create_app(settings)):
            assert gc.get_threshold()[0] == meanwhile
        assert gc.get_threshold()[0] == before
    finally:
        gc.set_threshold(*restored)


def test_shutdown_cancels_the_opening_of_connections() -> None:
    async def run(url: str) -> None:
        app = create_app(settings_for(url, wake_seconds=60))
        async with asyncio.timeout(30), app.router.lifespan_context(app):
            await asyncio.sleep(0.1)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(run(f"postgresql://user@127.0.0.1:{silent.getsockname()[1]}/database"))


@pytest.mark.parametrize(("method", "body"), [("GET", b""), ("POST", b'{"title": "x"}')])
def test_requests_leave_no_reference_cycles(settings: Settings, alice: Person, method: str, body: bytes) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    async def send(_: Message) -> None:
        pass

    async def run() -> int:
        app = create_app(settings, BearerIsIdentity())
        for requests in (5, 20):  # the first ones open the connection and prepare the statement
            gc.collect()
            gc.disable()
            for _ in range(requests):
                await app(scope_of(alice, method, **{"Content-Type": "application/json"}), receive, send)
            found = gc.collect()
            gc.enable()
        await app.state.database.close()
        return found

    assert asyncio.run(run()) == 0, "the garbage collector has to find them, which delays other requests"
