"""A database that is suspended, restarts or cannot be reached: requests wait for it, at most `WAKE_SECONDS`."""

import logging
import time

import pytest

from tests.database.neon.conftest import Neon
from tests.support.api import Person, error
from tests.support.patience import deadline
from tests.support.postgres import sql
from tests.support.threads import thread_pool

CONNECTED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def everything(person: Person) -> None:
    """Run all six operations; each must succeed."""
    task = person.create()
    assert person.tasks()[0] == task
    path = f"/{task['id']}"
    assert person.ask("GET", path).json() == task
    assert person.ask("PUT", path, json={"title": "y"}).status_code == 200
    assert person.ask("PATCH", f"{path}/complete").json()["status"] == "complete"
    assert person.ask("DELETE", path).status_code == 204


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "", None, 200),
        ("POST", "", {"title": "x"}, 201),
        ("GET", "/{id}", None, 200),
        ("PUT", "/{id}", {"title": "y"}, 200),
        ("PATCH", "/{id}/complete", None, 200),
        ("DELETE", "/{id}", None, 204),
    ],
)
def test_each_operation_wakes_suspended_compute(
    pooled: Neon, method: str, path: str, body: dict[str, str] | None, status: int
) -> None:
    alice = pooled.serve()()
    task = alice.create()
    pooled.suspend(wake_seconds=0.3)

    answer = alice.ask(method, path.replace("{id}", str(task["id"])), json=body)

    assert answer.status_code == status
    assert pooled.proxy.wake is None


def test_requests_during_slow_wake_succeed(neon: Neon) -> None:
    alice = neon.serve()()
    alice.create()
    neon.suspend(wake_seconds=3)

    started = time.monotonic()
    with thread_pool(16) as threads:
        answers = list(threads.map(lambda n: alice.ask("POST", json={"title": str(n)}).status_code, range(16)))

    assert answers == [201] * 16
    assert time.monotonic() - started < 8
    assert len(alice.tasks()) == 17


def test_refused_connections_during_restart_are_retried(neon: Neon) -> None:
    alice = neon.serve()()
    alice.create()
    neon.suspend()
    neon.proxy.wake = None

    with thread_pool(1) as threads:
        answer = threads.submit(alice.ask, "POST", json={"title": "x"})
        seen = neon.proxy.connections
        while neon.proxy.connections < seen + 3:
            assert not answer.done()
        neon.resume()

        assert answer.result().status_code == 201


def test_dead_idle_connections_are_replaced(neon: Neon) -> None:
    alice = neon.serve()()
    with thread_pool(8) as threads:
        list(threads.map(lambda _: alice.tasks(), range(16)))
    neon.suspend()
    neon.resume()
    neon.proxy.wake = None

    for _ in range(8):
        everything(alice)


def test_dead_idle_connection_costs_no_wait(neon: Neon) -> None:
    alice = neon.serve(wake_seconds=0, pool_size=1)()
    neon.wait_until_warm()
    neon.suspend()
    neon.resume()
    neon.proxy.wake = None

    assert alice.ask("POST", json={"title": "x"}).status_code == 201


def test_terminated_connection_is_not_used(neon: Neon) -> None:
    alice = neon.serve(wake_seconds=0, pool_size=4)()
    neon.wait_until_warm()
    neon.proxy.send_termination_notice()

    assert [alice.ask("POST", json={"title": "x"}).status_code for _ in range(4)] == [201] * 4


def test_readiness_does_not_wait_for_wake(neon: Neon, caplog: pytest.LogCaptureFixture) -> None:
    alice = neon.serve(wake_seconds=5)()
    neon.wait_until_warm()
    neon.suspend()
    neon.proxy.wake = None

    started = time.monotonic()
    answer = alice.client.get("/health/ready")

    assert (answer.status_code, answer.json()) == (503, error("Service is not ready"))
    assert "not ready: InternalServerError" in caplog.text
    assert time.monotonic() - started < 2


TRANSIENT = [
    ("XX000", "Couldn't connect to compute node"),
    ("XX000", "Couldn't connect to compute node: connection refused"),
    ("XX000", "Control plane request failed"),
    ("XX000", "Too many connections to this endpoint. Please try again later."),
    ("XX000", "Too many connections attempts"),
    (
        "XX000",
        "Failed to acquire permit to connect to the database. Too many database connection attempts are ongoing.",
    ),
    ("XX000", "Authentication timed out"),
    ("XX000", "Internal error"),
    ("XX000", "remaining connection slots are reserved for roles with the SUPERUSER attribute"),
    ("53300", "remaining connection slots are reserved for roles with the SUPERUSER attribute"),
    ("53300", "sorry, too many clients already"),
    ("08P01", "no more connections allowed (max_client_conn)"),
    ("08P01", "query_wait_timeout"),
    ("XX000", "query_wait_timeout"),
    ("57P01", "terminating connection due to administrator command"),
    ("XX000", "terminating connection due to administrator command"),
    ("57P03", "the database system is starting up"),
    ("57P03", "the database system is shutting down"),
    ("XX000", "the database system is starting up"),
    ("08P01", "server login has been failing, cached error: connect failed (server_login_retry)"),
    ("08P01", "server conn crashed?"),
    ("08006", "connection failure"),
]
LASTING = [
    ("XX000", "Control plane request failed: endpoint cannot be found"),
    ("XX000", "Control plane request failed: endpoint is disabled"),
    (
        "XX000",
        "Control plane request failed: endpoint is temporarily unavailable. Check your quotas and/or contact us.",
    ),
    ("XX000", "Your account or project has exceeded the compute time quota. Upgrade your plan to increase limits."),
    ("XX000", "You have exceeded the limit of concurrently active endpoints"),
    ("XX000", "active endpoints limit exceeded"),
    ("XX000", "password authentication failed for user 'alex'"),
    ("28P01", 'password authentication failed for user "alex"'),
    ("28000", 'role "alex" is not permitted to log in'),
    ("3D000", 'database "todo" does not exist'),
    ("08P01", "unsupported startup parameter: jit"),
    ("XX000", "unsupported startup parameter in options: search_path"),
    ("XX000", "connection is insecure (try using `sslmode=require`)"),
    ("XX000", "This IP address 192.0.2.1 is not allowed to connect to this endpoint."),
]


@pytest.mark.parametrize(("sqlstate", "text"), TRANSIENT)
def test_transient_error_is_retried(direct: Neon, sqlstate: str, text: str) -> None:
    direct.proxy.refusals.extend([(sqlstate, text)] * 2)
    alice = direct.serve(pool_size=1)()

    assert alice.ask("POST", json={"title": "x"}).status_code == 201
    assert not direct.proxy.refusals


@pytest.mark.parametrize(("sqlstate", "text"), LASTING)
def test_lasting_error_is_answered_at_once(
    direct: Neon, caplog: pytest.LogCaptureFixture, sqlstate: str, text: str
) -> None:
    direct.proxy.refusals.extend([(sqlstate, text)] * 3)
    alice = direct.serve(pool_size=1)()

    started = time.monotonic()
    answer = alice.ask("GET")

    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    assert time.monotonic() - started < 3
    assert direct.proxy.refusals, "one for the warming and one for the request, but no retry"
    assert text in caplog.text


def test_unavailable_database_is_500_until_back(neon: Neon, caplog: pytest.LogCaptureFixture) -> None:
    alice = neon.serve(wake_seconds=0.4)()
    task = alice.create()
    neon.wait_until_warm()
    neon.suspend()
    neon.proxy.wake = None
    caplog.clear()

    with thread_pool(16) as threads:
        started = time.monotonic()
        answers = list(threads.map(lambda _: alice.ask("GET", headers={"Origin": "null"}), range(16)))
        took = time.monotonic() - started

    assert {(answer.status_code, answer.text) for answer in answers} == {(500, '{"error":"Internal server error"}')}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
    assert took < 3
    # One log line for each request, with its cause and without a traceback.
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 16
    assert all("unavailable" in record.getMessage() and record.exc_info is None for record in lines)
    assert any("compute node" in record.getMessage() for record in lines)
    assert alice.client.get("/health/live").status_code == 200
    assert alice.client.get("/health/ready").status_code == 503
    # Requests that need no database are still answered.
    assert alice.client.get(alice.path).status_code == 401
    assert alice.ask("GET", "/x").status_code == 400
    assert alice.client.get("/api/bob/tasks", headers=alice.headers).status_code == 404

    neon.resume()
    assert alice.tasks() == [task]
    assert alice.client.get("/health/ready").status_code == 200


def test_connections_are_opened_when_database_wakes(direct: Neon) -> None:
    direct.suspend()
    direct.proxy.wake = None
    direct.serve(pool_size=3)
    failed = direct.proxy.connections
    while direct.proxy.connections < failed + 2:  # attempts, without a request
        time.sleep(0.01)
    direct.resume()

    end = deadline()
    while sql(direct.direct_url, CONNECTED) != [{"count": 3}]:
        assert time.monotonic() < end


def test_service_started_before_database_becomes_ready(neon: Neon) -> None:
    neon.suspend()
    neon.proxy.wake = None
    alice = neon.serve(wake_seconds=0.2)
    neon.postgres.start()
    person = alice()
    neon.postgres.stop()

    assert person.client.get("/health/live").status_code == 200
    assert person.client.get("/health/ready").status_code == 503
    neon.resume()
    assert person.client.get("/health/ready").status_code == 200
    everything(person)
