"""Concurrent requests: each operation is a single statement, so that none sees another half done."""

from collections import Counter

import pytest

from tests.support.api import BearerIsIdentity, CheckedClient, Person
from tests.support.postgres import locked, sql, waiting_backend
from tests.support.threads import thread_pool
from todo_api.main import create_app
from todo_api.settings import Settings


def test_concurrent_writes_never_crash(alice: Person) -> None:
    def race(task_id: int) -> list[int]:
        requests = [
            lambda: alice.ask("PUT", f"/{task_id}", json={"status": "incomplete"}),
            lambda: alice.ask("PATCH", f"/{task_id}/complete"),
            lambda: alice.ask("DELETE", f"/{task_id}"),
            lambda: alice.ask("DELETE", f"/{task_id}"),
            lambda: alice.ask("GET", f"/{task_id}"),
        ]
        return [answer.status_code for answer in threads.map(lambda request: request(), requests)]

    with thread_pool(8) as threads:
        for _ in range(30):
            answers = race(alice.create()["id"])

            assert set(answers[:2] + answers[4:]) <= {200, 404}
            assert sorted(answers[2:4]) == [204, 404]
    assert alice.stored() == []


def test_concurrent_updates_of_different_fields_apply(alice: Person) -> None:
    with thread_pool(3) as threads:
        for n in range(30):
            task_id = alice.create()["id"]
            changes = [{"title": f"title {n}"}, {"description": f"description {n}"}, {"status": "complete"}]
            asked = [threads.submit(alice.ask, "PUT", f"/{task_id}", json=change) for change in changes]
            answers = [future.result() for future in asked]

            task = alice.ask("GET", f"/{task_id}").json()
            assert {answer.status_code for answer in answers} == {200}
            assert (task["title"], task["description"], task["status"]) == (
                f"title {n}",
                f"description {n}",
                "complete",
            )


def test_every_update_gets_own_updated_at(alice: Person) -> None:
    task_id = alice.create()["id"]

    with thread_pool(16) as threads:
        answers = list(threads.map(lambda _: alice.ask("PUT", f"/{task_id}", json={"title": "same"}), range(100)))

    assert len({answer.json()["updated_at"] for answer in answers}) == 100


@pytest.mark.parametrize("rounds", [20])
def test_complete_during_updates_returns_complete(alice: Person, rounds: int) -> None:
    with thread_pool(8) as threads:
        for _ in range(rounds):
            task_id = alice.create()["id"]
            updates = [threads.submit(alice.ask, "PUT", f"/{task_id}", json={"title": "x"}) for _ in range(4)]
            completes = [threads.submit(alice.ask, "PATCH", f"/{task_id}/complete") for _ in range(4)]

            assert {future.result().json()["status"] for future in completes} == {"complete"}
            assert {future.result().status_code for future in updates} == {200}


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_update_under_stricter_isolation(settings: Settings, alice: Person, isolation: str) -> None:
    name = sql(alice.database_url, "SELECT current_database() AS name")[0]["name"]
    sql(alice.database_url, f"ALTER DATABASE {name} SET default_transaction_isolation TO '{isolation}'")
    try:
        with CheckedClient(create_app(settings, BearerIsIdentity())) as client, thread_pool(1) as threads:
            alice.client = client
            task_id = alice.create()["id"]
            with locked(alice.database_url, f"UPDATE tasks SET title = 'theirs' WHERE id = {task_id}"):
                answer = threads.submit(alice.ask, "PUT", f"/{task_id}", json={"title": "mine"})
                waiting_backend(alice.database_url)
            assert answer.result().status_code == 200
            assert [task["title"] for task in alice.tasks()] == ["mine"]
    finally:
        sql(alice.database_url, f"ALTER DATABASE {name} RESET default_transaction_isolation")


def test_concurrent_users_see_only_own_tasks(alice: Person, bob: Person) -> None:
    def use_tasks(person: Person) -> list[str]:
        for n in range(25):
            task = person.create(f"{person.id} {n}")
            assert {t["user_id"] for t in person.tasks()} == {person.id}
            assert person.ask("PATCH", f"/{task['id']}/complete").json()["user_id"] == person.id
        return [task["title"] for task in person.tasks()]

    with thread_pool(2) as threads:
        titles = list(threads.map(use_tasks, (alice, bob)))

    assert titles == [[f"{person.id} {n}" for n in range(24, -1, -1)] for person in (alice, bob)]


def test_requests_queue_for_pool_connections(alice: Person) -> None:
    with thread_pool(40) as threads:
        answers = Counter(threads.map(lambda _: alice.ask("GET").status_code, range(200)))

    assert answers == {200: 200}
