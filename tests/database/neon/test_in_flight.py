"""Statements whose connection breaks after they were sent."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from threading import Event
from typing import Any

import pytest

from tests.database.neon.conftest import Neon
from tests.support.api import Person, error
from tests.support.patience import deadline
from tests.support.postgres import settings_for
from tests.support.threads import thread_pool
from todo_api.database import Database
from todo_api.tasks import TaskStore, Versions


def writing(person: Person, over: Event, name: int, acknowledged: list[str]) -> Counter[int]:
    """Create tasks until `over` is set; record the acknowledged titles, and count the status codes."""
    codes = Counter[int]()
    while not over.is_set():
        title = f"{name} {codes.total()}"
        answer = person.ask("POST", json={"title": title})
        codes[answer.status_code] += 1
        if answer.status_code == 201:
            acknowledged.append(title)
        else:
            messages = {500: "Internal server error", 503: "Service is busy"}
            assert answer.json() == error(messages[answer.status_code])
    return codes


def wait_for_more(acknowledged: list[str], number: int) -> None:
    """Wait until this number of further titles is acknowledged."""
    enough, end = len(acknowledged) + number, deadline()
    while len(acknowledged) < enough:
        assert time.monotonic() < end
        time.sleep(0.01)


FAULTS: dict[str, Callable[[Neon], None]] = {
    "pooler killed": lambda neon: neon.bouncer.kill(),
    "pooler shut down": lambda neon: neon.bouncer.shut_down(),
    "database killed": lambda neon: neon.postgres.kill(),
    "database stopped": lambda neon: neon.postgres.stop(),
    "suspended": lambda neon: neon.suspend(wake_seconds=0.3),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_faults_neither_lose_nor_repeat_writes(
    pooled: Neon, caplog: pytest.LogCaptureFixture, fault: Callable[[Neon], None]
) -> None:
    alice = pooled.serve(pool_size=8)()
    alice.create("before")
    acknowledged: list[str] = []
    over = Event()
    with thread_pool(8) as threads:
        writers = [threads.submit(writing, alice, over, n, acknowledged) for n in range(8)]
        try:
            wait_for_more(acknowledged, 16)
            fault(pooled)
            time.sleep(0.3)
            pooled.resume()
            wait_for_more(acknowledged, 16)
        finally:
            over.set()
        codes: Counter[int] = sum((writer.result() for writer in writers), Counter())

    stored = Counter(task["title"] for task in alice.tasks())
    assert set(acknowledged) <= set(stored), "acknowledged, but lost"
    assert max(stored.values()) == 1, "applied twice"
    assert codes.keys() <= {201, 500, 503}, "503 while the pooler holds statements without a server"
    failures = [record.getMessage() for record in caplog.records if "unavailable" in record.getMessage()]
    assert len(failures) == codes[500]
    assert all("in the middle of operation" in failure for failure in failures), "only what was in flight may fail"
    assert not any("server shutting down" in failure for failure in failures), "the pooler ran none of these"


@pytest.mark.parametrize("path", ["", "?limit=5", "/{id}"])
def test_read_with_lost_response_is_retried(neon: Neon, path: str) -> None:
    alice = neon.serve(pool_size=1)()
    path = path.replace("{id}", str(alice.create()["id"]))
    alice.ask("GET", path)
    neon.proxy.drop_next_response = True

    answer = alice.ask("GET", path)

    assert answer.status_code == 200
    assert not neon.proxy.drop_next_response


# Method, path, body and headers, and the titles and statuses that are stored afterwards.
WRITES: list[tuple[str, str, Any, dict[str, str], list[tuple[str, str]]]] = [
    ("POST", "", {"title": "new"}, {}, [("new", "incomplete"), ("old", "incomplete")]),
    ("POST", "", {"title": "new"}, {"Idempotency-Key": "k"}, [("new", "incomplete"), ("old", "incomplete")]),
    ("PUT", "/{id}", {"title": "new"}, {}, [("new", "incomplete")]),
    ("PUT", "/{id}", {"title": "new"}, {"If-Match": "{tag}"}, [("new", "incomplete")]),
    ("PATCH", "/{id}/complete", None, {}, [("old", "complete")]),
    ("PATCH", "/{id}/complete", None, {"If-Match": "{tag}"}, [("old", "complete")]),
    ("PATCH", "/{id}/complete", None, {"If-Match": "*"}, [("old", "complete")]),
    ("DELETE", "/{id}", None, {}, []),
    ("DELETE", "/{id}", None, {"If-Match": "{tag}"}, []),
]


@pytest.mark.parametrize(("method", "path", "body", "headers", "stored"), WRITES)
def test_write_with_lost_response_is_sent_once(
    neon: Neon, method: str, path: str, body: Any, headers: dict[str, str], stored: list[tuple[str, str]]
) -> None:
    alice = neon.serve(pool_size=1)()
    neon.wait_until_warm()  # or preparing the statement may lose its answer, and is repeated
    task_path = f"/{alice.create('old')['id']}"
    tag = alice.ask("GET", task_path).headers["etag"]
    headers = {name: value.replace("{tag}", tag) for name, value in headers.items()}
    neon.proxy.drop_next_response = True

    answer = alice.ask(method, path.replace("/{id}", task_path), json=body, headers=headers)

    assert not neon.proxy.drop_next_response
    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    assert int(answer.headers["retry-after"]) > 0
    assert [(row["title"], row["status"]) for row in alice.stored()] == stored


def test_write_not_yet_sent_is_retried(neon: Neon) -> None:
    alice = neon.serve()()
    task_id = alice.create()["id"]
    neon.wait_until_warm()

    async def delete() -> None:
        database = Database(settings_for(neon.url, pool_size=1))
        # While the driver prepares the statement, it asks for the types of the parameters.
        neon.proxy.drop_next_response = True
        await TaskStore(database, alice.id).delete(task_id, Versions([], must_match=False))
        await database.close()

    asyncio.run(delete())
    assert not neon.proxy.drop_next_response
    assert alice.stored() == []
