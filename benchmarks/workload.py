"""The requests of one operation for Locust, the same as `workload.lua` sends with wrk.

python workload.py URL CLIENTS SECONDS operation users tasks first-id-to-delete
"""

import json
import random
import statistics
import sys
from itertools import count
from typing import Any

from gevent import monkey

monkey.patch_all()

import gevent  # noqa: E402  # imported after patching
from locust import FastHttpUser  # noqa: E402  # imported after patching
from locust.env import Environment  # noqa: E402  # imported after patching

URL, CLIENTS, SECONDS, OPERATION, USERS, TASKS, TO_DELETE = sys.argv[1:]
METHODS = {"list": "GET", "get": "GET", "create": "POST", "update": "PUT", "complete": "PATCH", "delete": "DELETE"}
BODIES = {
    "create": {"title": "Buy milk", "description": "Two litres, and the good bread from the market"},
    "update": {"title": "Buy oat milk", "description": "Three litres"},
}
to_delete = count(int(TO_DELETE))


def target() -> tuple[str, str]:
    """Choose a user, and the rest of the path after `/tasks`."""
    if OPERATION in ("list", "create"):
        return f"{OPERATION[0].replace('l', 'u')}{random.randint(1, int(USERS))}", ""
    if OPERATION == "delete":
        return "d", f"/{next(to_delete)}"
    number = random.randint(1, int(TASKS))
    return f"u{(number - 1) % int(USERS) + 1}", f"/{number}" + ("/complete" if OPERATION == "complete" else "")


def ask(user: FastHttpUser) -> None:
    """Send one request."""
    owner, rest = target()
    headers = {"Authorization": f"Bearer {owner}"}
    path = f"/api/{owner}/tasks{rest}"
    user.client.request(METHODS[OPERATION], path, name=OPERATION, json=BODIES.get(OPERATION), headers=headers)


# Each client sends its next request as soon as the last one is answered.
Client = type("Client", (FastHttpUser,), {"host": URL, "tasks": [ask]})
environment = Environment(user_classes=[Client])
times: list[float] = []
events: Any = environment.events
events.request.add_listener(lambda response_time, **_: times.append(response_time * 1000))
runner = environment.create_local_runner()
runner.start(int(CLIENTS), spawn_rate=int(CLIENTS))
gevent.sleep(float(SECONDS))
runner.quit()
hundredths = statistics.quantiles(times, n=100)
result = {
    "requests": len(times),
    "microseconds": float(SECONDS) * 1e6,
    "p50": hundredths[49],
    "p99": hundredths[98],
    "failures": environment.stats.total.num_failures,
}
print("RESULT", json.dumps(result))
