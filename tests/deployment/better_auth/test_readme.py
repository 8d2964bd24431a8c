"""The commands of the guides for Better Auth and TypeScript are run as they are written."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.better_auth import EXAMPLES, better_auth, service
from tests.support.guide import GUIDE
from tests.support.openapi import WRITTEN
from tests.support.postgres import migrated_database
from tests.support.serving import BIN, UNMEASURED, development

ROOT = EXAMPLES.parent
FIRST_TASK = re.findall(r"```sh\n(AUTH=.+?)```\n\n```json\n(.*?)\n```", GUIDE, re.DOTALL)
[TYPED_CLIENT] = re.findall(r"```sh\n(cd examples\nnpm ci\n.+?)```", GUIDE, re.DOTALL)
COMMANDS = TYPED_CLIENT.replace("npm ci\n", "")  # done by make
SNIPPETS = re.findall(r"(?m)^```ts\n((?:.*\n)+?)```", GUIDE)
[ROUTE] = re.findall(r"( +// app/api/auth/\[\.\.\.all\]/route\.ts\n(?:.*\n)+?) +```", GUIDE)
[NEW_TOKEN] = re.findall(r" +(const newToken = .+)\n", GUIDE)
CHANGING = re.compile(r'"id":\d+|"user_id":"\w{32}"|\d{4}-\d\d-\d\dT[\d:]{8}\.\d{6}Z')
WRONG = """
import createClient from "openapi-fetch";
import type { paths } from "./todo-api.d.ts";

const todo = createClient<paths>();
const params = { path: { user_id: "u1", id: 7 } };
// @ts-expect-error
await todo.GET("/api/{user_id}/task", { params });
// @ts-expect-error
await todo.GET("/api/{user_id}/tasks/{id}");
// @ts-expect-error
await todo.GET("/api/{user_id}/tasks", { params: { ...params, query: { status: "done" } } });
// @ts-expect-error
await todo.POST("/api/{user_id}/tasks", { params, body: {} });
// @ts-expect-error
await todo.PUT("/api/{user_id}/tasks/{id}", { params, body: { title: null } });
// @ts-expect-error
await todo.PUT("/api/{user_id}/tasks/{id}", { params, body: { title: 7, status: "complete" } });
// @ts-expect-error
await todo.PUT("/api/{user_id}/tasks/{id}", { params, body: { status: "done" } });
// @ts-expect-error
(await todo.GET("/api/{user_id}/tasks/{id}", { params })).data.title;
// @ts-expect-error
(await todo.GET("/api/{user_id}/tasks/{id}", { params })).data?.priority;
"""

# The first token has expired, and another change comes before the first one.
DISTURBED = """
import { allTasks, changeTask, createTodo } from "./client.ts";

const tokens = ["", "bob"];
const statuses: number[] = [];
const send = globalThis.fetch;
globalThis.fetch = async (request, options) => {
  if (request instanceof Request && request.method === "PUT" && !statuses.includes(412)) {
    const { url, headers } = request.clone();
    headers.set("If-Match", "*");
    await send(url, { method: "PUT", headers, body: '{"title": "second"}' });
  }
  const response = await send(request, options);
  statuses.push(response.status);
  return response;
};
const todo = createTodo(process.env.TODO_API ?? "", async () => tokens.shift() ?? "");
const create = (title: string) =>
  todo.POST("/api/{user_id}/tasks", { params: { path: { user_id: "bob" } }, body: { title } });

await create("first");
const { data } = await create("other");
await changeTask(todo, { user_id: "bob", id: data?.id ?? 0 }, ({ title }) => ({ title: `${title}!` }));
const titles = await Array.fromAsync(allTasks(todo, "bob", 1), ({ title }) => title);
console.log(titles.join(), statuses.join());
"""
SIGN_IN = """
import { createAuthClient } from "better-auth/client";
import { jwtClient } from "better-auth/client/plugins";

const origin = process.env.ORIGIN ?? "";
const account = { name: "Alice", email: "alice@example.com", password: "correct horse" };
let cookie = "";
const authClient = createAuthClient({
  baseURL: origin,
  plugins: [jwtClient()],
  fetchOptions: {
    onRequest: ({ headers }) => (headers.set("Origin", origin), headers.set("Cookie", cookie)),
    onResponse: ({ response }) => void (cookie = response.headers.getSetCookie()[0] ?? cookie),
  },
});
await authClient.signUp.email(account);
const { data: session } = await authClient.getSession();
const subject = (token = "") => JSON.parse(atob(token.split(".")[1] ?? "")).sub;
console.log(session?.user.id === subject(await newToken()));
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A writable copy of the files that the commands need."""
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("node_modules", "*.d.ts"))
    (tmp_path / "examples" / "node_modules").symlink_to(EXAMPLES / "node_modules")
    shutil.copy(WRITTEN, tmp_path)
    curl = tmp_path / "bin" / "curl"
    curl.parent.mkdir()
    root, python = shlex.quote(str(ROOT)), shlex.quote(sys.executable)
    curl.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {python} -m tests.support.curl "$@"\n')
    curl.chmod(0o755)
    return tmp_path


@pytest.fixture
def database(server: str, worker: str) -> str:
    return migrated_database(server, f"readme_{worker}")


@pytest.fixture
def addresses(database: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The addresses in the guide, mapped to those of the servers in this test."""
    with (
        better_auth(database, tmp_path / "better_auth") as (origin, _),
        service(database, tmp_path / "service", origin) as url,
    ):
        yield {"http://localhost:3000": origin, "http://127.0.0.1:8000": url}


def run(script: str, cwd: Path, **environment: str) -> str:
    path = os.pathsep.join([str(cwd / "bin"), str(BIN), os.environ["PATH"]])
    ended = subprocess.run(
        ["sh", "-ec", script],
        cwd=cwd,
        env={**os.environ, **environment, **UNMEASURED, "PATH": path, "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def test_readme_leads_to_the_first_task(copy: Path, addresses: dict[str, str]) -> None:
    ((commands, answer),) = FIRST_TASK
    for shown, here in addresses.items():
        commands = commands.replace(shown, here)

    first, second = run(f"{commands}\necho\n" * 2, copy).splitlines()

    assert CHANGING.sub("…", first) == CHANGING.sub("…", second) == CHANGING.sub("…", answer)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    directory = tmp_path / "development"
    directory.mkdir()
    with development(directory) as url:
        yield url


def test_readme_leads_to_a_typed_client(copy: Path, url: str) -> None:
    said = run(COMMANDS, copy, TODO_API=url)

    assert said[said.index("created ") :].splitlines() == [
        "created Buy milk",
        "updated Buy milk: two litres",
        "completed complete",
        "listed true",
        "deleted 204",
        "gone Task not found",
    ]
    (copy / "examples" / "typescript-client" / "program.ts").write_text(DISTURBED)
    said = run("cd examples && npx tsc && node typescript-client/program.ts", copy, TODO_API=url)
    assert said.splitlines()[-1] == "second!,first 401,201,201,200,412,200,200,200,200", "changed twice; two pages"


def test_typed_client_compiles_and_misuse_fails(copy: Path) -> None:
    generate, _, _ = COMMANDS.partition("USER_ID=")
    (copy / "examples" / "typescript-client" / "wrong.ts").write_text(WRONG)

    said = run(f"{generate}npx tsc", copy)

    assert "error" not in said


def test_shown_client_is_the_example_file() -> None:
    program = (EXAMPLES / "typescript-client" / "tasks.ts").read_text()

    assert [snippet in program for snippet in SNIPPETS] == [True]


def test_front_end_gets_the_users_token(copy: Path, addresses: dict[str, str]) -> None:
    (copy / "examples" / "sign_in.ts").write_text(f"{NEW_TOKEN}\n{SIGN_IN}")

    said = run(
        "cd examples && npm run --silent check && node sign_in.ts", copy, ORIGIN=addresses["http://localhost:3000"]
    )

    assert said.splitlines()[-1] == "true"


def test_nextjs_route_serves_the_keys(copy: Path, addresses: dict[str, str], database: str) -> None:
    route = ROUTE.replace("@/lib/auth", "./better-auth/auth.ts")
    ask = "const answer = await GET(new Request(`${process.env.BETTER_AUTH_URL}/api/auth/jwks`));"
    show = "console.log(answer.status, Object.keys(await answer.json()));"
    (copy / "examples" / "route.ts").write_text(f"{route}\n{ask}\n{show}\nprocess.exit();\n")
    environment = {"BETTER_AUTH_URL": addresses["http://localhost:3000"], "BETTER_AUTH_SECRET": "a secret of the tests"}

    said = run("cd examples && npm run --silent check && node route.ts", copy, **environment, DATABASE_URL=database)

    assert said.splitlines()[-1] == "200 [ 'keys' ]"
