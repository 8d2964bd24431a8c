import pytest
from sqlmodel import SQLModel

from tests.support.api import CheckedClient
from tests.support.postgres import sql


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
def test_health_requires_no_authentication(client: CheckedClient, path: str) -> None:
    answer = client.get(path)

    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert answer.headers["cache-control"] == "no-store"


def test_ready_with_an_unknown_column(client: CheckedClient, database_url: str) -> None:
    sql(database_url, "ALTER TABLE tasks ADD COLUMN priority int")
    try:
        assert client.get("/health/ready").status_code == 200
    finally:
        sql(database_url, "ALTER TABLE tasks DROP COLUMN priority")


@pytest.mark.parametrize("column", [column.name for column in SQLModel.metadata.tables["tasks"].columns])
def test_not_ready_without_a_used_column(client: CheckedClient, database_url: str, column: str) -> None:
    sql(database_url, f"ALTER TABLE tasks RENAME COLUMN {column} TO elsewhere")
    try:
        answer = client.get("/health/ready")
        assert (answer.status_code, answer.headers["cache-control"]) == (503, "no-store")
    finally:
        sql(database_url, f"ALTER TABLE tasks RENAME COLUMN elsewhere TO {column}")

    assert client.get("/health/ready").status_code == 200
