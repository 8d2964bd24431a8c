"""Linearizability: while responses are lost, some order of the concurrent requests explains all responses."""

import random
import time
from threading import Barrier
from typing import Any

import pytest

from tests.database.neon.conftest import Neon
from tests.support.api import Person
from tests.support.history import UNSEEN, Call, is_linearizable
from tests.support.threads import thread_pool

KEY = {"Idempotency-Key": "k"}
ROUNDS = 12
# What clients do with a task that they see.
REACTIONS = {"complete": ["reopen", "reopen", "delete"], "incomplete": ["get", "get", "delete"]}
REQUESTS: dict[str, tuple[str, str, Any]] = {
    "complete": ("PATCH", "/complete", None),
    "reopen": ("PUT", "", {"status": "incomplete"}),
    "delete": ("DELETE", "", None),
    "get": ("GET", "", None),
}


def do(person: Person, operation: str, task_id: int = UNSEEN) -> Call:
    """Send one request and record it with its response."""
    started = time.monotonic()
    if operation == "create":
        answer = person.ask("POST", json={"title": "x"}, headers=KEY)
    elif operation == "list":
        answer = person.ask("GET")
    else:
        method, path, body = REQUESTS[operation]
        answer = person.ask(method, f"/{task_id}{path}", json=body)
    ended = time.monotonic()
    body = answer.json() if answer.status_code in (200, 201) else {}
    task = next(iter(body), {}) if operation == "list" else body  # all creates have the same key, so there is one task
    return Call(operation, task.get("id", task_id), started, ended, answer.status_code, task.get("status"))


def call(operation: str, started: float, ended: float, code: int, status: str | None = None, task_id: int = 1) -> Call:
    return Call(operation, task_id, started, ended, code, status)


CREATED = call("create", 0, 1, 201, "incomplete")


@pytest.mark.parametrize(
    ("calls", "explained"),
    [
        ([CREATED, call("complete", 2, 3, 200, "complete"), call("get", 4, 5, 200, "complete")], True),
        ([CREATED, call("complete", 2, 3, 200, "complete"), call("get", 4, 5, 200, "incomplete")], False),
        ([CREATED, call("complete", 2, 6, 200, "complete"), call("get", 4, 5, 200, "incomplete")], True),
        # A complete without a response is seen applied, then reopened, then seen applied again.
        (
            [
                CREATED,
                call("complete", 2, 9, 500),
                call("get", 3, 4, 200, "complete"),
                call("reopen", 5, 6, 200, "incomplete"),
                call("get", 7, 8, 200, "complete"),
            ],
            False,
        ),
        # A create without a response creates one task, and no second one after a delete.
        ([call("create", 0, 9, 500), call("get", 1, 2, 200, "incomplete"), call("delete", 3, 4, 204)], True),
        (
            [
                call("create", 0, 9, 500),
                call("get", 1, 2, 200, "incomplete"),
                call("delete", 3, 4, 204),
                call("get", 5, 6, 200, "incomplete", task_id=2),
            ],
            False,
        ),
        ([call("list", 0, 1, 200, task_id=UNSEEN), CREATED, call("list", 2, 3, 200, "incomplete")], True),
        ([CREATED, call("list", 2, 3, 200, task_id=UNSEEN)], False),
        ([CREATED, call("list", 2, 3, 200, "complete")], False),
    ],
)
def test_checker_rejects_impossible_histories(calls: list[Call], *, explained: bool) -> None:
    assert is_linearizable(calls) == explained


def two_services(neon: Neon) -> tuple[Person, Person]:
    """Create a user of a service whose responses can be lost, and the same user of a service whose responses cannot."""
    alice = neon.serve(pool_size=1)()
    neon.url = neon.direct_url
    return alice, Person(neon.serve()().client, alice.database_url, alice.id)


@pytest.mark.parametrize("seed", range(4))
def test_history_with_lost_responses_is_linearizable(pooled: Neon, seed: int) -> None:
    # One client loses responses, while two others see what its requests did and undo it, so that a retry shows.
    alice, other = two_services(pooled)
    barrier = Barrier(3)

    def write() -> list[Call]:
        choice, calls = random.Random(seed), []
        for _ in range(ROUNDS):
            barrier.wait(timeout=30)
            calls.append(do(other, "list"))
            operation = choice.choice(["create", "complete", "complete"]) if calls[-1].status else "create"
            pooled.proxy.drop_next_response = choice.random() < 0.7
            calls.append(do(alice, operation, calls[-1].task_id))
        return calls

    def react(name: int) -> list[Call]:
        choice, calls = random.Random(f"{seed} {name}"), []
        for _ in range(ROUNDS):
            barrier.wait(timeout=30)
            for _ in range(3):
                calls.append(do(other, "list"))
                if status := calls[-1].status:
                    calls.append(do(other, choice.choice(REACTIONS[status]), calls[-1].task_id))
        return calls

    with thread_pool(3) as threads:
        running = [threads.submit(write), threads.submit(react, 1), threads.submit(react, 2)]
        history = [call for calls in running for call in calls.result()]

    assert is_linearizable(history)
    assert {call.code for call in history} <= {200, 201, 204, 404, 500}
    assert any(call.code == 500 for call in history), "no write lost its response"


def test_lost_complete_never_undoes_later_reopen(neon: Neon) -> None:
    alice, other = two_services(neon)
    path = f"/{alice.create()['id']}"

    def reopen() -> None:
        assert other.ask("PUT", path, json={"status": "incomplete"}).status_code == 200

    neon.proxy.drop_next_response = True
    neon.proxy.wake = reopen  # before the service could send anything on a new connection
    assert alice.ask("PATCH", f"{path}/complete").status_code == 500
    assert other.ask("GET", path).json()["status"] == "complete"

    assert alice.ask("GET", path).json()["status"] == "incomplete"


def test_lost_create_never_returns_after_delete(neon: Neon) -> None:
    alice, other = two_services(neon)
    assert alice.tasks() == []

    def delete() -> None:
        assert other.ask("DELETE", f"/{other.tasks()[0]['id']}").status_code == 204

    neon.proxy.drop_next_response = True
    neon.proxy.wake = delete
    assert alice.ask("POST", json={"title": "x"}, headers=KEY).status_code == 500

    assert alice.tasks() == []
