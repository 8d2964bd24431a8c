"""The layers of the package: a module imports only from lower layers."""

import ast
import re
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

import todo_api

PACKAGE = Path(todo_api.__file__).parent
# From the lowest up. A module may import modules of lower layers, and those listed before it in its own.
LAYERS = [
    ["errors", "logs", "database_url", "settings", "refusals"],
    ["fields", "models"],
    ["statements", "database"],
    ["tasks"],
    ["auth"],
    ["paging", "conditions", "inputs", "owner_route", "openapi", "error_handlers"],
    ["routes", "health", "middleware", "admission", "door", "telemetry", "docs"],
    ["main"],
    ["asgi", "uvicorn_http"],
    ["migrations"],
    ["dev"],
    ["cli"],
]
ORDER = [module for layer in LAYERS for module in layer]
# A module that imports one of these depends on HTTP.
WEB = {"fastapi", "starlette", "uvicorn"}
BELOW_HTTP = ORDER[: ORDER.index("tasks") + 1]


def source(module: str) -> ast.Module:
    """Parse a module, or all those of a package; the package that holds them all stands for its own file."""
    path = PACKAGE / (module or "__init__")
    files = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    return ast.parse("\n".join(file.read_text() for file in files))


def imported(module: str) -> set[str]:
    """Name everything that a module imports, whether at its top or in a function; `a.b` for `from a import b`."""
    names = set()
    for node in ast.walk(source(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(module: str) -> set[str]:
    return {name.split(".")[1] for name in imported(module) if name.startswith("todo_api.")} - {module}


def test_every_module_has_a_layer() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }

    assert modules - {"__init__"} == set(ORDER)
    assert source("").body[1:] == [], "the package itself holds only its docstring"


@pytest.mark.parametrize("module", ORDER)
def test_modules_import_only_lower_layers(module: str) -> None:
    assert own(module) <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("module", BELOW_HTTP)
def test_layers_up_to_tasks_import_no_http(module: str) -> None:
    assert {name.split(".")[0] for name in imported(module)} & WEB == set()


@pytest.mark.parametrize("module", ORDER)
def test_only_error_handlers_use_http_exception(module: str) -> None:
    uses = {node.id for node in ast.walk(source(module)) if isinstance(node, ast.Name)}

    # An authentication layer may raise one: it is taken for a rejection or a fault of the layer.
    assert ("HTTPException" in uses) == (module in ("auth", "error_handlers"))


@pytest.mark.parametrize("module", ORDER)
def test_only_statements_build_sql(module: str) -> None:
    statements = {"insert", "select", "update", "delete"}
    makers = {name.rpartition(".")[2] for name in imported(module) if name.split(".")[0] in {"sqlalchemy", "sqlmodel"}}

    # Readiness selects columns and reads no row; the development identity creates accounts.
    allowed = {"statements": statements, "health": {"select"}, "dev": {"insert"}}.get(module, set())
    assert makers & statements == allowed


def production_imports() -> set[str]:
    """Name the packages that a process in production imports directly."""
    reachable, waiting = set(), ["main", "migrations"]
    while waiting:
        module = waiting.pop()
        reachable.add(module)
        waiting += own(module) - reachable
    roots = {name.split(".")[0] for module in reachable for name in imported(module)}
    return roots - sys.stdlib_module_names - {"todo_api"}


def test_production_imports_no_embedded_database() -> None:
    assert production_imports() == {
        "alembic", "asyncpg", "fastapi", "opentelemetry", "orjson", "pydantic", "pydantic_settings",
        "sqlalchemy", "sqlmodel", "starlette",
    }  # fmt: skip


@pytest.mark.slow
def test_production_imports_are_declared() -> None:
    needed = [name for name in requires("todo-api") or [] if "extra ==" not in name]
    declared = {re.split("[^A-Za-z0-9-]", name)[0] for name in needed}

    for package in production_imports():
        assert declared & {name.lower() for name in packages_distributions()[package]}, package
