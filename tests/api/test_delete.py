from tests.support.api import CheckedClient, Person, error


def test_nobody_deletes_nothing(client: CheckedClient, alice: Person) -> None:
    task = alice.create()

    answer = client.delete(f"{alice.path}/{task['id']}")

    assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))
    assert alice.tasks() == [task]


def test_under_someone_elses_path_there_is_no_task(client: CheckedClient, alice: Person, bob: Person) -> None:
    task = bob.create()

    answer = client.delete(f"{bob.path}/{task['id']}", headers=alice.headers)

    assert (answer.status_code, answer.json()) == (404, error("Task not found"))
    assert bob.tasks() == [task]


def test_someone_elses_task_does_not_exist_under_my_path(alice: Person, bob: Person) -> None:
    task = bob.create()

    answer = alice.ask("DELETE", f"/{task['id']}")

    assert (answer.status_code, answer.json()) == (404, error("Task not found"))
    assert bob.tasks() == [task]


def test_the_task_is_gone_and_the_others_stay(alice: Person) -> None:
    other, task = alice.create("another"), alice.create()

    answer = alice.ask("DELETE", f"/{task['id']}")

    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-type" not in answer.headers
    assert alice.ask("GET", f"/{task['id']}").status_code == 404
    assert alice.tasks() == [other]


def test_a_second_time_it_is_not_found(alice: Person) -> None:
    task = alice.create()
    alice.ask("DELETE", f"/{task['id']}")

    answer = alice.ask("DELETE", f"/{task['id']}")

    assert (answer.status_code, answer.json()) == (404, error("Task not found"))
