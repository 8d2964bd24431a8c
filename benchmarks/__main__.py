"""`make bench`: the service, the ceiling and the textbook side by side, round after round."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
from tests.support.proxy import FaultProxy

from benchmarks import report
from benchmarks.database import USERS, BenchmarkDatabase, benchmark_database
from benchmarks.load import GENERATOR, OPERATIONS, Work, apply_load
from benchmarks.processes import APPLICATIONS, Service, service, spent

TASKS = USERS * 100
CLIENTS = 16
ROUNDS = 5
SECONDS = 2
TO_DELETE = 40_000  # tasks to delete; more than any service deletes in a round
# Exits without interpreter shutdown, which the measured start of the service does not include either.
IMPORTS = "import fastapi, sqlmodel, sqlalchemy.ext.asyncio, asyncpg, os; os._exit(0)"


def say(text: str) -> None:
    """Print progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """Describe the machine, the versions and the load generator."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": f"{os.cpu_count()} cores of {processor}",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "generator": GENERATOR,
    }


def measure(database: BenchmarkDatabase, running: Service, operation: str) -> dict[str, float]:
    """Measure one operation of one service under load: rate, processor time and latencies."""
    work = Work(
        operation, USERS, database.tasks, database.add_tasks_to_delete(TO_DELETE) if operation == "delete" else 0
    )
    api, postgres = running.cpu_seconds(), database.cpu_seconds()
    load = apply_load(running.url, work, clients=CLIENTS, seconds=SECONDS)
    return {
        "rate": load.rate,
        "api": spent(api, running.cpu_seconds()) / load.requests * 1e6,
        "postgres": spent(postgres, database.cpu_seconds()) / load.requests * 1e6,
        "p50": load.p50,
        "p99": load.p99,
    }


def compare(database: BenchmarkDatabase, services: list[Service]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Measure every operation of every service, interleaved, so that drifts of the machine affect all alike."""
    samples: dict[str, dict[str, list[dict[str, float]]]] = {
        operation: {running.name: [] for running in services} for operation in OPERATIONS
    }
    for round_ in range(1, ROUNDS + 1):
        for operation in OPERATIONS:
            rates = []
            for running in services:
                sample = measure(database, running, operation)
                samples[operation][running.name].append(sample)
                rates.append(f"{running.name} {sample['rate']:.0f}")
            say(f"round {round_} of {ROUNDS}, {operation}: {', '.join(rates)} requests/s")
    return samples


def start_up(database_url: str) -> dict[str, float]:
    """Measure the time until the service listens, and that of the imports alone; medians in seconds."""
    imports, ours = [], []
    for _ in range(ROUNDS + 2):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True)
        imports.append(time.perf_counter() - started)
        started = time.perf_counter()
        with service("ours", database_url):
            ours.append(time.perf_counter() - started)
    return {"imports": statistics.median(imports), "ours": statistics.median(ours)}


def round_trips(database: BenchmarkDatabase) -> dict[str, dict[str, float]]:
    """Count each operation's round trips to PostgreSQL, after every connection has prepared its statements."""
    trips: dict[str, dict[str, float]] = {}
    with FaultProxy(database.socket) as proxy:
        for name in APPLICATIONS:
            with (
                service(name, database.url_through(proxy.port)) as running,
                httpx2.Client(base_url=running.url) as client,
            ):
                trips[name] = {}
                for operation in OPERATIONS:
                    to_delete = database.add_tasks_to_delete(60)
                    counts = []
                    for number in range(60):
                        before = proxy.round_trips
                        ask(client, operation, to_delete + number)
                        counts.append(proxy.round_trips - before)
                    trips[name][operation] = statistics.mean(counts[-20:])
    return trips


def ask(client: httpx2.Client, operation: str, to_delete: int) -> None:
    """Send one request like those of the load generator."""
    body = {"create": {"title": "Buy milk"}, "update": {"title": "Buy oat milk"}}.get(operation)
    method, user, path = {
        "list": ("GET", "u1", ""),
        "create": ("POST", "c1", ""),
        "get": ("GET", "u1", "/1"),
        "update": ("PUT", "u1", "/1"),
        "complete": ("PATCH", "u1", "/1/complete"),
        "delete": ("DELETE", "d", f"/{to_delete}"),
    }[operation]
    headers = {"Authorization": f"Bearer {user}"}
    client.request(method, f"/api/{user}/tasks{path}", json=body, headers=headers).raise_for_status()


def main() -> None:
    """Run the benchmark and write its results into the documentation."""
    result: dict[str, Any] = {"machine": machine(), "clients": CLIENTS, "rounds": ROUNDS, "seconds": SECONDS}
    inside = subprocess.run([sys.executable, "-m", "benchmarks.in_process"], check=True, capture_output=True)
    result["in_process"] = json.loads(inside.stdout)
    say(f"Load by {GENERATOR}. Filling {TASKS} tasks of {USERS} users.")
    with benchmark_database(TASKS) as database:
        result["start_up"] = start_up(database.url)
        result["round_trips"] = round_trips(database)
        with ExitStack() as stack:
            services = [stack.enter_context(service(name, database.url)) for name in APPLICATIONS]
            for running in services:
                apply_load(running.url, Work("get", USERS, TASKS), clients=CLIENTS, seconds=1)
            result["idle"] = {running.name: running.memory("VmRSS") for running in services}
            result["samples"] = compare(database, services)
            result["peak"] = {running.name: running.memory("VmHWM") for running in services}
    report.save("bench", result)
    print(report.bench(result))


if __name__ == "__main__":
    main()
