"""The contents of the OpenAPI document. `CheckedClient` validates the responses of the whole suite against it."""

import json
import re
from importlib.metadata import version
from typing import Any

import jsonschema_rs
import pytest

from tests.support.api import CheckedClient, Person
from tests.support.openapi import WRITTEN

OPERATIONS = {
    ("/api/{user_id}/tasks", "get"): ("listTasks", {"200", "304", "400", "401", "404", "412", "500", "503"}),
    ("/api/{user_id}/tasks", "post"): ("createTask", {"201", "400", "401", "404", "409", "413", "500", "503"}),
    ("/api/{user_id}/tasks/{id}", "get"): ("getTask", {"200", "304", "400", "401", "404", "412", "500", "503"}),
    ("/api/{user_id}/tasks/{id}", "put"): ("updateTask", {"200", "400", "401", "404", "412", "413", "500", "503"}),
    ("/api/{user_id}/tasks/{id}", "delete"): ("deleteTask", {"204", "400", "401", "404", "412", "500", "503"}),
    ("/api/{user_id}/tasks/{id}/complete", "patch"): (
        "completeTask",
        {"200", "400", "401", "404", "412", "500", "503"},
    ),
}
PARAMETERS = {
    "listTasks": {"status", "limit", "cursor", "If-Match", "If-None-Match"},
    "createTask": {"Idempotency-Key"},
    "getTask": {"If-Match", "If-None-Match"},
    "updateTask": {"If-Match", "If-None-Match"},
    "deleteTask": {"If-Match", "If-None-Match"},
    "completeTask": {"If-Match", "If-None-Match"},
}


@pytest.fixture(scope="module")
def document(client: CheckedClient) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").json()
    assert client.get("/openapi.json").json() == document
    return document


def operation(document: dict[str, Any], path: str, method: str) -> dict[str, Any]:
    found: dict[str, Any] = document["paths"][path][method]
    return found


def test_committed_openapi_json_is_current(document: dict[str, Any]) -> None:
    assert json.loads(WRITTEN.read_text()) == document, "make openapi writes it anew"


def test_document_is_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")


def test_limits_are_whole_numbers(client: CheckedClient) -> None:
    text = client.get("/openapi.json").text

    assert text.count('"maximum":9223372036854775807') == 5, "four paths with an id, and a task"
    assert ".0" not in text.replace('"3.1.0"', "").replace(f'"{version("todo-api")}"', "")


def test_operations_have_exactly_their_codes(document: dict[str, Any]) -> None:
    described = {
        (path, method): (operation["operationId"], set(operation["responses"]))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }

    assert described == OPERATIONS


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_status_code_has_schema(document: dict[str, Any], path: str, method: str) -> None:
    def reference(name: str) -> dict[str, str]:
        return {"$ref": f"#/components/schemas/{name}"}

    for code, response in operation(document, path, method)["responses"].items():
        if code in ("204", "304"):
            assert "content" not in response
            continue
        assert response["content"].keys() == {"application/json"}
        schema = response["content"]["application/json"]["schema"]
        if code >= "400":
            assert schema == reference("Error")
            assert response["content"]["application/json"]["example"].keys() == {"error"}
        elif OPERATIONS[path, method][0] == "listTasks":
            assert (schema["type"], schema["items"]) == ("array", reference("TaskPublic"))
        else:
            assert schema == reference("TaskPublic")
    body = {"createTask": "TaskCreate", "updateTask": "TaskUpdate"}.get(OPERATIONS[path, method][0])
    if body is None:
        assert "requestBody" not in operation(document, path, method)
    else:
        assert operation(document, path, method)["requestBody"] == {
            "required": True,
            "content": {"application/json": {"schema": reference(body)}},
        }


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_parameters_have_their_limits(document: dict[str, Any], path: str, method: str) -> None:
    parameters = {parameter["name"]: parameter for parameter in operation(document, path, method)["parameters"]}

    assert parameters["user_id"]["schema"] == {"type": "string", "minLength": 1, "maxLength": 255}
    if "{id}" in path:
        limits = {"type": "integer", "format": "int64", "minimum": 1, "maximum": 2**63 - 1}
        assert limits.items() <= parameters["id"]["schema"].items()
    optional = {name for name, parameter in parameters.items() if parameter["in"] != "path"}
    assert optional == PARAMETERS.get(OPERATIONS[path, method][0], set())
    assert all(parameter.get("required", False) == (parameter["in"] == "path") for parameter in parameters.values())
    assert all(parameter["description"] for parameter in parameters.values())
    # The documentation page fills in examples, so optional parameters have none.
    assert {
        name for name, parameter in parameters.items() if "example" in str(parameter)
    } == parameters.keys() - optional


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_opaque_values_are_described_in_words(document: dict[str, Any], path: str, method: str) -> None:
    described = operation(document, path, method)

    if method != "get":
        assert ("If-Match" in described["description"]) == ("412" in described["responses"])
    assert ("cursor" in described["description"]) == (described["operationId"] == "listTasks")


def test_every_operation_requires_bearer_token(document: dict[str, Any]) -> None:
    assert document["security"] == [{"bearer": []}]
    [(name, scheme)] = document["components"]["securitySchemes"].items()
    assert (name, scheme["type"], scheme["scheme"]) == ("bearer", "http", "bearer")
    assert not any("security" in operation for path in document["paths"].values() for operation in path.values())


def test_schemas_and_their_required_fields(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    assert set(schemas) == {"TaskPublic", "TaskCreate", "TaskUpdate", "TaskStatus", "Error"}
    assert set(schemas["TaskPublic"]["required"]) == set(schemas["TaskPublic"]["properties"])
    assert schemas["TaskCreate"]["required"] == ["title"]
    for name in ("TaskPublic", "TaskUpdate"):
        assert schemas[name]["properties"]["status"] == {"$ref": "#/components/schemas/TaskStatus"}
    assert "anyOf" not in str(schemas), "code generators split the type, or lose its fields"
    assert "default" not in str(schemas)
    assert "422" not in str(document)


VALID: dict[str, list[Any]] = {
    "TaskCreate": [
        {"title": "x"},
        {"title": "x" * 255, "description": "y" * 5000, "status": 7},
        {"title": "\U0001f95b" * 255, "description": None},
        {"title": " x\n", "description": ""},
    ],
    "TaskUpdate": [{"title": "x"}, {"description": None}, {"status": "incomplete"}, {"status": "complete", "id": 1}],
}
INVALID: dict[str, list[Any]] = {
    "TaskCreate": [
        {},
        [],
        {"title": None},
        {"title": ""},
        {"title": " \t\n\u3000\x85"},
        {"title": "x" * 256},
        {"title": "a\0b"},
        {"title": 1},
        {"title": "x", "description": "y" * 5001},
        {"title": "x", "description": "\0"},
        {"title": "x", "description": 1},
    ],
    "TaskUpdate": [
        {},
        {"id": 1},
        {"title": None},
        {"title": "\x1c"},
        {"title": "x" * 256},
        {"status": "done"},
        {"status": None},
        {"description": False},
    ],
}


@pytest.mark.parametrize(("schema", "body"), [(name, body) for name, bodies in VALID.items() for body in bodies])
def test_body_allowed_by_schema_is_accepted(
    document: dict[str, Any], client: CheckedClient, alice: Person, schema: str, body: Any
) -> None:
    jsonschema_rs.validate(complete(document, schema), body)

    assert send(alice, schema, body) in (200, 201)


@pytest.mark.parametrize(("schema", "body"), [(name, body) for name, bodies in INVALID.items() for body in bodies])
def test_body_forbidden_by_schema_is_refused(
    document: dict[str, Any], client: CheckedClient, alice: Person, schema: str, body: Any
) -> None:
    assert not jsonschema_rs.is_valid(complete(document, schema), body)

    assert send(alice, schema, body) == 400


def complete(document: dict[str, Any], schema: str) -> dict[str, Any]:
    """Return a schema together with those that it refers to."""
    return {**document["components"]["schemas"][schema], "components": document["components"]}


def send(alice: Person, schema: str, body: Any) -> int:
    task = alice.create()
    method, path = ("POST", "") if schema == "TaskCreate" else ("PUT", f"/{task['id']}")
    return alice.ask(method, path, json=body).status_code


@pytest.mark.slow
def test_schema_and_python_agree_on_whitespace(document: dict[str, Any]) -> None:
    validator = jsonschema_rs.validator_for(document["components"]["schemas"]["TaskCreate"])
    pattern = re.compile(document["components"]["schemas"]["TaskCreate"]["properties"]["title"]["pattern"])
    surrogates = range(0xD800, 0xE000)

    disagreed = [
        hex(code)
        for code in range(1, 0x110000)
        if code not in surrogates
        and not validator.is_valid({"title": chr(code)}) == bool(pattern.search(chr(code))) == (not chr(code).isspace())
    ]

    assert disagreed == []


@pytest.mark.parametrize("name", ["TaskPublic", "TaskCreate", "TaskUpdate"])
def test_examples_match_their_schemas(document: dict[str, Any], name: str) -> None:
    schema = complete(document, name)

    jsonschema_rs.validate(schema, schema["example"])
    in_order = [field for field in schema["properties"] if field in schema["example"]]
    assert list(schema["example"]) == in_order, "in the order of real responses"


def test_update_example_keeps_the_description(document: dict[str, Any]) -> None:
    assert "description" not in document["components"]["schemas"]["TaskUpdate"]["example"]


def test_info_and_tags_are_described(document: dict[str, Any]) -> None:
    assert document["info"]["license"] == {"name": "MIT", "identifier": "MIT"}
    for text in (document["info"]["description"], document["components"]["securitySchemes"]["bearer"]["description"]):
        assert "alice" in text
    assert [tag["name"] for tag in document["tags"]] == ["tasks"]
    assert all(tag["description"] for tag in document["tags"])


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_error_examples_name_possible_errors(document: dict[str, Any], path: str, method: str) -> None:
    def example(code: str) -> str:
        described: str = responses[code]["content"]["application/json"]["example"]["error"]
        return described

    responses = operation(document, path, method)["responses"]
    assert example("404") == ("Task not found" if "{id}" in path else "User not found")
    assert (example("400") == "Invalid task ID") == ("{id}" in path)
