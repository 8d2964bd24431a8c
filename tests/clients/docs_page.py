"""The documentation page in Chromium: every operation can be tried, on a phone too. Run by `make test-clients`."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.better_auth import NODE
from tests.support.serving import development

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
DONE = """\
createTask 201 Two litres
createTask 201 Two litres
listTasks 200 2
updateTask 200 Two litres
getTask 200 Two litres
completeTask 200 Two litres
deleteTask 204
too wide by 0
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH, and none named by CHROMIUM")
def test_all_operations_can_be_tried_at_phone_width(tmp_path: Path) -> None:
    with development(tmp_path) as url:
        environment = {"TODO_API": url, "CHROMIUM": str(CHROMIUM), "SCREENSHOT": str(tmp_path / "docs.png")}
        ended = subprocess.run(
            [NODE, "docs-page.ts"],
            cwd=Path(__file__).parent,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    assert "".join(f"{line.rstrip()}\n" for line in ended.stdout.splitlines()) == DONE, ended.stderr
