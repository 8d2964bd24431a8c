"""The JavaScript of the guide for front ends is run against the service that `make run` starts."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support.better_auth import NODE
from tests.support.guide import GUIDE
from tests.support.openapi import WRITTEN
from tests.support.serving import development

[HELPER] = re.findall(r"```js\n(.+?)```", GUIDE, re.DOTALL)
# The first token is expired, and another client changes the task before the first PUT.
BEFORE = """
const { TODO_API } = process.env;
const user_id = "alice";
const tokens = ["", "alice"];
const newToken = async () => tokens.shift();
const statuses = [];
const send = globalThis.fetch;
globalThis.fetch = async (url, { headers, ...options }) => {
  if (options.method === "PUT" && !statuses.includes(412)) {
    await send(url, { ...options, headers: { ...headers, "If-Match": "*" }, body: '{"title": "changed meanwhile"}' });
  }
  const response = await send(url, { headers, ...options });
  statuses.push(response.status);
  return response;
};
"""
AFTER = "console.log(JSON.stringify([tasks.map(({ title }) => title), statuses, (await response.json()).title]));"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with development(tmp_path_factory.mktemp("development")) as url:
        yield url


def test_helper_pages_renews_token_and_retries(url: str, tmp_path: Path) -> None:
    for title in ("first", "second", "third"):
        answer = httpx2.post(f"{url}/api/alice/tasks", headers={"Authorization": "Bearer alice"}, json={"title": title})
        assert answer.status_code == 201
    program = tmp_path / "program.mjs"
    program.write_text(BEFORE + HELPER.replace("limit=100", "limit=2") + AFTER)

    said = subprocess.run([NODE, str(program)], env={"TODO_API": url}, capture_output=True, text=True, check=False)

    assert said.stderr == ""
    titles, statuses, title = json.loads(said.stdout)
    assert titles == ["third", "second", "first"]
    assert statuses == [401, 200, 200, 200, 412, 200, 200], "renewed; two pages; read, refused, read, changed"
    assert title == "changed meanwhile!"


def test_javascript_agrees_on_blank_titles(tmp_path: Path) -> None:
    pattern = json.loads(WRITTEN.read_text())["components"]["schemas"]["TaskCreate"]["properties"]["title"]["pattern"]
    program = tmp_path / "program.mjs"
    program.write_text(f"""
        const blank = [];
        for (let code = 0; code < 0x110000; code++) {{
          const text = String.fromCodePoint(code);
          for (const flags of ["", "u", "v"]) {{
            if (!new RegExp({json.dumps(pattern)}, flags).test(text)) blank.push(code);
          }}
        }}
        console.log(JSON.stringify(blank));
    """)

    said = subprocess.run([NODE, str(program)], capture_output=True, text=True, check=True)

    blank = [code for code in range(0x110000) if chr(code).isspace() or code == 0]
    assert json.loads(said.stdout) == [code for code in blank for _ in ("", "u", "v")]
