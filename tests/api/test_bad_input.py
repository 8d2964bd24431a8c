"""Invalid requests: each gets one specified error, and none changes a task."""

import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.api import JSON, Person, error
from tests.support.openapi import UPDATE_FIELDS

NOT_JSON = "Request body must be valid JSON"
NOT_AN_OBJECT = "Request body must be a JSON object"
NOT_JSON_TYPE = "Content-Type must be application/json"
NO_ID = "Invalid task ID"
NO_STATUS = "Invalid status value. Must be 'incomplete' or 'complete'"
NO_TASK = "Task not found"
NO_FIELD = f"At least one field ({', '.join(UPDATE_FIELDS[:-1])} or {UPDATE_FIELDS[-1]}) must be provided"
LONG = "1" * 1000


@dataclass
class Bad:
    """An invalid request and the error it gets. `{id}` in the path stands for a task of the caller's own."""

    method: str
    path: str
    status: int
    message: str
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))


IDS = ["abc", "1.0", "-1", "0", "00", "01", "+1", "\uff11", "\u0663", "1_0", "1e3", "0x1", "9223372036854775808", LONG,
       "1%20", "%201", "1%0A", "%00", "1%00", "null", "true", "~", "1;2", "%F0%9F%A5%9B", "9" * 19,
       "%FF", "1%09", "%20"]  # fmt: skip
BODIES: list[tuple[bytes, str]] = [
    (b"", NOT_JSON),
    (b" ", NOT_JSON),
    (b"{", NOT_JSON),
    (b"{'title': 'x'}", NOT_JSON),
    (b'{"title": "x",}', NOT_JSON),
    (b'{"title": "x"} {}', NOT_JSON),
    (b'{"title": "x"}\0', NOT_JSON),
    (b'{"title": "line\nbreak"}', NOT_JSON),
    (b'{"title": "\\x"}', NOT_JSON),
    (b'{"title": "\xff"}', NOT_JSON),
    (b'{"title": "\xed\xa0\x80"}', NOT_JSON),
    ('{"title": "x"}'.encode("utf-16"), NOT_JSON),
    (b'\xef\xbb\xbf{"title": "x"}', NOT_JSON),
    (b'{"title": "x", "n": NaN}', NOT_JSON),
    (b'{"title": "x", "n": Infinity}', NOT_JSON),
    (b'{"title": "x", "n": -Infinity}', NOT_JSON),
    (b'{"title": "x", "n": 1e999}', NOT_JSON),
    (b'{"title": "x", "n": -1e999}', NOT_JSON),
    (b'{"title": "x", "n": ' + b"1" * 5000 + b"}", NOT_JSON),
    (b'{"title": "x", "n": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", NOT_JSON),
    (b'{"title": "x", "n": ' + b"[" * 1001 + b"]" * 1001 + b"}", NOT_JSON),
    (b"[" * 20_000, NOT_JSON),
    (b'{"a":' * 10_000, NOT_JSON),
    (b"[]", NOT_AN_OBJECT),
    (b'[{"title": "x"}]', NOT_AN_OBJECT),
    (b"null", NOT_AN_OBJECT),
    (b'"title"', NOT_AN_OBJECT),
    (b"1", NOT_AN_OBJECT),
    (b"true", NOT_AN_OBJECT),
]
FIELDS: list[tuple[bytes, str]] = [
    (b'{"title": 1}', "Title must be a string"),
    (b'{"title": false}', "Title must be a string"),
    (b'{"title": []}', "Title must be a string"),
    (b'{"title": {"x": "y"}}', "Title must be a string"),
    (b'{"title": "' + b"x" * 256 + b'"}', "Title must be 255 characters or less"),
    (b'{"title": "' + b"\\ud83e\\udd5b" * 256 + b'"}', "Title must be 255 characters or less"),
    (b'{"title": "' + b"\\u0000" * 256 + b'"}', "Title must be 255 characters or less"),
    (b'{"title": "a\\u0000b"}', "Title must not contain NUL characters"),
    (b'{"title": "\\u0000\\ud800"}', "Title must not contain NUL characters"),
    (b'{"title": "\\ud800"}', "Title must be valid Unicode"),
    (b'{"title": "\\udd5b\\ud83e"}', "Title must be valid Unicode"),
    (b'{"title": 1, "description": 1, "status": 1}', "Title must be a string"),
    (b'{"title": "x", "description": 1, "status": 1}', "Description must be a string"),
    (b'{"title": "x", "description": ["y"]}', "Description must be a string"),
    (b'{"title": "x", "description": "' + b"y" * 5001 + b'"}', "Description must be 5000 characters or less"),
    (b'{"title": "x", "description": "\\u0000"}', "Description must not contain NUL characters"),
    (b'{"title": "x", "description": "\\udfff"}', "Description must be valid Unicode"),
]
BLANKS = [
    b'""',
    b'" "',
    b'"\\t\\r\\n\\u000b"',
    b'"\\u00a0\\u2003\\u3000"',
    b'"\\u001c\\u0085\\u2028"',
    b"null",
    b'"' + b" " * 300 + b'"',
]
STATUSES = [b'"done"', b'""', b"null", b"1", b"[]", b"{}", b'"Complete"', b'"complete "', b"true", b'"\\ud800"']
WRONG_TYPES = [
    {}, {"Content-Type": ""}, {"Content-Type": "text/plain"}, {"Content-Type": "application/merge-patch+json"},
    {"Content-Type": "application/jsonx"}, {"Content-Type": "application/json, text/plain"}, {"Content-Type": "json"},
    {"Content-Type": "application/x-www-form-urlencoded"}, {"Content-Type": "*/*"},
]  # fmt: skip
HUGE = b'{"title": "' + b"x" * 200_000 + b'"}'

TABLE = [
    *(Bad(method, f"/{i}{end}", 400, NO_ID, b'{"title": "x"}' if method == "PUT" else None)
      for i in IDS if i != "9" * 19
      for method, end in [("GET", ""), ("PUT", ""), ("DELETE", ""), ("PATCH", "/complete")]),
    *(Bad(method, path, 400, message, body)
      for body, message in BODIES + FIELDS
      for method, path in [("POST", ""), ("PUT", "/{id}")]),
    *(Bad("POST", "", 400, "Title is required", b'{"title": %s}' % blank) for blank in BLANKS),
    *(Bad("PUT", "/{id}", 400, "Title cannot be empty", b'{"title": %s}' % blank) for blank in BLANKS),
    Bad("POST", "", 400, "Title is required", b"{}"),
    Bad("POST", "", 400, "Title is required", b'{"Title": "x", "description": 1}'),
    *(Bad("PUT", "/{id}", 400, NO_STATUS, b'{"status": %s}' % status) for status in STATUSES),
    *(Bad("PUT", "/{id}", 400, NO_FIELD, body) for body in [b"{}", b'{"id": 1}', b'{"Title": "x"}', b'{"\\ud800": 1}']),
    *(Bad(method, path, 400, NOT_JSON_TYPE, b"{broken", headers)
      for headers in WRONG_TYPES
      for method, path in [("POST", ""), ("PUT", "/{id}")]),
    *(Bad(method, path, 413, "Request body is too large", HUGE, headers)
      for headers in [JSON, {}, {"Content-Type": "text/plain"}]
      for method, path in [("POST", "?status=x"), ("PUT", "/{id}")]),
    # Of several faults, the first one checked is reported.
    Bad("PUT", "/0", 400, NO_ID, HUGE),
    Bad("PUT", "/0", 400, NO_ID, b"{broken", {}),
    Bad("PUT", "/{id}", 400, NOT_JSON, b"", {}),
    Bad("PUT", f"/{2**63 - 1}", 400, NO_FIELD, b"{}"),
    Bad("PUT", f"/{2**63 - 1}", 404, NO_TASK, b'{"title": "x"}'),
    # Paths that resemble an operation's and match none.
    *(Bad(method, path, 404, "Not found")
      for path in ["/", "/{id}/", "/{id}/complete/", "/{id}/complete/x", "/{id}/completed", "%0A", "/{id}/complete%0A",
                   "/%2E%2E/tasks", "//{id}", "/1%2F2%2F3"]
      for method in ["GET", "PATCH"]),
    *(Bad(method, "", 405, "Method not allowed") for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "BREW"]),
    *(Bad(method, "/0", 405, "Method not allowed") for method in ["POST", "PATCH", "OPTIONS"]),
    *(Bad(method, "/{id}/complete", 405, "Method not allowed") for method in ["GET", "POST", "PUT", "DELETE"]),
]  # fmt: skip


@pytest.mark.parametrize(
    "bad", TABLE, ids=lambda bad: f"{bad.method}{bad.path[:40]}-{(bad.body or b'')[:40]!r}-{bad.message[:20]}"
)
def test_invalid_request_is_refused_without_effect(alice: Person, bad: Bad) -> None:
    task = alice.create(description="Two litres")
    before = alice.stored()

    answer = alice.ask(bad.method, bad.path.replace("{id}", str(task["id"])), content=bad.body, headers=bad.headers)

    assert answer.status_code == bad.status, answer.text
    assert answer.json() == error(bad.message)
    assert alice.stored() == before


@pytest.mark.parametrize("nothing", [b"", None])
def test_empty_body_is_invalid_json(alice: Person, nothing: bytes | None) -> None:
    for headers in ({}, {"Content-Type": "text/plain"}, JSON):
        answer = alice.ask("POST", content=nothing, headers=headers)

        assert (answer.status_code, answer.json()) == (400, error(NOT_JSON))


@pytest.mark.parametrize("depth", [100, 500])
def test_moderate_nesting_is_accepted(alice: Person, depth: int) -> None:
    body = b'{"title": "x", "n": ' + b"[" * depth + b"]" * depth + b"}"

    assert alice.ask("POST", content=body, headers=JSON).status_code == 201


def test_hostile_body_is_refused_quickly(alice: Person) -> None:
    hostile = b"[" * 1001 + b'"' + b'\\"' * 31_900

    started = time.monotonic()
    answer = alice.ask("POST", content=hostile, headers=JSON)

    assert (answer.status_code, answer.json()) == (400, error(NOT_JSON))
    assert time.monotonic() - started < 1


def test_brackets_in_strings_are_not_nesting(alice: Person) -> None:
    text = '["{' * 1500

    assert alice.create(description=text)["description"] == text


def test_sibling_brackets_are_not_nesting(alice: Person) -> None:
    assert alice.ask("POST", json={"title": "x", "n": [[{}]] * 2000}).status_code == 201


def test_ignored_fields_are_not_validated(alice: Person) -> None:
    body = b'{"title": "x", "\\ud800": "\\udfff", "status": "\\u0000"}'

    assert alice.ask("POST", content=body, headers=JSON).status_code == 201


def test_body_limit_is_65536_bytes(alice: Person) -> None:
    body = b'{"title": "x"}'.ljust(65536)

    assert alice.ask("POST", content=body, headers=JSON).status_code == 201
    assert alice.ask("POST", content=body + b" ", headers=JSON).status_code == 413


@pytest.mark.parametrize("declared", ["65537", "9" * 5000])
def test_declared_length_over_limit_is_refused(alice: Person, declared: str) -> None:
    answer = alice.ask("POST", content=b"{}", headers={**JSON, "Content-Length": declared})

    assert (answer.status_code, answer.json()) == (413, error("Request body is too large"))


@pytest.mark.parametrize("declared", ["10", "0", "-1", "²", "٣", "abc", "1_0"])
def test_wrong_content_length_is_not_trusted(alice: Person, declared: str) -> None:
    headers: dict[str, Any] = {**JSON, "Content-Length": declared.encode()}

    assert alice.ask("POST", content=HUGE, headers=headers).status_code == 413
    assert alice.ask("POST", content=b'{"title": "x"}', headers=headers).status_code == 201


def test_streamed_body_size_is_counted(alice: Person) -> None:
    pieces = [b'{"title": "', *[b"x" * 1000] * 100, b'"}']

    assert alice.ask("POST", content=iter(pieces), headers=JSON).status_code == 413
    assert alice.ask("POST", content=iter([b'{"title": ', b'"x"}']), headers=JSON).status_code == 201


def test_repeated_content_types_must_agree(alice: Person) -> None:
    same = [("Content-Type", "application/json"), ("Content-Type", "application/json"), *alice.headers.items()]
    other = [("Content-Type", "application/json"), ("Content-Type", "text/plain"), *alice.headers.items()]

    assert alice.client.post(alice.path, content=b'{"title": "x"}', headers=same).status_code == 201
    answer = alice.client.post(alice.path, content=b'{"title": "x"}', headers=other)
    assert (answer.status_code, answer.json()) == (400, error(NOT_JSON_TYPE))
