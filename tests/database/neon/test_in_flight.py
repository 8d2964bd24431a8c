"""What happens to a statement whose connection breaks after it was sent."""

import time
from collections import Counter
from collections.abc import Callable
from threading import Event
from typing import Any

import pytest

from tests.database.neon.conftest import Neon
from tests.support.api import Person, error
from tests.support.crowd import crowd


def writing(person: Person, over: Event, name: int, acknowledged: list[str]) -> Counter[int]:
    """Create tasks until it is over; note the titles that were acknowledged, and count the codes answered."""
    codes = Counter[int]()
    while not over.is_set():
        title = f"{name} {codes.total()}"
        answer = person.ask("POST", json={"title": title})
        codes[answer.status_code] += 1
        if answer.status_code == 201:
            acknowledged.append(title)
        else:
            assert answer.json() == error("Internal server error")
    return codes


def wait_for_more(acknowledged: list[str], number: int) -> None:
    """Wait until so many more have been acknowledged."""
    enough, deadline = len(acknowledged) + number, time.monotonic() + 30
    while len(acknowledged) < enough:
        assert time.monotonic() < deadline
        time.sleep(0.01)


FAULTS: dict[str, Callable[[Neon], None]] = {
    "pooler killed": lambda neon: neon.bouncer.kill(),
    "database killed": lambda neon: neon.postgres.kill(),
    "database stopped": lambda neon: neon.postgres.stop(),
    "suspended": lambda neon: neon.suspend(wake_seconds=0.3),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_under_eight_writers_nothing_acknowledged_is_lost_and_nothing_applied_twice(
    pooled: Neon, caplog: pytest.LogCaptureFixture, fault: Callable[[Neon], None]
) -> None:
    alice = pooled.serve(pool_size=8)()
    alice.create("before")
    acknowledged: list[str] = []
    over = Event()
    with crowd(8) as threads:
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
    assert codes.keys() <= {201, 500}
    failures = [record.getMessage() for record in caplog.records if "unavailable" in record.getMessage()]
    assert len(failures) == codes[500]
    assert all("in the middle of operation" in failure for failure in failures), "only what was in flight may fail"


REPEATED = [("GET", ""), ("GET", "/{id}"), ("PATCH", "/{id}/complete")]


@pytest.mark.parametrize(("method", "path"), REPEATED)
def test_what_cannot_apply_twice_is_repeated(neon: Neon, method: str, path: str) -> None:
    alice = neon.serve(pool_size=1)()
    task = alice.create()
    alice.ask(method, path.replace("{id}", str(task["id"])))
    neon.front.lose_next_answer = True

    answer = alice.ask(method, path.replace("{id}", str(task["id"])))

    assert answer.status_code == 200
    assert not neon.front.lose_next_answer


def test_a_create_with_a_key_is_repeated_and_makes_one_task(neon: Neon) -> None:
    alice = neon.serve(pool_size=1)()
    alice.ask("POST", json={"title": "old"}, headers={"Idempotency-Key": "old"})
    neon.front.lose_next_answer = True

    answer = alice.ask("POST", json={"title": "new"}, headers={"Idempotency-Key": "new"})

    assert not neon.front.lose_next_answer
    assert (answer.status_code, answer.json()["title"]) == (201, "new")
    assert "idempotency-replayed" not in answer.headers, "to its client it is the first"
    assert [row["title"] for row in alice.stored()] == ["new", "old"]


@pytest.mark.parametrize(("tag", "status"), [("{}", 500), ("*", 200)])
def test_a_complete_that_only_means_one_version_is_not_repeated(neon: Neon, tag: str, status: int) -> None:
    alice = neon.serve(pool_size=1)()
    path = f"/{alice.create()['id']}"
    tag = tag.replace("{}", alice.ask("GET", path).headers["etag"])
    neon.front.lose_next_answer = True

    answer = alice.ask("PATCH", f"{path}/complete", headers={"If-Match": tag})

    assert not neon.front.lose_next_answer
    assert answer.status_code == status
    assert [row["status"] for row in alice.stored()] == ["complete"]


NOT_REPEATED: list[tuple[str, str, Any]] = [
    ("POST", "", {"title": "new"}),
    ("PUT", "/{id}", {"title": "new"}),
    ("DELETE", "/{id}", None),
]


@pytest.mark.parametrize(("method", "path", "body"), NOT_REPEATED)
def test_a_write_whose_acknowledgement_is_lost_was_applied_once_and_says_500(
    neon: Neon, method: str, path: str, body: Any
) -> None:
    alice = neon.serve(pool_size=1)()
    task = alice.create("old")
    neon.front.lose_next_answer = True

    answer = alice.ask(method, path.replace("{id}", str(task["id"])), json=body)

    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    assert int(answer.headers["retry-after"]) > 0
    expected = {"POST": ["new", "old"], "PUT": ["new"], "DELETE": []}[method]
    assert [row["title"] for row in alice.stored()] == expected
