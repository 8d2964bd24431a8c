import pytest

from tests.support.api import CheckedClient, Person, error
from tests.support.postgres import sql


def test_list_requires_authentication(client: CheckedClient, alice: Person) -> None:
    answer = client.get(alice.path)

    assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))
    assert answer.headers["www-authenticate"] == "Bearer"


def test_list_under_another_users_path_is_404(client: CheckedClient, alice: Person, bob: Person) -> None:
    bob.create()

    answer = client.get(bob.path, headers=alice.headers)

    assert (answer.status_code, answer.json()) == (404, error("User not found"))


def test_list_without_tasks_is_empty(alice: Person, bob: Person) -> None:
    bob.create()

    answer = alice.ask("GET")

    assert (answer.status_code, answer.text) == (200, "[]")


def test_list_has_own_tasks_newest_first(alice: Person, bob: Person) -> None:
    mine = [alice.create(f"task {n}") for n in range(3)]
    bob.create()

    assert alice.tasks() == mine[::-1]


def test_list_order_survives_updates(alice: Person) -> None:
    first, second = alice.create(), alice.create()
    first = alice.ask("PUT", f"/{first['id']}", json={"title": "changed"}).json()

    assert alice.tasks() == [second, first]


@pytest.mark.parametrize("status", ["incomplete", "complete"])
def test_status_filter_keeps_one_status(alice: Person, status: str) -> None:
    open_task, done_task = alice.create(), alice.create()
    done_task = alice.ask("PATCH", f"/{done_task['id']}/complete").json()

    answer = alice.ask("GET", f"?status={status}")

    assert answer.json() == [{"incomplete": open_task, "complete": done_task}[status]]


def test_filter_without_matches_is_empty(alice: Person) -> None:
    alice.create()

    assert alice.ask("GET", "?status=complete").text == "[]"


@pytest.mark.parametrize("query", ["?status=", "?page=2", "?Status=complete", "?status=&other=1", "?"])
def test_empty_filter_and_unknown_parameters_ignored(alice: Person, query: str) -> None:
    task = alice.create()

    assert alice.ask("GET", query).json() == [task]


@pytest.mark.parametrize(
    "query", ["?status=done", "?status=Complete", "?status=complete&status=complete", "?status=&status=", "?status=%00"]
)
def test_invalid_status_filter_is_refused(alice: Person, query: str) -> None:
    answer = alice.ask("GET", query)

    assert answer.status_code == 400
    assert answer.json() == error("Invalid status value. Must be 'incomplete' or 'complete'")


def test_list_returns_5000_tasks(alice: Person) -> None:
    sql(
        alice.database_url,
        "INSERT INTO tasks (user_id, title) SELECT $1, 'task ' || n FROM generate_series(1, 5000) n",
        alice.id,
    )

    assert [task["title"] for task in alice.tasks()] == [f"task {n}" for n in range(5000, 0, -1)]


def test_created_at_ignores_session_time_zone(alice: Person) -> None:
    database = alice.database_url.rpartition("/")[2].partition("?")[0]
    sql(alice.database_url, f"ALTER DATABASE {database} SET timezone = 'Asia/Kathmandu'")
    try:
        task = alice.create()
        row = sql(
            alice.database_url,
            "SELECT to_char(created_at AT TIME ZONE 'UTC', 'HH24:MI') AS utc FROM tasks WHERE id = $1",
            task["id"],
        )[0]
    finally:
        sql(alice.database_url, f"ALTER DATABASE {database} RESET timezone")

    assert task["created_at"][11:16] == row["utc"]
