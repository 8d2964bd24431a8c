"""Schemathesis sends requests that the OpenAPI document allows or forbids, and checks the responses against it."""

import os
import subprocess
from pathlib import Path

import asyncpg
import pytest
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, BaseUser, SimpleUser
from starlette.requests import HTTPConnection

from tests.support.api import NEW_ACCOUNT
from tests.support.serving import BIN, UNMEASURED, uvicorn
from todo_api.auth import is_addressable

pytestmark = pytest.mark.slow

TOKEN = "the-only-token"


class OneToken(AuthenticationBackend):
    """Accept exactly one token, for any user: create an account for the user in the path and authenticate as them."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser]:
        if conn.headers.get("authorization") != f"Bearer {TOKEN}":
            raise AuthenticationError
        user_id = conn.path_params["user_id"]
        if is_addressable(user_id):
            connection = await asyncpg.connect(os.environ["DATABASE_URL"])
            await connection.execute(f"{NEW_ACCOUNT} ON CONFLICT DO NOTHING", user_id)
            await connection.close()
        return AuthCredentials(), SimpleUser(user_id)


class AnyToken(OneToken):
    """Accept any token or none, which Schemathesis must report."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser]:
        return AuthCredentials(), SimpleUser(conn.path_params["user_id"])


def run(database_url: str, backend: str, cwd: Path, *options: str) -> tuple[int, str]:
    """Run all checks of Schemathesis and return its exit code and report."""
    environment = {
        "DATABASE_URL": database_url,
        "AUTH_BACKEND": f"tests.api.test_schemathesis:{backend}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        **UNMEASURED,
    }
    with uvicorn(environment, cwd) as url:
        configuration = str(Path(__file__).parent / "schemathesis.toml")
        command = [str(BIN / "schemathesis"), "--config-file", configuration, "run", f"{url}/openapi.json"]
        command += ["--checks", "all", "--no-color"]
        authorization = ["--header", f"Authorization: Bearer {TOKEN}"]
        ended = subprocess.run(
            [*command, *authorization, *options],
            cwd=cwd,
            env={**os.environ, **UNMEASURED},
            capture_output=True,
            text=True,
            check=False,
        )
    return ended.returncode, ended.stdout


def test_service_conforms_to_openapi_document(database_url: str, tmp_path: Path) -> None:
    code, report = run(database_url, "OneToken", tmp_path, "--seed", "1", "--max-examples", "15")

    assert code == 0, report
    assert "Tested: 6" in report
    assert "No issues found" in report


def test_schemathesis_reports_missing_authentication(database_url: str, tmp_path: Path) -> None:
    code, report = run(
        database_url, "AnyToken", tmp_path, "--phases", "coverage", "--include-operation-id", "listTasks"
    )

    assert code == 1
    assert "missing required 'Authorization' header, expected 401" in report, report
