import pytest

from tests.support.api import BearerIsIdentity, CheckedClient, Person, error
from tests.support.postgres import sql
from todo_api.main import create_app
from todo_api.settings import Settings


def test_get_requires_authentication(client: CheckedClient, alice: Person) -> None:
    task = alice.create()

    answer = client.get(f"{alice.path}/{task['id']}")

    assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))
    assert answer.headers["www-authenticate"] == "Bearer"


def test_get_under_another_users_path_is_404(client: CheckedClient, alice: Person, bob: Person) -> None:
    task = bob.create()

    answer = client.get(f"{bob.path}/{task['id']}", headers=alice.headers)

    assert (answer.status_code, answer.json()) == (404, error("Task not found"))


def test_get_returns_the_created_task(alice: Person) -> None:
    task = alice.create(description="Two litres")

    answer = alice.ask("GET", f"/{task['id']}")

    assert (answer.status_code, answer.json()) == (200, task)


def test_foreign_deleted_and_unknown_tasks_look_alike(alice: Person, bob: Person) -> None:
    deleted = alice.create()
    alice.ask("DELETE", f"/{deleted['id']}")

    answers = [alice.ask("GET", f"/{task_id}") for task_id in (bob.create()["id"], deleted["id"], 2**63 - 1)]

    assert {(answer.status_code, answer.content) for answer in answers} == {(404, b'{"error":"Task not found"}')}
    headers = [{name: value for name, value in a.headers.items() if name != "x-request-id"} for a in answers]
    assert headers[0] == headers[1] == headers[2]


@pytest.mark.parametrize("time_zone", ["Asia/Kathmandu", "America/St_Johns"])
def test_times_are_utc_in_any_time_zone(settings: Settings, alice: Person, time_zone: str) -> None:
    task = alice.create()
    name = sql(alice.database_url, "SELECT current_database() AS name")[0]["name"]
    sql(alice.database_url, f"ALTER DATABASE {name} SET timezone TO '{time_zone}'")
    try:
        assert sql(alice.database_url, "SHOW timezone") == [{"TimeZone": time_zone}]
        with CheckedClient(create_app(settings, BearerIsIdentity())) as client:
            alice.client = client
            assert alice.ask("GET", f"/{task['id']}").json() == task
            assert alice.tasks() == [task]
    finally:
        sql(alice.database_url, f"ALTER DATABASE {name} RESET timezone")
