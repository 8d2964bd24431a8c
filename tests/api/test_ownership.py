"""Ownership on every route: the routes are read from the application, so that new ones are covered."""

from typing import Any

import pytest
from fastapi.routing import APIRoute
from sqlalchemy import Select, make_url

from tests.support.api import BearerIsIdentity, CheckedClient, Person, error
from tests.support.openapi import NO_SCHEMA
from tests.support.postgres import settings_for
from todo_api import statements, tasks
from todo_api.main import create_app

OPEN = set(NO_SCHEMA)
_app = create_app(settings_for("postgresql://nowhere/nothing"), BearerIsIdentity())
OPERATIONS = [
    (method, route.path)
    for route in _app.routes
    if isinstance(route, APIRoute) and route.path not in OPEN
    for method in sorted(route.methods or ())
    if method != "HEAD"  # is answered as GET, see test_head
]


def test_every_route_is_operation_or_open() -> None:
    assert {route.path for route in _app.routes} - {path for _, path in OPERATIONS} == OPEN  # type: ignore[attr-defined]  # every route has a path
    assert len(OPERATIONS) == 6


def path_of(template: str, person: Person, task_id: int) -> str:
    return template.format(user_id=person.id, id=task_id)


@pytest.mark.parametrize("body", [None, b'{"title": "mine now"}', b"{broken"])
@pytest.mark.parametrize(("method", "template"), OPERATIONS)
class TestEveryOperation:
    def test_operation_requires_authentication(
        self, client: CheckedClient, alice: Person, method: str, template: str, body: bytes | None
    ) -> None:
        task = alice.create()

        for headers in ({}, {"Authorization": ""}, {"Authorization": "Bearer "}):
            answer = client.request(method, path_of(template, alice, task["id"]), headers=headers, content=body)

            assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))
            assert answer.headers["www-authenticate"] == "Bearer"
        assert alice.tasks() == [task]

    def test_another_users_path_is_404(
        self, client: CheckedClient, alice: Person, bob: Person, method: str, template: str, body: bytes | None
    ) -> None:
        task = bob.create()
        missing = "Task not found" if "{id}" in template else "User not found"

        for path in (path_of(template, bob, task["id"]), path_of(template, bob, 0) + "?status=x"):
            answer = client.request(method, path, headers=alice.headers, content=body)

            assert (answer.status_code, answer.json()) == (404, error(missing))
        assert bob.tasks() == [task]
        assert alice.stored() == []

    def test_another_users_task_stays_untouched(
        self, client: CheckedClient, alice: Person, bob: Person, method: str, template: str, body: bytes | None
    ) -> None:
        mine, theirs = alice.create("mine"), bob.create("theirs")
        before = bob.stored()

        answer = client.request(
            method,
            path_of(template, alice, theirs["id"]),
            headers={**alice.headers, "Content-Type": "application/json"},
            content=body,
        )

        assert "theirs" not in answer.text
        if "{id}" in template:
            assert answer.status_code in (400, 404)
            assert alice.tasks() == [mine]
        assert bob.stored() == before


def test_user_ids_are_case_sensitive(client: CheckedClient, alice: Person) -> None:
    answer = client.get(f"/api/{alice.id.upper()}/tasks", headers=alice.headers)

    assert (answer.status_code, answer.json()) == (404, error("User not found"))


def test_store_methods_take_no_owner() -> None:
    for name, method in vars(tasks.TaskStore).items():
        if callable(method) and not name.startswith("__"):
            names = method.__code__.co_varnames[: method.__code__.co_argcount]
            assert not {"owner", "user", "user_id"} & set(names), name


@pytest.mark.parametrize("select", [made for made in vars(statements).values() if isinstance(made, Select)])
def test_every_statement_is_bound_to_owner(select: Select[Any]) -> None:
    statement = str(select.compile(dialect=make_url("postgresql://").get_dialect()()))

    assert select in statements.STATEMENTS, "every connection has it prepared"
    assert "%(owner)s" in statement
    assert "tasks.user_id = %(owner)s" in statement or "INSERT INTO tasks" in statement
