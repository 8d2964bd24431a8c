"""Races for the only connection of the pool, on a real server."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.support.postgres import settings_for
from todo_api.database.connecting import Connector
from todo_api.database.connections import Connection, Connections
from todo_api.database.waiting import Waiter
from todo_api.errors import Busy

Acquiring = asyncio.Task[Connection]


class Race:
    """A pool whose only connection is lent, and two requests that wait for it."""

    def __init__(self, connections: Connections, lent: Connection) -> None:
        self.connections = connections
        self.lent = lent
        self.waiters = [Waiter(owner) for owner in "ab"]
        self.first, self.second = [asyncio.create_task(connections.acquire(waiter)) for waiter in self.waiters]


async def _ends_cancelled(acquiring: Acquiring) -> None:
    with pytest.raises(asyncio.CancelledError):
        await acquiring


async def lent_to_cancelled(race: Race) -> None:
    race.connections.release(race.lent)
    race.first.cancel()
    await _ends_cancelled(race.first)
    assert await race.second is race.lent


async def released_to_cancelled(race: Race) -> None:
    race.first.cancel()
    race.connections.release(race.lent)
    await _ends_cancelled(race.first)
    assert await race.second is race.lent


async def refused_and_cancelled(race: Race) -> None:
    race.waiters[0].fail(Busy())
    race.first.cancel()
    await _ends_cancelled(race.first)
    race.connections.release(race.lent)
    assert await race.second is race.lent


async def cancelled_and_refused(race: Race) -> None:
    race.first.cancel()
    race.waiters[0].fail(Busy())
    await _ends_cancelled(race.first)
    race.connections.release(race.lent)
    assert await race.second is race.lent


async def outdated_when_released(race: Race) -> None:
    race.lent.retire_at = 0
    race.connections.release(race.lent)
    new = await race.first
    assert new is not race.lent
    race.connections.release(new)
    assert await race.second is new


@pytest.mark.parametrize(
    "run",
    [lent_to_cancelled, released_to_cancelled, refused_and_cancelled, cancelled_and_refused, outdated_when_released],
)
def test_races_for_the_only_connection(database_url: str, run: Callable[[Race], Awaitable[None]]) -> None:
    connector = Connector(settings_for(database_url).database_url.get_secret_value())

    async def compete() -> None:
        connections = Connections(connector, limit=1, wake_seconds=0)
        assert connections.take() is None
        race = Race(connections, await connections.acquire(Waiter("c")))
        await asyncio.sleep(0)
        assert connections.waiting == 2
        await run(race)
        connections.release(await race.second)
        assert (connections.idle, connections.used, connections.waiting) == (1, 0, 0)
        await connections.close()

    asyncio.run(compete())
