"""Linearizability: while responses are lost, some order of the concurrent requests explains all responses."""

import random
import time
from threading import Barrier
from typing import Any

import pytest

from tests.database.neon.conftest import Neon
from tests.support.api import Person
from tests.support.crowd import crowd
from tests.support.history import Call, is_linearizable

KEY = {"Idempotency-Key": "k"}
REQUESTS: dict[str, tuple[str, str, Any]] = {
    "complete": ("PATCH", "/complete", None),
    "reopen": ("PUT", "", {"status": "incomplete"}),
    "delete": ("DELETE", "", None),
    "get": ("GET", "", None),
}


def do(person: Person, operation: str, task_id: int) -> Call:
    """Send one request and record it with its response."""
    started = time.monotonic()
    if operation == "create":
        answer = person.ask("POST", json={"title": "x"}, headers=KEY)
    else:
        method, path, body = REQUESTS[operation]
        answer = person.ask(method, f"/{task_id}{path}", json=body)
    ended = time.monotonic()
    task = answer.json() if answer.status_code in (200, 201) else {}
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
    ],
)
def test_checker_rejects_impossible_histories(calls: list[Call], *, explained: bool) -> None:
    assert is_linearizable(calls) == explained


@pytest.mark.parametrize("seed", range(4))
def test_history_with_lost_responses_is_linearizable(pooled: Neon, seed: int) -> None:
    alice = pooled.serve()()
    task_ids: list[int] = [do(alice, "create", 0).task_id]
    alice.ask("DELETE", f"/{task_ids[0]}")
    barrier = Barrier(4)

    def client(name: int) -> list[Call]:
        choice = random.Random(f"{seed} {name}")
        calls = []
        for _ in range(8):
            barrier.wait(timeout=30)
            operation = choice.choice(["create", "create", "complete", "complete", "reopen", "delete", "get", "get"])
            if name == 0 and choice.random() < 0.6:
                pooled.front.lose_next_answer = True
            calls.append(do(alice, operation, task_ids[-1]))
            if calls[-1].code == 201:
                task_ids.append(calls[-1].task_id)
        return calls

    with crowd(4) as threads:
        history = [call for calls in threads.map(client, range(4)) for call in calls]

    assert {call.code for call in history} <= {200, 201, 204, 404, 500}
    assert any(call.code == 500 for call in history), "no write lost its answer"
    assert is_linearizable(history)


def test_lost_complete_never_undoes_later_reopen(neon: Neon) -> None:
    alice, second = neon.serve(pool_size=1)(), Neon(neon.postgres, None, neon.front)
    second.url = neon.direct_url
    other = Person(second.serve()().client, alice.database_url, alice.id)
    path = f"/{alice.create()['id']}"

    def reopen() -> None:
        assert other.ask("PUT", path, json={"status": "incomplete"}).status_code == 200

    neon.front.lose_next_answer = True
    neon.front.wake = reopen  # before the service could send anything on a new connection
    assert alice.ask("PATCH", f"{path}/complete").status_code == 500
    assert other.ask("GET", path).json()["status"] == "complete"

    assert alice.ask("GET", path).json()["status"] == "incomplete"
    second.close()


def test_lost_create_never_returns_after_delete(neon: Neon) -> None:
    alice, second = neon.serve(pool_size=1)(), Neon(neon.postgres, None, neon.front)
    second.url = neon.direct_url
    other = Person(second.serve()().client, alice.database_url, alice.id)
    assert alice.tasks() == []

    def delete() -> None:
        assert other.ask("DELETE", f"/{other.tasks()[0]['id']}").status_code == 204

    neon.front.lose_next_answer = True
    neon.front.wake = delete
    assert alice.ask("POST", json={"title": "x"}, headers=KEY).status_code == 500

    assert alice.tasks() == []
    second.close()
