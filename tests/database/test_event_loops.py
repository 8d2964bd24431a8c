"""One application used on several event loops, one after the other."""

import asyncio
import gc
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tests.support.api import BearerIsIdentity, Person
from tests.support.postgres import settings_for
from todo_api.database import Database
from todo_api.database.connecting import Connector
from todo_api.database.connections import Connection, Connections
from todo_api.database.waiting import Waiter
from todo_api.main import create_app
from todo_api.statements import LIST

# Python warns about sockets that a closed event loop left open.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def warned_here() -> Iterator[None]:
    yield
    gc.collect()


def test_each_request_on_new_event_loop(alice: Person) -> None:
    client = TestClient(create_app(settings_for(alice.database_url), BearerIsIdentity()))

    for _ in range(4):
        assert client.post(alice.path, json={"title": "x"}, headers=alice.headers).status_code == 201
        assert client.get("/health/ready").status_code == 200


def test_connection_of_another_loop_is_not_kept(database_url: str) -> None:
    connections = Connections(Connector(database_url), limit=1, wake_seconds=0)

    async def acquire() -> Connection:
        assert connections.take() is None
        return await connections.acquire(Waiter("a"))

    async def release(connection: Connection) -> None:
        connections.release(connection)

    with asyncio.Runner() as first, asyncio.Runner() as second:
        late = first.run(acquire())
        second.run(release(second.run(acquire())))
        first.run(release(late))
        assert connections.idle == 1
        second.run(connections.close())


def test_connections_of_closed_loop_are_dropped(database_url: str) -> None:
    database = Database(settings_for(database_url))

    for _ in range(3):
        assert asyncio.run(database.run(LIST, {"owner": "nobody"})) == "[]"
    asyncio.run(database.close())
