"""The same responses under every ASGI server that the README names, with and without a root path."""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.support.api import error, new_account
from tests.support.serving import Process, free_port, process, wait_for

ROOT = Path(__file__).parents[2]
SERVERS = {
    "uvicorn-httptools": ("uvicorn --http httptools --port {port}", "--root-path"),
    "uvicorn-h11": ("uvicorn --http h11 --port {port}", "--root-path"),
    "hypercorn": ("hypercorn --bind 127.0.0.1:{port}", "--root-path"),
    "granian": ("granian --interface asgi --port {port}", "--url-path-prefix"),
}
# The exit code after SIGTERM: uvicorn ends by the signal that it has handled.
EXIT_CODES = {"uvicorn": -signal.SIGTERM, "hypercorn": 0, "granian": 0}


class Server(NamedTuple):
    """A server that runs the application."""

    process: Process
    url: str
    root_path: str
    exit_code: int


@pytest.fixture(params=[(name, root) for name in SERVERS for root in ("", "/todo/")], ids=str)
def running(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Iterator[Server]:
    name, root = request.param
    command, option = SERVERS[name]
    port = free_port()
    arguments = [*command.format(port=port).split(), *([option, root] if root else []), "todo_api.asgi:app"]
    environment = {"DATABASE_URL": database_url, "AUTH_BACKEND": "tests.support.api:BearerIsIdentity"}
    environment["PYTHONPATH"] = str(ROOT)
    with process(*arguments, environment=environment, cwd=tmp_path) as server:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, server)
        yield Server(server, url, root.rstrip("/"), EXIT_CODES[command.split()[0]])


def test_requests_and_sigterm(running: Server, database_url: str) -> None:
    server, url, root, exit_code = running
    owner = new_account(database_url)
    path = f"/api/{owner}/tasks"
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {owner}"}) as client:
        created = client.post(path, json={"title": "Buy milk"})
        one = f"{path}/{created.json()['id']}"
        assert (created.status_code, created.headers["location"]) == (201, root + one)
        chunks = iter([b'{"title":', b' "Call Bob"}'])
        assert client.put(one, content=chunks, headers={"Content-Type": "application/json"}).status_code == 200
        got = client.get(one)
        assert got.json()["title"] == "Call Bob"
        assert got.headers["cache-control"] == "private, no-cache"
        assert client.get(one, headers={"If-None-Match": got.headers["etag"]}).status_code == 304
        assert client.put(one, json={}).json() == error(
            "At least one field (title, description or status) must be provided"
        )
        assert client.get("/nothing").json() == error("Not found")
        assert client.post(one).headers["allow"] == "DELETE, GET, HEAD, PUT"
        assert client.get("/", follow_redirects=False).headers["location"] == "docs"
        document = client.get("/openapi.json").json()
        assert document.get("servers") == ([{"url": root}] if root else None)
        for read in (one, path, "/docs", "/openapi.json", "/health"):
            assert head(url, read, owner) == client.get(read).headers["content-length"]
        with connected(url) as connection:
            connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {owner}\r\n".encode())
            connection.sendall(b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        deleted = client.delete(one)
        assert (deleted.status_code, deleted.content, "content-type" in deleted.headers) == (204, b"", False)

    assert server.stop() == exit_code, server.output()
    assert "Traceback" not in server.output()


def connected(url: str) -> socket.socket:
    address = urlsplit(url)
    assert address.hostname
    return socket.create_connection((address.hostname, address.port or 80), timeout=10)


def head(url: str, path: str, owner: str) -> str | None:
    """Send HEAD, expect no body until the connection is closed, and return the declared length."""
    with connected(url) as connection:
        lines = [f"HEAD {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {owner}", "Connection: close", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        received = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    status, *headers = received.lower().removesuffix("\r\n\r\n").split("\r\n")
    assert status.startswith("http/1.1 200")
    return dict(line.split(": ", 1) for line in headers)["content-length"]
