"""What concurrent clients did to one keyed task, and whether any order of it explains what they saw."""

from dataclasses import dataclass
from functools import cache
from math import inf

# What is stored: the task's id and status, or None without a task.
State = tuple[int, str] | None
UNSEEN = 0  # the id of a task that no client saw


@dataclass(frozen=True)
class Call:
    """One request: what was asked, when, and what was answered.

    `task_id` is the task asked about, or for a create the one it answered with. `status` is the task's, in the answer.
    A write that was answered 500 may have been applied at any time after its start, or never.
    """

    operation: str  # create, complete, reopen, delete or get
    task_id: int
    started: float
    ended: float
    code: int
    status: str | None = None


def apply(call: Call, state: State, new_ids: frozenset[int]) -> list[State]:
    """Name the states that the call may leave behind, none if it cannot have been answered so in this one."""
    known = call.code < 500
    if call.operation == "create":
        after = [state] if state else [(task_id, "incomplete") for task_id in new_ids]
        return [new for new in after if not known or new == (call.task_id, call.status)]
    if state is None or state[0] != call.task_id:
        return [state] if not known or call.code == 404 else []
    if call.code == 404:
        return []
    if call.operation == "delete":
        return [None]
    changed = {"complete": "complete", "reopen": "incomplete", "get": state[1]}[call.operation]
    return [(state[0], changed)] if not known or call.status == changed else []


def is_linearizable(calls: list[Call]) -> bool:
    """Tell whether some order of the calls explains all answers, each taking effect between its start and its end."""
    calls = [call for call in calls if call.code < 500 or call.operation != "get"]
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
