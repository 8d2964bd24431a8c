"""`make bench-load`: load beyond the capacity, and one user's requests during another one's flood."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.__main__ import machine, say
from benchmarks.arrivals import NO_ANSWER, Stream
from benchmarks.database import USERS, BenchmarkDatabase, benchmark_database
from benchmarks.growth import reset_peak
from benchmarks.processes import Service, service
from benchmarks.relay import relay

ROUND_TRIP = 0.02
OFFERED = (0.7, 1, 2, 4)  # times the capacity
SECONDS = 4.0
CAPACITY_SECONDS = 1.5
AFTER = 4.0  # of load at half the capacity after each overload, to measure the recovery
FLOODS = (200, 1000)  # clients of one user
NEIGHBOUR = 50  # requests per second of another user
RUNS = 3  # of everything, in turn, because the machine's speed changes; the medians are reported
Found = list[tuple[str, float, int, float]]


def start(running: Service, *streams: Stream) -> subprocess.Popen[str]:
    """Send the requests of some streams from a separate process, which prints their results."""
    port = running.url.rpartition(":")[2]
    command = [sys.executable, str(Path(__file__).with_name("arrivals.py")), port, json.dumps(streams)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def results(sending: subprocess.Popen[str]) -> Found:
    """Wait for the results of a process that sends requests."""
    output, _ = sending.communicate()
    if sending.returncode:
        raise subprocess.CalledProcessError(sending.returncode, sending.args)
    found: Found = json.loads(output)
    return found


def arrive(running: Service, *streams: Stream) -> Found:
    """Send the requests of some streams, and return their results."""
    return results(start(running, *streams))


def percentile(times: list[float], percent: int) -> float:
    """Return a percentile in milliseconds; 0 without times."""
    return statistics.quantiles(times, n=100, method="inclusive")[percent - 1] * 1000 if len(times) > 1 else 0.0


def stream(
    database: BenchmarkDatabase,
    name: str,
    begin: float,
    end: float,
    *,
    rate: float = 0,
    clients: int = 0,
    owner: str | None = None,
) -> Stream:
    """Describe reads during a part of the run."""
    return Stream(name, begin, end, rate, clients, database.users, database.tasks, owner)


def recovery(found: Found, overload_ends: float) -> float:
    """Return when, after the overload, the last request was sent that failed or was slower than before it."""
    before = [took for name, _, _, took in found if name == "before"]
    bound = max(3 * percentile(before, 95) / 1000, 0.05)
    bad = [due for name, due, status, took in found if name == "after" and (status != 200 or took > bound)]
    return max(bad, default=overload_ends) - overload_ends


def capacity_of(database: BenchmarkDatabase, running: Service) -> float:
    """Return how many requests a second are answered to clients that repeat."""
    answers = arrive(running, stream(database, "all", 0, CAPACITY_SECONDS, clients=32))
    return sum(status == 200 for _, _, status, _ in answers) / CAPACITY_SECONDS


def offer(database: BenchmarkDatabase, running: Service, times: float) -> dict[str, float]:
    """Offer a service a multiple of its capacity, as measured just before.

    The machine's speed changes, so it is measured after it too, and what was answered is compared with the larger one.
    """
    capacity = capacity_of(database, running)
    reset_peak(running)
    idle = running.memory("VmHWM")
    overload_ends = 1 + SECONDS
    found = arrive(
        running,
        stream(database, "before", 0, 1, rate=capacity / 2),
        stream(database, "overload", 1, overload_ends, rate=capacity * times),
        stream(database, "after", overload_ends, overload_ends + AFTER, rate=capacity / 2),
    )
    memory = running.memory("VmHWM") - idle
    larger_capacity = max(capacity, capacity_of(database, running))
    overload = [one for one in found if one[0] == "overload"]
    answered = [took for _, _, status, took in overload if status == 200]
    refused = [took for _, _, status, took in overload if status not in (200, NO_ANSWER)]
    return {
        "offered": len(overload) / SECONDS,
        "capacity": larger_capacity,
        "goodput": len(answered) / SECONDS / larger_capacity,
        "p50": percentile(answered, 50),
        "p95": percentile(answered, 95),
        "refused": len(refused) / len(overload),
        "refused_p50": percentile(refused, 50),
        "lost": sum(status == NO_ANSWER for _, _, status, _ in overload) / len(overload),
        "recovery": recovery(found, overload_ends),
        "memory": memory,
    }


def neighbour(database: BenchmarkDatabase, running: Service, clients: int) -> dict[str, float]:
    """Measure one user's requests with and without a flood of requests from another, sent by another process."""
    found = arrive(running, stream(database, "quiet", 0, SECONDS, rate=NEIGHBOUR, owner="u2"))
    flood = start(running, stream(database, "flood", 0, SECONDS, clients=clients, owner="u1"))
    found += arrive(running, stream(database, "beside", 0.5, SECONDS, rate=NEIGHBOUR, owner="u2"))
    found += results(flood)
    of = {
        name: [(status, took) for each, _, status, took in found if each == name]
        for name in ("quiet", "beside", "flood")
    }
    figures = {
        f"{name}_{percent}": percentile([took for _, took in of[name]], percent)
        for name in ("quiet", "beside")
        for percent in (50, 95)
    }
    answers = sum(status in (200, 404) for status, _ in of["flood"]) / SECONDS
    return {
        "clients": clients,
        **figures,
        "ratio": figures["beside_95"] / figures["quiet_95"],
        "failed": sum(status not in (200, 404) for status, _ in of["beside"]),
        "flood_answered": answers,
        "flood_refused": len(of["flood"]) / SECONDS - answers,
    }


def measure(database: BenchmarkDatabase, name: str, url: str, python: str) -> dict[str, Any]:
    """Measure one service with one distance to the database, in a new process for each measurement."""

    @contextmanager
    def warm() -> Iterator[Service]:
        with service(name, url, python=python) as running:
            arrive(running, stream(database, "warm", 0, 1, clients=10))
            yield running

    figures: dict[str, Any] = {"offered": {}}
    for times in OFFERED:
        with warm() as running:
            figures["offered"][str(times)] = found = offer(database, running, times)
        say(f"{times} times: " + ", ".join(f"{key} {value:.2f}" for key, value in found.items()))
    figures["neighbours"] = []
    for clients in FLOODS:
        with warm() as running:
            found = neighbour(database, running, clients)
        figures["neighbours"].append(found)
        say("neighbour: " + ", ".join(f"{key} {value:.1f}" for key, value in found.items()))
    return figures


def medians(runs: list[Any]) -> Any:  # noqa: ANN401  # of the same form as each run
    """Return the median of each figure."""
    if isinstance(runs[0], dict):
        return {key: medians([run[key] for run in runs]) for key in runs[0]}
    if isinstance(runs[0], list):
        return [*map(medians, map(list, zip(*runs, strict=True)))]
    return statistics.median(runs)


def main() -> None:
    """Run the benchmark and write its result into the documentation.

    Arguments like `far/ours` measure only that, and keep the other results of the last run. With the variable
    `BESIDE=1.0=/path/to/python`, another installation of the service is measured too, under the name 1.0.
    """
    services = {"ours": ("ours", sys.executable), "ceiling": ("ceiling", sys.executable)}
    if beside := os.environ.get("BESIDE"):
        label, _, python = beside.partition("=")
        services[label] = ("ours", python)
    wanted = sys.argv[1:] or [f"{way}/{label}" for way in report.WAYS for label in services]
    runs: dict[str, list[Any]] = {each: [] for each in wanted}
    found: dict[str, Any] = {way: {} for way in report.WAYS}
    if sys.argv[1:] and (kept := report.RESULTS / "load.json").exists():
        found |= json.loads(kept.read_text())["found"]
    with benchmark_database(USERS * 100) as database, relay(database.socket, ROUND_TRIP) as port:
        urls = {"far": database.url_through(port), "near": database.url}
        for each in wanted * RUNS:
            say(each)
            way, _, label = each.partition("/")
            name, python = services[label]
            runs[each].append(measure(database, name, urls[way], python))
            found[way][label] = medians(runs[each])
    result = {"machine": machine() | {"generator": "benchmarks/arrivals.py"}, "found": found}
    report.save("load", result)
    print(report.load(result))


if __name__ == "__main__":
    main()
