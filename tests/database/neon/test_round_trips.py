"""Round trips: one per operation, also for the first request, and none for a refused request."""

import time

import pytest

from tests.database.neon.conftest import Neon
from tests.support.postgres import sql

Body = dict[str, object] | None
OPERATIONS: list[tuple[str, str, Body, dict[str, str]]] = [
    ("GET", "", None, {}),
    ("GET", "?status=complete", None, {}),
    ("GET", "?limit=2", None, {}),
    ("GET", "?limit=2&status=incomplete", None, {}),
    ("POST", "", {"title": "x"}, {}),
    ("POST", "", {"title": "x"}, {"Idempotency-Key": "k"}),
    ("GET", "/{id}", None, {}),
    ("PUT", "/{id}", {"title": "y"}, {}),
    ("PUT", "/{id}", {"description": None, "status": "complete"}, {}),
    ("PATCH", "/{id}/complete", None, {}),
    ("DELETE", "/{id}", None, {}),
    ("GET", "/{id}", None, {"If-None-Match": "*"}),
    ("PUT", "/{id}", {"title": "y"}, {"If-Match": '"x"'}),
    ("PATCH", "/{id}/complete", None, {"If-Match": '"x"'}),
    ("DELETE", "/{id}", None, {"If-Match": "malformed"}),
    ("DELETE", "/{id}", None, {"If-Match": "*"}),
]


@pytest.mark.parametrize(("method", "path", "body", "headers"), OPERATIONS)
def test_each_operation_is_one_round_trip(
    neon: Neon, method: str, path: str, body: Body, headers: dict[str, str]
) -> None:
    alice = neon.serve()()
    rows = [
        sql(neon.direct_url, "INSERT INTO tasks (user_id, title) VALUES ($1, 'x') RETURNING id", alice.id)[0]["id"]
        for _ in range(8)
    ]
    neon.wait_until_warm()
    opened = neon.proxy.connections

    for task_id in [*rows, 2**62, 2**62]:
        trips, statements = neon.proxy.round_trips, neon.proxy.statements
        answer = alice.ask(method, path.replace("{id}", str(task_id)), json=body, headers=headers)
        assert (neon.proxy.round_trips, neon.proxy.statements) == (trips + 1, statements + 1)
        assert answer.status_code in (200, 201, 204, 304, 404, 412)
    assert neon.proxy.connections == opened == 4


def test_refused_request_sends_no_statement(neon: Neon) -> None:
    alice = neon.serve()()
    neon.wait_until_warm()
    before = neon.proxy.round_trips

    answers = [
        alice.client.get(alice.path),
        alice.client.get("/api/bob/tasks", headers=alice.headers),
        alice.client.delete("/api/bob/tasks/1", headers=alice.headers),
        alice.ask("GET", "/0"),
        alice.ask("GET", "?status=x"),
        alice.ask("GET", "?limit=0"),
        alice.ask("GET", "?cursor=x"),
        alice.ask("POST", json={}),
        alice.ask("POST", json={"title": "x"}, headers={"Idempotency-Key": ""}),
        alice.ask("PUT", "/1", content=b"{"),
        alice.ask("POST", content=b"x" * 70_000),
        alice.ask("PUT"),
        alice.client.get("/health/live"),
    ]

    assert [answer.status_code for answer in answers] == [
        401,
        404,
        404,
        400,
        400,
        400,
        400,
        400,
        400,
        400,
        413,
        405,
        200,
    ]
    assert neon.proxy.round_trips == before


def test_idle_connections_have_no_transaction(neon: Neon) -> None:
    neon.serve()
    neon.wait_until_warm()

    others = "datname = current_database() AND pid <> pg_backend_pid()"
    deadline = time.monotonic() + 10
    while sql(neon.direct_url, f"SELECT DISTINCT state FROM pg_stat_activity WHERE {others}") != [{"state": "idle"}]:
        assert time.monotonic() < deadline
