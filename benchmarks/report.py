"""Writes the results as tables and plots into the documentation."""

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
PLOTS = DOCS / "performance"
RESULTS = Path(__file__).parent / "results"
WAYS = {"far": "The database 20 ms away", "near": "The database near"}
SINGLE = ("get", "create", "update", "complete", "delete")


def save(name: str, result: dict[str, Any], page_name: str = "performance.md") -> None:
    """Save a result as JSON, and write its tables between the marks in a page of the documentation."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    page = DOCS / page_name
    marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    page.write_text(marks.sub(lambda found: found[1] + TABLES[name](result) + found[2], page.read_text()))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"


def _median(samples: list[dict[str, float]], figure: str) -> float:
    return statistics.median(sample[figure] for sample in samples)


def _ratio(ours: list[dict[str, float]], others: list[dict[str, float]], figure: str) -> float:
    """Return the median of the ratios per round, inverted for costs so that more is better."""
    ratios = [mine[figure] / other[figure] for mine, other in zip(ours, others, strict=True)]
    return statistics.median(ratios if figure == "rate" else [1 / ratio for ratio in ratios])


def _growth(first: list[float], last: list[float]) -> float:
    return statistics.median(big / small for small, big in zip(first, last, strict=True))


def bench(result: dict[str, Any]) -> str:
    """Format the results of `make bench`."""
    samples = result["samples"]
    figures = table(
        ("operation", "", "requests/s", "API µs", "PostgreSQL µs", "p50 ms", "p99 ms", "p99 / p50", "round trips"),
        (
            (
                operation,
                name,
                f"{_median(rounds, 'rate'):.0f}",
                f"{_median(rounds, 'api'):.0f}",
                f"{_median(rounds, 'postgres'):.0f}",
                f"{_median(rounds, 'p50'):.2f}",
                f"{_median(rounds, 'p99'):.2f}",
                f"{statistics.median(each['p99'] / each['p50'] for each in rounds):.2f}",
                f"{result['round_trips'][name][operation]:g}",
            )
            for operation, services in samples.items()
            for name, rounds in services.items()
        ),
    )
    others = ("ceiling", "textbook", "floor")
    ratios = table(
        ("operation", *(f"{figure}, of the {other}" for figure in ("requests/s", "1 / API µs") for other in others)),
        (
            (operation, *(f"{_ratio(services['ours'], services[other], figure):.2f}"
                          for figure in ("rate", "api") for other in others))
            for operation, services in samples.items()
        ),
    )  # fmt: skip
    inside = result["in_process"]
    bare = table(
        ("in process", "µs a request", "of the bare FastAPI route"),
        ((name, f"{cost:.0f}", f"{cost / inside['FastAPI route']:.2f}") for name, cost in inside.items()),
    )
    start = result["start_up"]
    memory = ", ".join(f"{name} {result['idle'][name]:.0f} → {peak:.0f} MB" for name, peak in result["peak"].items())
    return (
        f"{result['rounds']} rounds of {result['seconds']} s with {result['clients']} clients, one worker each with 10 "
        f"connections; {_where(result)}\n\n{figures}\n{ratios}\n{bare}\n"
        f"Resident memory of a worker, idle → highest: {memory}.\n\n"
        f"From start to listening: {start['ours']:.2f} s, {start['ours'] / start['imports']:.2f} times "
        f"the bare imports ({start['imports']:.2f} s).\n"
    )


def _where(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return (
        f"{machine['date']}, {machine['processor']}, {machine['system']}, Python {machine['python']}, load by "
        f"{machine['generator']} on the same machine."
    )


def growth(result: dict[str, Any]) -> str:
    """Format the results of `make bench-growth`, and plot them."""
    _draw(result)
    distant = result["distant"]
    trip = distant["round_trip"]
    services = list(distant["operations"])
    far = table(
        ("operation", *(f"{name}: p50 in round trips" for name in services), "ours: p99 ms"),
        (
            (
                operation,
                *(f"{distant['operations'][name][operation]['p50'] / trip:.2f}" for name in services),
                f"{distant['operations']['ours'][operation]['p99']:.1f}",
            )
            for operation in distant["operations"]["ours"]
        ),
    )
    sizes = result["sizes"]
    steps = list(next(iter(sizes.values())))
    big = table(
        ("operation", *(f"{int(step):,} tasks" for step in steps), "last / first"),
        (
            (
                operation,
                *(f"{statistics.median(p50s):.2f} ms" for p50s in by_size.values()),
                f"{_growth(by_size[steps[0]], by_size[steps[-1]]):.2f}",
            )
            for operation, by_size in sizes.items()
        ),
    )
    lists = result["lists"]
    quiet = lists["quiet_p99"]
    long = table(
        ("tasks in the list", "p50 ms", "memory above idle, MB", "another user's p99 meanwhile, ms", "/ quiet"),
        (
            (
                f"{int(size):,}",
                f"{each['p50']:.1f}",
                f"{each['memory']:.0f}",
                f"{each['others_p99']:.1f}",
                f"{each['others_p99'] / quiet:.2f}",
            )
            for size, each in lists["sizes"].items()
        ),
    )
    clients = result["clients"]
    clients = table(
        ("clients", *(f"{name}, requests/s" for name in clients), *(f"{name}, p99 ms" for name in clients)),
        (
            (number, *(f"{clients[name][number]['rate']:.0f}" for name in clients),
             *(f"{clients[name][number]['p99']:.1f}" for name in clients))
            for number in next(iter(clients.values()))
        ),
    )  # fmt: skip
    return (
        f"{_where(result)}\n\n"
        f"### A database {trip:.1f} ms away\n\nOne client, {trip:.2f} ms to the database and back.\n\n{far}\n"
        f"### A growing table\n\np50 with one client.\n\n{big}\n"
        f"![p50 by the size of the table](performance/sizes.svg)\n\n"
        f"### Long lists\n\nThe other user has 4 clients reading single tasks; quiet, their p99 is {quiet:.1f} ms.\n\n"
        f"{long}\n![Lists by their length](performance/lists.svg)\n\n"
        f"### More clients, more workers\n\nReads of a single task.\n\n{clients}\n"
        f"![Throughput by clients](performance/clients.svg)\n"
    )


def engines(result: dict[str, Any]) -> str:
    """Format the result of `make bench-engines`, and draw its plot."""
    samples, machine, versions = result["samples"], result["machine"], result["versions"]
    names = list(next(iter(samples.values())))
    first, last = names[0], names[-1]
    _draw_bars(
        "engines",
        {name: [_median(rounds[name], "cpu") for rounds in samples.values()] for name in names},
        list(samples),
        "processor time of all servers, µs a statement",
    )
    costs = table(
        ("operation", *(f"{name}: µs" for name in names), f"{last} / {first}", *(f"{name}: p50 ms" for name in names)),
        (
            (
                operation,
                *(f"{_median(rounds[name], 'cpu'):.0f}" for name in names),
                f"{_ratio(rounds[first], rounds[last], 'cpu'):.1f}",
                *(f"{_median(rounds[name], 'p50'):.2f}" for name in names),
            )
            for operation, rounds in samples.items()
        ),
    )
    citus = versions["citus"].partition(" on ")[0]
    return (
        f"{result['rounds']} rounds of {result['statements']} statements on one connection, {result['users']} users "
        f"with 100 tasks each; PostgreSQL {versions['server']}, {citus} with a coordinator and two workers, all on one "
        f"machine; {machine['date']}, {machine['processor']}, {machine['system']}.\n\n{costs}\n"
        f"![Cost by engine](performance/engines.svg)\n"
    )


def _draw_bars(name: str, groups: dict[str, list[float]], labels: list[str], y: str) -> None:
    import matplotlib.pyplot as plt  # noqa: PLC0415  # takes a second to import, and only the plots need it

    plt.rcParams["svg.hashsalt"] = "todo-api"  # the same figures give the same file
    PLOTS.mkdir(exist_ok=True)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    width = 0.8 / len(groups)
    for number, (label, heights) in enumerate(groups.items()):
        axes.bar([place + number * width for place in range(len(labels))], heights, width, label=label)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(labels))], labels, rotation=20)
    axes.set(ylabel=y)
    axes.legend()
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(PLOTS / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def _draw(result: dict[str, Any]) -> None:
    import matplotlib.pyplot as plt  # noqa: PLC0415  # takes a second to import, and only this function needs it

    plt.rcParams["svg.hashsalt"] = "todo-api"  # the same figures give the same file
    PLOTS.mkdir(exist_ok=True)

    def plot(name: str, lines: dict[str, tuple[list[int], list[float]]], x: str, y: str, *, log: bool) -> None:
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        for label, (xs, ys) in lines.items():
            axes.plot(xs, ys, marker="o", label=label)
        axes.set(xlabel=x, ylabel=y, xscale="log")
        if log:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(PLOTS / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)

    plot(
        "sizes",
        {
            operation: ([int(size) for size in by_size], [statistics.median(p50s) for p50s in by_size.values()])
            for operation, by_size in result["sizes"].items()
        },
        "tasks in the table", "p50, ms", log=False,
    )  # fmt: skip
    sizes = result["lists"]["sizes"]
    xs = [int(size) for size in sizes]
    plot(
        "lists",
        {
            "time of the list, ms": (xs, [each["p50"] for each in sizes.values()]),
            "memory above idle, MB": (xs, [each["memory"] for each in sizes.values()]),
            "another user's p99, ms": (xs, [each["others_p99"] for each in sizes.values()]),
        },
        "tasks in the list", "", log=True,
    )  # fmt: skip
    plot(
        "clients",
        {
            name: ([int(number) for number in numbers], [each["rate"] for each in numbers.values()])
            for name, numbers in result["clients"].items()
        },
        "clients", "requests/s", log=False,
    )  # fmt: skip


def load(result: dict[str, Any]) -> str:
    """Format the results of `make bench-load`, and plot them."""
    _draw_load(result["found"])
    text = f"{_where(result)}\n"
    for way, services in result["found"].items():
        rush = table(
            ("", "offered, of the capacity", "requests/s", "capacity/s", "answered in 2 s, of the capacity", "p50 ms",
             "p95 ms", "refused", "p50 of that, ms", "no answer in 2 s", "itself again after s",
             "memory above idle, MB"),
            (
                (
                    name,
                    times,
                    f"{each['offered']:.0f}",
                    f"{each['capacity']:.0f}",
                    f"{each['goodput']:.2f}",
                    f"{each['p50']:.0f}",
                    f"{each['p95']:.0f}",
                    f"{each['refused']:.0%}",
                    f"{each['refused_p50']:.0f}" if each["refused"] else "",
                    f"{each['lost']:.0%}",
                    f"{each['recovery']:.1f}",
                    f"{each['memory']:.0f}",
                )
                for name, figures in services.items()
                for times, each in figures["offered"].items()
            ),
        )  # fmt: skip
        beside = table(
            ("", "clients of the flood", "quiet p50 ms", "p95 ms", "beside the flood p50 ms", "p95 ms", "p95 / quiet",
             "failed", "the flood: answered/s", "refused/s"),
            (
                (
                    name,
                    str(each["clients"]),
                    *(f"{each[figure]:.1f}" for figure in ("quiet_50", "quiet_95", "beside_50", "beside_95", "ratio")),
                    *(f"{each[figure]:.0f}" for figure in ("failed", "flood_answered", "flood_refused")),
                )
                for name, figures in services.items()
                for each in figures["neighbours"]
            ),
        )  # fmt: skip
        text += f"\n### {WAYS[way]}\n\n{rush}\nOne user beside another one's flood.\n\n{beside}"
    return f"{text}\n![Answers and waiting by offered load](performance/load.svg)\n"


def _draw_load(found: dict[str, Any]) -> None:
    import matplotlib.pyplot as plt  # noqa: PLC0415  # takes a second to import, and not every report has plots

    plt.rcParams["svg.hashsalt"] = "todo-api"  # the same figures give the same file
    PLOTS.mkdir(exist_ok=True)
    figure, rows = plt.subplots(2, len(found), figsize=(4 * len(found), 6), layout="constrained", squeeze=False)
    for column, (way, services) in enumerate(found.items()):
        for row, (figure_name, label) in enumerate(
            (("goodput", "answered in 2 s, of the capacity"), ("p95", "p95 of the answers, ms"))
        ):
            axes = rows[row][column]
            for name, figures in services.items():
                offered = figures["offered"]
                axes.plot([*map(float, offered)], [each[figure_name] for each in offered.values()], "o-", label=name)
            axes.set(xlabel="offered, of the capacity", ylabel=label, title=WAYS[way] if row == 0 else "")
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.legend()
    figure.savefig(PLOTS / "load.svg", metadata={"Date": None})
    plt.close(figure)


TABLES = {"bench": bench, "growth": growth, "load": load, "engines": engines}
