"""The calls of concurrent clients to one keyed task, and a check that their history is linearizable."""

from dataclasses import dataclass
from functools import cache
from math import inf

# The stored task's id and status, or None if there is no task.
State = tuple[int, str] | None
UNSEEN = 0  # stands for the id of a task that no response contained


@dataclass(frozen=True)
class Call:
    """One request, its response, and the time of both.

    `task_id` is the task in the request, or for a create and a list the one in the response. `status` is the one in the
    response. A write answered with 500 may have been applied at any time after its start, or never.
    """

    operation: str  # create, complete, reopen, delete, get or list
    task_id: int
    started: float
    ended: float
    code: int
    status: str | None = None


def apply(call: Call, state: State, new_ids: frozenset[int]) -> list[State]:
    """List the states that may follow the call; none if its response is impossible in this state."""
    known = call.code < 500
    if call.operation == "create":
        after = [state] if state else [(task_id, "incomplete") for task_id in new_ids]
        return [new for new in after if not known or new == (call.task_id, call.status)]
    if call.operation == "list":
        return [state] if state == ((call.task_id, call.status) if call.status else None) else []
    if state is None or state[0] != call.task_id:
        return [state] if not known or call.code == 404 else []
    if call.code == 404:
        return []
    if call.operation == "delete":
        return [None]
    changed = {"complete": "complete", "reopen": "incomplete", "get": state[1]}[call.operation]
    return [(state[0], changed)] if not known or call.status == changed else []


def is_linearizable(calls: list[Call]) -> bool:
    """Tell whether some order of the calls explains all responses, each taking effect between its start and end."""
    calls = [call for call in calls if call.code < 500 or call.operation not in ("get", "list")]
    ends = [call.ended if call.code < 500 else inf for call in calls]
    ids = frozenset(call.task_id for call in calls) | {UNSEEN}

    @cache
    def search(left: frozenset[int], state: State, used: frozenset[int]) -> bool:
        if all(ends[n] == inf for n in left):
            return True
        latest = min(ends[n] for n in left)
        for n in left:
            if calls[n].started > latest:
                continue
            for after in apply(calls[n], state, ids - used):
                now_used = used | {after[0]} - {UNSEEN} if after else used
                if search(left - {n}, after, now_used):
                    return True
        return False

    return search(frozenset(range(len(calls))), None, frozenset())
