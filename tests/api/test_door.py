"""Refusals at the door, before a request is read or authenticated."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import httpx2
import pytest

from tests.support.api import Holding, Person, error
from tests.support.postgres import locked, waiting_backend
from todo_api.main import create_app
from todo_api.settings import Settings

ORIGIN = "https://app.example.com"


class Service:
    """An application with an open connection, and its clients."""

    def __init__(self, settings: Settings) -> None:
        self.backend = Holding()
        self.app = create_app(settings, self.backend)
        self._holding: list[asyncio.Task[httpx2.Response]] = []

    async def send(self, method: str, path: str, *, root_path: str = "", **arguments: Any) -> httpx2.Response:
        transport = httpx2.ASGITransport(self.app, root_path=root_path)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **arguments)

    async def ask(self, owner: str, method: str = "GET", **headers: str) -> httpx2.Response:
        """Send a request about the owner's tasks."""
        return await self.send(method, f"/api/{owner}/tasks", headers={"Authorization": f"Bearer {owner}", **headers})

    async def start(self, owner: str, number: int) -> None:
        """Send requests that stay in flight."""
        before = self.backend.asked
        self._holding += [asyncio.create_task(self.ask(owner, Hold="yes")) for _ in range(number)]
        async with asyncio.timeout(10):
            while self.backend.asked < before + number:  # noqa: ASYNC110  # the backend has no event for it
                await asyncio.sleep(0.01)

    async def statuses(self, *owners: str) -> list[int]:
        return [(await self.ask(owner)).status_code for owner in owners]

    async def release(self) -> list[int]:
        """Let the requests in flight go on, and return their status codes."""
        self.backend.released.set()
        return [(await each).status_code for each in self._holding]


@asynccontextmanager
async def serving(settings: Settings, *, connected: bool = True) -> AsyncIterator[Service]:
    service = Service(settings)
    if connected:
        assert await service.statuses("alice") == [200]
    yield service
    await service.release()
    await service.app.state.database.close()


@pytest.fixture(autouse=True)
def bounds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Allow four requests in flight, and no burst."""

    def set_bounds(**values: float) -> None:
        for name, value in values.items():
            module = "door" if "DELAY" in name else "admission"
            monkeypatch.setattr(f"todo_api.{module}.{name}", value)

    set_bounds(LEAST_IN_FLIGHT=4, IN_FLIGHT_PER_CONNECTION=1, BURST_SECONDS=0, MOST_DELAYED=0)
    return set_bounds


def test_refusal_comes_before_authentication(settings: Settings) -> None:
    async def run() -> httpx2.Response:
        async with serving(settings) as service:
            await service.start("alice", 4)
            asked = service.backend.asked
            refused = await service.ask("alice", "POST", **{"Origin": ORIGIN, "X-Request-ID": "the-id"})
            assert service.backend.asked == asked
            assert await service.release() == [200] * 4
            assert await service.statuses("alice") == [200]
            return refused

    refused = asyncio.run(run())

    assert (refused.status_code, refused.json()) == (503, error("Service is busy"))
    assert sorted(refused.headers.multi_items()) == [
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-origin", ORIGIN),
        ("access-control-expose-headers", "Location, ETag, Link, Idempotency-Replayed, Retry-After, X-Request-ID"),
        ("cache-control", "private, no-cache"),
        ("content-length", str(len(refused.content))),
        ("content-type", "application/json"),
        ("retry-after", "1"),
        ("vary", "Authorization, Origin"),
        ("x-content-type-options", "nosniff"),
        ("x-request-id", "the-id"),
    ]


def run_with(settings: Settings, test: Callable[[Service], Awaitable[None]], *, connected: bool = True) -> None:
    async def run() -> None:
        async with serving(settings, connected=connected) as service:
            await test(service)

    asyncio.run(run())


def test_small_owners_pass_a_full_door(settings: Settings) -> None:
    async def test(service: Service) -> None:
        await service.start("flood", 4)
        assert await service.statuses("flood", "alice") == [503, 200]
        await service.start("alice", 1)
        assert await service.statuses("flood", "alice") == [503, 200], "half of the limit is alice's share"
        await service.start("alice", 1)
        assert await service.statuses("flood", "alice", "bob") == [503, 503, 200]
        await service.start("bob", 1)
        assert await service.statuses("flood", "alice", "bob", "carol") == [503, 503, 503, 200]
        await service.start("carol", 1)
        assert await service.statuses("dave") == [503], "four owners have one each"

    run_with(settings, test)


def test_idle_requests_of_one_owner_take_no_others_share(settings: Settings, bounds: Callable[..., None]) -> None:
    async def test(service: Service) -> None:
        bounds(BURST_SECONDS=60)
        await service.start("flood", 10)
        bounds(BURST_SECONDS=0)
        for owner in ("bob", "carol", "dave", "alice"):
            await service.start(owner, 1)
        assert await service.statuses("alice", "flood") == [200, 503]

    bounds(LEAST_IN_FLIGHT=8)
    run_with(settings, test)


def test_one_owner_has_at_most_half_of_a_burst(settings: Settings, bounds: Callable[..., None]) -> None:
    async def test(service: Service) -> None:
        bounds(BURST_SECONDS=60, MOST_IN_FLIGHT=12)
        await service.start("flood", 6)
        assert await service.statuses("flood", "alice") == [503, 200]
        await service.start("alice", 6)
        assert await service.statuses("bob") == [503]

    run_with(settings, test)


def test_other_paths_pass_a_full_door(settings: Settings) -> None:
    async def test(service: Service) -> None:
        await service.start("alice", 4)
        preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "PUT"}
        assert (await service.ask("alice", "OPTIONS", **preflight)).status_code == 200
        for path, status in {"/health/live": 200, "/health/ready": 200, "/unknown": 404, "/api": 404}.items():
            assert (await service.send("GET", path)).status_code == status

    run_with(settings, test)


@pytest.mark.parametrize(
    ("root_path", "prefix"),
    [("/before", "/before"), ("/before/", "/before"), ("/before/", "/before/"), ("/a", ""), ("/a", "/a"), ("/", "")],
)
def test_door_knows_the_owner_under_a_root_path(settings: Settings, root_path: str, prefix: str) -> None:
    async def test(service: Service) -> None:
        await service.start("flood", 4)
        for owner, status in {"flood": 503, "bob": 401}.items():
            answer = await service.send("GET", f"{prefix}/api/{owner}/tasks", root_path=root_path)
            assert answer.status_code == status

    run_with(settings, test)


def test_limited_number_of_refusals_is_delayed(settings: Settings, bounds: Callable[..., None]) -> None:
    async def test(service: Service) -> None:
        bounds(MOST_DELAYED=1, DELAY_SECONDS=60)
        await service.start("alice", 4)
        delayed = asyncio.create_task(service.ask("alice"))
        await asyncio.sleep(0.1)
        assert await service.statuses("alice") == [503]
        assert not delayed.done()
        delayed.cancel()
        await asyncio.wait([delayed])
        bounds(DELAY_SECONDS=0.01)
        assert await service.statuses("alice") == [503]

    run_with(settings, test)


def test_refusals_of_owners_with_few_in_flight_are_not_delayed(settings: Settings, bounds: Callable[..., None]) -> None:
    async def test(service: Service) -> None:
        bounds(MOST_DELAYED=1, DELAY_SECONDS=60)
        for number in range(8):
            await service.start(f"user{number}", 1)
        async with asyncio.timeout(10):
            assert await service.statuses("user0") == [503], "one of eight"

    bounds(LEAST_IN_FLIGHT=8)
    run_with(settings, test)


def test_refusals_wait_longer_the_more_of_them_wait(settings: Settings, bounds: Callable[..., None]) -> None:
    async def test(service: Service) -> None:
        bounds(MOST_DELAYED=2, DELAY_SECONDS=0.01, LONGEST_DELAY_SECONDS=60, MOST_DELAYED_PER_SECOND=0.01)
        await service.start("alice", 4)
        first, second = (asyncio.create_task(service.ask("alice")) for _ in range(2))
        assert (await first).status_code == 503
        await asyncio.sleep(0.1)
        assert not second.done()
        bounds(DELAY_SECONDS=60, LONGEST_DELAY_SECONDS=0.01)
        assert await service.statuses("alice") == [503]
        second.cancel()
        await asyncio.wait([second])

    run_with(settings, test)


def test_burst_passes_the_door(settings: Settings, bounds: Callable[..., None]) -> None:
    async def test(service: Service) -> None:
        bounds(BURST_SECONDS=60, CALM_SECONDS=0)
        await service.start("alice", 5)
        assert await service.statuses("alice") == [200]
        bounds(MOST_IN_FLIGHT=5)
        assert await service.statuses("alice") == [503]
        bounds(BURST_SECONDS=0, MOST_IN_FLIGHT=100)
        assert await service.statuses("alice") == [503], "the burst has become an overload"

        bounds(BURST_SECONDS=1)
        assert await service.statuses("bob") == [200], "few in flight of this owner"
        await asyncio.sleep(1.1)
        assert await service.statuses("alice") == [503], "as long as too many are in flight, however few come"
        assert await service.release() == [200] * 5
        service.backend.released.clear()
        bounds(CALM_SECONDS=60)
        await service.start("alice", 4)
        bounds(CALM_SECONDS=0)
        assert await service.statuses("alice") == [503], "the limit was reached again too soon"
        await service.release()
        service.backend.released.clear()
        await service.start("alice", 5)
        assert await service.statuses("alice") == [200], "a new burst"

    run_with(settings, test)


def test_limit_requires_a_connected_database(settings: Settings, bounds: Callable[..., None]) -> None:
    async def test(service: Service) -> None:
        await service.start("alice", 5)
        assert await service.statuses("alice") == [200], "no limit before the first connection"
        assert await service.statuses("alice") == [503]

    run_with(settings, test, connected=False)


def test_long_queue_refuses_before_authentication(
    settings: Settings, alice: Person, bounds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in {
        "RATE_SECONDS": 0,
        "BURST_TARGET_SECONDS": 0.5,
        "TARGET_SECONDS": 0.5,
        "MOST_SECONDS": 60,
    }.items():
        monkeypatch.setattr(f"todo_api.database.waiting.{name}", seconds)
    bounds(LEAST_IN_FLIGHT=64)
    creating: dict[str, Any] = {
        "content": b'{"title": "x"}',
        "headers": {**alice.headers, "Content-Type": "application/json"},
    }
    locking = ExitStack()

    async def test(service: Service) -> None:
        creates = [asyncio.create_task(service.send("POST", alice.path, **creating)) for _ in range(20)]
        await asyncio.to_thread(waiting_backend, alice.database_url)
        await asyncio.sleep(0.2)  # the expected wait grows while nothing is served
        without_credentials = [await service.send("GET", path) for path in (alice.path, "/api/bob/tasks")]
        await asyncio.to_thread(locking.close)
        assert [answer.status_code for answer in without_credentials] == [503, 401]
        assert {(await each).status_code for each in creates} == {201}

    with locking:
        locking.enter_context(locked(alice.database_url, "LOCK TABLE tasks IN EXCLUSIVE MODE"))
        run_with(settings.model_copy(update={"pool_size": 1}), test)
