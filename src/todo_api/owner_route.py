"""The route class of the six operations: it authenticates the owner and calls the endpoint."""

from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from todo_api.auth import identify
from todo_api.errors import TaskNotFound, UserNotFound
from todo_api.inputs import Disconnect, OwnerRequest
from todo_api.tasks import TaskStore


class OwnerRoute(APIRoute):
    """A route that only the owner in its path can use, so that no endpoint has to check.

    The endpoint takes one `OwnerRequest` and returns a `Response`. FastAPI documents the route like any other, but does
    not run dependencies and response models, which cost more than the rest of the request. Query, id and body are not
    read before the owner is authenticated. Raises `Unauthorized`, and if the path is another user's, `UserNotFound` or
    `TaskNotFound`.
    """

    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:  # noqa: ANN401  # passed through unchanged
        super().__init__(path, endpoint, **options)
        self.app = self._serve
        self.methods_elsewhere: set[str] = set()  # those of other routes with the same path

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match a request; quickly refuse a method for which another route has the same path."""
        if scope.get("method") in self.methods_elsewhere:
            return Match.NONE, {}
        return super().matches(scope)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = OwnerRequest(scope, receive, send)
        owner = await identify(request)
        if owner != request.path_params["user_id"]:
            raise TaskNotFound if "id" in request.path_params else UserNotFound
        request.tasks = TaskStore(request.app.state.database, owner, Disconnect(scope, receive))
        response = await self.endpoint(request)
        await response(scope, receive, send)
