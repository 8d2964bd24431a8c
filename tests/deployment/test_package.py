"""The wheel and the sdist contain everything needed to migrate and serve."""

import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.support.serving import BIN, ROOT, UNMEASURED, free_port, process, wait_for

UV = str(BIN / "uv")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_package_can_migrate_and_serve(kind: str, empty_database: str, tmp_path: Path) -> None:
    site, archives = tmp_path / "site", tmp_path / "archives"
    offline = ["--quiet", "--offline", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([UV, "build", *offline, f"--{kind}", "--out-dir", str(archives), str(ROOT)], check=True)
    (archive,) = archives.glob("todo_api-*")
    subprocess.run([UV, "pip", "install", *offline, "--no-deps", "--target", str(site), str(archive)], check=True)
    environment = {**os.environ, "DATABASE_URL": empty_database, "PYTHONPATH": str(site), **UNMEASURED}
    command = ["-c", "import todo_api; print(todo_api.__file__)"]

    where = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=True)
    migrated = subprocess.run(
        [str(site / "bin" / "todo-api"), "migrate"], env=environment, capture_output=True, text=True, check=True
    )

    assert where.stdout == f"{site / 'todo_api' / '__init__.py'}\n"
    assert (site / "todo_api" / "py.typed").exists()
    assert migrated.stdout.startswith("Applied 0001, ")
    port = str(free_port())
    with process("uvicorn", "todo_api.main:app", "--port", port, environment=environment, cwd=tmp_path) as server:
        wait_for(f"http://127.0.0.1:{port}", server)
        assert httpx2.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200
