"""The steps of scenario.ts, with the client that openapi-python-client generates."""

import os
import re
from typing import TypeVar

from generated_python import AuthenticatedClient
from generated_python.api.tasks import complete_task, create_task, delete_task, get_task, list_tasks, update_task
from generated_python.models import ListTasksStatus, TaskCreate, TaskPublic, TaskUpdate
from generated_python.types import UNSET

Data = TypeVar("Data")
user_id = os.environ["USER_ID"]
client = AuthenticatedClient(base_url=os.environ["TODO_API"], token=os.environ["TOKEN"])


def found(data: object, kind: type[Data]) -> Data:
    assert isinstance(data, kind), data
    return data


def listed(cursor: str = "", status: ListTasksStatus | None = None) -> tuple[list[TaskPublic], str]:
    answer = list_tasks.sync_detailed(user_id, client=client, limit=1, cursor=cursor or UNSET, status=status or UNSET)
    link = re.search("cursor=([^&>]+)", answer.headers.get("Link", ""))
    return found(answer.parsed, list), link[1] if link else ""


created = create_task.sync_detailed(user_id, client=client, body=TaskCreate(title="Buy milk"))
task, etag = found(created.parsed, TaskPublic), created.headers["ETag"]
print("created", int(created.status_code), task.title)

create_task.sync_detailed(user_id, client=client, body=TaskCreate(title="Water the plants", description=None))
first, cursor = listed()
print("paged", ", ".join(each.title for each in first + listed(cursor)[0]))

unchanged = get_task.sync_detailed(user_id, task.id, client=client, if_none_match=etag)
print("unchanged", int(unchanged.status_code))
updated = update_task.sync_detailed(
    user_id, task.id, client=client, body=TaskUpdate(description="Two litres"), if_match=etag
)
print("updated", int(updated.status_code), found(updated.parsed, TaskPublic).description)
refused = update_task.sync_detailed(
    user_id, task.id, client=client, body=TaskUpdate(title="Buy oat milk"), if_match=etag
)
print("refused", int(refused.status_code))
completed = complete_task.sync(user_id, task.id, client=client)
print("completed", found(completed, TaskPublic).status)
print("listed", ",".join(str(each.id == task.id).lower() for each in listed(status=ListTasksStatus.COMPLETE)[0]))
print("deleted", int(delete_task.sync_detailed(user_id, task.id, client=client).status_code))
print("gone", int(get_task.sync_detailed(user_id, task.id, client=client, if_none_match="*").status_code))
