from tests.support.api import CheckedClient, Person, error


def test_delete_requires_authentication(client: CheckedClient, alice: Person) -> None:
    task = alice.create()

    answer = client.delete(f"{alice.path}/{task['id']}")

    assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))
    assert alice.tasks() == [task]


def test_delete_under_another_users_path_is_404(client: CheckedClient, alice: Person, bob: Person) -> None:
    task = bob.create()

    answer = client.delete(f"{bob.path}/{task['id']}", headers=alice.headers)

    assert (answer.status_code, answer.json()) == (404, error("Task not found"))
    assert bob.tasks() == [task]


def test_deleting_another_users_task_is_404(alice: Person, bob: Person) -> None:
    task = bob.create()

    answer = alice.ask("DELETE", f"/{task['id']}")

    assert (answer.status_code, answer.json()) == (404, error("Task not found"))
    assert bob.tasks() == [task]


def test_delete_removes_only_that_task(alice: Person) -> None:
    other, task = alice.create("another"), alice.create()

    answer = alice.ask("DELETE", f"/{task['id']}")

    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-type" not in answer.headers
    assert alice.ask("GET", f"/{task['id']}").status_code == 404
    assert alice.tasks() == [other]


def test_deleting_twice_is_404(alice: Person) -> None:
    task = alice.create()
    alice.ask("DELETE", f"/{task['id']}")

    answer = alice.ask("DELETE", f"/{task['id']}")

    assert (answer.status_code, answer.json()) == (404, error("Task not found"))
