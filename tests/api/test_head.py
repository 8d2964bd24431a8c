"""HEAD: the response to GET without its body, on every path that allows GET."""

import httpx2
import pytest

from tests.support.api import CheckedClient, Person
from tests.support.openapi import NO_SCHEMA


@pytest.mark.parametrize("path", NO_SCHEMA)
def test_head_equals_get_on_open_paths(client: CheckedClient, path: str) -> None:
    get = client.get(path, follow_redirects=False)
    head = client.head(path, follow_redirects=False)

    assert (head.status_code, head.content) == (get.status_code, b"")
    assert headers_of(head) == headers_of(get)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("", {}, 200),
        ("?status=complete", {}, 200),
        ("?limit=1", {}, 200),
        ("?limit=0", {}, 400),
        ("/{id}", {}, 200),
        ("/{id}", {"If-None-Match": "*"}, 304),
        ("/{id}", {"If-Match": '"other"'}, 412),
        ("/{id}0", {}, 404),
        ("/{id}", {"Authorization": "Bearer x/y"}, 401),
    ],
)
def test_head_equals_get_of_operations(alice: Person, path: str, headers: dict[str, str], status: int) -> None:
    alice.create()
    path = path.replace("{id}", str(alice.create()["id"]))

    get, head = (alice.ask(method, path, headers=headers) for method in ("GET", "HEAD"))

    assert (head.status_code, get.status_code, head.content) == (status, status, b"")
    assert headers_of(head) == headers_of(get)


def test_head_is_405_without_get(client: CheckedClient) -> None:
    assert client.head("/api/alice/tasks/1/complete").headers["allow"] == "PATCH"
    assert client.head("/nothing").status_code == 404


def headers_of(answer: httpx2.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name != "x-request-id"}
