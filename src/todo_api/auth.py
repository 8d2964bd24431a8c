"""The seam to the authentication layer: from whatever is plugged in to the owner of this request.

The service authenticates nobody. A configured backend says who is asking, or else a middleware around the application
has; without either, nobody is.
"""

import importlib
import logging
from typing import Annotated, Any, TypeGuard, cast

from fastapi import Depends, Path, Request
from starlette.authentication import AuthenticationBackend, AuthenticationError

from todo_api.errors import SettingsError, TaskNotFound, Unauthorized, UserNotFound
from todo_api.models import MAX_USER_ID, USER_ID_SCHEMA
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
        logger.warning("refused an identity that no path can address: %.300r", identity)
        raise Unauthorized
    return identity


async def own_tasks(request: Request, user_id: Annotated[str, Path(json_schema_extra=USER_ID_SCHEMA)]) -> TaskStore:
    """Open the tasks of whoever is asking, if the path names them.

    Raises `Unauthorized` where nobody is known to be asking. Under another user's path nothing exists.
    """
    owner = await _identify(request)
    if owner != user_id:
        raise TaskNotFound if "id" in request.path_params else UserNotFound
    return TaskStore(request.app.state.database, owner)


OwnTasks = Annotated[TaskStore, Depends(own_tasks)]
