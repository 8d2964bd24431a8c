"""The six operations. Their docstrings are the API's documentation."""

import json
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from pydantic.alias_generators import to_camel

from todo_api.auth import OwnerRoute, OwnTasks
from todo_api.conditions import expected_versions, is_known, list_tag, task_tag
from todo_api.inputs import NewTask, Selection, TaskChanges, TaskId
from todo_api.models import INVALID_STATUS, TaskPublic
from todo_api.openapi import (
    CREATED_HEADERS,
    IF_MATCH_PARAMETER,
    IF_NONE_MATCH_PARAMETER,
    KEY_PARAMETER,
    LIMIT_PARAMETER,
    LISTED,
    READ,
    STATUS_PARAMETER,
    TAGGED,
    body_of,
    errors,
)
from todo_api.paging import next_link

router = APIRouter(
    prefix="/api/{user_id}/tasks",
    tags=["tasks"],
    route_class=OwnerRoute,
    generate_unique_id_function=lambda route: to_camel(route.name),
)


class TaskResponse(Response):
    """JSON text, sent as the database wrote it."""

    media_type = "application/json"


def _unless_known(request: Request, answer: str, headers: dict[str, str]) -> Response:
    """Send what was read, unless the client has it already."""
    if is_known(headers["ETag"], request.headers):
        return Response(status_code=304, headers={"ETag": headers["ETag"]})
    return TaskResponse(answer, headers=headers)


_NO_USER = "User not found"
_NO_TASK = "Task not found"
_NO_ID = "Invalid task ID"


@router.get(
    "",
    response_model=list[TaskPublic],
    responses=errors(INVALID_STATUS, _NO_USER) | LISTED,
    openapi_extra={"parameters": [STATUS_PARAMETER, LIMIT_PARAMETER, IF_NONE_MATCH_PARAMETER]},
)
async def list_tasks(tasks: OwnTasks, selection: Selection, request: Request) -> Response:
    """List your tasks, newest first.

    The whole list comes back, never a part of it; `[]` when it is empty. `status` keeps only the tasks in that status.

    With a `limit`, at most so many tasks come back. Where there are more, the header `Link: <…>; rel="next"` leads to
    them, by a `cursor` of its own. A task that is there all the while is on exactly one of the pages.
    """
    status, page = selection
    if page is None:
        listed = await tasks.list(status)
        return _unless_known(request, listed, {"ETag": list_tag(listed)})
    listed, last = await tasks.page(status, page.newest, page.limit)
    if last is None:
        return _unless_known(request, listed, {"ETag": list_tag(listed)})
    link = next_link(request.path_params["user_id"], status, page.limit, last)
    return _unless_known(request, listed, {"ETag": list_tag(listed, link), "Link": link})


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
    headers = {"Location": location, "ETag": task_tag(created)} | (
        {"Idempotency-Replayed": "true"} if is_replay else {}
    )
    return TaskResponse(created, status_code=201, headers=headers)


@router.get(
    "/{id}",
    response_model=TaskPublic,
    responses=errors(_NO_ID, _NO_TASK) | READ,
    openapi_extra={"parameters": [IF_NONE_MATCH_PARAMETER]},
)
async def get_task(task_id: TaskId, tasks: OwnTasks, request: Request) -> Response:
    """Get one of your tasks."""
    task = await tasks.get(task_id)
    return _unless_known(request, task, {"ETag": task_tag(task)})


@router.put(
    "/{id}",
    response_model=TaskPublic,
    responses=errors(_NO_ID, _NO_TASK, 412, 413) | TAGGED,
    openapi_extra=body_of("TaskUpdate") | {"parameters": [IF_MATCH_PARAMETER]},
)
async def update_task(task_id: TaskId, tasks: OwnTasks, changes: TaskChanges, request: Request) -> Response:
    """Change the fields that are present: `title`, `description` or `status`, at least one.

    Absent fields keep their values, and null clears the description. `status` is the way to reopen a task. Of
    concurrent updates the last one wins, field by field.

    With `If-Match` and the `ETag` of the version you know, a task that has changed since is left as it is, with a 412.
    """
    task = await tasks.update(task_id, changes, expected_versions(task_id, request.headers))
    return TaskResponse(task, headers={"ETag": task_tag(task)})


@router.delete(
    "/{id}",
    status_code=204,
    responses=errors(_NO_ID, _NO_TASK, 412),
    openapi_extra={"parameters": [IF_MATCH_PARAMETER]},
)
async def delete_task(task_id: TaskId, tasks: OwnTasks, request: Request) -> Response:
    """Delete one of your tasks. A second time it is not found.

    With `If-Match` and the `ETag` of the version you know, a task that has changed since is left as it is, with a 412.
    """
    await tasks.delete(task_id, expected_versions(task_id, request.headers))
    return Response(status_code=204)


@router.patch(
    "/{id}/complete",
    response_model=TaskPublic,
    responses=errors(_NO_ID, _NO_TASK, 412) | TAGGED,
    openapi_extra={"parameters": [IF_MATCH_PARAMETER]},
)
async def complete_task(task_id: TaskId, tasks: OwnTasks, request: Request) -> Response:
    """Set a task to `complete`.

    Repeating it changes nothing, `updated_at` included, so it is safe to retry. A body is ignored.

    With `If-Match` and the `ETag` of the version you know, a task that has changed since is left as it is, with a 412.
    """
    task = await tasks.complete(task_id, expected_versions(task_id, request.headers))
    return TaskResponse(task, headers={"ETag": task_tag(task)})
