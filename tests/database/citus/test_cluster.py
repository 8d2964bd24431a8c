"""The service on a Citus cluster: distributing the table and back, moving shards, and failing workers."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic import command

from tests.database.test_migrations import config_for
from tests.support.api import Person, PersonMaker, error
from tests.support.citus import BACK, CHECK, Cluster
from tests.support.postgres import sql
from tests.support.serving import free_port
from tests.support.threads import thread_pool

PLACEMENT = """
    SELECT shardid, nodeid, nodename, nodeport FROM pg_dist_placement JOIN pg_dist_node USING (groupid)
    WHERE shardid = get_shard_id_for_distribution_column('tasks', $1::text)
"""


class Traffic:
    """Users who run every operation in a loop. `wrong` collects the unexpected responses."""

    def __init__(self) -> None:
        self.over = False
        self.rounds = 0
        self.wrong: list[object] = []
        self.ids: list[list[int]] = []
        self.longest = 0.0

    def run_operations(self, person: Person) -> None:
        """Run every operation in a loop until `over` is set."""
        ids: list[int] = []
        self.ids.append(ids)
        while not self.over:
            task = self._ask(person, 201, "POST", json={"title": "new"})
            if not task:
                continue
            ids.append(task["id"])
            path = f"/{task['id']}"
            changed = self._ask(person, 200, "PUT", path, json={"title": "changed"})
            self._ask(person, 412, "PUT", path, json={"title": "late"}, headers={"If-Match": '"1"'})
            completed = self._ask(person, 200, "PATCH", f"{path}/complete")
            if [changed | completed, completed] != [completed, self._ask(person, 200, "GET", path)]:
                self.wrong.append((changed, completed))
            for _ in range(2):
                self._ask(person, 201, "POST", json={"title": "once"}, headers={"Idempotency-Key": path})
            page = self._ask(person, 200, "GET", "?limit=2")
            if [listed["title"] for listed in page] != ["once", "changed"]:
                self.wrong.append(page)
            self._ask(person, 204, "DELETE", path)
            self.rounds += 1

    def _ask(self, person: Person, expected: int, *request: str, **arguments: Any) -> Any:
        started = time.monotonic()
        answer = person.ask(*request, **arguments)
        self.longest = max(self.longest, time.monotonic() - started)
        if answer.status_code != expected:
            self.wrong.append((request, answer.status_code, answer.text))
            return {}
        return answer.json() if answer.content else None


@contextmanager
def traffic(people: list[Person]) -> Iterator[Traffic]:
    """Run operations of these people during the block, with some rounds before and after it."""
    running = Traffic()

    def complete_rounds() -> None:
        enough = running.rounds + 3 * len(people)
        while running.rounds < enough and not all(worker.done() for worker in workers):
            time.sleep(0.01)

    with thread_pool(len(people)) as threads:
        workers = [threads.submit(running.run_operations, person) for person in people]
        try:
            complete_rounds()
            yield running
            complete_rounds()
        finally:
            running.over = True
    for worker in workers:
        worker.result()


def create(person: Person) -> int:
    number: int = person.create()["id"]
    return number


def test_table_is_distributed_and_back_under_traffic(cluster: Cluster, citizen: PersonMaker) -> None:
    if cluster.is_distributed():
        cluster.follow(BACK)
    people = [citizen() for _ in range(4)]
    leaver = citizen()
    for _ in range(3):
        leaver.create()

    with traffic(people) as meanwhile:
        cluster.distribute()

    assert meanwhile.wrong == []
    ids = [number for numbers in meanwhile.ids for number in numbers]
    assert all(numbers == sorted(numbers) for numbers in meanwhile.ids)
    assert len(set(ids)) == len(ids)
    tables, shards, stray = cluster.follow(CHECK)
    assert [(name, kind) for name, kind, _ in tables] == [("tasks", "distributed"), ('"user"', "reference")]
    assert len(shards) == len(cluster.workers)
    assert stray == [(0,)]
    assert leaver.client.get("/health/ready").status_code == 200
    sql(cluster.url, 'DELETE FROM "user" WHERE id = $1', leaver.id)
    assert leaver.tasks() == leaver.stored() == []
    refused = leaver.ask("POST", json={"title": "x"})
    assert (refused.status_code, refused.json()) == (401, error("Unauthorized"))

    cluster.follow(BACK)

    assert not cluster.is_distributed()
    assert create(people[0]) > max(ids)
    command.check(config_for(cluster.url))


def test_migration_runs_on_distributed_table(distributed: Cluster, citizen: PersonMaker) -> None:
    config = config_for(distributed.url)
    task = citizen().create()

    # 0003 cannot be downgraded, because a distributed table can get no identity; 0002 can.
    command.stamp(config, "0002")
    command.downgrade(config, "0001")
    command.upgrade(config, "0002")
    command.stamp(config, "head")

    command.check(config)
    assert [row["id"] for row in sql(distributed.url, "SELECT id FROM tasks WHERE id = $1", task["id"])] == [task["id"]]


def test_shards_move_under_traffic(distributed: Cluster, citizen: PersonMaker) -> None:
    people = [citizen() for _ in range(4)]
    before = sql(distributed.url, PLACEMENT, people[0].id)[0]
    target = "SELECT nodename, nodeport FROM pg_dist_node WHERE groupid > 0 AND nodeid <> $1 LIMIT 1"
    to = sql(distributed.url, target, before["nodeid"])[0]

    with traffic(people) as meanwhile:
        move = "SELECT citus_move_shard_placement($1, $2, $3, $4, $5, 'force_logical')"
        addresses = (before["nodename"], before["nodeport"], to["nodename"], to["nodeport"])
        sql(distributed.url, move, before["shardid"], *addresses)

    assert meanwhile.wrong == []
    after = sql(distributed.url, PLACEMENT, people[0].id)[0]
    assert (after["nodename"], after["nodeport"]) == (to["nodename"], to["nodeport"])


def test_dead_worker_fails_only_its_own_users(distributed: Cluster, citizen: PersonMaker) -> None:
    people = [citizen() for _ in range(12)]
    nodes = [sql(distributed.url, PLACEMENT, person.id)[0] for person in people]
    dead = nodes[0]
    theirs = [person for person, node in zip(people, nodes, strict=True) if node["nodeid"] == dead["nodeid"]]
    others = [person for person in people if person not in theirs]
    assert others
    update = "SELECT citus_update_node($1, $2, $3)"

    with thread_pool(len(theirs)) as threads:
        tasks = {person.id: create(person) for person in theirs}
        with traffic(others[:4]) as meanwhile:
            sql(distributed.url, update, dead["nodeid"], "127.0.0.1", free_port())
            answers = list(threads.map(lambda person: person.ask("GET", f"/{tasks[person.id]}"), theirs))
            sql(distributed.url, update, dead["nodeid"], dead["nodename"], dead["nodeport"])

    assert meanwhile.wrong == []
    assert meanwhile.longest < 5
    assert {answer.status_code for answer in answers} == {500}
    assert all("Retry-After" in answer.headers for answer in answers)
    assert [person.ask("GET", f"/{tasks[person.id]}").status_code for person in theirs] == [200] * len(theirs)


def test_worker_assigns_ids_from_own_range(distributed: Cluster, citizen: PersonMaker) -> None:
    person = citizen()
    first = person.create()

    created = sql(
        distributed.workers[0], "INSERT INTO tasks (user_id, title) VALUES ($1, 'x') RETURNING id", person.id
    )[0]["id"]

    assert created > 2**48
    assert [task["id"] for task in person.tasks()] == [created, first["id"]]
    assert first["id"] < create(person) < created
