"""One application, used from one event loop after another."""

import asyncio
import gc
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tests.support.api import BearerIsIdentity, Person
from tests.support.postgres import settings_for
from todo_api.database import Database
from todo_api.main import create_app
from todo_api.statements import LIST

# Python warns of the sockets that a loop which is gone has left open.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def warned_here() -> Iterator[None]:
    yield
    gc.collect()


def test_a_client_with_a_loop_for_each_request_is_answered(alice: Person) -> None:
    client = TestClient(create_app(settings_for(alice.database_url), BearerIsIdentity()))

    for _ in range(4):
        assert client.post(alice.path, json={"title": "x"}, headers=alice.headers).status_code == 201
        assert client.get("/health/ready").status_code == 200


def test_connections_of_a_loop_that_is_gone_are_not_used(database_url: str) -> None:
    database = Database(settings_for(database_url))

    for _ in range(3):
        assert asyncio.run(database.run(LIST, {"owner": "nobody"})) == "[]"
    asyncio.run(database.close())
