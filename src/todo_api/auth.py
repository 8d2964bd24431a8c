"""Finds the owner of a request, by the authentication backend or by `scope["user"]`.

The service has no authentication of its own. If no backend is configured, a middleware around the application has to
set `scope["user"]`; without either, every request is unauthenticated.
"""

import importlib
import inspect
import logging
import re
from typing import Any, TypeGuard, cast

from fastapi import Request
from starlette.authentication import AuthenticationBackend, AuthenticationError
from starlette.exceptions import HTTPException

from todo_api.errors import SettingsError, Unauthorized
from todo_api.models import MAX_USER_ID

logger = logging.getLogger(__name__)
_UNADDRESSABLE = re.compile("[/\0\ud800-\udfff]")


def load_backend(import_string: str) -> AuthenticationBackend:
    """Load the backend that `package.module:name` names: a class, an instance or a factory.

    Raises `SettingsError` if it cannot be loaded.
    """
    module, _, name = import_string.partition(":")
    try:
        backend: Any = importlib.import_module(module)
        for part in name.split("."):
            backend = getattr(backend, part)
        if isinstance(backend, type) or not hasattr(backend, "authenticate"):
            backend = backend()
    except Exception as error:  # any error in the backend's code is reported to the operator in one line
        raise SettingsError(f"AUTH_BACKEND cannot be loaded from {import_string}: {error!r}.") from error
    return checked_backend(backend, f"AUTH_BACKEND {import_string}")


def checked_backend(backend: object, name: str) -> AuthenticationBackend:
    """Return the backend if it has an asynchronous `authenticate()`; otherwise raise `SettingsError` with `name`."""
    if isinstance(backend, type) or not inspect.iscoroutinefunction(getattr(backend, "authenticate", None)):
        raise SettingsError(f"{name} is not an authentication backend: it has no coroutine function authenticate().")
    return cast("AuthenticationBackend", backend)


def is_rejection(error: BaseException) -> bool:
    """Tell whether an error means that credentials were rejected: `AuthenticationError`, or a 401 or 403."""
    if isinstance(error, HTTPException):
        return error.status_code in (401, 403)
    return isinstance(error, AuthenticationError)


def reason(error: BaseException) -> str:
    """Name the types of an error and of its cause, without their messages, which may contain credentials."""
    return type(error).__name__ + (f" from {type(error.__cause__).__name__}" if error.__cause__ else "")


def is_addressable(identity: object) -> TypeGuard[str]:
    """Tell whether a path `/api/{user_id}/…` can name this identity."""
    return (
        isinstance(identity, str)
        and 0 < len(identity) <= MAX_USER_ID
        and identity not in (".", "..")
        and not _UNADDRESSABLE.search(identity)
    )


async def identify(request: Request) -> str:
    """Authenticate a request and return its user's id, the owner of the tasks. Raises `Unauthorized`."""
    backend: AuthenticationBackend | None = request.app.state.auth_backend
    if backend is None:
        user = request.scope.get("user")
    else:
        try:
            result = await backend.authenticate(request)
        except (AuthenticationError, HTTPException) as error:
            if not is_rejection(error):
                raise RuntimeError("the authentication layer failed") from error
            logger.info("rejected by the authentication layer: %s", reason(error))
            raise Unauthorized from error
        user = None if result is None else result[1]
    if user is None:
        raise Unauthorized
    authenticated = getattr(user, "is_authenticated", None)
    if authenticated is not True:
        if authenticated is not False:
            logger.warning("refused a user whose is_authenticated is no boolean: %s", type(authenticated).__name__)
        raise Unauthorized
    owner = _identity(user)
    if not is_addressable(owner):
        # The value is not logged, because a faulty backend may have put a token there.
        what = f"{len(owner)} characters" if isinstance(owner, str) else type(owner).__name__
        logger.warning("refused an identity that no path can address: %s", what)
        raise Unauthorized
    return owner


def _identity(user: Any) -> object:  # noqa: ANN401  # its type is up to the backend
    try:
        return user.identity
    except (AttributeError, NotImplementedError):  # Starlette's `BaseUser` raises the latter
        return None
