"""The commands of the README and the guides are run, and their output is compared with the one shown."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.api.test_auth import KEY, token
from tests.support.api import new_account
from tests.support.curl import curl
from tests.support.guide import GUIDE
from tests.support.serving import ROOT, free_port, process, uvicorn, wait_for
from todo_api.settings import Settings

EXAMPLES = re.findall(r"```sh\n(curl .+?)\n```\n\n```(?:json|http)\n(.*?)\n```", GUIDE, re.DOTALL)
MODULES = re.findall(r"```python\n# (\w+\.py),.*?\n(.+?)```", GUIDE, re.DOTALL)
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("examples/*/*.md"),
]
TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{6}Z")


def shows(shown: str, body: str) -> bool:
    """Tell whether a body contains what an example shows; the example may omit fields of a task."""
    if not shown:
        return not body

    def fields_of(text: str) -> list[dict[str, Any]]:
        parsed = json.loads(text)
        return parsed if isinstance(parsed, list) else [parsed]

    examples, answers = fields_of(shown), fields_of(body)
    return len(examples) == len(answers) and all(
        [item for item in answer.items() if item[0] in example] == list(example.items())
        for example, answer in zip(examples, answers, strict=True)
    )


def test_curl_examples_print_the_shown_responses(tmp_path: Path) -> None:
    assert GUIDE.count("```sh\ncurl ") == len(EXAMPLES) == 13
    address = f"127.0.0.1:{(port := free_port())}"
    environment = {"PORT": str(port), "DATA_DIR": str(tmp_path / "data")}
    with process("todo-api", "dev", environment=environment, cwd=tmp_path) as server:
        wait_for(f"http://{address}", server)
        for command, answer in EXAMPLES:
            shown_head, _, shown_body = answer.partition("\n\n") if answer.startswith("HTTP/") else ("", "", answer)
            head, body = curl(command.replace("127.0.0.1:8000", address))

            assert shows(TIME.sub("…", shown_body), TIME.sub("…", body))
            assert set(shown_head.splitlines()) <= set(head)
            assert bool(shown_head) == bool(head)


def test_example_times_are_consistent() -> None:
    times = TIME.findall("".join(answer for _, answer in EXAMPLES))

    assert len(set(times)) == 5, "created, updated, completed, and two more created"


@pytest.mark.parametrize(
    ("application", "backend"),
    [("todo_api.main:app", "my_auth:Backend"), ("my_app:app", "")],
    ids=["backend", "middleware"],
)
def test_authentication_examples_work_as_shown(
    database_url: str, tmp_path: Path, application: str, backend: str
) -> None:
    for name, code in MODULES:
        (tmp_path / name).write_text(code)
    public_key = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    environment = {
        "DATABASE_URL": database_url,
        "AUTH_BACKEND": backend,
        "JWT_PUBLIC_KEY": public_key,
        "PYTHONPATH": str(tmp_path),
    }
    owner = new_account(database_url)

    with uvicorn(environment, tmp_path, application=application) as url:
        ask = f"curl {url}/api/{owner}/tasks -H 'Authorization: Bearer"
        assert curl(f"{ask} {token(owner)}'")[1] == "[]"
        assert curl(f"{ask} {token('someone-else')}'")[1] == '{"error":"User not found"}'
        assert curl(f"{ask} {token(owner, exp=1)}'")[1] == '{"error":"Unauthorized"}'
        assert curl(f"curl {url}/api/{owner}/tasks")[1] == '{"error":"Unauthorized"}'


def test_settings_table_lists_every_setting() -> None:
    rows = dict(re.findall(r"(?m)^\| `([A-Z_]+)` \|.*\| (.+?) \|$", GUIDE))

    assert list(rows) == [name.upper() for name in Settings.model_fields]
    for name in ("pool_size", "wake_seconds", "docs_enabled", "data_dir", "port"):
        assert rows[name.upper()] == f"`{Settings.model_fields[name].default}`".lower()


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"(?m)^#+ (.+)$", text)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        path, _, anchor = link.partition("#")
        if "://" not in link:
            target = document.parent / path if path else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text()), link


def test_every_decision_is_listed() -> None:
    records = sorted(path.name for path in (ROOT / "docs" / "adr").glob("*.md"))
    listed = re.findall(r"\| \[(\d+)\]\(adr/(\S+)\) \| (.+?) \|", (ROOT / "docs" / "README.md").read_text())

    assert [name for _, name, _ in listed] == records
    for number, (written, name, title) in enumerate(listed, start=1):
        assert (int(written), int(name[:4])) == (number, number)
        assert (ROOT / "docs" / "adr" / name).read_text().startswith(f"# {number}. {title}\n")
