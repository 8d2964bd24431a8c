"""The authentication backend for Better Auth, with its keys served on loopback."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import OKPAlgorithm, RSAAlgorithm
from starlette.authentication import AuthenticationError
from starlette.requests import HTTPConnection
from starlette.testclient import TestClient

import better_auth
from better_auth import BetterAuth
from tests.support.api import Person, error
from tests.support.threads import untraced
from todo_api.auth import load_backend
from todo_api.errors import SettingsError
from todo_api.main import create_app
from todo_api.settings import Settings

KEY = Ed25519PrivateKey.generate()
OTHER_KEY = Ed25519PrivateKey.generate()
RSA_KEY = generate_private_key(65537, 2048)
NEVER = 3600.0


def jwk(key_id: str, key: Ed25519PrivateKey) -> dict[str, Any]:
    """Build the JWK of a public key as Better Auth does."""
    return {**OKPAlgorithm.to_jwk(key.public_key(), as_dict=True), "alg": "EdDSA", "kid": key_id}


class KeyServer(ThreadingHTTPServer):
    """Publishes keys at Better Auth's path, records the requests, and responds only while `open` is set.

    If `dripping` is set, it sends that and then one byte every 20 ms without end.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.origin = f"http://127.0.0.1:{self.server_port}"
        self.body = b""
        self.status = 200
        self.dripping: bytes | None = None
        self.asked: list[str] = []
        self.agents: list[str | None] = []
        self.reached = threading.Event()
        self.open = threading.Event()
        self.open.set()
        self.publish(jwk("one", KEY))

    def publish(self, *keys: dict[str, Any]) -> None:
        """Replace the published keys."""
        self.body = json.dumps({"keys": keys}).encode()

    def token(self, key: Any = KEY, key_id: str | None = "one", algorithm: str = "EdDSA", **claims: Any) -> str:
        """Sign a token as Better Auth does, with other claims if given; None leaves a claim out."""
        expiry = datetime.now(UTC) + timedelta(minutes=15)
        payload = {"sub": "alice", "iss": self.origin, "aud": self.origin, "exp": expiry, **claims}
        payload = {name: value for name, value in payload.items() if value is not None}
        return jwt.encode(payload, key, algorithm, headers={"kid": key_id} if key_id else None)


class Answer(BaseHTTPRequestHandler):
    server: KeyServer

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.agents.append(self.headers["User-Agent"])
        self.server.reached.set()
        self.server.open.wait()
        if self.server.dripping is not None:
            with suppress(OSError):  # until the client closes the connection
                self.wfile.write(self.server.dripping)
                while True:
                    self.wfile.write(b" ")
                    time.sleep(0.02)
        self.send_response(307 if self.path == "/moved" else self.server.status)
        self.send_header("Location", "/api/auth/jwks")
        with suppress(BrokenPipeError):  # the client may not have waited
            self.end_headers()
            self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyServer]:
    with untraced(), KeyServer() as server:
        monkeypatch.setenv("BETTER_AUTH_URL", server.origin)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.open.set()
        server.shutdown()
        thread.join()


async def identity(backend: BetterAuth, authorization: str) -> str | None:
    headers = [(b"authorization", authorization.encode("latin-1"))]
    result = await backend.authenticate(HTTPConnection({"type": "http", "headers": headers}))
    return None if result is None else result[1].identity


async def is_refused(backend: BetterAuth, token: str) -> bool:
    try:
        await identity(backend, f"Bearer {token}")
    except AuthenticationError:
        return True
    return False


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "Bearer    "])
def test_token_identifies_the_user(keys: KeyServer, scheme: str) -> None:
    assert asyncio.run(identity(BetterAuth(), f"{scheme}{keys.token()}")) == "alice"
    assert keys.asked == ["/api/auth/jwks"]
    assert keys.agents == ["todo-api"]


@pytest.mark.parametrize("authorization", ["", "Basic YWxpY2U6", "alice"])
def test_no_keys_fetched_without_token(keys: KeyServer, authorization: str) -> None:
    assert asyncio.run(identity(BetterAuth(), authorization)) is None
    assert keys.asked == []


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("", "/api/auth/jwks"),
        ("/", "/api/auth/jwks"),
        ("/auth", "/auth/jwks"),
        ("/auth/", "/auth/jwks"),
        ("/a/b", "/a/b/jwks"),
    ],
)
def test_keys_url_is_below_base_url(keys: KeyServer, monkeypatch: pytest.MonkeyPatch, path: str, asked: str) -> None:
    monkeypatch.setenv("BETTER_AUTH_URL", keys.origin + path)

    assert asyncio.run(identity(BetterAuth(), f"Bearer {keys.token()}")) == "alice"
    assert keys.asked == [asked]


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://App.Example.com:443/auth", "https://app.example.com"),
        ("https://bücher.example:8443", "https://xn--bcher-kva.example:8443"),
    ],
)
def test_keys_may_have_another_url(keys: KeyServer, monkeypatch: pytest.MonkeyPatch, url: str, origin: str) -> None:
    monkeypatch.setenv("BETTER_AUTH_URL", url)
    monkeypatch.setenv("BETTER_AUTH_JWKS_URL", f"{keys.origin}/internal/keys")

    token = keys.token(iss=origin, aud=origin)  # Better Auth signs `new URL(url).origin`
    assert asyncio.run(identity(BetterAuth(), f"Bearer {token}")) == "alice"
    assert keys.asked == ["/internal/keys"]


def header(text: str) -> str:
    return f"{jwt.utils.base64url_encode(text.encode()).decode()}.e30.AAAA"


PUBLIC = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
SECONDS_AGO = datetime.now(UTC) - timedelta(seconds=60)
REFUSED: dict[str, Callable[[KeyServer], str]] = {
    "another's key": lambda keys: keys.token(OTHER_KEY),
    "another's key by its own id": lambda keys: keys.token(OTHER_KEY, "two"),
    "no key id": lambda keys: keys.token(key_id=None),
    "expired": lambda keys: keys.token(exp=SECONDS_AGO),
    "not valid yet": lambda keys: keys.token(nbf=datetime.now(UTC) + timedelta(minutes=5)),
    "another issuer": lambda keys: keys.token(iss="https://elsewhere.example"),
    "another audience": lambda keys: keys.token(aud="https://elsewhere.example"),
    "no issuer": lambda keys: keys.token(iss=None),
    "no audience": lambda keys: keys.token(aud=None),
    "no expiry": lambda keys: keys.token(exp=None),
    "no subject": lambda keys: keys.token(sub=None),
    "unsigned": lambda keys: keys.token("", algorithm="none"),
    "signed with the public key as a secret": lambda keys: keys.token(PUBLIC.hex(), algorithm="HS256"),
    "another algorithm": lambda keys: keys.token(RSA_KEY, "rsa", algorithm="RS256"),
    "changed": lambda keys: keys.token().replace(".", ".e", 1),
    "cut": lambda keys: keys.token().rpartition(".")[0],
    "empty": lambda _: "",
    "garbage": lambda _: "x.y.z",
    "not ASCII": lambda _: "zoë.é.ü",
    "header no object": lambda _: header("[]"),
    "header nested deep": lambda _: header("[" * 20_000),
    "key id no text": lambda _: header('{"alg": "EdDSA", "kid": ["one"]}'),
    "no algorithm": lambda _: header('{"kid": "one"}'),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())
def test_invalid_token_is_refused(keys: KeyServer, make: Callable[[KeyServer], str]) -> None:
    rsa = {**RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True), "alg": "RS256", "kid": "rsa"}
    keys.publish(jwk("one", KEY), rsa)

    assert asyncio.run(is_refused(BetterAuth(), make(keys)))


def test_redirect_to_keys_is_followed(keys: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BETTER_AUTH_JWKS_URL", f"{keys.origin}/moved")

    assert asyncio.run(identity(BetterAuth(), f"Bearer {keys.token()}")) == "alice"
    assert keys.asked == ["/moved", "/api/auth/jwks"]


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (REFUSED["expired"], jwt.ExpiredSignatureError),
        (REFUSED["another issuer"], jwt.InvalidIssuerError),
        (REFUSED["another's key"], jwt.InvalidSignatureError),
        (REFUSED["another's key by its own id"], better_auth.UnknownKey),
        (REFUSED["garbage"], jwt.DecodeError),
    ],
)
def test_authentication_error_has_its_cause(
    keys: KeyServer, make: Callable[[KeyServer], str], cause: type[Exception]
) -> None:
    with pytest.raises(AuthenticationError) as refused:
        asyncio.run(identity(BetterAuth(), f"Bearer {make(keys)}"))

    assert type(refused.value.__cause__) is cause


def test_clock_skew_of_seconds_is_accepted(keys: KeyServer) -> None:
    now = datetime.now(UTC)
    early = keys.token(iat=now + timedelta(seconds=5))
    late = keys.token(exp=now - timedelta(seconds=1))

    async def scenario() -> list[str | None]:
        backend = BetterAuth()
        return [await identity(backend, f"Bearer {token}") for token in (early, late)]

    assert asyncio.run(scenario()) == ["alice", "alice"]


def test_concurrent_requests_share_one_fetch(keys: KeyServer) -> None:
    keys.open.clear()

    async def scenario() -> list[Any]:
        backend = BetterAuth()
        waiting = [asyncio.create_task(identity(backend, f"Bearer {keys.token(sub=str(n))}")) for n in range(20)]
        assert await asyncio.to_thread(keys.reached.wait, 10)
        waiting[0].cancel()  # cancelling one request does not cancel the shared fetch
        keys.open.set()
        return await asyncio.gather(*waiting, return_exceptions=True)

    answers = asyncio.run(scenario())

    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == [str(n) for n in range(1, 20)]
    assert len(keys.asked) == 1


def test_new_key_is_fetched_at_first_token(keys: KeyServer) -> None:
    async def scenario() -> None:
        backend = BetterAuth()
        for number in range(3):
            key = Ed25519PrivateKey.generate()
            keys.publish(jwk("old", KEY), jwk(f"new {number}", key))
            assert await identity(backend, f"Bearer {keys.token(key, f'new {number}')}") == "alice"
            assert await identity(backend, f"Bearer {keys.token(key_id='old')}") == "alice"

    asyncio.run(scenario())
    assert len(keys.asked) == 3


def test_unknown_key_fetches_once_per_cool_down(keys: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(invented: int) -> None:
        backend = BetterAuth()
        assert await identity(backend, f"Bearer {keys.token()}") == "alice"
        for number in range(invented):
            assert await is_refused(backend, keys.token(OTHER_KEY, f"invented {number}"))
            assert await identity(backend, f"Bearer {keys.token()}") == "alice"

    monkeypatch.setattr(better_auth, "COOL_DOWN", NEVER)
    asyncio.run(scenario(5))
    assert len(keys.asked) == 2
    keys.asked.clear()
    monkeypatch.setattr(better_auth, "COOL_DOWN", 0)
    asyncio.run(scenario(5))
    assert len(keys.asked) == 6


FAULTS: dict[str, Callable[[KeyServer], None]] = {
    "an error": lambda keys: setattr(keys, "status", 500),
    "too large": lambda keys: setattr(keys, "body", keys.body + b" " * better_auth.MAX_BYTES),
    "a page": lambda keys: setattr(keys, "body", b"<html>"),
    "no keys": lambda keys: keys.publish(),
    "keys of another kind": lambda keys: keys.publish({"kty": "oct", "kid": "one", "k": "AAAA", "alg": "A128KW"}),
    "keys for encryption": lambda keys: keys.publish({**jwk("two", OTHER_KEY), "use": "enc"}),
    "nothing": lambda keys: keys.socket.close(),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_failed_fetch_keeps_the_known_keys(
    keys: KeyServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: Callable[[KeyServer], None],
) -> None:
    monkeypatch.setattr(better_auth, "LIFESPAN", 0)

    async def scenario() -> None:
        backend = BetterAuth()
        assert await identity(backend, f"Bearer {keys.token()}") == "alice"
        fault(keys)
        assert await is_refused(backend, keys.token(OTHER_KEY, "two"))
        assert await identity(backend, f"Bearer {keys.token()}") == "alice"

    asyncio.run(scenario())
    assert [record.message for record in caplog.records if record.name == "better_auth"] == [
        f"Better Auth's keys cannot be fetched from {keys.origin}/api/auth/jwks"
    ]


def test_withdrawn_key_is_refused_after_refresh(
    keys: KeyServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(better_auth, "LIFESPAN", 0)
    monkeypatch.setattr(better_auth, "COOL_DOWN", 0)

    async def scenario() -> None:
        backend = BetterAuth()
        assert not await is_refused(backend, keys.token())
        keys.publish(jwk("two", OTHER_KEY))
        keys.open.clear()
        keys.reached.clear()
        assert not await is_refused(backend, keys.token())
        assert await asyncio.to_thread(keys.reached.wait, 10)
        assert caplog.records == [], "nobody waits for a key that is known, until the fetch is given up"
        keys.open.set()
        assert not await is_refused(backend, keys.token(OTHER_KEY, "two")), "this one waits for the fetch under way"
        assert await is_refused(backend, keys.token())

    asyncio.run(scenario())


def test_without_keys_a_token_gets_500(
    keys: KeyServer, settings: Settings, alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(better_auth, "COOL_DOWN", 0)
    keys.status = 503
    with TestClient(create_app(settings, BetterAuth()), raise_server_exceptions=False) as client:
        mine = {"Authorization": f"Bearer {keys.token(sub=alice.id)}"}
        answer = client.get(alice.path, headers=mine)
        assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
        assert client.get(alice.path, headers={"Authorization": "Bearer x.y.z"}).status_code == 401

        keys.status = 200
        assert client.get(alice.path, headers=mine).json() == []


def test_cool_down_applies_without_keys(keys: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(better_auth, "COOL_DOWN", NEVER)
    keys.status = 503

    async def scenario() -> None:
        backend = BetterAuth()
        for _ in range(3):
            with pytest.raises(RuntimeError, match="No keys of Better Auth have been fetched from http"):
                await identity(backend, f"Bearer {keys.token()}")

    asyncio.run(scenario())
    assert len(keys.asked) == 1


@pytest.mark.parametrize("sent", [b"HTTP/1.0 200 OK\r\nX: ", b"HTTP/1.0 200 OK\r\n\r\n"], ids=["head", "body"])
def test_slow_fetch_of_keys_times_out(
    keys: KeyServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    monkeypatch.setattr(better_auth, "TIMEOUT", 0.5)
    keys.dripping = sent

    async def scenario() -> list[Any]:
        backend = BetterAuth()
        requests = (identity(backend, f"Bearer {keys.token()}") for _ in range(3))
        async with asyncio.timeout(10):
            return await asyncio.gather(*requests, return_exceptions=True)

    assert [type(answer) for answer in asyncio.run(scenario())] == [RuntimeError] * 3
    [record] = (record for record in caplog.records if record.name == "better_auth")
    assert record.exc_info
    assert record.exc_info[0] is TimeoutError
    assert len(keys.asked) == 1


@pytest.mark.parametrize("variable", ["BETTER_AUTH_URL", "BETTER_AUTH_JWKS_URL"])
@pytest.mark.parametrize("url", ["localhost:3000", "/api/auth", "ftp://localhost"])
def test_invalid_url_aborts_the_start(
    keys: KeyServer, monkeypatch: pytest.MonkeyPatch, variable: str, url: str
) -> None:
    monkeypatch.setenv(variable, url)

    with pytest.raises(SettingsError, match=r"^AUTH_BACKEND cannot be loaded from better_auth:BetterAuth: [^\n]+$"):
        load_backend("better_auth:BetterAuth")


def test_missing_url_aborts_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BETTER_AUTH_URL", raising=False)

    with pytest.raises(SettingsError, match=r"^AUTH_BACKEND cannot be loaded from better_auth:BetterAuth: [^\n]+$"):
        load_backend("better_auth:BetterAuth")
