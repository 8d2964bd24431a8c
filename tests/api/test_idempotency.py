"""Creates repeated with one `Idempotency-Key`, in sequence and in parallel: one task, returned each time."""

import asyncio
import json
from hashlib import sha256
from typing import Any

import httpx2
import pytest
from starlette.types import Message

from tests.support.api import JSON, BearerIsIdentity, CheckedClient, Person, error
from tests.support.postgres import locked, sql, waiting_backend
from tests.support.threads import thread_pool
from todo_api.main import create_app
from todo_api.settings import Settings
from todo_api.tasks import fingerprint

REUSED = error("Idempotency-Key was already used for a different request")
INVALID = error("Invalid Idempotency-Key")


def create(person: Person, key: str, **fields: Any) -> httpx2.Response:
    return person.ask("POST", json={"title": "Buy milk", **fields}, headers={"Idempotency-Key": key})


def test_repeated_create_returns_the_first_task(alice: Person) -> None:
    first = create(alice, "k")
    again = create(alice, "k")

    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content
    assert first.headers["location"] == again.headers["location"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert alice.tasks() == [first.json()]


def test_replay_returns_the_current_task(alice: Person) -> None:
    task = create(alice, "k").json()
    changed = alice.ask("PUT", f"/{task['id']}", json={"title": "Buy tea", "status": "complete"}).json()

    assert create(alice, "k").json() == changed
    assert alice.tasks() == [changed]


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ({}, {"title": "Buy tea"}),
        ({}, {"description": ""}),
        ({"description": ""}, {}),
        ({"description": "x"}, {"description": "y"}),
        ({"title": "a", "description": "b"}, {"title": 'a", "b', "description": None}),
        ({"title": "é"}, {"title": "e\u0301"}),
    ],
)
def test_key_with_other_fields_is_409(alice: Person, first: dict[str, Any], other: dict[str, Any]) -> None:
    task = create(alice, "k", **first).json()

    answer = create(alice, "k", **other)

    assert (answer.status_code, answer.json()) == (409, REUSED)
    assert "idempotency-replayed" not in answer.headers
    assert alice.tasks() == [task]


def test_fingerprints_survive_a_new_optional_field(alice: Person) -> None:
    task = create(alice, "k", description="Two litres").json()
    (row,) = alice.stored()
    version_1_0 = sha256(json.dumps(["Buy milk", "Two litres"]).encode()).digest()

    assert (row["id"], row["idempotency_fingerprint"]) == (task["id"], version_1_0)
    fields = {"title": "Buy milk", "description": "Two litres"}
    assert fingerprint({**fields, "later": None}) == version_1_0
    assert fingerprint({**fields, "later": "x"}) not in (version_1_0, fingerprint({**fields, "other": "x"}))


def test_replay_compares_the_original_request(alice: Person) -> None:
    task = create(alice, "k").json()
    alice.ask("PUT", f"/{task['id']}", json={"title": "Buy tea"})

    assert create(alice, "k", title="Buy tea").status_code == 409
    assert create(alice, "k").status_code == 201


def test_ignored_fields_are_not_compared(alice: Person) -> None:
    task = create(alice, "k", status="complete").json()

    assert create(alice, "k", description=None, priority=1).json() == task


def test_keys_are_scoped_to_owner(alice: Person, bob: Person) -> None:
    mine, theirs = create(alice, "k"), create(bob, "k", title="Something else")

    assert "idempotency-replayed" not in theirs.headers
    assert (alice.tasks(), bob.tasks()) == ([mine.json()], [theirs.json()])


def test_keys_are_compared_exactly(alice: Person) -> None:
    ids = {create(alice, key).json()["id"] for key in ("k", "K", '"k"', "k,k", "x" * 255, "!~")}

    assert len(ids) == 6


def test_deleting_a_task_frees_its_key(alice: Person) -> None:
    task = create(alice, "k").json()
    alice.ask("DELETE", f"/{task['id']}")

    again = create(alice, "k", title="Buy tea")

    assert (again.status_code, again.json()["title"]) == (201, "Buy tea")
    assert again.json()["id"] > task["id"]
    assert "idempotency-replayed" not in again.headers


def test_create_without_key_always_creates(alice: Person) -> None:
    assert len({alice.create()["id"] for _ in range(3)} | {create(alice, "k").json()["id"]}) == 4


def test_keyed_create_for_deleted_account_is_unauthorized(alice: Person) -> None:
    create(alice, "k")
    sql(alice.database_url, 'DELETE FROM "user" WHERE id = $1', alice.id)

    answer = create(alice, "k")

    assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))


@pytest.mark.parametrize(
    "key", [b"", b"x" * 256, b"a b", b"a\tb", "é".encode(), b"\x7f", b" ", "\xa0".encode("latin-1")]
)
def test_invalid_key_is_refused(alice: Person, key: bytes) -> None:
    answer = alice.ask("POST", json={"title": "x"}, headers={b"Idempotency-Key": key})

    assert (answer.status_code, answer.json()) == (400, INVALID)
    assert alice.stored() == []


def test_two_key_headers_are_refused(alice: Person) -> None:
    for keys in (["a", "b"], ["a", "a"], ["a", ""]):
        headers = [*alice.headers.items(), *[("Idempotency-Key", key) for key in keys]]
        answer = alice.client.post(alice.path, json={"title": "x"}, headers=headers)

        assert (answer.status_code, answer.json()) == (400, INVALID)


def test_checks_length_then_key_then_body(alice: Person) -> None:
    bad_key = {"Idempotency-Key": ""}

    assert alice.ask("POST", content=b"x" * 70_000, headers=bad_key).status_code == 413
    for body in (b"", b"{broken", b"{}"):
        assert alice.ask("POST", content=body, headers=bad_key).json() == INVALID
    assert alice.ask("POST", content=b"{}", headers={**JSON, "Idempotency-Key": "k"}).json() == error(
        "Title is required"
    )


def test_other_operations_ignore_the_key(alice: Person) -> None:
    task = alice.create()

    for method, path in (("GET", ""), ("GET", f"/{task['id']}"), ("PATCH", f"/{task['id']}/complete")):
        assert alice.ask(method, path, headers={"Idempotency-Key": ""}).status_code == 200


def test_replay_waits_for_concurrent_create(alice: Person) -> None:
    theirs = f"""INSERT INTO tasks (user_id, title, idempotency_key, idempotency_fingerprint)
        VALUES ('{alice.id}', 'x', 'k', sha256('["x", null]'))"""

    with thread_pool(1) as threads:
        with locked(alice.database_url, theirs):
            answer = threads.submit(create, alice, "k", title="x")
            waiting_backend(alice.database_url)
        assert answer.result().headers["idempotency-replayed"] == "true"

    assert [row["id"] for row in alice.stored()] == [answer.result().json()["id"]]


ROUNDS, PARALLEL = 200, 32
Answer = tuple[int, bool, dict[str, Any]]  # the status, whether it was replayed, and the task


@pytest.mark.slow
def test_parallel_keyed_creates_create_one_task(settings: Settings, alice: Person) -> None:
    app = create_app(settings.model_copy(update={"pool_size": 16}), BearerIsIdentity())

    async def ask(n: int) -> Answer:
        scope = {
            "type": "http",
            "method": "POST",
            "path": alice.path,
            "query_string": b"",
            "headers": [
                (name.lower().encode(), value.encode())
                for name, value in {**JSON, **alice.headers, "Idempotency-Key": f"key-{n}"}.items()
            ],
        }
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": json.dumps({"title": f"round {n}"}).encode()}

        async def send(message: Message) -> None:
            sent.append(message)

        await app(scope, receive, send)
        return sent[0]["status"], (b"idempotency-replayed", b"true") in sent[0]["headers"], json.loads(sent[1]["body"])

    async def run() -> list[list[Answer]]:
        rounds = [await asyncio.gather(*(ask(n) for _ in range(PARALLEL))) for n in range(ROUNDS)]
        await app.state.database.close()
        return rounds

    rounds = asyncio.run(run())

    stored = alice.tasks()
    assert [task["title"] for task in stored] == [f"round {n}" for n in reversed(range(ROUNDS))]
    for task, answers in zip(reversed(stored), rounds, strict=True):
        created = [(201, False, task)]
        assert sorted(answers, key=lambda answer: answer[1]) == created + [(201, True, task)] * (PARALLEL - 1)


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_keyed_create_under_stricter_isolation(settings: Settings, alice: Person, isolation: str) -> None:
    name = sql(alice.database_url, "SELECT current_database() AS name")[0]["name"]
    sql(alice.database_url, f"ALTER DATABASE {name} SET default_transaction_isolation TO '{isolation}'")
    try:
        with CheckedClient(create_app(settings, BearerIsIdentity())) as client, thread_pool(8) as threads:
            alice.client = client
            for n in range(10):
                answers = list(threads.map(lambda n: create(alice, f"{n}"), [n] * 8))
                assert {(answer.status_code, answer.json()["id"]) for answer in answers} == {
                    (201, alice.tasks()[0]["id"])
                }
    finally:
        sql(alice.database_url, f"ALTER DATABASE {name} RESET default_transaction_isolation")
