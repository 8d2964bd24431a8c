"""The six operations. Their docstrings are the API's documentation."""

from collections.abc import Mapping
from urllib.parse import quote

from fastapi import APIRouter, Response
from pydantic.alias_generators import to_camel

from todo_api.conditions import is_expected, is_known, list_tag, task_id_and_version, task_tag, versions_to_change
from todo_api.errors import TaskChanged
from todo_api.inputs import OwnerRequest
from todo_api.models import INVALID_STATUS
from todo_api.openapi import (
    CONDITIONS,
    CREATED_TASK,
    CURSOR_PARAMETER,
    DELETED,
    FOUND,
    KEY_PARAMETER,
    LIMIT_PARAMETER,
    LISTED,
    STATUS_PARAMETER,
    TASK,
    body_of,
    errors,
)
from todo_api.owner_route import OwnerRoute
from todo_api.paging import next_link

router = APIRouter(
    prefix="/api/{user_id}/tasks",
    tags=["tasks"],
    route_class=OwnerRoute,
    generate_unique_id_function=lambda route: to_camel(route.name),
)


class JSONText(Response):
    """JSON text from the database, sent unchanged."""

    media_type = "application/json"


def _task(task: str) -> Response:
    return JSONText(task, headers={"ETag": task_tag(*task_id_and_version(task))})


def _unless_known(request: OwnerRequest, text: str, headers: Mapping[str, str]) -> Response:
    """Answer a read, or 304 if the client has this version already; raise `TaskChanged` if it expects another."""
    if not is_expected(headers["ETag"], request.headers):
        raise TaskChanged
    if is_known(headers["ETag"], request.headers):
        return Response(status_code=304, headers={"ETag": headers["ETag"]})
    return JSONText(text, headers=headers)


_NO_USER = "User not found"
_NO_TASK = "Task not found"
_NO_ID = "Invalid task ID"


@router.get(
    "",
    responses=errors(INVALID_STATUS, _NO_USER, 412) | LISTED,
    openapi_extra={"parameters": [STATUS_PARAMETER, LIMIT_PARAMETER, CURSOR_PARAMETER, *CONDITIONS]},
)
async def list_tasks(request: OwnerRequest) -> Response:
    """List your tasks, newest first.

    Without a `limit` the response is the whole list, `[]` if it is empty. `status` selects the tasks with that status.

    With a `limit`, the response has at most that many tasks. If there are more, the header `Link: <…>; rel="next"` has
    the URL of the next page, with a `cursor`. A task that exists all the time is on exactly one of the pages.
    """
    status = request.status_filter()
    page = request.page(status)
    if page is None:
        listed, last = await request.tasks.list(status), None
    else:
        listed, last = await request.tasks.page(status, page.newest, page.limit)
    if page is None or last is None:
        return _unless_known(request, listed, {"ETag": list_tag(listed)})
    link = next_link(request.tasks.owner, status, page.limit, last)
    return _unless_known(request, listed, {"ETag": list_tag(listed, link), "Link": link})


@router.post(
    "",
    status_code=201,
    responses=errors("Title is required", _NO_USER, 409, 413) | CREATED_TASK,
    openapi_extra=body_of("TaskCreate") | {"parameters": [KEY_PARAMETER]},
)
async def create_task(request: OwnerRequest) -> Response:
    """Create a task; it starts `incomplete`.

    Texts are stored exactly as sent. Other fields are ignored, including `id`, `user_id` and `status`.

    With an `Idempotency-Key` it is safe to retry: as long as the task exists, the same key with the same title and
    description returns that task in its current state.
    """
    new, key = await request.new_task()
    tasks = request.tasks
    task, is_replay = await tasks.create_once(new, key) if key else (await tasks.create(new), False)
    task_id, version = task_id_and_version(task)
    root_path = quote(request.scope.get("root_path", ""))
    headers = {
        "Location": f"{root_path}/api/{quote(tasks.owner, safe='')}/tasks/{task_id}",
        "ETag": task_tag(task_id, version),
    }
    if is_replay:
        headers["Idempotency-Replayed"] = "true"
    return JSONText(task, status_code=201, headers=headers)


@router.get(
    "/{id}",
    responses=errors(_NO_ID, _NO_TASK, 412) | FOUND,
    openapi_extra={"parameters": CONDITIONS},
)
async def get_task(request: OwnerRequest) -> Response:
    """Get one of your tasks."""
    task = await request.tasks.get(request.task_id())
    return _unless_known(request, task, {"ETag": task_tag(*task_id_and_version(task))})


@router.put(
    "/{id}",
    responses=errors(_NO_ID, _NO_TASK, 412, 413) | TASK,
    openapi_extra=body_of("TaskUpdate") | {"parameters": CONDITIONS},
)
async def update_task(request: OwnerRequest) -> Response:
    """Change the fields that are present: `title`, `description` or `status`, at least one.

    Absent fields keep their values, and null clears the description. Set `status` to `incomplete` to reopen a task. Of
    concurrent updates of one field, the last one wins.

    With `If-Match` and the `ETag` of the version you have, a task that has changed since is left unchanged: 412.
    """
    task_id = request.task_id()
    changes = await request.changes()
    return _task(await request.tasks.update(task_id, changes, versions_to_change(task_id, request.headers)))


@router.delete(
    "/{id}",
    status_code=204,
    responses=errors(_NO_ID, _NO_TASK, 412) | DELETED,
    openapi_extra={"parameters": CONDITIONS},
)
async def delete_task(request: OwnerRequest) -> Response:
    """Delete one of your tasks. Deleting it again is a 404.

    With `If-Match` and the `ETag` of the version you have, a task that has changed since is left unchanged: 412.
    """
    task_id = request.task_id()
    await request.tasks.delete(task_id, versions_to_change(task_id, request.headers))
    return Response(status_code=204)


@router.patch(
    "/{id}/complete",
    responses=errors(_NO_ID, _NO_TASK, 412) | TASK,
    openapi_extra={"parameters": CONDITIONS},
)
async def complete_task(request: OwnerRequest) -> Response:
    """Set a task to `complete`.

    Repeating it changes nothing, not even `updated_at`, so it is safe to retry. A body is ignored.

    With `If-Match` and the `ETag` of the version you have, a task that has changed since is left unchanged: 412.
    """
    task_id = request.task_id()
    return _task(await request.tasks.complete(task_id, versions_to_change(task_id, request.headers)))
