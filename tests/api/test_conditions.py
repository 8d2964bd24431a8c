"""Entity tags and conditional requests (RFC 9110, sections 8.8.3, 13 and 15.4.5)."""

import time
from collections import Counter
from typing import Any

import httpx2
import pytest

from tests.support.api import CheckedClient, Person, error
from tests.support.postgres import locked, sql, waiting_backend
from tests.support.threads import thread_pool

CHANGED = error("Task was changed by another request")
NO_TASK = error("Task not found")
WRITES: list[tuple[str, str, Any]] = [
    ("PUT", "", {"title": "changed"}),
    ("PATCH", "/complete", None),
    ("DELETE", "", None),
]
writes = pytest.mark.parametrize(("method", "end", "body"), WRITES)


def tag_of(person: Person, path: str = "") -> str:
    tag: str = person.ask("GET", path).headers["etag"]
    return tag


class TestETag:
    def test_responses_with_a_task_have_etag(self, alice: Person) -> None:
        created = alice.ask("POST", json={"title": "x"}, headers={"Idempotency-Key": "k"})
        path = f"/{created.json()['id']}"

        assert created.headers["etag"] == tag_of(alice, path)
        assert alice.ask("POST", json={"title": "x"}, headers={"Idempotency-Key": "k"}).headers["etag"] == tag_of(
            alice, path
        )
        assert alice.ask("PUT", path, json={"title": "y"}).headers["etag"] == tag_of(alice, path)
        assert alice.ask("PATCH", f"{path}/complete").headers["etag"] == tag_of(alice, path)
        assert "etag" not in alice.ask("DELETE", path).headers
        assert "etag" not in alice.ask("GET", path).headers

    def test_etag_is_strong(self, alice: Person) -> None:
        for path in ("", f"/{alice.create()['id']}"):
            tag = tag_of(alice, path)
            assert tag.startswith('"')
            assert tag.endswith('"')
            assert tag[1:-1].isascii()
            assert '"' not in tag[1:-1]

    def test_etag_changes_only_with_the_task(self, alice: Person) -> None:
        path = f"/{alice.create()['id']}"
        changes: list[tuple[str, str, Any]] = [
            *[("PUT", path, {"title": "same"})] * 3,
            ("PATCH", f"{path}/complete", None),
            ("PUT", path, {"status": "incomplete"}),
            ("PUT", path, {"description": None}),
        ]
        seen = [(tag_of(alice, path), tag_of(alice))]

        for method, changed, body in changes:
            alice.ask(method, changed, json=body)
            seen.append((tag_of(alice, path), tag_of(alice)))
            assert (tag_of(alice, path), tag_of(alice)) == seen[-1]
        alice.ask("PATCH", f"{path}/complete")
        completed = tag_of(alice, path), tag_of(alice)
        alice.ask("PATCH", f"{path}/complete")

        assert (tag_of(alice, path), tag_of(alice)) == completed
        assert len(set(seen)) == len({task for task, _ in seen}) == len({tasks for _, tasks in seen}) == 7

    def test_list_etag_changes_with_its_tasks(self, alice: Person) -> None:
        empty = tag_of(alice)
        first = alice.create()
        one = tag_of(alice)
        alice.create()
        two = tag_of(alice)
        alice.ask("DELETE", f"/{first['id']}")

        assert len({empty, one, two, tag_of(alice)}) == 4
        assert tag_of(alice, "?status=complete") == empty

    def test_list_etag_shows_late_commit(self, alice: Person) -> None:
        early, late = alice.create()["id"], alice.create()["id"]
        with locked(alice.database_url, f"UPDATE tasks SET title = 'y', updated_at = now() WHERE id = {early}"):
            alice.ask("PUT", f"/{late}", json={"title": "y"})
            before = tag_of(alice)

        assert tag_of(alice) != before

    def test_tasks_never_share_an_etag(self, alice: Person, bob: Person) -> None:
        sql(
            alice.database_url,
            "INSERT INTO tasks (user_id, title, updated_at) SELECT u, 'x', 'epoch' FROM unnest($1::text[]) u",
            [alice.id, alice.id, bob.id],
        )

        assert len({tag_of(who, f"/{task['id']}") for who in (alice, bob) for task in who.tasks()}) == 3


# The lines of a header, with {} for the current tag and [] for the text in its quotes, and whether they match it.
TAGS: list[tuple[list[str], bool]] = [
    (["{}"], True),
    (["W/{}"], True),
    (['"[]-gzip"'], True),
    (['"[]-br"'], True),
    (['"[]-zstd"'], True),
    (['W/"[]-gzip"'], True),
    (['"other", "[]-gzip"'], True),
    (['"[]-deflate"'], False),
    (['"[]-"'], False),
    (['"-gzip"'], False),
    (["*"], True),
    ([" * "], True),
    (['"other"'], False),
    (['W/"other"'], False),
    (['""'], False),
    (['"other", {}'], True),
    (['{}, "other"'], True),
    (['"a,b",\t{} ,, "\xe9"'], True),
    ([",{},"], True),
    (['"other"', "{}"], True),
    (["", "{}"], True),
    ([""], False),
    ([","], False),
    (["w/{}"], False),
    (["{}x"], False),
    (["{} {}"], False),
    (["'{}'"], False),
    (["*, {}"], False),
    (["*", "*"], False),
    (["{}, *"], False),
    (['{}, "'], False),
    (["{}; x"], False),
    (['{}, "a b"'], False),
    (["{}, x"], False),
]


def ask_with(person: Person, method: str, path: str, name: str, values: list[str], body: Any = None) -> httpx2.Response:
    lines = [(name.encode(), value.encode("latin-1")) for value in values]
    headers = [*[(key.encode(), value.encode()) for key, value in person.headers.items()], *lines]
    return person.client.request(method, person.path + path, headers=headers, json=body)


def filled(values: list[str], tag: str) -> list[str]:
    return [value.replace("{}", tag).replace("[]", tag[1:-1]) for value in values]


@pytest.mark.parametrize(("values", "known"), TAGS)
def test_if_none_match_of_reads(alice: Person, values: list[str], *, known: bool) -> None:
    for path in ("", "?status=incomplete", f"/{alice.create()['id']}"):
        whole = alice.ask("GET", path)
        answer = ask_with(alice, "GET", path, "If-None-Match", filled(values, whole.headers["etag"]))

        assert (answer.status_code, answer.content) == ((304, b"") if known else (200, whole.content))
        assert answer.headers["etag"] == whole.headers["etag"]
        for name in ("cache-control", "vary", "x-content-type-options"):
            assert answer.headers[name] == whole.headers[name]
        if known:
            assert not {"content-type", "content-length", "transfer-encoding", "last-modified"} & answer.headers.keys()


def test_empty_list_can_be_not_modified(alice: Person) -> None:
    assert alice.ask("GET", headers={"If-None-Match": "*"}).status_code == 304
    assert alice.ask("GET", headers={"If-None-Match": tag_of(alice)}).status_code == 304


def test_missing_task_is_404_despite_if_none_match(alice: Person, bob: Person) -> None:
    task = bob.create()
    for tag in ("*", tag_of(bob, f"/{task['id']}")):
        answer = alice.ask("GET", f"/{task['id']}", headers={"If-None-Match": tag})

        assert (answer.status_code, answer.json()) == (404, NO_TASK)


@pytest.mark.parametrize(("values", "goes_on"), TAGS)
def test_if_match_of_reads(alice: Person, values: list[str], *, goes_on: bool) -> None:
    for path in ("", "?status=incomplete", "?limit=1", f"/{alice.create()['id']}"):
        whole = alice.ask("GET", path)
        answer = ask_with(alice, "GET", path, "If-Match", filled(values, whole.headers["etag"]))

        if goes_on:
            assert (answer.status_code, answer.content) == (200, whole.content)
        else:
            assert (answer.status_code, answer.json()) == (412, CHANGED)


def test_if_match_comes_before_if_none_match(alice: Person) -> None:
    for path in ("", f"/{alice.create()['id']}"):
        tag = tag_of(alice, path)
        for expected, status in ((tag, 304), ("*", 304), ('"other"', 412)):
            assert alice.ask("GET", path, headers={"If-Match": expected, "If-None-Match": tag}).status_code == status


@pytest.mark.parametrize(("values", "named"), TAGS)
@pytest.mark.parametrize("name", ["If-Match", "If-None-Match"])
def test_conditions_of_writes(alice: Person, name: str, values: list[str], *, named: bool) -> None:
    for method, end, body in WRITES:
        path = f"/{alice.create()['id']}"
        before = alice.tasks()
        answer = ask_with(alice, method, path + end, name, filled(values, tag_of(alice, path)), body)

        if named == (name == "If-Match"):
            assert answer.status_code == (204 if method == "DELETE" else 200)
            assert alice.tasks() != before
            assert answer.headers.get("etag") == alice.ask("GET", path).headers.get("etag")
        else:
            assert (answer.status_code, answer.json()) == (412, CHANGED)
            assert alice.tasks() == before


@writes
@pytest.mark.parametrize(
    ("expected", "unwanted", "goes_on"),
    [
        ("*", '"other"', True),
        ("{}", '"other"', True),
        ("{}, W/{}", "malformed", True),
        ("*", "{}", False),
        ("{}", "*", False),
        ("{}", "{}", False),
        ("{}", '"[]-gzip"', False),
        ('"other"', '"other"', False),
    ],
)
def test_write_must_meet_both_conditions(
    alice: Person, method: str, end: str, body: Any, expected: str, unwanted: str, *, goes_on: bool
) -> None:
    path = f"/{alice.create()['id']}"
    values = filled([expected, unwanted], tag_of(alice, path))

    answer = alice.ask(method, path + end, json=body, headers={"If-Match": values[0], "If-None-Match": values[1]})

    assert answer.status_code == ((204 if method == "DELETE" else 200) if goes_on else 412)


@writes
def test_if_match_takes_only_current_etag(alice: Person, method: str, end: str, body: Any) -> None:
    path, other = f"/{alice.create()['id']}", f"/{alice.create()['id']}"
    old = tag_of(alice, path)
    alice.ask("PUT", path, json={"title": "by another"})

    for tag in (old, tag_of(alice, other), tag_of(alice), '"1-"', f'"{path[1:]}-2026"', f'"{path[1:]}-"'):
        answer = alice.ask(method, path + end, json=body, headers={"If-Match": tag})
        assert (answer.status_code, answer.json()) == (412, CHANGED)
    assert alice.ask(method, path + end, json=body, headers={"If-Match": tag_of(alice, path)}).status_code < 300


@pytest.mark.parametrize(("part", "other"), [("Z", "+00:00"), ("Z", "z"), ("T", "t"), ("T", "_"), (".", ",")])
def test_etag_in_another_spelling_matches_nothing(alice: Person, part: str, other: str) -> None:
    path = f"/{alice.create()['id']}"
    tag = tag_of(alice, path).replace(part, other)

    answer = alice.ask("PUT", path, json={"title": "x"}, headers={"If-Match": tag})

    assert (answer.status_code, answer.json()) == (412, CHANGED)


@writes
@pytest.mark.parametrize("tag", ["*", '"x"', "malformed", "{}"])
@pytest.mark.parametrize("name", ["If-Match", "If-None-Match"])
def test_404_comes_before_412(
    alice: Person, bob: Person, method: str, end: str, body: Any, name: str, tag: str
) -> None:
    task, theirs = alice.create(), bob.create()
    tag = tag.replace("{}", tag_of(alice, f"/{task['id']}"))
    alice.ask("DELETE", f"/{task['id']}")

    for task_id in (task["id"], theirs["id"], 2**63 - 1):
        answer = alice.ask(method, f"/{task_id}{end}", json=body, headers={name: tag})
        assert (answer.status_code, answer.json()) == (404, NO_TASK)
    assert bob.tasks() == [theirs]


def test_400_comes_before_412(alice: Person) -> None:
    path = f"/{alice.create()['id']}"

    assert alice.ask("PUT", path, json={}, headers={"If-Match": '"x"'}).status_code == 400
    assert alice.ask("PUT", "/0", json={"title": "x"}, headers={"If-Match": '"x"'}).status_code == 400


def test_repeated_complete_keeps_the_etag(alice: Person) -> None:
    path = f"/{alice.create()['id']}"
    tag = alice.ask("PATCH", f"{path}/complete").headers["etag"]

    again = [alice.ask("PATCH", f"{path}/complete", headers={"If-Match": tag}) for _ in range(2)]

    assert [(answer.status_code, answer.headers["etag"]) for answer in again] == [(200, tag)] * 2


@pytest.mark.parametrize("name", ["If-Unmodified-Since", "If-Modified-Since", "If-Range"])
def test_other_conditions_are_ignored(alice: Person, name: str) -> None:
    path = f"/{alice.create()['id']}"

    for value in ("Thu, 01 Jan 1970 00:00:00 GMT", '"x"'):
        for read in ("", path):
            assert alice.ask("GET", read, headers={name: value}).status_code == 200
            assert (
                alice.ask("GET", read, headers={name: value, "If-None-Match": tag_of(alice, read)}).status_code == 304
            )
        for method, end, body in WRITES[:2]:
            assert alice.ask(method, path + end, json=body, headers={name: value}).status_code == 200
    assert alice.ask("DELETE", path, headers={name: value}).status_code == 204


def test_create_ignores_conditional_headers(alice: Person) -> None:
    for name in ("If-Match", "If-None-Match"):
        assert alice.ask("POST", json={"title": "x"}, headers={name: "malformed"}).status_code == 201


@pytest.mark.parametrize("value", ['"' * 60_001, '"x",' * 15_000 + "x", " \t" * 30_000 + "x", ", " * 30_000 + "W/"])
def test_hostile_etag_list_is_parsed_quickly(alice: Person, value: str) -> None:
    path = f"/{alice.create()['id']}"

    started = time.monotonic()
    assert alice.ask("GET", path, headers={"If-None-Match": value}).status_code == 200
    assert alice.ask("DELETE", path, headers={"If-Match": value}).status_code == 412
    assert time.monotonic() - started < 1


@pytest.mark.slow
@pytest.mark.parametrize("write", [WRITES[0], WRITES[2]], ids=["update", "delete"])
def test_one_of_sixteen_conditional_writers_succeeds(alice: Person, write: tuple[str, str, Any]) -> None:
    method, end, body = write
    refused = 412 if method == "PUT" else 404
    with thread_pool(16) as threads:
        for _ in range(20):
            path = f"/{alice.create()['id']}"
            headers = {"If-Match": tag_of(alice, path)}
            asked = [threads.submit(alice.ask, method, path + end, json=body, headers=headers) for _ in range(16)]
            answers = Counter(future.result().status_code for future in asked)

            assert answers == {200 if method == "PUT" else 204: 1, refused: 15}


@pytest.mark.slow
def test_retrying_after_412_loses_no_update(alice: Person) -> None:
    path = f"/{alice.create('0')['id']}"

    def count_up(_: int) -> None:
        while True:
            task = alice.ask("GET", path)
            body = {"title": str(int(task.json()["title"]) + 1)}
            if alice.ask("PUT", path, json=body, headers={"If-Match": task.headers["etag"]}).status_code == 200:
                return

    with thread_pool(8) as threads:
        list(threads.map(count_up, range(40)))

    assert alice.ask("GET", path).json()["title"] == "40"


MEANWHILE: list[tuple[str, int]] = [
    ("DELETE FROM tasks WHERE id = {id}", 404),
    ("UPDATE tasks SET title = 'y' WHERE id = {id}; DELETE FROM tasks WHERE id = {id}", 404),
    ("UPDATE tasks SET updated_at = '2100-01-01T00:00:00Z' WHERE id = {id}", 412),
]


@writes
@pytest.mark.parametrize(("meanwhile", "status"), MEANWHILE)
def test_conditional_write_sees_concurrent_commit(
    alice: Person, method: str, end: str, body: Any, meanwhile: str, status: int
) -> None:
    task_id = alice.create()["id"]
    headers = {"If-Match": tag_of(alice, f"/{task_id}"), "If-None-Match": '"other"'}

    with thread_pool(1) as threads, locked(alice.database_url, meanwhile.replace("{id}", str(task_id))):
        answer = threads.submit(alice.ask, method, f"/{task_id}{end}", json=body, headers=headers)
        waiting_backend(alice.database_url)

    assert (answer.result().status_code, answer.result().json()) == (status, NO_TASK if status == 404 else CHANGED)


def test_authentication_comes_before_conditions(client: CheckedClient, alice: Person, bob: Person) -> None:
    path = f"{alice.path}/{alice.create()['id']}"

    for headers, status in (({}, 401), (bob.headers, 404)):
        for name in ("If-Match", "If-None-Match"):
            assert client.get(path, headers={**headers, name: "*"}).status_code == status
            assert client.delete(path, headers={**headers, name: "malformed"}).status_code == status
