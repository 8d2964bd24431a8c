"""The SQL of the deployment guide is run; its roles have exactly the privileges that the service needs."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.database.test_migrations import BETTER_AUTH
from tests.support.api import BearerIsIdentity, CheckedClient, Person, new_account
from tests.support.postgres import settings_for, sql
from todo_api.main import create_app
from todo_api.migrations import migrate

GUIDE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
ROLES, SCHEMA, ACCOUNTS, RIGHTS = re.findall(r"```sql\n(.+?)```", GUIDE, re.DOTALL)[:4]
ROLE_NAMES = ("todo_migrator", "todo_service", "neondb_owner")


class Deployment:
    """A database set up by the guide, and its URL for each role."""

    def __init__(self, server: str, worker: str) -> None:
        # Roles belong to the server, which all workers share, so each worker adds a suffix of its own.
        self._suffix = f"_{worker}"
        self._server = server
        self._database = f"deployed_{worker}"
        self.owner = self._as("neondb_owner")
        self.migrator = self._as("todo_migrator")
        self.service = self._as("todo_service")
        self.accounts = self.migrator  # the role that owns the accounts' table
        [version] = sql(server, "SELECT current_setting('server_version_num')::int AS number")
        superuser = server.replace("/postgres?", f"/{self._database}?")
        self.owner_of_public = self.owner if version["number"] >= 15_00_00 else superuser
        self.remove()
        sql(server, f"CREATE ROLE neondb_owner{self._suffix} LOGIN CREATEDB CREATEROLE")
        sql(server, f"CREATE DATABASE {self._database} OWNER neondb_owner{self._suffix}")

    def _as(self, role: str) -> str:
        return self._server.replace("postgres:@/postgres?", f"{role}{self._suffix}:@/{self._database}?")

    def follow(self, url: str, instructions: str) -> None:
        """Run SQL of the guide with this worker's names; fail on a warning, because then it had no effect."""
        instructions = instructions.replace("neondb ", f"{self._database} ")
        for role in ROLE_NAMES:
            instructions = re.sub(rf"\b{role}\b", role + self._suffix, instructions)

        async def run() -> None:
            connection = await asyncpg.connect(url)
            connection.add_log_listener(lambda _, message: said.append(message.message))
            try:
                await connection.execute(instructions)
            finally:
                await connection.close()

        said: list[str] = []
        asyncio.run(run())
        assert said == []

    def remove(self) -> None:
        sql(self._server, f"DROP DATABASE IF EXISTS {self._database} WITH (FORCE)")
        for role in ROLE_NAMES:
            sql(self._server, f"DROP ROLE IF EXISTS {role}{self._suffix}")


@pytest.fixture(scope="module", params=["accounts of Better Auth", "accounts of ours"])
def deployment(request: pytest.FixtureRequest, server: str, worker: str) -> Iterator[Deployment]:
    deployment = Deployment(server, worker)
    deployment.follow(deployment.owner, ROLES)
    deployment.follow(deployment.owner_of_public, SCHEMA)
    if request.param == "accounts of Better Auth":
        sql(deployment.owner, BETTER_AUTH)
        deployment.follow(deployment.owner, ACCOUNTS)
        deployment.accounts = deployment.owner
    migrate(settings_for(deployment.migrator))
    deployment.follow(deployment.migrator, RIGHTS)
    yield deployment
    deployment.remove()


def test_service_role_can_run_every_operation(deployment: Deployment) -> None:
    alice = new_account(deployment.accounts)
    with CheckedClient(create_app(settings_for(deployment.service), BearerIsIdentity())) as client:
        person = Person(client, deployment.service, alice)
        path = f"/{person.create()['id']}"

        assert client.get("/health/ready").status_code == 200
        assert person.ask("GET", path).status_code == 200
        assert person.ask("PUT", path, json={"title": "x", "description": "y", "status": "complete"}).status_code == 200
        assert person.ask("PATCH", f"{path}/complete").status_code == 200
        assert [task["title"] for task in person.tasks()] == ["x"]
        assert person.ask("DELETE", path, headers={"If-Match": '"of another version"'}).status_code == 412
        assert person.ask("DELETE", path).status_code == 204

        for replayed in (None, "true"):
            created = person.ask("POST", json={"title": "x"}, headers={"Idempotency-Key": "k"})
            assert (created.status_code, created.headers.get("Idempotency-Replayed")) == (201, replayed)
        assert person.ask("GET", "?limit=1").json() == [created.json()]
        sql(deployment.accounts, 'DELETE FROM "user"')
        assert person.tasks() == []
        assert person.ask("POST", json={"title": "x"}).status_code == 401


@pytest.mark.parametrize(
    "statement",
    [
        'SELECT id FROM "user"',
        """INSERT INTO "user" (id, name, email, "emailVerified") VALUES ('x', 'x', 'x', true)""",
        'DELETE FROM "user"',
        "SELECT * FROM todo_api_version",
        "SELECT setval('tasks_ids', 1)",
        "TRUNCATE tasks",
        "ALTER TABLE tasks ADD COLUMN x int",
        "DROP TABLE tasks",
        "CREATE INDEX ON tasks (title)",
        "CREATE TRIGGER x BEFORE INSERT ON tasks EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "CREATE TABLE x (id int)",
        "CREATE TEMPORARY TABLE x (id int)",
        "CREATE SCHEMA x",
        "CREATE ROLE x",
        "SET ROLE todo_migrator",
        "COPY tasks TO PROGRAM 'true'",
    ],
)
def test_service_role_has_no_other_privilege(deployment: Deployment, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        deployment.follow(deployment.service, statement)


def test_service_role_has_a_statement_timeout(deployment: Deployment) -> None:
    assert sql(deployment.service, "SHOW statement_timeout") == [{"statement_timeout": "10s"}]
    assert sql(deployment.migrator, "SHOW statement_timeout") == [{"statement_timeout": "0"}]
