"""The pool alone, on a real server."""

import asyncio
from contextlib import suppress

from tests.support.postgres import settings_for
from todo_api.database.connecting import Connector
from todo_api.database.connections import Connection, Connections
from todo_api.database.waiting import Waiter


def test_connection_lent_to_a_cancelled_request_returns(database_url: str) -> None:
    connector = Connector(settings_for(database_url).database_url.get_secret_value())

    async def lend() -> Connection:
        connections = Connections(connector, limit=1, wake_seconds=0)
        assert connections.take() is None
        now = asyncio.get_running_loop().time()
        lent = await connections.acquire(Waiter("a", now))
        waiting = asyncio.create_task(connections.acquire(Waiter("a", now)))
        await asyncio.sleep(0)
        assert connections.waiting == 1
        connections.release(lent)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        assert (connections.idle, connections.waiting) == (1, 0)
        again = connections.take()
        assert again is lent
        await connections.close()
        return lent

    assert asyncio.run(lend()).driver.is_closed()
