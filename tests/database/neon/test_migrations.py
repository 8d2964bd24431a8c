"""Migrations through a pooler in transaction mode, where connections have no sessions of their own."""

import os
import subprocess
from pathlib import Path

from tests.database.neon.conftest import Neon
from tests.support.postgres import new_database, sql
from tests.support.serving import BIN
from tests.support.threads import thread_pool


def test_concurrent_migrations_through_pooler_succeed(pooled: Neon, tmp_path: Path) -> None:
    direct_url = new_database(pooled.postgres.url, "migrated")
    environment = {**os.environ, "DATABASE_URL": pooled.url.replace("/todo", "/migrated")}

    def run(_: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "todo-api", "migrate"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    with thread_pool(3) as threads:
        runs = list(threads.map(run, range(3)))

    assert [(run.returncode, run.stderr) for run in runs] == [(0, "")] * 3
    assert sql(direct_url, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'tasks_idempotency_key'::regclass") == [
        {"indisvalid": True}
    ]
    assert sql(direct_url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [{"count": 0}]
