"""Pages together are the whole list, each task once and in order, even if tasks change between two pages."""

import base64
import json
import re
from datetime import UTC, datetime
from hashlib import sha256
from itertools import chain
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx2
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from sqlalchemy import Select, make_url
from starlette.testclient import TestClient

from tests.support.api import BearerIsIdentity, Person, PersonMaker, error, new_account
from tests.support.postgres import settings_for, sql
from todo_api import statements
from todo_api.main import create_app
from todo_api.migrations import migrate
from todo_api.settings import Settings

INVALID_LIMIT = error("Invalid limit. Must be between 1 and 1000")
INVALID_CURSOR = error("Invalid cursor")
INVALID_STATUS = error("Invalid status value. Must be 'incomplete' or 'complete'")
DIALECT = make_url("postgresql://").get_dialect()()
LINK = re.compile(r'<([^<>]+)>; rel="next"')
FILL = "INSERT INTO tasks (user_id, title) SELECT $1, 'task ' || n FROM generate_series(1, $2::int) n"


def next_of(answer: httpx2.Response) -> str | None:
    """Resolve the URL of the `Link` header (RFC 3986); None without the header."""
    if "link" not in answer.headers:
        return None
    found = LINK.fullmatch(answer.headers["link"])
    assert found
    following: str = urljoin(str(answer.request.url), found[1])
    return following


def cursor_of(answer: httpx2.Response) -> str:
    return parse_qs(urlsplit(next_of(answer) or "").query)["cursor"][0]


def walk(person: Person, query: str) -> list[list[int]]:
    pages, answer = [], person.ask("GET", query)
    while True:
        assert answer.status_code == 200
        pages.append([task["id"] for task in answer.json()])
        assert len(pages) < 10
        following = next_of(answer)
        if following is None:
            return pages
        answer = person.client.get(following, headers=person.headers)


@pytest.fixture
def ids(alice: Person) -> list[int]:
    """The ids of seven tasks, newest first."""
    return [alice.create(f"task {n}")["id"] for n in range(7)][::-1]


@pytest.mark.parametrize(
    ("limit", "lengths"),
    [(1, [1] * 7), (2, [2, 2, 2, 1]), (3, [3, 3, 1]), (6, [6, 1]), (7, [7]), (8, [7]), (1000, [7])],
)
def test_pages_add_up_to_list(alice: Person, ids: list[int], limit: int, lengths: list[int]) -> None:
    pages = walk(alice, f"?limit={limit}")

    assert [len(page) for page in pages] == lengths
    assert list(chain(*pages)) == ids


def test_page_has_same_tasks_as_list(alice: Person, bob: Person) -> None:
    bob.create()
    tasks = [alice.create('"quotes" \n[', description="x"), alice.create(), alice.create()][::-1]

    answer = alice.ask("GET", "?limit=2")

    assert answer.json() == tasks[:2]
    assert alice.client.get(next_of(answer) or "", headers=alice.headers).json() == tasks[2:]


def test_list_without_limit_has_no_link(alice: Person, ids: list[int]) -> None:
    answer = alice.ask("GET")

    assert [task["id"] for task in answer.json()] == ids
    assert "link" not in answer.headers


def test_empty_list_is_one_empty_page(alice: Person) -> None:
    answer = alice.ask("GET", "?limit=5")

    assert (answer.status_code, answer.text) == (200, "[]")
    assert "link" not in answer.headers


def test_next_link_repeats_limit_and_status(alice: Person, ids: list[int]) -> None:
    for query, expected in (
        ("?limit=2", {"limit": ["2"]}),
        ("?limit=2&status=", {"limit": ["2"]}),
        ("?status=incomplete&limit=3&other=x", {"limit": ["3"], "status": ["incomplete"]}),
    ):
        answer = alice.ask("GET", query)
        assert parse_qs(urlsplit(next_of(answer) or "").query) == {**expected, "cursor": [cursor_of(answer)]}


def test_cursor_without_limit_uses_100(alice: Person) -> None:
    sql(alice.database_url, FILL, alice.id, 150)
    cursor = cursor_of(alice.ask("GET", "?limit=1"))

    answer = alice.ask("GET", f"?cursor={cursor}")

    assert [task["title"] for task in answer.json()] == [f"task {n}" for n in range(149, 49, -1)]
    assert parse_qs(urlsplit(next_of(answer) or "").query)["limit"] == ["100"]


@pytest.mark.parametrize("status", ["incomplete", "complete"])
def test_filtered_pages_add_up_to_list(alice: Person, ids: list[int], status: str) -> None:
    for task_id in ids[::3]:
        alice.ask("PATCH", f"/{task_id}/complete")
    expected = [task["id"] for task in alice.ask("GET", f"?status={status}").json()]

    pages = walk(alice, f"?status={status}&limit=2")

    assert list(chain(*pages)) == expected
    assert all(len(page) == 2 for page in pages[:-1])


@pytest.mark.parametrize("user_id", ["auth0|", "a b+c@example.com", "日本", "a?b#c;d=e"])
def test_next_link_works_for_any_user_id(person: PersonMaker, alice: Person, user_id: str) -> None:
    someone = person(user_id + alice.id)
    ids = [someone.create()["id"] for _ in range(3)][::-1]

    assert walk(someone, "?limit=1") == [[task_id] for task_id in ids]
    assert someone.ask("GET", "?limit=1").headers["link"].isascii()


def test_next_link_works_under_root_path(settings: Settings, alice: Person, ids: list[int]) -> None:
    with TestClient(create_app(settings, BearerIsIdentity()), root_path="/v1") as client:
        seen, url = [], f"/v1{alice.path}?limit=3"
        while url:
            answer = client.get(url, headers=alice.headers)
            seen += [task["id"] for task in answer.json()]
            url = next_of(answer) or ""

    assert seen == ids


@pytest.mark.parametrize(
    "query",
    ["?limit=", "?limit=0", "?limit=1001", "?limit=9999", "?limit=10000", "?limit=-1", "?limit=01", "?limit=%2B1",
     "?limit=1.0", "?limit=1e2", "?limit=%201", "?limit=1%0A", "?limit=x", "?limit=\uff11", "?limit=1&limit=1",
     "?limit=1&limit=", "?limit=" + "1" * 5000],
)  # fmt: skip
def test_invalid_limit_is_refused(alice: Person, query: str) -> None:
    answer = alice.ask("GET", query)

    assert (answer.status_code, answer.json()) == (400, INVALID_LIMIT)


@pytest.mark.parametrize("other", ["offset=0", "page=2", "skip=", "page=1&page=2"])
def test_limit_beside_offset_is_refused(alice: Person, other: str) -> None:
    message = error("Invalid paging. Follow the Link header to the next page")

    for query in (f"?limit=1&{other}", f"?{other}&limit=1", f"?limit=1&{other}&cursor=x"):
        answer = alice.ask("GET", query)
        assert (answer.status_code, answer.json()) == (400, message)
    assert alice.ask("GET", f"?{other}").json() == []
    assert alice.ask("GET", f"?limit=0&{other}").json() == INVALID_LIMIT
    assert alice.ask("GET", f"?limit=1&{other}&status=x").json() == INVALID_STATUS


def forged(owner: str, status: str | None, position: int) -> str:
    """Build a cursor as the service does; it contains no secret."""
    digest = sha256(json.dumps([owner, status, position]).encode()).digest()[:16]
    return base64.urlsafe_b64encode(position.to_bytes(8) + digest).decode()


def test_forged_cursor_equals_the_services(alice: Person, ids: list[int]) -> None:
    assert cursor_of(alice.ask("GET", "?limit=2")) == forged(alice.id, None, ids[1])
    assert cursor_of(alice.ask("GET", "?limit=2&status=incomplete")) == forged(alice.id, "incomplete", ids[1])


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "0",
        "AAAA",
        "%00",
        "\u0663" * 32,
        "A" * 31,
        "A" * 32,
        "A" * 33,
        "A" * 36,
        "=" * 32,
        "A" * 5000,
        "%F0%28",
    ],
)
def test_malformed_cursor_is_refused(alice: Person, cursor: str) -> None:
    for query in (f"?cursor={cursor}", f"?limit=1&cursor={cursor}"):
        answer = alice.ask("GET", query)
        assert (answer.status_code, answer.json()) == (400, INVALID_CURSOR)


def test_cursor_is_bound_to_owner_and_filter(alice: Person, bob: Person, ids: list[int]) -> None:
    for _ in range(3):
        bob.create()
    mine, mine_open = (cursor_of(alice.ask("GET", f"?limit=2{more}")) for more in ("", "&status=incomplete"))
    theirs = cursor_of(bob.ask("GET", "?limit=2"))

    refused = [
        f"?cursor={theirs}",
        f"?cursor={mine}&status=incomplete",
        f"?cursor={mine_open}",
        f"?cursor={mine_open}&status=complete",
        f"?cursor={mine}&cursor={mine}",
        f"?cursor={mine}&cursor=",
        f"?cursor={mine}=",
        f"?cursor={mine}%0A",
        f"?cursor=%20{mine}",
        f"?cursor={mine.swapcase()}",
        *(f"?cursor={mine[:n]}{'A' if mine[n] != 'A' else 'B'}{mine[n + 1 :]}" for n in range(32)),
        f"?cursor={forged(alice.id, None, 0)}",
        f"?cursor={forged(alice.id, None, 2**63)}",
        f"?cursor={forged(alice.id, None, 2**64 - 1)}",
        f"?cursor={forged(bob.id, None, ids[0])}",
    ]
    for query in refused:
        answer = alice.ask("GET", query)
        assert (answer.status_code, answer.json()) == (400, INVALID_CURSOR), query
    assert alice.ask("GET", f"?cursor={mine}&status=").status_code == 200


def test_forged_cursor_reads_only_own_tasks(alice: Person, bob: Person, ids: list[int]) -> None:
    theirs = bob.create()["id"]

    for position, expected in ((2**63 - 1, ids), (theirs, ids), (ids[2] + 1, ids[2:]), (ids[-1], []), (1, [])):
        answer = alice.ask("GET", f"?cursor={forged(alice.id, None, position)}")
        assert [task["id"] for task in answer.json()] == [task_id for task_id in expected if task_id < position]


def test_checks_status_then_limit_then_cursor(alice: Person) -> None:
    assert alice.ask("GET", "?cursor=x&limit=0&status=x").json() == INVALID_STATUS
    assert alice.ask("GET", "?cursor=x&limit=0").json() == INVALID_LIMIT
    assert alice.ask("GET", "?cursor=x&limit=1").json() == INVALID_CURSOR


def test_cursor_survives_deletion_of_its_task(alice: Person, ids: list[int]) -> None:
    answer = alice.ask("GET", "?limit=3")
    for task_id in ids[2:4]:
        alice.ask("DELETE", f"/{task_id}")

    following = alice.client.get(next_of(answer) or "", headers=alice.headers)

    assert [task["id"] for task in following.json()] == ids[4:]


def test_page_etag_covers_its_link(alice: Person, ids: list[int]) -> None:
    before = alice.ask("GET", "?limit=7")
    sql(
        alice.database_url,
        "INSERT INTO tasks (user_id, id, title) OVERRIDING SYSTEM VALUE VALUES ($1, $2, 'older')",
        alice.id,
        ids[-1] - 1_000_000,
    )
    after = alice.ask("GET", "?limit=7", headers={"If-None-Match": before.headers["etag"]})

    assert (after.status_code, after.content) == (200, before.content)
    assert ("link" in before.headers, "link" in after.headers) == (False, True)
    assert after.headers["etag"] != before.headers["etag"]
    assert alice.ask("GET", "?limit=7", headers={"If-None-Match": after.headers["etag"]}).status_code == 304


CHANGES = st.lists(st.tuples(st.sampled_from(["create", "delete", "update"]), st.integers(0, 30)), max_size=4)


@profile(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.integers(0, 12),
    limit=st.integers(1, 5),
    between=st.lists(CHANGES, max_size=14),
    is_filtered=st.booleans(),
)
@pytest.mark.slow
def test_paging_during_changes_misses_no_task(
    person: PersonMaker, *, before: int, limit: int, between: list[list[tuple[str, int]]], is_filtered: bool
) -> None:
    owner = person()
    here = [owner.create()["id"] for _ in range(before)]
    throughout = set(here)
    seen: list[int] = []
    url: str | None = owner.path + f"?limit={limit}" + ("&status=incomplete" if is_filtered else "")
    rounds = iter(between)

    while url:
        answer = owner.client.get(url, headers=owner.headers)
        page = [task["id"] for task in answer.json()]
        assert len(page) <= limit
        assert seen[-1:] > page[:1] or not seen
        seen += page
        url = next_of(answer)
        for change, which in next(rounds, []):
            if change == "create":
                here.append(owner.create()["id"])
            elif here and change == "delete":
                gone = here.pop(which % len(here))
                owner.ask("DELETE", f"/{gone}")
                throughout.discard(gone)
            elif here:
                owner.ask("PUT", f"/{here[which % len(here)]}", json={"title": "changed"})

    assert seen == sorted(set(seen), reverse=True)
    assert throughout <= set(seen)


PARAMETERS = {"owner": "alice", "task_id": 500, "newest": 900, "limit": 10, "status": "incomplete"}
PARAMETERS |= {"versions": [datetime.now(UTC)], "must_match": True}
PARAMETERS |= {"new_title": None, "new_description": None, "has_description": False}


def plan_of(url: str, statement: Select[Any]) -> str:
    """Ask PostgreSQL for the plan of a statement."""
    used = {name: value for name, value in PARAMETERS.items() if name in statement.compile(dialect=DIALECT).params}
    compiled = statement.params(**used).compile(dialect=DIALECT, compile_kwargs={"literal_binds": True})
    text = str(compiled).replace("ARRAY['", "ARRAY[timestamptz '")  # SQLAlchemy gives literals in an array no type
    return "\n".join(row["QUERY PLAN"] for row in sql(url, f"EXPLAIN {text}"))


def test_pages_and_conditions_use_primary_key(empty_database: str) -> None:
    migrate(settings_for(empty_database))
    for owner in ("alice", "bob"):
        new_account(empty_database, owner)
        sql(empty_database, FILL, owner, 10_000)
    sql(empty_database, "ANALYZE tasks")

    for page in (statements.PAGE, statements.PAGE_BY_STATUS):
        plan = plan_of(empty_database, page)
        assert "Index Scan Backward using tasks_pkey" in plan
        assert "Sort" not in plan
    for write in (statements.UPDATE_IF, statements.COMPLETE_IF, statements.DELETE_IF):
        assert plan_of(empty_database, write).count("Index Scan using tasks_pkey") == 2
        assert "Seq Scan" not in plan_of(empty_database, write)
