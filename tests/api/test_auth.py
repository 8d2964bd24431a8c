"""Authentication by any Starlette backend, or by any middleware that sets `scope["user"]`."""

from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI, HTTPException
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    BaseUser,
    SimpleUser,
    UnauthenticatedUser,
)
from starlette.requests import HTTPConnection, Request
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.api import BearerIsIdentity, CheckedClient, Person, error
from tests.support.postgres import settings_for
from todo_api.auth import load_backend
from todo_api.errors import SettingsError
from todo_api.main import create_app
from todo_api.settings import Settings

KEY = Ed25519PrivateKey.generate()
WWW = "https://app.example.com"


def token(subject: str, key: Ed25519PrivateKey = KEY, **claims: Any) -> str:
    expiry = datetime.now(UTC) + timedelta(minutes=15)
    payload = {"sub": subject, "iss": WWW, "aud": WWW, "exp": expiry, **claims}
    return jwt.encode(payload, key, algorithm="EdDSA")


def subject_of(authorization: str) -> str:
    claims = jwt.decode(
        authorization.removeprefix("Bearer "),
        KEY.public_key(),
        algorithms=["EdDSA"],
        issuer=WWW,
        audience=WWW,
        options={"require": ["exp", "sub", "iss", "aud"]},
    )
    return str(claims["sub"])


class JWTBackend(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        if "authorization" not in conn.headers:
            return None
        try:
            return AuthCredentials(), SimpleUser(subject_of(conn.headers["authorization"]))
        except jwt.InvalidTokenError as error:
            raise AuthenticationError(str(error)) from error


class JWTMiddleware:
    """Sets the user, and leaves it to the service to refuse a request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                scope["user"] = SimpleUser(subject_of(HTTPConnection(scope).headers.get("authorization", "")))
            except jwt.InvalidTokenError:
                scope["user"] = UnauthenticatedUser()
        await self.app(scope, receive, send)


INSTANCE = JWTBackend()


def factory() -> JWTBackend:
    return INSTANCE


def broken_factory() -> JWTBackend:
    raise RuntimeError("JWKS_URL is not set")


class Account:
    class Backend(JWTBackend):
        pass


def by_import_string(name: str) -> Any:
    return lambda settings: create_app(settings.model_copy(update={"auth_backend": f"tests.api.test_auth:{name}"}))


def added(settings: Settings) -> FastAPI:
    app = create_app(settings)
    app.add_middleware(JWTMiddleware)
    return app


WAYS = {
    "class": by_import_string("JWTBackend"),
    "instance": by_import_string("INSTANCE"),
    "factory": by_import_string("factory"),
    "nested": by_import_string("Account.Backend"),
    "argument": lambda settings: create_app(settings, auth_backend=JWTBackend()),
    "argument over setting": lambda settings: create_app(
        settings.model_copy(update={"auth_backend": "no.such:thing"}), auth_backend=JWTBackend()
    ),
    "middleware around": lambda settings: JWTMiddleware(create_app(settings)),
    "middleware added": added,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_pluggable_authentication_identifies_the_owner(
    settings: Settings, alice: Person, bob: Person, way: Any
) -> None:
    with TestClient(way(settings)) as client:
        mine = {"Authorization": f"Bearer {token(alice.id)}"}
        created = client.post(alice.path, json={"title": "x"}, headers=mine)

        assert created.status_code == 201
        assert client.get(alice.path, headers=mine).json() == [created.json()]
        assert client.get(bob.path, headers=mine).json() == error("User not found")


FORGED = Ed25519PrivateKey.generate()
REJECTED = {
    "nothing": {},
    "no scheme": {"Authorization": "alice"},
    "garbage": {"Authorization": "Bearer x.y.z"},
    "someone else's key": {"Authorization": f"Bearer {token('alice', FORGED)}"},
    "expired": {"Authorization": f"Bearer {token('alice', exp=1)}"},
    "another audience": {"Authorization": f"Bearer {token('alice', aud='https://elsewhere.example')}"},
    "unsigned": {"Authorization": "Bearer " + jwt.encode({"sub": "alice"}, "", algorithm="none")},
}


@pytest.mark.parametrize("headers", REJECTED.values(), ids=REJECTED.keys())
@pytest.mark.parametrize("way", ["argument", "middleware around"])
def test_rejected_credentials_are_unauthorized(settings: Settings, way: str, headers: dict[str, str]) -> None:
    with TestClient(WAYS[way](settings)) as client:
        answer = client.get("/api/alice/tasks", headers=headers)

        assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))
        assert answer.headers["www-authenticate"] == "Bearer"
        # Only the six operations require authentication.
        assert client.get("/health/live", headers=headers).status_code == 200
        assert client.get("/health/ready", headers=headers).status_code == 200
        assert client.get("/openapi.json", headers=headers).status_code == 200
        assert client.get("/docs", headers=headers).status_code == 200
        assert client.get("/api/alice/nothing", headers=headers).json() == error("Not found")
        assert client.put("/api/alice/tasks", headers=headers).json() == error("Method not allowed")


def test_only_the_six_operations_authenticate(settings: Settings) -> None:
    asked = []

    class Recorder(AuthenticationBackend):
        async def authenticate(self, conn: HTTPConnection) -> None:
            asked.append(conn.url.path)

    with TestClient(create_app(settings, Recorder())) as client:
        for path in (
            "/",
            "/health",
            "/health/live",
            "/health/ready",
            "/docs",
            "/openapi.json",
            "/api/a/tasks/",
            "/nothing",
        ):
            client.get(path)
        client.delete("/api/a/tasks")
        client.options("/api/a/tasks", headers={"Origin": WWW, "Access-Control-Request-Method": "GET"})
        assert asked == []
        client.get("/api/a/tasks")
        assert asked == ["/api/a/tasks"]


def test_unauthorized_without_authentication_backend(settings: Settings, alice: Person) -> None:
    with TestClient(create_app(settings)) as client:
        answer = client.get(alice.path, headers=alice.headers)

    assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))


def test_configured_backend_overrides_scope_user(settings: Settings, alice: Person) -> None:
    inner = create_app(settings, JWTBackend())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await inner({**scope, "user": SimpleUser(alice.id)}, receive, send)

    assert TestClient(app).get(alice.path).status_code == 401


class Anyone(AuthenticationBackend):
    """Authenticates everyone as one user."""

    def __init__(self, user: Any) -> None:
        self.user = user

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser]:
        return AuthCredentials(), self.user


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


UNADDRESSABLE = ["", "x" * 256, "a/b", "a\0b", "a\ud800", "\udfff", ".", "..", 7, None, b"alice"]


@pytest.mark.parametrize("identity", UNADDRESSABLE, ids=ascii)
def test_unaddressable_identity_is_unauthorized(
    settings: Settings, caplog: pytest.LogCaptureFixture, identity: Any
) -> None:
    with TestClient(create_app(settings, Anyone(SimpleUser(identity)))) as client:
        answer = client.get("/api/alice/tasks")

    assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))
    what = f"{len(identity)} characters" if isinstance(identity, str) else type(identity).__name__
    assert warnings(caplog) == [f"refused an identity that no path can address: {what}"]


@pytest.mark.parametrize("identity", ["x", "x" * 255, "...", ".a", "ü\n", "%2F"])
def test_addressable_identity_is_accepted(settings: Settings, identity: str) -> None:
    with TestClient(create_app(settings, Anyone(SimpleUser(identity)))) as client:
        assert client.get("/api/someone/tasks").status_code == 404


class NoIdentity(SimpleUser):
    """Has no identity: the property raises `NotImplementedError`, like Starlette's."""

    @property
    def identity(self) -> str:
        raise NotImplementedError


class Authenticated:
    """Has any value of `is_authenticated`, and no identity."""

    def __init__(self, says: object) -> None:
        self.is_authenticated = says


@pytest.mark.parametrize("user", [NoIdentity("alice"), Authenticated(says=True)])
def test_user_without_identity_is_unauthorized(settings: Settings, caplog: pytest.LogCaptureFixture, user: Any) -> None:
    with TestClient(create_app(settings, Anyone(user))) as client:
        answer = client.get("/api/alice/tasks")

    assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))
    assert warnings(caplog) == ["refused an identity that no path can address: NoneType"]


class Named(UnauthenticatedUser):
    """Has an identity without being authenticated."""

    identity = "alice"


@pytest.mark.parametrize("user", [UnauthenticatedUser(), Named()])
def test_unauthenticated_user_is_unauthorized(settings: Settings, user: BaseUser) -> None:
    with TestClient(create_app(settings, Anyone(user))) as client:
        assert client.get("/api/alice/tasks").status_code == 401


class Method(SimpleUser):
    """Has a method `is_authenticated`, which returns False."""

    def is_authenticated(self) -> bool:  # type: ignore[override]  # the mistake under test
        return False


@pytest.mark.parametrize(
    ("user", "what"),
    [
        (Method("alice"), "method"),
        *[(Authenticated(says), type(says).__name__) for says in (1, "true", object())],
        (object(), "NoneType"),
    ],
)
@pytest.mark.parametrize("way", ["backend", "middleware"])
def test_only_true_counts_as_authenticated(
    settings: Settings, caplog: pytest.LogCaptureFixture, user: Any, what: str, way: str
) -> None:
    if isinstance(user, Authenticated):
        user.identity = "alice"  # type: ignore[attr-defined]  # only for this test
    app = create_app(settings, Anyone(user) if way == "backend" else None)

    async def setting_user(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "user": user}, receive, send)

    answer = TestClient(setting_user).get("/api/alice/tasks?limit=0")

    assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))
    assert warnings(caplog) == [f"refused a user whose is_authenticated is no boolean: {what}"]


class Raising(AuthenticationBackend):
    """Raises an error, optionally from another one."""

    def __init__(self, raised: Exception, cause: Exception | None = None) -> None:
        self.raised, self.cause = raised, cause

    async def authenticate(self, conn: HTTPConnection) -> None:
        raise self.raised from self.cause


@pytest.mark.parametrize(
    ("raised", "cause", "reason"),
    [
        (AuthenticationError("secret"), None, "AuthenticationError"),
        (AuthenticationError("secret"), jwt.ExpiredSignatureError(), "AuthenticationError from ExpiredSignatureError"),
        (HTTPException(401, "secret"), None, "HTTPException"),
        (HTTPException(403, "secret"), KeyError("secret"), "HTTPException from KeyError"),
    ],
)
def test_rejection_is_401_with_logged_types(
    settings: Settings, caplog: pytest.LogCaptureFixture, raised: Exception, cause: Exception | None, reason: str
) -> None:
    caplog.set_level("INFO")

    answer = TestClient(create_app(settings, Raising(raised, cause))).get("/api/alice/tasks")

    assert (answer.status_code, answer.json()) == (401, error("Unauthorized"))
    assert answer.headers["www-authenticate"] == "Bearer"
    assert f"rejected by the authentication layer: {reason}" in caplog.messages
    assert "secret" not in caplog.text


@pytest.mark.parametrize("status", [400, 402, 404, 405, 500, 503])
def test_any_other_http_exception_is_a_crash(settings: Settings, caplog: pytest.LogCaptureFixture, status: int) -> None:
    app = create_app(settings, Raising(HTTPException(status)))

    answer = TestClient(app, raise_server_exceptions=False).get("/api/alice/tasks")

    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    assert "HTTPException" in caplog.text


def test_crashing_backend_is_answered_with_500(
    settings: Settings, alice: Person, caplog: pytest.LogCaptureFixture
) -> None:
    class Crashing(AuthenticationBackend):
        async def authenticate(self, conn: HTTPConnection) -> None:
            raise RuntimeError("the keys cannot be fetched")

    with TestClient(create_app(settings, Crashing()), raise_server_exceptions=False) as client:
        answer = client.get(alice.path)

    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    assert "the keys cannot be fetched" in caplog.text


class ReadingTheBody(BearerIsIdentity):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        assert isinstance(conn, Request)
        assert await conn.body() == b'{"title":"signed"}'
        return await super().authenticate(conn)


def test_backend_may_read_the_body(settings: Settings, alice: Person) -> None:
    with CheckedClient(create_app(settings, ReadingTheBody())) as client:
        answer = client.post(alice.path, headers=alice.headers, json={"title": "signed"})

    assert (answer.status_code, answer.json()["title"]) == (201, "signed")


class Blocking(AuthenticationBackend):
    def authenticate(self, conn: HTTPConnection) -> None:  # type: ignore[override]  # the mistake under test
        return None


@pytest.mark.parametrize("backend", [Blocking(), JWTBackend, object()])
def test_argument_must_be_a_backend(settings: Settings, backend: Any) -> None:
    with pytest.raises(SettingsError, match=r"^auth_backend .* has no coroutine function authenticate\(\)\.$"):
        create_app(settings, auth_backend=backend)


@pytest.mark.parametrize(
    ("import_string", "reason"),
    [
        ("no.such.module:Backend", "No module named"),
        ("tests.api.test_auth:NoSuchName", "has no attribute"),
        ("tests.api.test_auth:broken_factory", "JWKS_URL is not set"),
        ("tests.api.test_auth:token", "missing 1 required positional argument"),
        ("tests.api.test_auth:WWW", "not callable"),
        ("tests.api.test_auth:Anyone", "missing 1 required positional argument"),
        ("logging:Formatter", "has no coroutine function authenticate()"),
        ("tests.api.test_auth:Blocking", "has no coroutine function authenticate()"),
    ],
)
def test_bad_import_string_aborts_the_start(import_string: str, reason: str) -> None:
    settings = settings_for("postgresql://nowhere/nothing", auth_backend=import_string)

    with pytest.raises(SettingsError) as caught:
        create_app(settings)

    assert str(caught.value).startswith("AUTH_BACKEND ")
    assert import_string in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_backend_returns_the_instance() -> None:
    assert load_backend("tests.api.test_auth:INSTANCE") is INSTANCE
    assert load_backend("tests.api.test_auth:factory") is INSTANCE
