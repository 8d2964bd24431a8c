"""Validates responses against the OpenAPI document. Run as a command, writes the document to openapi.json."""

import json
import re
from pathlib import Path
from typing import Any

import httpx2
import jsonschema_rs

from tests.support.postgres import settings_for
from todo_api.main import create_app

WRITTEN = Path(__file__).parents[2] / "openapi.json"
_SCHEMAS = json.loads(WRITTEN.read_text())["components"]["schemas"]
# The fields of a task, in the order of its JSON; and those that an update takes.
FIELDS = list(_SCHEMAS["TaskPublic"]["properties"])
UPDATE_FIELDS = list(_SCHEMAS["TaskUpdate"]["properties"])
NO_SCHEMA = (
    "/",
    "/health",
    "/health/live",
    "/health/ready",
    "/docs",
    "/docs/swagger-ui-bundle.js",
    "/docs/swagger-ui.css",
    "/openapi.json",
)


class Document:
    """An OpenAPI document that responses can be validated against."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._validators: dict[str, Any] = {}
        self._templates = [
            (re.compile(re.sub(r"\{\w+\}", "[^/]+", template)), template) for template in document["paths"]
        ]

    def check(self, method: str, path: str, answer: httpx2.Response) -> None:
        """Fail unless the document allows the response; errors on undocumented paths need only the error shape."""
        if answer.status_code >= 400 and method != "HEAD":
            assert answer.headers["content-type"] == "application/json"
            assert answer.json().keys() == {"error"}
            assert isinstance(answer.json()["error"], str)
            assert answer.json()["error"]
        assert answer.headers["x-request-id"]
        operation = self._operation("GET" if method == "HEAD" else method, path)
        if operation is None:
            assert answer.status_code in (404, 405) or path in NO_SCHEMA or method == "OPTIONS", (method, path)
            return
        described = operation["responses"].get(str(answer.status_code))
        assert described is not None, f"{method} {path} answered an undocumented {answer.status_code}"
        for name, header in described.get("headers", {}).items():
            assert name in answer.headers or not header.get("required"), name
            if name in answer.headers:
                text = answer.headers[name]
                self._validate(header["schema"], int(text) if header["schema"]["type"] == "integer" else text)
        if method == "HEAD":
            assert answer.content == b""
        elif "content" in described:
            assert answer.headers["content-type"] == "application/json"
            self._validate(described["content"]["application/json"]["schema"], answer.json())
        else:
            assert answer.content == b""
            assert "content-type" not in answer.headers

    def _validate(self, schema: dict[str, Any], value: object) -> None:
        key = str(schema)
        if key not in self._validators:
            whole = {**schema, "components": self.document["components"]}
            self._validators[key] = jsonschema_rs.validator_for(whole, validate_formats=True)
        self._validators[key].validate(value)

    def _operation(self, method: str, path: str) -> dict[str, Any] | None:
        for pattern, template in self._templates:
            if pattern.fullmatch(path):
                operation: dict[str, Any] | None = self.document["paths"][template].get(method.lower())
                return operation
        return None


if __name__ == "__main__":
    said = create_app(settings_for("postgresql://nowhere/nothing")).openapi()
    WRITTEN.write_text(json.dumps(said, indent=2) + "\n")
