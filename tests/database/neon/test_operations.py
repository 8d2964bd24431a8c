"""Operating the service: migrating during traffic, stopping processes, running several."""

import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.database.neon.conftest import Neon
from tests.database.neon.test_waking import everything
from tests.support.api import Person, new_account
from tests.support.postgres import sql
from tests.support.serving import Process, free_port, process, wait_for
from tests.support.threads import thread_pool

ROOT = Path(__file__).parents[3]


def test_additive_migration_fails_no_request(neon: Neon) -> None:
    alice = neon.serve()()
    everything(alice)
    stop = time.monotonic() + 2

    def load(_: int) -> int:
        rounds = 0
        while time.monotonic() < stop:
            everything_of(alice)
            rounds += 1
        return rounds

    def everything_of(person: Person) -> None:
        task = person.create()
        path = f"/{task['id']}"
        assert person.ask("GET", path).json() == task
        assert person.ask("PUT", path, json={"title": "y"}).status_code == 200
        assert person.ask("PATCH", f"{path}/complete").status_code == 200
        assert person.ask("GET", "?status=complete").status_code == 200
        assert person.ask("DELETE", path).status_code == 204

    try:
        with thread_pool(6) as threads:
            rounds = [threads.submit(load, n) for n in range(6)]
            time.sleep(0.3)
            sql(neon.direct_url, "ALTER TABLE tasks ADD COLUMN priority int")
            sql(neon.direct_url, "ALTER TABLE tasks ADD COLUMN label text NOT NULL DEFAULT 'none'")
            sql(neon.direct_url, "ALTER TABLE tasks ADD CHECK (priority > 0) NOT VALID")
            sql(neon.direct_url, "CREATE INDEX CONCURRENTLY tasks_priority ON tasks (user_id, priority)")
            assert sum(done.result() for done in rounds) > 6
        # The service stays ready with a newer schema.
        assert alice.client.get("/health/ready").status_code == 200
    finally:
        sql(neon.direct_url, "DROP INDEX tasks_priority")
        sql(neon.direct_url, "ALTER TABLE tasks DROP COLUMN priority, DROP COLUMN label")


@contextmanager
def served(neon: Neon, cwd: Path, *options: str) -> Iterator[tuple[str, Process]]:
    """Run the service as a child process."""
    port = free_port()
    environment = {
        "DATABASE_URL": neon.url,
        "AUTH_BACKEND": "tests.support.api:BearerIsIdentity",
        "POOL_SIZE": "4",
        "PYTHONPATH": str(ROOT),
        "COVERAGE_PROCESS_CONFIG": "",  # no coverage, so that it starts faster
    }
    command = ("uvicorn", "todo_api.main:app", "--port", str(port), *options)
    cwd.mkdir(exist_ok=True)
    with process(*command, environment=environment, cwd=cwd) as server:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, server)
        yield url, server


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_answers_accepted_requests(pooled: Neon, tmp_path: Path, workers: int) -> None:
    owner = new_account(pooled.direct_url)
    codes = Counter[int]()
    cut_off: list[httpx2.TransportError] = []

    def load(n: int) -> None:
        with httpx2.Client(headers={"Authorization": f"Bearer {owner}"}, timeout=30) as client:
            while True:
                try:
                    answer = client.post(f"{url}/api/{owner}/tasks", json={"title": f"{n} {codes.total()}"})
                except httpx2.ConnectError:
                    return  # the server no longer accepts connections
                except httpx2.TransportError as error:
                    cut_off.append(error)
                    return
                codes[answer.status_code] += 1

    with served(pooled, tmp_path, "--workers", str(workers)) as (url, server), thread_pool(8) as threads:
        loads = [threads.submit(load, n) for n in range(8)]
        while codes.total() < 100:
            time.sleep(0.01)
        stopping = time.monotonic()
        server.stop(signal.SIGTERM)
        took = time.monotonic() - stopping
        for done in loads:
            done.result()

    assert took < 10
    assert codes.keys() == {201}
    stored = sql(pooled.direct_url, "SELECT count(*) FROM tasks WHERE user_id = $1", owner)[0]["count"]
    # The server may close a keep-alive connection before it reads a request; every request that it read is answered.
    assert stored == codes[201], f"{len(cut_off)} cut off"


def test_two_processes_share_one_database(pooled: Neon, tmp_path: Path) -> None:
    owner = new_account(pooled.direct_url)
    with ExitStack() as stack:
        one, other = [
            f"{stack.enter_context(served(pooled, tmp_path / str(n)))[0]}/api/{owner}/tasks" for n in range(2)
        ]
        client = stack.enter_context(httpx2.Client(headers={"Authorization": f"Bearer {owner}"}))
        for n in range(20):
            task = client.post(one, json={"title": str(n)}).json()
            path = f"/{task['id']}"
            assert client.get(other).json()[0] == task
            changed = client.put(other + path, json={"title": "changed"}).json()
            assert client.get(one + path).json() == changed
            with thread_pool(2) as threads:
                completes = [threads.submit(client.patch, f"{url}{path}/complete") for url in (one, other)]
            assert len({complete.result().content for complete in completes}) == 1
            assert client.delete(other + path).status_code == 204
            assert client.get(one + path).status_code == 404
            one, other = other, one


def test_migration_lock_works_through_pooler(pooled: Neon, tmp_path: Path) -> None:
    sql(pooled.postgres.url, "CREATE DATABASE unmigrated")
    environment = {"DATABASE_URL": pooled.url.replace("/todo", "/unmigrated")}
    try:
        with ExitStack() as stack:
            running = []
            for n in range(2):
                (cwd := tmp_path / str(n)).mkdir()
                running.append(stack.enter_context(process("todo-api", "migrate", environment=environment, cwd=cwd)))
            assert [run.wait() for run in running] == [0, 0]
            outputs = sorted(run.output() for run in running)
            assert outputs == ["Applied 0001, 0002, 0003.\n", "The schema is up to date.\n"]
    finally:
        pooled.bouncer.kill()
        sql(pooled.postgres.url, "DROP DATABASE unmigrated WITH (FORCE)")
