"""Raw HTTP requests to a real server, which an in-process client would normalize before sending."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx2
import pytest

from tests.support.api import new_account
from tests.support.serving import uvicorn

NOT_FOUND = b'{"error":"Not found"}'
NO_TASK = b'{"error":"Task not found"}'


@pytest.fixture(scope="module")
def url(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    environment = {"DATABASE_URL": database_url, "AUTH_BACKEND": "tests.support.api:BearerIsIdentity"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    # As in production, whose requirements have no WebSocket library; the tests' have one, for another server.
    environment["UVICORN_WS"] = "none"
    with uvicorn(environment, tmp_path_factory.mktemp("cwd")) as url:
        yield url


@pytest.fixture
def user(database_url: str) -> str:
    return new_account(database_url)


def send(url: str, request: bytes, *, wait: bool = True) -> tuple[int, dict[str, str], bytes]:
    """Send raw bytes and read one response; without `wait`, half-close the connection after sending."""
    address = urlsplit(url)
    assert address.hostname
    with socket.create_connection((address.hostname, address.port or 80), timeout=10) as connection:
        connection.sendall(request)
        if not wait:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while b"\r\n\r\n" not in received:
            received += (piece := connection.recv(65536))
            if not piece:
                return 0, {}, received
        head, _, body = received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        while len(body) < int(headers.get("content-length", "0")):
            body += connection.recv(65536)
    return int(lines[0].split()[1]), headers, body


def ask(url: str, user: str, line: str, headers: str = "", body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    head = f"{line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {quote(user)}\r\n{headers}\r\n"
    return send(url, head.encode("latin-1") + body)


@pytest.mark.parametrize(
    ("target", "status", "body"),
    [
        ("/api/{user}/../tasks", 404, NOT_FOUND),
        ("/api/other/../{user}/tasks", 404, NOT_FOUND),
        ("/api/./{user}/tasks", 404, NOT_FOUND),
        ("//api/{user}/tasks", 404, NOT_FOUND),
        ("/api/{user}//tasks", 404, NOT_FOUND),
        ("/api/{user}%2Fx/tasks", 404, NOT_FOUND),
        ("/api/{user}%00/tasks", 404, b'{"error":"User not found"}'),
        ("/api/{user}%FF/tasks", 404, b'{"error":"User not found"}'),
        ("/api/{user}%0A/tasks", 404, b'{"error":"User not found"}'),
        ("/api/{user}%/tasks", 404, b'{"error":"User not found"}'),
        ("/api/{user}/tasks%0A", 404, NOT_FOUND),
        ("/api/{user}/tasks/", 404, NOT_FOUND),
        ("/api/{user}/tasks/%00", 400, b'{"error":"Invalid task ID"}'),
        ("/api/{user}/tasks/1%0A", 400, b'{"error":"Invalid task ID"}'),
        ("/api/{user}/tasks/1?status=%FF", 404, NO_TASK),
        (
            "/api/{user}/tasks?status=%FF",
            400,
            b"{\"error\":\"Invalid status value. Must be 'incomplete' or 'complete'\"}",
        ),
        ("/api/{user}/tasks?a;=&&=&%", 200, b"[]"),
    ],
)
def test_unusual_request_targets(url: str, user: str, target: str, status: int, body: bytes) -> None:
    answer = ask(url, user, "GET " + target.format(user=user))

    assert (answer[0], answer[2]) == (status, body)


@pytest.mark.parametrize("escaped", ["%2e%2e", "%2E", "."])
def test_dot_segment_is_no_user_id(url: str, database_url: str, escaped: str) -> None:
    assert ask(url, "..", f"GET /api/{escaped}/tasks")[0] == 401


def test_percent_sign_in_user_id_is_literal(url: str, database_url: str, user: str) -> None:
    odd = new_account(database_url, f"%2e{user}")

    status, headers, _ = ask(
        url,
        odd,
        f"POST /api/{quote(odd)}/tasks",
        "Content-Type: application/json\r\nContent-Length: 13\r\n",
        b'{"title":"x"}',
    )

    assert status == 201
    assert re.fullmatch(rf"/api/%252e{user}/tasks/\d+", headers["location"])


def test_204_has_no_body_or_type(url: str, user: str) -> None:
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {user}"}) as client:
        location = client.post(f"/api/{user}/tasks", json={"title": "x"}).headers["location"]
    status, headers, body = ask(url, user, f"DELETE {location}", "Connection: close\r\n")

    assert (status, body) == (204, b"")
    assert not {"content-type", "content-length", "transfer-encoding"} & headers.keys()


CREATE = "POST /api/{user}/tasks"
TYPE = "Content-Type: application/json\r\n"


def test_oversized_chunked_body_is_refused_early(url: str, user: str) -> None:
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"

    answer = ask(url, user, CREATE.format(user=user), TYPE + "Transfer-Encoding: chunked\r\n", chunk * 3)

    assert (answer[0], answer[2]) == (413, b'{"error":"Request body is too large"}')


def test_chunked_body_within_limit_is_accepted(url: str, user: str) -> None:
    chunks = b'6\r\n{"titl\r\n7\r\ne":"x"}\r\n0\r\n\r\n'

    assert ask(url, user, CREATE.format(user=user), TYPE + "Transfer-Encoding: chunked\r\n", chunks)[0] == 201


def test_oversized_content_length_is_refused_early(url: str, user: str) -> None:
    answer = ask(url, user, CREATE.format(user=user), TYPE + "Content-Length: 65537\r\n", b"{")

    assert (answer[0], answer[2]) == (413, b'{"error":"Request body is too large"}')


def test_truncated_body_creates_nothing(url: str, user: str) -> None:
    head = (
        f"POST /api/{user}/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {user}\r\n{TYPE}Content-Length: 100\r\n"
    )

    assert send(url, f'{head}\r\n{{"title":"x"}}'.encode(), wait=False)[0] == 0
    assert ask(url, user, f"GET /api/{user}/tasks")[2] == b"[]"


def test_complete_and_delete_read_no_body(url: str, user: str) -> None:
    assert ask(url, user, f"PATCH /api/{user}/tasks/1/complete", "Content-Length: 200000\r\n")[2] == NO_TASK
    assert ask(url, user, f"DELETE /api/{user}/tasks/1", "Transfer-Encoding: chunked\r\n")[2] == NO_TASK


def test_second_authorization_header_is_ignored(url: str, user: str, database_url: str) -> None:
    other = new_account(database_url)

    answer = ask(url, user, f"GET /api/{other}/tasks", f"Authorization: Bearer {other}\r\n")

    assert (answer[0], answer[2]) == (404, b'{"error":"User not found"}')


def test_websocket_upgrade_is_ignored(url: str, user: str) -> None:
    headers = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n"

    assert ask(url, user, f"GET /api/{user}/tasks", headers)[0] == 200
