import re

import pytest
from starlette.testclient import TestClient

from tests.support.api import CheckedClient, Person, error
from tests.support.postgres import settings_for
from todo_api.main import create_app

ORIGIN = "https://app.example.com"


@pytest.mark.parametrize("path", ["", "/1", "/x", "/1/nothing"])
@pytest.mark.parametrize("anonymous", [True, False])
def test_api_responses_are_private_no_cache(alice: Person, path: str, *, anonymous: bool) -> None:
    headers = {} if anonymous else alice.headers

    answer = alice.client.get(alice.path + path, headers=headers)

    assert answer.headers["cache-control"] == "private, no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "Authorization" in answer.headers["vary"].split(", ")


def test_other_paths_have_no_cache_control(client: CheckedClient) -> None:
    assert "cache-control" not in client.get("/openapi.json").headers


class TestCors:
    def test_allowed_origin_gets_cors_headers(self, alice: Person) -> None:
        answer = alice.ask("GET", headers={"Origin": ORIGIN})

        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert answer.headers["access-control-expose-headers"] == (
            "Location, ETag, Link, Idempotency-Replayed, Retry-After, X-Request-ID"
        )
        assert answer.headers["vary"] == "Origin, Authorization"

    @pytest.mark.parametrize(
        "origin", ["https://evil.example", "null", ORIGIN + ".evil.example", "http://app.example.com"]
    )
    def test_other_origin_gets_no_cors_headers(self, alice: Person, origin: str) -> None:
        answer = alice.ask("GET", headers={"Origin": origin})

        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers

    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
    def test_preflight_requires_no_authentication(self, client: CheckedClient, method: str) -> None:
        asked = "authorization, content-type, if-match, if-none-match, idempotency-key, x-request-id"
        answer = client.options(
            "/api/alice/tasks",
            headers={
                "Origin": ORIGIN,
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": asked,
            },
        )

        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert method in answer.headers["access-control-allow-methods"]
        assert int(answer.headers["access-control-max-age"]) > 0

    @pytest.mark.parametrize("asked", ["x-anything, traceparent", ",authorization,, ,", "*", None])
    @pytest.mark.parametrize("method", ["GET", "BREW"])
    def test_preflight_allows_any_headers_asked(self, client: CheckedClient, method: str, asked: str | None) -> None:
        headers = {
            "Origin": ORIGIN,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Private-Network": "true",
        }
        if asked:
            headers["Access-Control-Request-Headers"] = asked

        answer = client.options("/nothing", headers=headers)

        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert asked is None or answer.headers["access-control-allow-headers"] == asked
        assert "BREW" not in answer.headers["access-control-allow-methods"]
        assert "Origin" in answer.headers["vary"]

    @pytest.mark.parametrize("origin", ["https://evil.example", "null", ORIGIN + ".evil.example"])
    def test_preflight_from_another_origin_is_refused(self, client: CheckedClient, origin: str) -> None:
        answer = client.options("/api/a/tasks", headers={"Origin": origin, "Access-Control-Request-Method": "GET"})

        assert (answer.status_code, answer.json()) == (400, error("Disallowed CORS origin"))
        assert "access-control-allow-origin" not in answer.headers
        assert "Origin" in answer.headers["vary"]

    @pytest.mark.parametrize("origin", ["capacitor://localhost", "tauri://localhost", "chrome-extension://abcdef"])
    def test_origins_of_any_scheme(self, origin: str) -> None:
        client = TestClient(create_app(settings_for("postgresql://nowhere/nothing", cors_origins=f"{ORIGIN},{origin}")))

        answer = client.get("/nothing", headers={"Origin": origin})

        assert answer.headers["access-control-allow-origin"] == origin

    def test_no_origin_is_allowed_by_default(self) -> None:
        client = TestClient(create_app(settings_for("postgresql://nowhere/nothing")))

        answer = client.get("/nothing", headers={"Origin": "http://localhost:3000"})

        assert answer.json() == error("Not found")
        assert "access-control-allow-origin" not in answer.headers


class TestRequestId:
    @pytest.mark.parametrize("request_id", ["a", "A-z_0.9", "x" * 128])
    def test_valid_request_id_is_echoed(self, client: CheckedClient, request_id: str) -> None:
        answer = client.get("/health/live", headers={"X-Request-ID": request_id})

        assert answer.headers.get_list("x-request-id") == [request_id]

    @pytest.mark.parametrize("request_id", ["", "x" * 129, "a b", "a\tb", "é", "a;b", "<b>"])
    def test_invalid_request_id_is_replaced(self, client: CheckedClient, request_id: str) -> None:
        made = client.get("/health/live", headers={b"X-Request-ID": request_id.encode()}).headers["x-request-id"]

        assert re.fullmatch("[0-9a-f]{32}", made)
        assert made != request_id
        assert made != client.get("/health/live").headers["x-request-id"]
