"""What the application does from its start to its shutdown, in whatever process it is."""

import gc

from starlette.testclient import TestClient

from todo_api.main import create_app
from todo_api.settings import Settings


def test_an_embedded_application_freezes_the_garbage_collector(settings: Settings) -> None:
    app = create_app(settings)
    before = gc.get_freeze_count()

    with TestClient(app):
        assert gc.get_freeze_count() > before

    assert gc.get_freeze_count() == 0
