"""The six operations. Their docstrings are the API's documentation."""

import json
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from pydantic.alias_generators import to_camel

from todo_api.auth import OwnerRoute, OwnTasks
from todo_api.inputs import NewTask, StatusFilter, TaskChanges, TaskId
from todo_api.models import INVALID_STATUS, TaskPublic
from todo_api.openapi import CREATED_HEADERS, KEY_PARAMETER, STATUS_PARAMETER, body_of, errors

router = APIRouter(
    prefix="/api/{user_id}/tasks",
    tags=["tasks"],
    route_class=OwnerRoute,
    generate_unique_id_function=lambda route: to_camel(route.name),
)


class TaskResponse(Response):
    """JSON text, sent as the database wrote it."""

    media_type = "application/json"


_NO_USER = "User not found"
_NO_TASK = "Task not found"
_NO_ID = "Invalid task ID"


@router.get(
    "",
    response_model=list[TaskPublic],
    responses=errors(INVALID_STATUS, _NO_USER),
    openapi_extra={"parameters": [STATUS_PARAMETER]},
)
async def list_tasks(tasks: OwnTasks, status: StatusFilter) -> Response:
    """List your tasks, newest first.

    The whole list comes back, never a part of it; `[]` when it is empty. `status` keeps only the tasks in that status.
    """
    return TaskResponse(await tasks.list(status))


@router.post(
    "",
    status_code=201,
    response_model=TaskPublic,
    responses=errors("Title is required", _NO_USER, 409, 413) | {201: {"headers": CREATED_HEADERS}},
    openapi_extra=body_of("TaskCreate") | {"parameters": [KEY_PARAMETER]},
)
async def create_task(tasks: OwnTasks, new: NewTask, request: Request) -> Response:
    """Create a task; it starts `incomplete`.

    Texts are stored exactly as sent. Unknown fields are ignored, `id`, `user_id` and `status` among them.

    With an `Idempotency-Key` it is safe to ask again: as long as the task lives, the same key with the same title and
    description answers with that task as it now is.
    """
    task, key = new
    created, is_replay = await tasks.create_once(task, key) if key else (await tasks.create(task), False)
    owner = quote(request.path_params["user_id"], safe="")
    location = f"{quote(request.scope.get('root_path', ''))}/api/{owner}/tasks/{json.loads(created)['id']}"
    headers = {"Location": location} | ({"Idempotency-Replayed": "true"} if is_replay else {})
    return TaskResponse(created, status_code=201, headers=headers)


@router.get("/{id}", response_model=TaskPublic, responses=errors(_NO_ID, _NO_TASK))
async def get_task(task_id: TaskId, tasks: OwnTasks) -> Response:
    """Get one of your tasks."""
    return TaskResponse(await tasks.get(task_id))


@router.put(
    "/{id}",
    response_model=TaskPublic,
    responses=errors(_NO_ID, _NO_TASK, 413),
    openapi_extra=body_of("TaskUpdate"),
)
async def update_task(task_id: TaskId, tasks: OwnTasks, changes: TaskChanges) -> Response:
    """Change the fields that are present: `title`, `description` or `status`, at least one.

    Absent fields keep their values, and null clears the description. `status` is the way to reopen a task. Of
    concurrent updates the last one wins, field by field.
    """
    return TaskResponse(await tasks.update(task_id, changes))


@router.delete("/{id}", status_code=204, responses=errors(_NO_ID, _NO_TASK))
async def delete_task(task_id: TaskId, tasks: OwnTasks) -> Response:
    """Delete one of your tasks. A second time it is not found."""
    await tasks.delete(task_id)
    return Response(status_code=204)


@router.patch("/{id}/complete", response_model=TaskPublic, responses=errors(_NO_ID, _NO_TASK))
async def complete_task(task_id: TaskId, tasks: OwnTasks) -> Response:
    """Set a task to `complete`.

    Repeating it changes nothing, `updated_at` included, so it is safe to retry. A body is ignored.
    """
    return TaskResponse(await tasks.complete(task_id))
