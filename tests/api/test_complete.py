import pytest

from tests.support.api import CheckedClient, Person, error
from tests.support.threads import thread_pool


def test_complete_requires_authentication(client: CheckedClient, alice: Person) -> None:
    task = alice.create()

    answer = client.patch(f"{alice.path}/{task['id']}/complete")

    assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))
    assert alice.tasks() == [task]


def test_complete_under_another_users_path_is_404(client: CheckedClient, alice: Person, bob: Person) -> None:
    task = bob.create()

    answer = client.patch(f"{bob.path}/{task['id']}/complete", headers=alice.headers)

    assert (answer.status_code, answer.json()) == (404, error("Task not found"))
    assert bob.tasks() == [task]


def test_completing_another_users_task_is_404(alice: Person, bob: Person) -> None:
    task = bob.create()

    answer = alice.ask("PATCH", f"/{task['id']}/complete")

    assert (answer.status_code, answer.json()) == (404, error("Task not found"))
    assert bob.tasks() == [task]


def test_complete_changes_status_and_updated_at(alice: Person) -> None:
    other = alice.create("another")
    task = alice.create(description="Two litres")

    completed = alice.ask("PATCH", f"/{task['id']}/complete").json()

    assert completed == {**task, "status": "complete", "updated_at": completed["updated_at"]}
    assert completed["updated_at"] > task["updated_at"]
    assert alice.tasks() == [completed, other]


def test_repeated_complete_changes_nothing(alice: Person) -> None:
    task = alice.create()

    answers = [alice.ask("PATCH", f"/{task['id']}/complete") for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert answers[0].content == answers[1].content == answers[2].content


def test_parallel_completes_change_it_once(alice: Person) -> None:
    task = alice.create()

    with thread_pool(16) as threads:
        answers = list(threads.map(lambda _: alice.ask("PATCH", f"/{task['id']}/complete"), range(64)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert answers[0].json()["status"] == "complete"


@pytest.mark.parametrize("body", [b"{broken", b'{"status": "incomplete"}', b"x" * 200_000])
def test_complete_ignores_the_body(alice: Person, body: bytes) -> None:
    task = alice.create()

    answer = alice.ask("PATCH", f"/{task['id']}/complete", content=body)

    assert (answer.status_code, answer.json()["status"]) == (200, "complete")
