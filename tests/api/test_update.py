from typing import Any

import pytest

from tests.support.api import CheckedClient, Person, error
from tests.support.postgres import sql


def test_update_requires_authentication(client: CheckedClient, alice: Person) -> None:
    task = alice.create()

    answer = client.put(f"{alice.path}/{task['id']}", json={"title": "changed"})

    assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))
    assert alice.tasks() == [task]


def test_update_under_another_users_path_is_404(client: CheckedClient, alice: Person, bob: Person) -> None:
    task = bob.create()

    answer = client.put(f"{bob.path}/{task['id']}", json={"title": "changed"}, headers=alice.headers)

    assert (answer.status_code, answer.json()) == (404, error("Task not found"))
    assert bob.tasks() == [task]


def test_updating_another_users_task_is_404(alice: Person, bob: Person) -> None:
    task = bob.create()

    answer = alice.ask("PUT", f"/{task['id']}", json={"title": "changed"})

    assert (answer.status_code, answer.json()) == (404, error("Task not found"))
    assert bob.tasks() == [task]


@pytest.mark.parametrize(
    "changes",
    [
        {"title": "Buy bread"},
        {"description": "Rye"},
        {"description": None},
        {"description": ""},
        {"status": "complete"},
        {"status": "incomplete"},
        {"title": "Buy bread", "description": "Rye", "status": "complete"},
        {"title": "Buy milk", "description": "Two litres"},
    ],
)
def test_update_changes_only_given_fields(alice: Person, changes: dict[str, Any]) -> None:
    other = alice.create("another")
    task = alice.create("Buy milk", description="Two litres")

    answer = alice.ask("PUT", f"/{task['id']}", json=changes)

    changed = answer.json()
    assert answer.status_code == 200
    assert changed == {**task, **changes, "updated_at": changed["updated_at"]}
    assert changed["updated_at"] > task["updated_at"]
    assert alice.tasks() == [changed, other]


def test_unknown_fields_are_ignored_beside_known_ones(alice: Person, bob: Person) -> None:
    task = alice.create()

    body = {"title": "changed", "id": 1, "user_id": bob.id, "created_at": None, "updated_at": 0, "priority": {}}
    changed = alice.ask("PUT", f"/{task['id']}", json=body).json()

    assert changed == {**task, "title": "changed", "updated_at": changed["updated_at"]}


def test_update_reopens_a_completed_task(alice: Person) -> None:
    task = alice.create()
    completed = alice.ask("PATCH", f"/{task['id']}/complete").json()

    reopened = alice.ask("PUT", f"/{task['id']}", json={"status": "incomplete"}).json()

    assert reopened == {**task, "updated_at": reopened["updated_at"]}
    assert reopened["updated_at"] > completed["updated_at"] > task["updated_at"]


def test_updated_at_grows_despite_clock_skew(alice: Person) -> None:
    task = alice.create()
    sql(alice.database_url, "UPDATE tasks SET updated_at = '2999-12-31T23:59:59.999998Z' WHERE id = $1", task["id"])

    times = [alice.ask("PUT", f"/{task['id']}", json={"title": "same"}).json()["updated_at"] for _ in range(2)]
    times.append(alice.ask("PATCH", f"/{task['id']}/complete").json()["updated_at"])

    assert times == ["2999-12-31T23:59:59.999999Z", "3000-01-01T00:00:00.000000Z", "3000-01-01T00:00:00.000001Z"]


def test_updating_a_deleted_task_is_404(alice: Person) -> None:
    task = alice.create()
    alice.ask("DELETE", f"/{task['id']}")

    answer = alice.ask("PUT", f"/{task['id']}", json={"title": "changed"})

    assert (answer.status_code, answer.json()) == (404, error("Task not found"))
    assert alice.stored() == []
