"""The seam to the authentication layer: from whatever is plugged in to the owner of this request.

The service authenticates nobody. A configured backend says who is asking, or else a middleware around the application
has; without either, nobody is.
"""

import importlib
import logging
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeGuard, cast

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from starlette.authentication import AuthenticationBackend, AuthenticationError

from todo_api.errors import SettingsError, TaskNotFound, Unauthorized, UserNotFound
from todo_api.models import MAX_USER_ID
from todo_api.tasks import TaskStore

logger = logging.getLogger(__name__)


def load_backend(import_string: str) -> AuthenticationBackend:
    """Load the backend that `package.module:name` names: a class, an instance or a factory.

    Raises `SettingsError` where there is none.
    """
    module, _, name = import_string.partition(":")
    try:
        backend: Any = importlib.import_module(module)
        for part in name.split("."):
            backend = getattr(backend, part)
        if isinstance(backend, type) or not hasattr(backend, "authenticate"):
            backend = backend()
    except Exception as error:  # whatever the plugged-in code raises, the operator gets one sentence
        raise SettingsError(f"AUTH_BACKEND cannot be loaded from {import_string}: {error!r}.") from error
    if not hasattr(backend, "authenticate"):
        raise SettingsError(f"AUTH_BACKEND {import_string} is not an authentication backend: it has no authenticate().")
    return cast("AuthenticationBackend", backend)


def is_addressable(identity: object) -> TypeGuard[str]:
    """Tell whether a path `/api/{user_id}/…` can name this identity."""
    return (
        isinstance(identity, str)
        and 0 < len(identity) <= MAX_USER_ID
        and identity not in (".", "..")
        and not any(character in "/\0" or "\ud800" <= character <= "\udfff" for character in identity)
    )


async def _identify(request: Request) -> str:
    backend: AuthenticationBackend | None = request.app.state.auth_backend
    if backend is None:
        user = request.scope.get("user")
    else:
        try:
            result = await backend.authenticate(request)
        except AuthenticationError as error:
            raise Unauthorized from error
        user = None if result is None else result[1]
    if user is None or not user.is_authenticated:
        raise Unauthorized
    identity = user.identity
    if not is_addressable(identity):
        # Not what it holds: a layer that went wrong may have put a token there.
        what = f"{len(identity)} characters" if isinstance(identity, str) else type(identity).__name__
        logger.warning("refused an identity that no path can address: %s", what)
        raise Unauthorized
    return identity


class OwnerRoute(APIRoute):
    """Find out who is asking before anything else of the request is looked at.

    A route of the six operations, so that one added later is guarded before anyone remembers to. Raises `Unauthorized`
    where nobody is known to be asking. Under another user's path nothing exists.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Give the handler the tasks of whoever is asking, if the path names them."""
        handle = super().get_route_handler()

        async def handle_for_owner(request: Request) -> Response:
            owner = await _identify(request)
            if owner != request.path_params["user_id"]:
                raise TaskNotFound if "id" in request.path_params else UserNotFound
            request.state.tasks = TaskStore(request.app.state.database, owner)
            return await handle(request)

        return handle_for_owner


async def _own_tasks(request: Request) -> TaskStore:
    tasks: TaskStore = request.state.tasks
    return tasks


OwnTasks = Annotated[TaskStore, Depends(_own_tasks)]
