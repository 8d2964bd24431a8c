"""`make bench-growth`: latency to the database, table size, list length, number of clients and workers."""

import asyncio
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import httpx2

from benchmarks import report
from benchmarks.__main__ import machine, say
from benchmarks.database import USERS, BenchmarkDatabase, benchmark_database
from benchmarks.load import OPERATIONS, Work, apply_load
from benchmarks.processes import APPLICATIONS, Service, service
from benchmarks.relay import relay

ROUND_TRIP = 0.005
SIZES = (10**4, 10**5, 10**6, 10**7)
LISTS = (100, 1_000, 10_000, 100_000)
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
ROUNDS = 3
SECONDS = 3


def load_of(database: BenchmarkDatabase, operation: str) -> Work:
    """Describe the requests of one operation."""
    to_delete = database.add_tasks_to_delete(40_000) if operation == "delete" else 0
    return Work(operation, database.users, database.tasks, to_delete)


def distant(database: BenchmarkDatabase) -> dict[str, Any]:
    """Measure each operation with one client and a round trip of 5 ms to the database."""
    found: dict[str, Any] = {"operations": {}}
    with relay(database.socket, ROUND_TRIP) as port:
        url = database.url_through(port)
        found["round_trip"] = asyncio.run(round_trip(url))
        for name in APPLICATIONS:
            with service(name, url) as running:
                apply_load(running.url, Work("get", database.users, database.tasks), clients=16, seconds=2)
                found["operations"][name] = {
                    operation: apply_load(
                        running.url, load_of(database, operation), clients=1, seconds=SECONDS
                    )._asdict()
                    for operation in OPERATIONS
                }
            say(f"distant database: {name} done")
    return found


async def round_trip(url: str) -> float:
    """Measure the round trip to the database by a prepared `SELECT 1`; the median in milliseconds."""
    connection = await asyncpg.connect(url)
    statement = await connection.prepare("SELECT 1")
    times = []
    for _ in range(200):
        started = time.perf_counter()
        await statement.fetchval()
        times.append((time.perf_counter() - started) * 1000)
    await connection.close()
    return statistics.median(times)


def sizes() -> dict[str, dict[str, list[float]]]:
    """Measure p50 with one client in tables of all sizes, interleaved."""
    found: dict[str, dict[str, list[float]]] = {
        operation: {str(size): [] for size in SIZES} for operation in OPERATIONS
    }
    with ExitStack() as stack:
        tables = []
        for size in SIZES:
            say(f"growing table: filling {size:,} tasks")
            database = stack.enter_context(benchmark_database(size, users=size // 100))
            running = stack.enter_context(service("ours", database.url))
            tables.append((database, running))
            apply_load(running.url, load_of(database, "get"), clients=16, seconds=2)
        for round_ in range(1, ROUNDS + 1):
            for operation in OPERATIONS:
                for database, running in tables:
                    work = load_of(database, operation)
                    load = apply_load(running.url, work, clients=1, seconds=SECONDS)
                    found[operation][str(database.tasks)].append(load.p50)
            say(f"growing table: round {round_} of {ROUNDS} done")
    return found


def reset_peak(running: Service) -> None:
    """Reset the process's peak memory, `VmHWM`, in the kernel."""
    Path(f"/proc/{running.pid}/clear_refs").write_text("5")


def lists(database: BenchmarkDatabase) -> dict[str, Any]:
    """Measure lists of growing length, and the latency of other users' reads meanwhile."""
    others = Work("get", database.users, database.tasks)
    found: dict[str, Any] = {"sizes": {}}
    with ThreadPoolExecutor() as threads:
        with service("ours", database.url) as running:
            apply_load(running.url, others, clients=16, seconds=2)
            quiet = [apply_load(running.url, others, clients=4, seconds=SECONDS).p99 for _ in range(ROUNDS)]
        for size in LISTS:
            database.own(f"owner-of-{size}", size)
            with service("ours", database.url) as running:
                apply_load(running.url, others, clients=16, seconds=2)
                reset_peak(running)
                idle = running.memory("VmHWM")
                times = list(list_times(running, size, 2 * SECONDS))
                memory = running.memory("VmHWM") - idle
                p99s = []
                for _ in range(ROUNDS):
                    listing = threads.submit(lambda: list(list_times(running, size, SECONDS)))  # noqa: B023  # ends within the round
                    p99s.append(apply_load(running.url, others, clients=4, seconds=SECONDS).p99)
                    listing.result()
                quiet.append(apply_load(running.url, others, clients=4, seconds=SECONDS).p99)
            found["sizes"][str(size)] = {
                "p50": statistics.median(times),
                "memory": memory,
                "others_p99": statistics.median(p99s),
            }
            say(f"long lists: {size:,} done")
    found["quiet_p99"] = statistics.median(quiet)
    return found


def list_times(running: Service, size: int, seconds: float) -> Iterator[float]:
    """Request one user's list repeatedly for some seconds; yield the milliseconds of each."""
    user = f"owner-of-{size}"
    over = time.perf_counter() + seconds
    with httpx2.Client(headers={"Authorization": f"Bearer {user}"}, timeout=60) as client:
        while time.perf_counter() < over:
            started = time.perf_counter()
            with client.stream("GET", f"{running.url}/api/{user}/tasks") as answer:
                answer.raise_for_status()
                for _ in answer.iter_raw():
                    pass
            yield (time.perf_counter() - started) * 1000


def clients(database: BenchmarkDatabase) -> dict[str, Any]:
    """Measure reads with a growing number of clients: one worker, two workers, and one of the ceiling."""
    work = Work("get", database.users, database.tasks)
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        services = {
            label: stack.enter_context(service(name, database.url, workers))
            for label, name, workers in (("ours", "ours", 1), ("ours, 2 workers", "ours", 2), ("ceiling", "ceiling", 1))
        }
        for running in services.values():
            apply_load(running.url, work, clients=16, seconds=2)
        for number in CLIENTS:
            for label, running in services.items():
                load = apply_load(running.url, work, clients=number, seconds=SECONDS)
                found.setdefault(label, {})[str(number)] = load._asdict()
            say(f"{number} clients done")
    return found


def main() -> None:
    """Run all measurements and write the results into the documentation."""
    result: dict[str, Any] = {"machine": machine()}
    with benchmark_database(USERS * 100) as database:
        result["distant"] = distant(database)
        result["clients"] = clients(database)
        result["lists"] = lists(database)
    result["sizes"] = sizes()
    report.save("growth", result)
    print(report.growth(result))


if __name__ == "__main__":
    main()
