"""The documentation page: it loads nothing from other hosts, and a setting disables it."""

import re
from base64 import b64encode
from hashlib import sha256
from urllib.parse import urljoin

import pytest
from starlette.testclient import TestClient

from tests.support.api import CheckedClient, error
from todo_api.main import create_app
from todo_api.settings import Settings


def test_page_loads_only_from_the_service(client: CheckedClient) -> None:
    page = client.get("/docs").text

    loaded = re.findall(r"""(?:src=|href=|url: )["']([^"']+)""", page)
    assert loaded == ["docs/swagger-ui.css", "data:,", "docs/swagger-ui-bundle.js", "openapi.json"]
    types = [client.get(urljoin("/docs", path)).headers["content-type"] for path in loaded if path != "data:,"]
    assert types == ["text/css; charset=utf-8", "text/javascript; charset=utf-8", "application/json"]
    assert "//" not in page.replace("<!--", "")


def test_page_has_strict_content_security_policy(client: CheckedClient) -> None:
    answer = client.get("/docs")

    [inline] = re.findall("<script>(.*?)</script>", answer.text, re.DOTALL)
    digest = b64encode(sha256(inline.encode()).digest()).decode()
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "script-src": f"'self' 'sha256-{digest}'",
        "style-src": "'self' 'unsafe-inline'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_openapi_document_names_root_path(settings: Settings) -> None:
    document = TestClient(create_app(settings), root_path="/todo").get("/todo/openapi.json").json()

    assert document["servers"] == [{"url": "/todo"}]


FILES = ["/docs", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js"]


def test_root_redirects_to_docs(client: CheckedClient) -> None:
    answer = client.get("/", follow_redirects=False)

    assert (answer.status_code, answer.headers["location"]) == (307, "docs")


@pytest.mark.parametrize("path", FILES)
def test_files_answer_if_none_match(client: CheckedClient, path: str) -> None:
    whole = client.get(path)

    for tag in (whole.headers["etag"], f"W/{whole.headers['etag']}"):
        answer = client.get(path, headers={"If-None-Match": tag})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == whole.headers["etag"]
    assert client.get(path, headers={"If-None-Match": '"other"'}).content == whole.content


@pytest.mark.parametrize("path", [*FILES, "/openapi.json", "/health/live"])
@pytest.mark.parametrize("value", ["bytes=0-1", "bytes=99999999999-", "bytes=5-2", "items=0-5", "bytes=abc"])
def test_range_is_ignored(client: CheckedClient, path: str, value: str) -> None:
    answer = client.get(path, headers={"Range": value})

    assert (answer.status_code, answer.content) == (200, client.get(path).content)
    assert "accept-ranges" not in answer.headers


@pytest.mark.parametrize("path", ["/", *FILES, "/openapi.json"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_disabled_docs_are_not_found(settings: Settings, method: str, path: str) -> None:
    app = create_app(settings.model_copy(update={"docs_enabled": False}))

    answer = TestClient(app).request(method, path)

    assert (answer.status_code, answer.json()) == (404, error("Not found"))
