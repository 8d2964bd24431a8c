"""What the application's lifespan does on startup and shutdown."""

import asyncio
import gc
import socket

from starlette.testclient import TestClient

from tests.support.postgres import settings_for
from todo_api.main import create_app
from todo_api.settings import Settings


def test_lifespan_freezes_the_garbage_collector(settings: Settings) -> None:
    app = create_app(settings)
    before = gc.get_freeze_count()

    with TestClient(app):
        assert gc.get_freeze_count() > before

    assert gc.get_freeze_count() == 0


def test_shutdown_cancels_the_opening_of_connections() -> None:
    async def run(url: str) -> None:
        app = create_app(settings_for(url, wake_seconds=60))
        async with asyncio.timeout(30), app.router.lifespan_context(app):
            await asyncio.sleep(0.1)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(run(f"postgresql://user@127.0.0.1:{silent.getsockname()[1]}/database"))
