"""The contents and format of log lines, and what must never be logged."""

import asyncio
import io
import json
import logging
import math
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.api import Person, error, new_account
from tests.support.postgres import sql
from tests.support.serving import ROOT, uvicorn
from todo_api import logs

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Lines:
    """Read what the service logs, in production's JSON format."""
    monkeypatch.setattr(caplog.handler, "formatter", logs.JSONFormatter())
    caplog.set_level(logging.INFO, "todo_api")
    return lambda: [json.loads(line) for line in caplog.text.splitlines()]


@pytest.mark.parametrize(
    ("method", "path", "logged", "route", "status"),
    [
        ("GET", "/api/{}/tasks", "GET", "/api/{user_id}/tasks", 200),
        ("POST", "/api/{}/tasks?s3cret-query", "POST", "/api/{user_id}/tasks", 400),
        ("GET", "/api/{}/tasks/1", "GET", "/api/{user_id}/tasks/{id}", 404),
        ("PATCH", "/api/s3cret-path/tasks/1/complete", "PATCH", "/api/{user_id}/tasks/{id}/complete", 404),
        ("DELETE", "/api/{}/tasks", "DELETE", "/api/{user_id}/tasks", 405),
        ("S3CRET", "/api/{}/tasks", "_OTHER", "/api/{user_id}/tasks", 405),
        ("GET", "/health/live", "GET", "/health/live", 200),
        ("GET", "/openapi.json", "GET", "/openapi.json", 200),
        ("GET", "/s3cret-path%0A2026-01-01 INFO all is well", "GET", "-", 404),
    ],
)
def test_request_line_has_no_client_text(
    alice: Person, lines: Lines, method: str, path: str, logged: str, route: str, status: int
) -> None:
    headers = {**alice.headers, "X-Request-ID": "find-me"}

    assert alice.client.request(method, path.format(alice.id), headers=headers).status_code == status

    [line] = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}\+00:00", line.pop("time"))
    assert line.pop("duration_ms") > 0
    assert line.pop("message").startswith(f"{logged} {route} {status} ")
    assert line == {
        "level": "INFO",
        "logger": "todo_api.middleware",
        "method": logged,
        "route": route,
        "status": status,
        "request_id": "find-me",
    }


def test_lines_have_the_request_id(alice: Person, lines: Lines) -> None:
    sql(alice.database_url, "ALTER TABLE tasks RENAME COLUMN title TO heading")
    try:
        alice.ask("GET", headers={"X-Request-ID": "first"})
        alice.client.get("/health/ready", headers={"X-Request-ID": "second"})
    finally:
        sql(alice.database_url, "ALTER TABLE tasks RENAME COLUMN heading TO title")

    assert [(line["level"], line["request_id"]) for line in lines()] == [
        ("ERROR", "first"),
        ("INFO", "first"),
        ("WARNING", "second"),
        ("INFO", "second"),
    ]


def test_constraint_violation_logs_no_row(alice: Person, lines: Lines) -> None:
    sql(alice.database_url, "ALTER TABLE tasks ADD CONSTRAINT polite CHECK (title NOT LIKE '%s3cret%')")
    try:
        answer = alice.ask("POST", json={"title": "s3cret-title", "description": "s3cret-description"})
    finally:
        sql(alice.database_url, "ALTER TABLE tasks DROP CONSTRAINT polite")

    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    crash, _ = lines()
    assert 'violates check constraint "polite"' in crash["exception"]
    assert "s3cret" not in crash["exception"]
    assert alice.id not in crash["exception"]


def record(message: str, arguments: Any, exc_info: Any = None) -> logging.LogRecord:
    return logging.LogRecord("somebody", logging.WARNING, "", 0, message, arguments, exc_info)


def test_json_line_escapes_line_breaks() -> None:
    crash = (ValueError, ValueError("\n\u2028\ud800"), None)
    line = logs.JSONFormatter().format(record("a\n%s", ("\u2028",), crash))

    assert line.isascii()
    assert "\n" not in line
    written = json.loads(line)
    assert (written["message"], written["level"], written["logger"]) == ("a\n\u2028", "WARNING", "somebody")
    assert written["exception"] == "ValueError: \n\u2028\ud800"
    assert "request_id" not in written


def test_any_object_can_be_a_field() -> None:
    assert json.loads(logs.JSONFormatter().format(record("%(path)s", ({"path": Path("x")},))))["path"] == "x"


def test_extra_and_stack_info_are_kept() -> None:
    given = record("slow", None)
    given.__dict__ |= {"table": "tasks", "seconds": 1.5}
    given.stack_info = "Stack (most recent call last): here"

    written = json.loads(logs.JSONFormatter().format(given))
    assert (written["table"], written["seconds"], written["stack"]) == ("tasks", 1.5, given.stack_info)


def test_extra_fields_cannot_replace_reserved_keys() -> None:
    given = record("said", ({"level": "DEBUG", "message": "other", "more": 1},))
    given.__dict__ |= {"logger": "nobody", "time": "never"}

    written = json.loads(logs.JSONFormatter().format(given))
    assert (written["level"], written["message"], written["logger"]) == ("WARNING", "said", "somebody")
    assert written["time"] != "never"
    assert written["more"] == 1


@pytest.mark.parametrize(
    ("value", "logged"),
    [
        (math.nan, None),
        (-math.inf, None),
        ("\u2028\xe9", "\u2028\xe9"),
        (2**64, str(2**64)),
        ("\ud800", "\ud800"),
        ({1: "one"}, {"1": "one"}),
        (b"x", "b'x'"),
    ],
)
def test_every_value_becomes_ascii_json(value: object, logged: object) -> None:
    line = logs.JSONFormatter().format(record("%(value)s", ({"value": value},)))

    assert line.isascii()
    assert "NaN" not in line.replace('"nan"', "")
    assert json.loads(line)["value"] == logged


def test_text_formatter_shows_level_and_message() -> None:
    assert logs.TextFormatter().format(record("%d tasks", (3,))) == "WARNING 3 tasks [-]"


class Stream(io.StringIO):
    """A text stream that counts the writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


@pytest.fixture
def batches() -> Iterator[tuple[logging.Logger, Stream]]:
    """A logger whose records go to a stream in batches, and the stream."""
    handler = logs.BatchHandler()
    stream = Stream()
    handler.setStream(stream)
    handler.setFormatter(logs.TextFormatter())
    logger = logging.Logger("batches")  # noqa: LOG001  # one that no other test knows
    logger.addHandler(handler)
    yield logger, stream
    handler.close()


def test_records_of_one_iteration_are_written_together(batches: tuple[logging.Logger, Stream]) -> None:
    logger, stream = batches

    async def request(number: int) -> None:
        logs.request_id.set(f"id-{number}")
        logger.info("request %d", number)

    async def requests() -> None:
        await asyncio.gather(*map(request, range(3)))
        await asyncio.sleep(0)

    asyncio.run(requests())
    assert stream.getvalue() == "".join(f"INFO request {number} [id-{number}]\n" for number in range(3))
    assert stream.writes == 1


def test_warning_is_written_at_once_and_in_order(batches: tuple[logging.Logger, Stream]) -> None:
    logger, stream = batches

    async def warn() -> str:
        logger.info("first")
        assert stream.getvalue() == ""
        logger.warning("second")
        return stream.getvalue()

    assert asyncio.run(warn()) == "INFO first [-]\nWARNING second [-]\n"
    logger.info("without an event loop")
    assert stream.getvalue().endswith("\nINFO without an event loop [-]\n")


def test_records_of_a_closed_event_loop_are_kept(batches: tuple[logging.Logger, Stream]) -> None:
    logger, stream = batches
    loop = asyncio.new_event_loop()
    loop.call_soon(loop.stop)
    loop.call_soon(logger.info, "first")
    loop.run_forever()
    loop.close()
    assert stream.getvalue() == ""

    async def second() -> None:
        logger.info("second")
        await asyncio.sleep(0)

    asyncio.run(second())
    assert stream.getvalue() == "INFO first [-]\nINFO second [-]\n"


def test_record_that_cannot_be_formatted_loses_no_other(
    batches: tuple[logging.Logger, Stream], capsys: pytest.CaptureFixture[str]
) -> None:
    logger, stream = batches

    async def log() -> None:
        logger.info("first")
        logger.info("%d", "no number")
        logger.info("third")

    asyncio.run(log())
    assert stream.getvalue() == "INFO first [-]\nINFO third [-]\n"
    assert "--- Logging error ---" in capsys.readouterr().err


def test_configure_keeps_existing_log_handlers() -> None:
    before = list(logging.getLogger().handlers)

    logs.configure(logs.JSONFormatter())

    assert logging.getLogger().handlers == before != []


APPLICATION = """
from todo_api import main
from tests.support.api import BearerIsIdentity


class CrashingOutside:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["path"] == "/outside":
            raise ZeroDivisionError
        await self.app(scope, receive, send)


class Backend(BearerIsIdentity):
    async def authenticate(self, conn):
        if "x-crash" in conn.headers:
            raise ZeroDivisionError
        return await super().authenticate(conn)


app = main.app
app.add_middleware(CrashingOutside)
"""


def test_production_logs_json_without_duplicates(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "crashing.py").write_text(APPLICATION)
    root = Path(__file__).parents[2]
    environment = {
        "DATABASE_URL": database_url,
        "AUTH_BACKEND": "crashing:Backend",
        "PYTHONPATH": f"{root}:{tmp_path}",
    }
    owner = new_account(database_url, f"s3cret-path-{uuid.uuid4()}")
    headers = {"Authorization": f"Bearer {owner}"}
    task = {"title": "s3cret-title", "description": "s3cret-description"}
    with uvicorn(environment, tmp_path, application="crashing:app") as url:
        assert httpx2.post(f"{url}/api/{owner}/tasks", headers=headers, json=task).status_code == 201
        assert httpx2.get(f"{url}/api/{owner}/tasks?s3cret-query", headers=headers).status_code == 200
        anonymous = httpx2.get(f"{url}/api/{owner}/tasks", headers={"Authorization": "Bearer s3cret-token%00"})
        assert anonymous.status_code == 401
        assert httpx2.get(f"{url}/api/{owner}/tasks", headers={"X-Crash": "1"}).status_code == 500
        assert httpx2.get(f"{url}/outside").json() == error("Internal server error")

    lines = [json.loads(line) for line in (tmp_path / "output").read_text().splitlines()]
    requests = [(line["method"], line["route"], line["status"]) for line in lines if "route" in line]
    assert [request for request in requests if request[1] != "/health/live"] == [
        ("POST", "/api/{user_id}/tasks", 201),
        ("GET", "/api/{user_id}/tasks", 200),
        ("GET", "/api/{user_id}/tasks", 401),
        ("GET", "/api/{user_id}/tasks", 500),
        ("GET", "-", 500),
    ]
    crashes = [line for line in lines if "exception" in line]
    assert [(line["logger"], "request_id" in line) for line in crashes] == [
        ("todo_api.error_handlers", True),
        ("todo_api.error_handlers", True),
    ]
    assert all(line["exception"].count("Traceback") == 1 for line in crashes)
    assert {line["logger"] for line in lines} >= {"uvicorn.error", "todo_api.auth"}
    assert "s3cret" not in (tmp_path / "output").read_text()


def test_operating_guide_names_real_messages() -> None:
    table = (ROOT / "docs" / "operating.md").read_text().partition("| message | meaning |")[2].partition("\n\n")[0]
    messages = [re.split(r"…|\d+", message) for message in re.findall("`([^`]+)`", table) if " " in message]
    source = "\n".join(path.read_text() for path in Path(logs.__file__).parent.rglob("*.py"))

    assert len(messages) > 5
    assert [part for message in messages for part in message if len(part) > 3 and part not in source] == []
