import re
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from starlette.testclient import TestClient

from tests.support.api import JSON, BearerIsIdentity, CheckedClient, Person, PersonMaker, error
from tests.support.openapi import FIELDS
from tests.support.postgres import sql
from todo_api.main import create_app
from todo_api.settings import Settings

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def test_create_requires_authentication(client: CheckedClient, alice: Person) -> None:
    answer = client.post(alice.path, json={"title": "Buy milk"})

    assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))
    assert answer.headers["www-authenticate"] == "Bearer"
    assert alice.stored() == []


def test_create_under_another_users_path_is_404(client: CheckedClient, alice: Person, bob: Person) -> None:
    answer = client.post(bob.path, json={"title": "Buy milk"}, headers=alice.headers)

    assert (answer.status_code, answer.json()) == (404, error("User not found"))
    assert alice.stored() == bob.stored() == []


def test_create_returns_the_whole_task(alice: Person) -> None:
    before = datetime.now(UTC)

    answer = alice.ask("POST", json={"title": "Buy milk", "description": "Two litres"})

    task = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"{alice.path}/{task['id']}"
    assert list(task) == FIELDS
    assert task == {
        **dict.fromkeys(FIELDS),
        "id": task["id"],
        "user_id": alice.id,
        "title": "Buy milk",
        "description": "Two litres",
        "status": "incomplete",
        "created_at": task["created_at"],
        "updated_at": task["created_at"],
    }
    assert TIME.fullmatch(task["created_at"])
    assert before - timedelta(seconds=5) < datetime.fromisoformat(task["created_at"]) < before + timedelta(seconds=60)
    assert alice.ask("GET", f"/{task['id']}").json() == task


def test_description_may_be_absent_or_null(alice: Person) -> None:
    assert alice.create("one")["description"] is None
    assert alice.create("two", description=None)["description"] is None
    assert alice.create("three", description="")["description"] == ""


@pytest.mark.parametrize("length", ["13", "0013", "0" * 30 + "13"])
def test_content_length_may_have_leading_zeros(alice: Person, length: str) -> None:
    answer = alice.ask("POST", content=b'{"title":"x"}', headers={**JSON, "Content-Length": length})

    assert answer.status_code == 201


def test_unknown_fields_are_ignored(alice: Person) -> None:
    task = alice.create(
        "Mine", id=1, user_id="bob", status="complete", created_at="1999", priority=[1.5], nested={"a": 0}
    )

    assert (task["user_id"], task["status"]) == (alice.id, "incomplete")
    assert [row["id"] for row in alice.stored()] == [task["id"]]


@pytest.mark.parametrize(
    "text",
    [
        " surrounded by blanks ",
        "x" * 255,
        "\U0001f95b" * 255,
        "line\nbreak\ttab \x01\x1f\x7f \u2028 \ufeff",
        '"quotes" \\ / <script> \'; DROP TABLE tasks; --',
        "e\u0301 \u202e right to left",
    ],
)
def test_text_is_stored_exactly_as_sent(alice: Person, text: str) -> None:
    task = alice.create(text, description=text)

    assert (task["title"], task["description"]) == (text, text)
    assert [(row["title"], row["description"]) for row in alice.stored()] == [(text, text)]


def test_description_of_5000_characters_is_accepted(alice: Person) -> None:
    assert alice.create(description="\U0001f95b" * 5000)["description"] == "\U0001f95b" * 5000


def test_last_duplicate_json_key_wins(alice: Person) -> None:
    answer = alice.ask("POST", content=b'{"title": "first", "title": "last"}', headers=JSON)

    assert answer.json()["title"] == "last"


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", "application/json ;x=y"]
)
def test_content_type_case_and_parameters_ignored(alice: Person, content_type: str) -> None:
    answer = alice.ask("POST", content=b'{"title": "x"}', headers={"Content-Type": content_type})

    assert answer.status_code == 201


def test_ids_grow_and_are_never_reused(alice: Person) -> None:
    first, second = alice.create()["id"], alice.create()["id"]
    alice.ask("DELETE", f"/{second}")

    assert 0 < first < second < alice.create()["id"]


def test_create_for_deleted_account_is_unauthorized(alice: Person) -> None:
    sql(alice.database_url, 'DELETE FROM "user" WHERE id = $1', alice.id)

    answer = alice.ask("POST", json={"title": "Buy milk"})

    assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("user_id", ["auth0|", "a b+c@example.com", "ünï", "a?b#c;d=e", "日本", "x" * 200])
def test_location_works_for_any_user_id(person: PersonMaker, user_id: str) -> None:
    someone = person(user_id + uuid.uuid4().hex)

    answer = someone.ask("POST", json={"title": "x"})

    assert answer.json()["user_id"] == someone.id
    assert answer.headers["location"] == f"{someone.path}/{answer.json()['id']}"
    assert re.fullmatch(r"[A-Za-z0-9\-._~/%]+", answer.headers["location"])
    assert someone.client.get(answer.headers["location"], headers=someone.headers).json() == answer.json()


def test_location_includes_the_root_path(settings: Settings, alice: Person) -> None:
    with TestClient(create_app(settings, BearerIsIdentity()), root_path="/v1/to do") as client:
        answer = client.post(f"/v1/to do{alice.path}", json={"title": "x"}, headers=alice.headers)

    assert answer.headers["location"] == f"/v1/to%20do{alice.path}/{answer.json()['id']}"
    assert answer.headers["cache-control"] == "private, no-cache"
