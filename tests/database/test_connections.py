"""The pool alone, on a real server."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from tests.support.postgres import settings_for
from todo_api.database.connecting import Connector
from todo_api.database.connections import Connection, Connections
from todo_api.database.waiting import Waiter
from todo_api.errors import Busy


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


async def _cancelled(task: "asyncio.Task[Connection]") -> None:
    with pytest.raises(asyncio.CancelledError):
        await task


async def _release_to_cancelled(connections: Connections, lent: Connection, waiters: list[Waiter]) -> None:
    first, second = [asyncio.create_task(connections.acquire(waiter)) for waiter in waiters]
    await asyncio.sleep(0)
    first.cancel()
    connections.release(lent)
    await _cancelled(first)
    assert await second is lent


async def _cancel_refused(connections: Connections, _: Connection, waiters: list[Waiter]) -> None:
    refused = asyncio.create_task(connections.acquire(waiters[0]))
    await asyncio.sleep(0)
    waiters[0].fail(Busy())
    refused.cancel()
    await _cancelled(refused)


async def _refuse_cancelled(connections: Connections, _: Connection, waiters: list[Waiter]) -> None:
    cancelled = asyncio.create_task(connections.acquire(waiters[0]))
    await asyncio.sleep(0)
    cancelled.cancel()
    waiters[0].fail(Busy())
    await _cancelled(cancelled)


async def _release_outdated(connections: Connections, lent: Connection, waiters: list[Waiter]) -> None:
    waiting = asyncio.create_task(connections.acquire(waiters[0]))
    await asyncio.sleep(0)
    lent.retire_at = 0
    connections.release(lent)
    assert await waiting is not lent


@pytest.mark.parametrize("race", [_release_to_cancelled, _cancel_refused, _refuse_cancelled, _release_outdated])
def test_races_for_the_only_connection(
    database_url: str, race: Callable[[Connections, Connection, list[Waiter]], Awaitable[None]]
) -> None:
    connector = Connector(settings_for(database_url).database_url.get_secret_value())

    async def run() -> None:
        connections = Connections(connector, limit=1, wake_seconds=0)
        assert connections.take() is None
        now = asyncio.get_running_loop().time()
        lent = await connections.acquire(Waiter("a", now))
        await race(connections, lent, [Waiter("a", now), Waiter("b", now)])
        await connections.close()

    asyncio.run(run())
