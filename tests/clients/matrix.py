"""Clients that common generators build from openapi.json: they compile strictly and can use the whole API.

Not part of `make test`, because the generators are many packages: `make test-clients` installs and runs them.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.openapi import WRITTEN
from tests.support.serving import BIN, UNMEASURED, development

HERE = Path(__file__).parent
GENERATE = """
npx openapi-typescript openapi.json --output generated/openapi-typescript.d.ts
npx openapi-ts
npx orval
openapi-python-client generate --path openapi.json --output-path generated_python --meta none
"""
DONE = """\
created 201 Buy milk
paged Water the plants, Buy milk
unchanged 304
updated 200 Two litres
refused 412
completed complete
listed true
deleted 204
gone 404
"""


def run(*command: str, cwd: Path, **environment: str) -> str:
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    ended = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **UNMEASURED, **environment, "PATH": path, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this folder with the generated clients."""
    folder = tmp_path_factory.mktemp("clients") / "clients"
    shutil.copytree(HERE, folder, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    (folder / "node_modules").symlink_to(HERE / "node_modules")
    shutil.copy(WRITTEN, folder)
    run("sh", "-ec", GENERATE, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with development(tmp_path_factory.mktemp("development")) as url:
        yield url


def test_typescript_compiles_strictly(folder: Path) -> None:
    assert run("npx", "tsc", cwd=folder) == ""


@pytest.mark.parametrize("client", ["openapi-typescript", "hey-api", "react-query", "orval"])
def test_typescript_does_all_the_api_offers(folder: Path, url: str, client: str) -> None:
    assert run("node", f"{client}.ts", cwd=folder, TODO_API=url, USER_ID=client, TOKEN=client) == DONE


def test_python_compiles_strictly(folder: Path) -> None:
    # client.py is the same for every document and has type errors of its own, which are not reported.
    options = ("--strict", "--config-file=", "--explicit-package-bases", "--follow-imports=silent")

    run("mypy", *options, "python_client.py", "generated_python/api", "generated_python/models", cwd=folder)


def test_python_does_all_the_api_offers(folder: Path, url: str) -> None:
    program = (sys.executable, "python_client.py")

    assert run(*program, cwd=folder, TODO_API=url, USER_ID="python", TOKEN="python") == DONE
