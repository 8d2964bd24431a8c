"""Every accepted request gets a response from the service, even if the server's grace period ends before it is done."""

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from tests.support.api import new_account
from tests.support.postgres import WAITING, locked, sql
from tests.support.proxy import FaultProxy
from tests.support.serving import Process, free_port, process, wait_for
from todo_api.database.connections import STATEMENT_SECONDS
from todo_api.database.waiting import MOST_SECONDS, WOKEN_SECONDS
from todo_api.middleware import DRAIN_SECONDS
from todo_api.settings import Settings

ROOT = Path(__file__).parents[2]
ORIGIN = "https://app.example.com"
COMMANDS = {
    name: re.search(r"uvicorn[\" ,]+todo_api[^`]+--timeout-graceful-shutdown[\" ,]+(\d+)", (ROOT / name).read_text())
    for name in ("README.md", "docs/deploy.md", "Dockerfile")
}
AUTHENTICATION = """
import asyncio
from tests.support.api import BearerIsIdentity

class Backend(BearerIsIdentity):
    async def authenticate(self, conn):
        if "x-hang" in conn.headers:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.5)
        return await super().authenticate(conn)
"""


@contextmanager
def serve(url: str, cwd: Path, *, grace: int) -> Iterator[tuple[Process, int]]:
    """Serve by the documented command, with another grace period."""
    (cwd / "hanging.py").write_text(AUTHENTICATION)
    environment = {
        "DATABASE_URL": url,
        "AUTH_BACKEND": "hanging:Backend",
        "CORS_ORIGINS": ORIGIN,
        "WAKE_SECONDS": "60",
        "PYTHONPATH": f"{ROOT}:{cwd}",
    }
    documented = COMMANDS["README.md"]
    assert documented
    command = documented[0].replace("\\\n", "").split()
    command[-1] = str(grace)
    port = free_port()
    with process(*command, "--port", str(port), environment=environment, cwd=cwd) as server:
        wait_for(f"http://127.0.0.1:{port}", server)
        yield server, port


def stop_while(server: Process, port: int, head: str, owner: str = "alice") -> tuple[str, dict[str, str], str]:
    """Send a request, send the server SIGTERM while it is being handled, and read the whole response."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        request = f"{head.format(owner)}Host: x\r\nAuthorization: Bearer {owner}\r\nOrigin: {ORIGIN}\r\n\r\n"
        connection.sendall(request.encode())
        connection.settimeout(0.5)  # the request is being handled: no response yet
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(20)
        server.send(signal.SIGTERM)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    start, _, body = answer.decode().partition("\r\n\r\n")
    status, *lines = start.split("\r\n")
    return status, dict(line.lower().split(": ", 1) for line in lines), body


def assert_cut_off(answer: tuple[str, dict[str, str], str], server: Process) -> None:
    status, headers, body = answer
    assert status == "HTTP/1.1 500 Internal Server Error"
    assert body == '{"error":"Internal server error"}'
    assert headers["content-type"] == "application/json"
    assert headers["access-control-allow-origin"] == ORIGIN
    assert headers["x-request-id"]
    assert headers["retry-after"] == "1"
    server.wait()
    assert "Traceback" not in server.output()
    assert server.output().count("cut off by the server's shutdown") == 1


GET = "GET /api/{}/tasks HTTP/1.1\r\n"
UPLOAD = "POST /api/{}/tasks HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n"


@pytest.mark.parametrize("head", [GET, UPLOAD, f"{GET}X-Hang: 1\r\n"], ids=["database away", "upload", "backend"])
def test_request_cut_off_gets_500(head: str, tmp_path: Path) -> None:
    with serve("postgresql://todo@127.0.0.1:1/todo", tmp_path, grace=1) as (server, port):
        assert_cut_off(stop_while(server, port, head), server)


def test_running_statement_cut_off_is_cancelled(database_url: str, tmp_path: Path) -> None:
    owner = new_account(database_url)
    [task] = sql(database_url, "INSERT INTO tasks (user_id, title) VALUES ($1, 'x') RETURNING id", owner)
    complete = f"PATCH /api/{{}}/tasks/{task['id']}/complete HTTP/1.1\r\n"
    lock = f"SELECT FROM tasks WHERE id = {task['id']} FOR UPDATE"
    with serve(database_url, tmp_path, grace=1) as (server, port), locked(database_url, lock):
        assert_cut_off(stop_while(server, port, complete, owner), server)
        assert sql(database_url, WAITING) == []

    assert sql(database_url, "SELECT status FROM tasks WHERE user_id = $1", owner) == [{"status": "incomplete"}]


def test_statement_without_response_cut_off_gets_500(database_url: str, tmp_path: Path) -> None:
    owner = new_account(database_url)
    [directory] = parse_qs(urlsplit(database_url).query)["host"]
    name = urlsplit(database_url).path
    with FaultProxy(f"{directory}/.s.PGSQL.5432") as proxy:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}{name}"
        with serve(url, tmp_path, grace=1) as (server, port):
            headers = {"Authorization": f"Bearer {owner}"}
            assert httpx2.get(f"http://127.0.0.1:{port}/api/{owner}/tasks", headers=headers).status_code == 200
            proxy.freeze()
            assert_cut_off(stop_while(server, port, GET, owner), server)
            proxy.unfreeze()


def test_documented_grace_period_outlasts_every_request() -> None:
    graces = {int(command[1]) for command in COMMANDS.values() if command}
    deploy, reliability = [(ROOT / "docs" / name).read_text() for name in ("deploy.md", "reliability.md")]
    [killed_after] = re.findall(r"allow (\d+) seconds before SIGKILL", deploy)
    default = Settings.model_fields["wake_seconds"].default
    # A request waits for the database, then for its turn among those that waited too, and for its statement.
    longest = default + WOKEN_SECONDS + MOST_SECONDS + STATEMENT_SECONDS

    assert len(COMMANDS) == sum(command is not None for command in COMMANDS.values())
    assert graces == {25}
    assert longest <= max(graces)
    assert int(killed_after) > max(graces) + DRAIN_SECONDS
    assert {*re.findall(r"`WAKE_SECONDS` \+ (\d+)", deploy)} == {str(ceil(longest - default))}
    assert {*re.findall(r"(?:within|at most) (2\d) seconds", reliability)} == {str(ceil(longest))}
