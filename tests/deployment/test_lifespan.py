"""What the application's lifespan does on startup and shutdown."""

import gc

from starlette.testclient import TestClient

from todo_api.main import create_app
from todo_api.settings import Settings


def test_lifespan_freezes_the_garbage_collector(settings: Settings) -> None:
    app = create_app(settings)
    before = gc.get_freeze_count()

    with TestClient(app):
        assert gc.get_freeze_count() > before

    assert gc.get_freeze_count() == 0
