"""Writers and readers, with a fault every few seconds; then compares the acknowledged writes with the stored tasks.

Run by `make soak`, with the seconds it takes as an optional argument.
"""

import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx2

from tests.support.api import new_account
from tests.support.postgres import migrated_database, sql
from tests.support.proxy import FaultProxy
from tests.support.servers import PgBouncer, Postgres, find_pgbouncer
from tests.support.serving import free_port, process, wait_for
from tests.support.threads import thread_pool

WRITERS = 6
READERS = 4
ROOT = Path(__file__).parents[2]
# Why a request may fail: a write whose connection broke or timed out while it ran, a full disk, a server that stays
# read-only for long, a pooler that tracks no prepared statements, and a fault that lasts longer than requests wait.
EXPLAINED = (
    "in the middle of operation",
    "TimeoutError()",
    "DiskFull",
    "read-only transaction",
    "prepared statement",
    "no connection could be opened",
)
# The error of a full disk, without filling one.
DISK_FULL = """
    CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE 'No space left on device' USING ERRCODE = '53100'; END $$
"""
DISK_IS_FULL = "CREATE TRIGGER full_disk BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION full_disk()"


class Soak:
    """The clients, and the responses that they received."""

    def __init__(self, url: str, owner: str) -> None:
        self.tasks = f"{url}/api/{owner}/tasks"
        self.headers = {"Authorization": f"Bearer {owner}"}
        self.codes: Counter[tuple[str, int]] = Counter()
        self.acknowledged: dict[str, str] = {}  # statuses by title
        self.slowest: Counter[str] = Counter()  # milliseconds
        self.over = threading.Event()

    def write(self, name: int) -> None:
        """Create tasks with unique titles, complete them, and reopen those whose complete was not acknowledged."""
        with httpx2.Client(headers=self.headers, timeout=60) as client:
            number = 0
            while not self.over.is_set():
                title = f"{name}-{number}"
                number += 1
                answer = self._timed("create", client.post, self.tasks, json={"title": title})
                if answer.status_code == 201:
                    path = f"{self.tasks}/{answer.json()['id']}"
                    self.acknowledged[title] = "complete"
                    answer = self._timed("complete", client.patch, f"{path}/complete")
                    while answer.status_code != 200:
                        self.acknowledged[title] = "incomplete"
                        answer = self._timed("reopen", client.put, path, json={"status": "incomplete"})

    def read(self) -> None:
        """Get one task repeatedly."""
        with httpx2.Client(headers=self.headers, timeout=60) as client:
            first = client.post(self.tasks, json={"title": "to be read"}).json()["id"]
            while not self.over.is_set():
                self._timed("get", client.get, f"{self.tasks}/{first}")

    def _timed(
        self, operation: str, request: Callable[..., httpx2.Response], url: str, **arguments: object
    ) -> httpx2.Response:
        started = time.monotonic()
        answer = request(url, **arguments)
        took = int((time.monotonic() - started) * 1000)
        self.codes[operation, answer.status_code] += 1
        self.slowest[operation] = max(self.slowest[operation], took)
        return answer


class Faults:
    """The faults of the database and its pooler."""

    def __init__(self, postgres: Postgres, bouncer: PgBouncer, proxy: FaultProxy) -> None:
        self.postgres = postgres
        self._bouncer = bouncer
        self._proxy = proxy
        self.count: Counter[str] = Counter()

    def inject(self) -> str:
        """Inject a random fault, and leave everything running."""
        fault = random.choice(
            [
                self.suspend,
                self.restart,
                self.kill,
                self.lose_the_pooler,
                self.lose_an_answer,
                self.go_half_open,
                self.fill_the_disk,
                self.fail_over,
                self.stop_tracking,
            ]
        )
        fault()
        self.count[fault.__name__] += 1
        return fault.__name__

    def suspend(self) -> None:
        """Stop compute and pooler; the next connection starts them again."""
        self._bouncer.kill()
        self.postgres.stop()
        woken = threading.Event()

        def wake() -> None:
            time.sleep(random.uniform(0.3, 3))
            self._resume()
            woken.set()

        self._proxy.wake = wake
        woken.wait()

    def restart(self) -> None:
        """Restart the compute, refusing connections meanwhile."""
        self._bouncer.kill()
        self.postgres.stop()
        time.sleep(random.uniform(0.3, 3))
        self._resume()

    def kill(self) -> None:
        """Kill the compute without notice to its clients."""
        self._bouncer.kill()
        self.postgres.kill()
        time.sleep(random.uniform(0.3, 1))
        self._resume()

    def lose_the_pooler(self) -> None:
        """Kill the pooler and start it again."""
        self._bouncer.kill()
        self._bouncer.start()

    def lose_an_answer(self) -> None:
        """Drop one response on its way to the service."""
        self._proxy.drop_next_response = True

    def go_half_open(self) -> None:
        """Stop relaying on every connection, without closing them."""
        self._proxy.go_half_open()

    def fill_the_disk(self) -> None:
        """Let every insert fail for a second as on a full disk."""
        sql(self.url(), DISK_FULL)
        sql(self.url(), DISK_IS_FULL)
        time.sleep(1)
        sql(self.url(), "DROP FUNCTION full_disk CASCADE")

    def fail_over(self) -> None:
        """Promote a standby; for a while the pooler still connects to the old server, which is then read-only."""
        old = self.postgres
        directory = old.directory.with_name(f"postgres-{self.count.total()}")
        old.copy(directory)
        self.postgres = old.switch_over(directory)
        time.sleep(random.uniform(0.3, 3))
        self._bouncer.switch_to(self.postgres)
        old.stop_standby()

    def stop_tracking(self) -> None:
        """Run the pooler without tracking of prepared statements for two seconds."""
        self._bouncer.kill()
        self._bouncer.start(max_prepared_statements=0)
        time.sleep(2)
        self._bouncer.kill()
        self._bouncer.start()

    def end(self) -> None:
        """Stop the server."""
        self.postgres.stop()

    def url(self) -> str:
        """Return the URL of the database without the pooler."""
        return self.postgres.url.replace("/postgres?", "/todo?")

    def _resume(self) -> None:
        self.postgres.start()
        self._bouncer.start()


def main() -> int:
    """Run the soak and print the result; exit with 1 if a promise was broken."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 120
    program = find_pgbouncer()
    if program is None:
        print("There is no PgBouncer of version 1.21 or later: name one by PGBOUNCER.", file=sys.stderr)
        return 1
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="todo-")))
        directory.chmod(0o755)
        postgres = Postgres(directory / "postgres")
        migrated_database(postgres.url, "todo")
        owner = new_account(postgres.url.replace("/postgres?", "/todo?"))
        bouncer = PgBouncer(program, postgres, directory)
        bouncer.start()
        stack.callback(bouncer.kill)
        proxy = stack.enter_context(FaultProxy(bouncer.port))
        silent = stack.enter_context(FaultProxy(bouncer.port))
        silent.freeze()
        stack.callback(silent.unfreeze)
        port = free_port()
        environment = {
            # The first host accepts connections and never responds.
            "DATABASE_URL": f"postgresql://postgres@127.0.0.1:{silent.port},127.0.0.1:{proxy.port}/todo",
            "AUTH_BACKEND": "tests.support.api:BearerIsIdentity",
            "PYTHONPATH": str(ROOT),
        }
        command = ("uvicorn", "todo_api.main:app", "--port", str(port))
        server = stack.enter_context(process(*command, environment=environment, cwd=directory))
        url = f"http://127.0.0.1:{port}"
        wait_for(url, server)
        soak, faults = Soak(url, owner), Faults(postgres, bouncer, proxy)
        stack.callback(faults.end)
        with thread_pool(WRITERS + READERS) as threads:
            clients = [threads.submit(soak.write, n) for n in range(WRITERS)]
            clients += [threads.submit(soak.read) for _ in range(READERS)]
            end = time.monotonic() + seconds
            while time.monotonic() < end and not any(client.done() for client in clients):
                time.sleep(random.uniform(1, 4))
                fault = faults.inject()
                left = max(0, end - time.monotonic())
                print(f"\r{left:5.0f} s left, {soak.codes.total():7} requests, last: {fault:16}", end="", flush=True)
            soak.over.set()
            for client in clients:
                client.result()
        stored = sql(faults.url(), "SELECT title, status FROM tasks WHERE user_id = $1", owner)
        return report(soak, faults, [(row["title"], row["status"]) for row in stored], server.output())


def report(soak: Soak, faults: Faults, stored: list[tuple[str, str]], log: str) -> int:
    """Print the table of results, and return the exit code: 0 if every promise was kept."""
    failures = [line for line in log.splitlines() if "unavailable" in line or "crashed" in line]
    count, statuses = Counter(title for title, _ in stored), dict(stored)
    lost = [title for title in soak.acknowledged if title not in count]
    doubled = [title for title, number in count.items() if number > 1 and title != "to be read"]
    undone = [title for title, status in soak.acknowledged.items() if statuses.get(title, status) != status]
    unexplained = [line for line in failures if not any(cause in line for cause in EXPLAINED)]
    print(f"\r{'':70}\r| | |\n|---|---|")
    for name, value in [
        ("faults", ", ".join(f"{count} {fault.replace('_', ' ')}" for fault, count in sorted(faults.count.items()))),
        ("requests", f"{soak.codes.total():,}"),
        *((f"{operation}, answered {code}", f"{count:,}") for (operation, code), count in sorted(soak.codes.items())),
        *((f"{operation}, slowest", f"{ms / 1000:.2f} s") for operation, ms in sorted(soak.slowest.items())),
        ("creates acknowledged", f"{len(soak.acknowledged):,}"),
        ("acknowledged, but lost", len(lost)),
        ("doubled", len(doubled)),
        ("undone", len(undone)),
        ("failed for no reason that explains it", len(unexplained)),
    ]:
        print(f"| {name} | {value} |")
    print("\n".join(unexplained[:10]), file=sys.stderr)
    return 1 if lost or doubled or undone or unexplained else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.pop("DATABASE_URL", None)
    sys.exit(main())
