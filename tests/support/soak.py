"""Writers, readers and a fault every few seconds; at the end, what was acknowledged is compared with what is stored.

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
from tests.support.crowd import crowd
from tests.support.front import Front
from tests.support.postgres import migrated_database, sql
from tests.support.servers import PgBouncer, Postgres, find_pgbouncer
from tests.support.serving import free_port, process, wait_for

WRITERS = 6
READERS = 4
ROOT = Path(__file__).parents[2]
# What a write may say that was under way when its connection broke.
IN_FLIGHT = "in the middle of operation"


class Soak:
    """What the clients saw."""

    def __init__(self, url: str, owner: str) -> None:
        self.tasks = f"{url}/api/{owner}/tasks"
        self.headers = {"Authorization": f"Bearer {owner}"}
        self.codes: Counter[tuple[str, int]] = Counter()
        self.acknowledged: list[str] = []
        self.slowest: Counter[str] = Counter()  # milliseconds
        self.over = threading.Event()

    def write(self, name: int) -> None:
        """Create tasks, each with a title of its own, and complete them."""
        with httpx2.Client(headers=self.headers, timeout=60) as client:
            number = 0
            while not self.over.is_set():
                title = f"{name}-{number}"
                number += 1
                answer = self._timed("create", client.post, self.tasks, json={"title": title})
                if answer.status_code == 201:
                    self.acknowledged.append(title)
                    self._timed("complete", client.patch, f"{self.tasks}/{answer.json()['id']}/complete")

    def read(self) -> None:
        """Get tasks one by one."""
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
    """What happens to the database meanwhile, in Neon's ways."""

    def __init__(self, postgres: Postgres, bouncer: PgBouncer, front: Front) -> None:
        self._postgres = postgres
        self._bouncer = bouncer
        self._front = front
        self.count: Counter[str] = Counter()

    def strike(self) -> str:
        """Do one of them, and leave everything running."""
        fault = random.choice([self.suspend, self.restart, self.kill, self.lose_the_pooler, self.lose_an_answer])
        fault()
        self.count[fault.__name__] += 1
        return fault.__name__

    def suspend(self) -> None:
        """Suspend the compute, and wake it on the next connection."""
        self._bouncer.kill()
        self._postgres.stop()
        woken = threading.Event()

        def wake() -> None:
            time.sleep(random.uniform(0.3, 3))
            self._resume()
            woken.set()

        self._front.wake = wake
        woken.wait()

    def restart(self) -> None:
        """Restart the compute, and refuse connections meanwhile."""
        self._bouncer.kill()
        self._postgres.stop()
        time.sleep(random.uniform(0.3, 3))
        self._resume()

    def kill(self) -> None:
        """Kill the compute: nothing is said to anyone."""
        self._bouncer.kill()
        self._postgres.kill()
        time.sleep(random.uniform(0.3, 1))
        self._resume()

    def lose_the_pooler(self) -> None:
        """Kill the pooler alone."""
        self._bouncer.kill()
        self._bouncer.start()

    def lose_an_answer(self) -> None:
        """Drop an answer on its way back."""
        self._front.lose_next_answer = True

    def _resume(self) -> None:
        self._postgres.start()
        self._bouncer.start()


def main() -> int:
    """Run the soak and print what came of it; fail if anything promised was broken."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 120
    program = find_pgbouncer()
    if program is None:
        print("There is no PgBouncer of version 1.21 or later: name one by PGBOUNCER.", file=sys.stderr)
        return 1
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="todo-")))
        directory.chmod(0o755)
        postgres = Postgres(directory / "postgres")
        stack.callback(postgres.stop)
        migrated_database(postgres.url, "todo")
        direct_url = postgres.url.replace("/postgres?", "/todo?")
        owner = new_account(direct_url)
        bouncer = PgBouncer(program, postgres, directory)
        bouncer.start()
        stack.callback(bouncer.kill)
        front = stack.enter_context(Front(bouncer.port))
        port = free_port()
        environment = {
            "DATABASE_URL": f"postgresql://postgres@127.0.0.1:{front.port}/todo",
            "AUTH_BACKEND": "tests.support.api:BearerIsIdentity",
            "PYTHONPATH": str(ROOT),
        }
        command = ("uvicorn", "todo_api.main:app", "--port", str(port))
        server = stack.enter_context(process(*command, environment=environment, cwd=directory))
        url = f"http://127.0.0.1:{port}"
        wait_for(url, server)
        soak, faults = Soak(url, owner), Faults(postgres, bouncer, front)
        with crowd(WRITERS + READERS) as threads:
            clients = [threads.submit(soak.write, n) for n in range(WRITERS)]
            clients += [threads.submit(soak.read) for _ in range(READERS)]
            end = time.monotonic() + seconds
            while time.monotonic() < end and not any(client.done() for client in clients):
                time.sleep(random.uniform(1, 4))
                fault = faults.strike()
                left = max(0, end - time.monotonic())
                print(f"\r{left:5.0f} s left, {soak.codes.total():7} requests, last: {fault:16}", end="", flush=True)
            soak.over.set()
            for client in clients:
                client.result()
        stored = Counter(row["title"] for row in sql(direct_url, "SELECT title FROM tasks WHERE user_id = $1", owner))
        return report(soak, faults, stored, server.output())


def report(soak: Soak, faults: Faults, stored: Counter[str], log: str) -> int:
    """Print the table, and tell by the exit code whether every promise was kept."""
    failures = [line for line in log.splitlines() if "unavailable" in line or "crashed" in line]
    lost = [title for title in soak.acknowledged if title not in stored]
    doubled = [title for title, count in stored.items() if count > 1 and title != "to be read"]
    unexplained = [line for line in failures if IN_FLIGHT not in line]
    print(f"\r{'':70}\r| | |\n|---|---|")
    for name, value in [
        ("faults", ", ".join(f"{count} {fault.replace('_', ' ')}" for fault, count in sorted(faults.count.items()))),
        ("requests", f"{soak.codes.total():,}"),
        *((f"{operation}, answered {code}", f"{count:,}") for (operation, code), count in sorted(soak.codes.items())),
        *((f"{operation}, slowest", f"{ms / 1000:.2f} s") for operation, ms in sorted(soak.slowest.items())),
        ("creates acknowledged", f"{len(soak.acknowledged):,}"),
        ("acknowledged, but lost", len(lost)),
        ("doubled", len(doubled)),
        ("failed for another reason than a write cut off in flight", len(unexplained)),
    ]:
        print(f"| {name} | {value} |")
    print("\n".join(unexplained[:10]), file=sys.stderr)
    only_writes_fail = all(operation == "create" for operation, code in soak.codes if code >= 400)
    return 0 if only_writes_fail and not (lost or doubled or unexplained) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.pop("DATABASE_URL", None)
    sys.exit(main())
