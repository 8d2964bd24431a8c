"""A real Better Auth and the service on one database."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from alembic import command
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from tests.database.test_migrations import COLUMNS, CONSTRAINTS, config_for, tables
from tests.support.api import error
from tests.support.better_auth import Account, better_auth, service
from tests.support.postgres import migrated_database, new_database, settings_for, sql
from todo_api.migrations import migrate

THEIRS = {"user", "session", "account", "verification", "jwks"}
OURS = {"user", "tasks", "todo_api_version"}
KEY = Ed25519PrivateKey.generate()
# An expired key, which Better Auth publishes but no longer signs with.
PUBLISH = """
    INSERT INTO jwks (id, "publicKey", "privateKey", "createdAt", "expiresAt") VALUES ('known', $1, '', now(), now())
"""


class Services:
    """A running Better Auth and service, with methods to sign up and to send requests to the service."""

    def __init__(self, database_url: str, origin: str, url: str) -> None:
        self.database_url = database_url
        self.origin = origin
        self._url = url
        self._names = iter(range(1000))

    def sign_up(self) -> Account:
        """Sign up a new user."""
        return Account(self.origin, f"user{next(self._names)}")

    def ask(self, token: str, method: str, path: str, **arguments: Any) -> httpx2.Response:
        """Send a request with a token."""
        return httpx2.request(method, self._url + path, headers={"Authorization": f"Bearer {token}"}, **arguments)

    def stored(self, owner: str) -> list[dict[str, Any]]:
        """Read an owner's rows directly from the table."""
        return sql(self.database_url, "SELECT * FROM tasks WHERE user_id = $1", owner)


@pytest.fixture(scope="module")
def services(server: str, worker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    database_url = migrated_database(server, f"better_auth_{worker}")
    directory = tmp_path_factory.mktemp("better_auth")
    with (
        better_auth(database_url, directory / "better_auth") as (origin, _),
        service(database_url, directory / "service", origin) as url,
    ):
        public_key = json.dumps(OKPAlgorithm.to_jwk(KEY.public_key(), as_dict=True))
        sql(database_url, PUBLISH, public_key)
        yield Services(database_url, origin, url)


def test_new_user_can_run_all_operations(services: Services) -> None:
    alice = services.sign_up()
    token, tasks = alice.token(), f"/api/{alice.id}/tasks"

    created = services.ask(token, "POST", tasks, json={"title": "Buy milk"})
    assert created.status_code == 201
    task = created.headers["location"]
    assert services.ask(token, "GET", task).json() == created.json()
    updated = services.ask(token, "PUT", task, json={"description": "Two litres"}).json()
    assert updated == {**created.json(), "description": "Two litres", "updated_at": updated["updated_at"]}
    completed = services.ask(token, "PATCH", f"{task}/complete").json()
    assert completed == {**updated, "status": "complete", "updated_at": completed["updated_at"]}
    assert services.ask(token, "GET", tasks, params={"status": "complete"}).json() == [completed]
    assert services.ask(token, "DELETE", task).status_code == 204
    assert services.ask(token, "GET", tasks).json() == []


def test_users_cannot_see_each_others_tasks(services: Services) -> None:
    alice, bob = services.sign_up(), services.sign_up()
    hers = services.ask(alice.token(), "POST", f"/api/{alice.id}/tasks", json={"title": "Hers"}).json()
    token = bob.token()

    assert services.ask(token, "GET", f"/api/{bob.id}/tasks").json() == []
    assert services.ask(token, "GET", f"/api/{alice.id}/tasks").json() == error("User not found")
    for owner in (alice, bob):
        for method, path in [("GET", ""), ("PUT", ""), ("PATCH", "/complete"), ("DELETE", "")]:
            answer = services.ask(token, method, f"/api/{owner.id}/tasks/{hers['id']}{path}", json={"title": "His"})
            assert (answer.status_code, answer.json()) == (404, error("Task not found"))
    assert services.ask(alice.token(), "GET", f"/api/{alice.id}/tasks").json() == [hers]


def signed(services: Services, subject: str, key: Ed25519PrivateKey = KEY, **claims: Any) -> str:
    """Sign a token as Better Auth would; with `KEY`, one of the keys that it publishes."""
    expiry = datetime.now(UTC) + timedelta(minutes=15)
    payload = {"sub": subject, "iss": services.origin, "aud": services.origin, "exp": expiry, **claims}
    return jwt.encode(payload, key, "EdDSA", headers={"kid": "known"})


def unsigned(services: Services, subject: str) -> str:
    payload = jwt.decode(signed(services, subject), options={"verify_signature": False})
    return jwt.encode(payload, "", "none", headers={"kid": "known"})


def of_somebody_else(services: Services, subject: str) -> str:
    """Combine one token's signature with another user's claims."""
    head, _, signature = services.sign_up().token().split(".")
    return f"{head}.{signed(services, subject).split('.')[1]}.{signature}"


REFUSED: dict[str, Callable[[Services, str], str]] = {
    "forged": lambda services, subject: signed(services, subject, Ed25519PrivateKey.generate()),
    "forged from a real one": of_somebody_else,
    "expired": lambda services, subject: signed(services, subject, exp=datetime.now(UTC) - timedelta(minutes=1)),
    "for another audience": lambda services, subject: signed(services, subject, aud="https://elsewhere.example"),
    "unsigned": unsigned,
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())
def test_invalid_token_is_unauthorized(services: Services, make: Callable[[Services, str], str]) -> None:
    alice = services.sign_up()
    tasks = f"/api/{alice.id}/tasks"

    answer = services.ask(make(services, alice.id), "GET", tasks)

    assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))
    assert services.ask(signed(services, alice.id), "GET", tasks).json() == [], "nothing else is wrong with it"


def test_tokens_stay_valid_after_key_rotation(services: Services) -> None:
    alice = services.sign_up()
    tasks = f"/api/{alice.id}/tasks"
    before = alice.token()
    assert services.ask(before, "GET", tasks).status_code == 200

    sql(services.database_url, """UPDATE jwks SET "expiresAt" = now()""")
    after = alice.token()

    assert jwt.get_unverified_header(before)["kid"] != jwt.get_unverified_header(after)["kid"]
    assert services.ask(after, "GET", tasks).status_code == 200
    assert services.ask(before, "GET", tasks).status_code == 200


def test_deleting_an_account_deletes_its_tasks(services: Services) -> None:
    alice, bob = services.sign_up(), services.sign_up()
    token = alice.token()
    for account in (alice, bob):
        path = f"/api/{account.id}/tasks"
        assert services.ask(account.token(), "POST", path, json={"title": "x"}).status_code == 201

    alice.delete()

    assert services.stored(alice.id) == []
    answer = services.ask(token, "POST", f"/api/{alice.id}/tasks", json={"title": "y"})
    assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))
    assert services.ask(token, "GET", f"/api/{alice.id}/tasks").json() == []
    assert len(services.stored(bob.id)) == 1


def schema(url: str) -> dict[str, Any]:
    """Read the columns and constraints of every table."""
    return {
        name: (sql(url, COLUMNS, name), sorted(map(str, sql(url, CONSTRAINTS, f'"{name}"')))) for name in tables(url)
    }


def test_either_may_migrate_first(server: str, worker: str, tmp_path: Path) -> None:
    schemas = []
    for first in ("ours", "theirs"):
        url = new_database(server, f"{first}_first_{worker}")
        if first == "ours":
            migrate(settings_for(url))
            made = schema(url)
            with better_auth(url, tmp_path / first) as (_, said):
                assert said.splitlines()[:2] == ["made session, account, verification, jwks", "extended no table"]
        else:
            with better_auth(url, tmp_path / first) as (_, said):
                assert said.splitlines()[:2] == ["made user, session, account, verification, jwks", "extended no table"]
            made = schema(url)
            migrate(settings_for(url))
        # The first migration's tables are unchanged, and running either again changes nothing.
        assert {**schema(url), **made} == schema(url)
        assert tables(url) == OURS | THEIRS
        migrate(settings_for(url))
        command.check(config_for(url))
        with better_auth(url, tmp_path / first) as (_, said):
            assert said.splitlines()[:2] == ["made no table", "extended no table"]
        schemas.append(schema(url))

    assert schemas[0] == schemas[1]
